"""The README's table of faults, measured: each fault alone in small worlds, beside worlds without any.

Law: what stands in a line was counted or timed in the worlds of that line, in virtual time; nothing is written down by
hand but where a machine's own log is the only place in which a fault can be read, for the journal cannot know of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from subnet.simulation.bench_table import fill
from subnet.simulation.faults import FaultName
from subnet.simulation.storms import NO_FAULT, Outcome, outcomes_of

MARKS = "<!-- faults:begin -->", "<!-- faults:end -->"
SEEDS = 20
FAULTS_PER_WORLD = 4
OWN_LOG: dict[str, str] = {
    FaultName.DROP: "its own log: unavailable",
    FaultName.PARTITION: "its own log: unavailable",
    FaultName.CHAIN_OUTAGE: "the validator's log: chain-away",
    FaultName.ORCHESTRATOR_CRASH: "every miner's log: unavailable; the operator: the journal was replayed",
    FaultName.FULL_DISK: "its operator: one line that names the disk",
}
HEAD = (
    "| fault | injected | survived | passes lost | goodput | longest from its end to the next credited pass"
    " | who is told what |",
    "|---|---:|---:|---:|---:|---:|---|",
)


def main(seeds: int, processes: int, date: str, readme: Path | None = None) -> int:
    """Print the table of `seeds` worlds a line, and put it into `readme`. 0: every promise held in all of them."""
    calm = list(outcomes_of(range(seeds), processes, NO_FAULT))
    lines, broken = [_line("none", calm, Counter())], [outcome for outcome in calm if outcome.broken]
    usual = _told(calm)
    for name in FaultName:
        outcomes = list(outcomes_of(range(seeds), processes, name, FAULTS_PER_WORLD))
        lines.append(_line(name, outcomes, usual))
        broken += [outcome for outcome in outcomes if outcome.broken]
    said = f"Measured {date} with `python -m subnet.simulation --table --seeds {seeds}`: {seeds} small worlds a line,"
    said += f" up to {FAULTS_PER_WORLD} faults of that kind in each; seconds are virtual."
    block = "\n".join((said, "", *HEAD, *lines))
    print(block)
    if readme is not None:
        readme.write_text(fill(readme.read_text(encoding="utf-8"), block, MARKS), encoding="utf-8")
    for outcome in broken:
        print(f"seed {outcome.seed}: {outcome.broken}")
    return 1 if broken else 0


def _line(name: str, outcomes: Sequence[Outcome], usual: Counter[str]) -> str:
    count = partial(_count, name)
    injected = sum(map(count, outcomes))
    survived = sum(count(outcome) for outcome in outcomes if not outcome.broken)
    lost = sum(outcome.passes_lost for outcome in outcomes)
    goodput = sum(o.passes_merged for o in outcomes) / max(1, sum(o.passes_started for o in outcomes))
    longest_s = max((outcome.recovery_s.get(name, 0.0) for outcome in outcomes), default=0.0)
    told = [said for said in sorted(_told(outcomes)) if said not in usual]
    if name in OWN_LOG:
        told.append(OWN_LOG[name])
    told = told or ["nobody: there is nothing to do"]
    figures = (
        f"{injected} | {survived} | {lost} | {goodput:.0%} | {longest_s:.1f} s"
        if name != "none"
        else (f"| | {lost} | {goodput:.0%} |")
    )
    return f"| {name} | {figures} | {'; '.join(told)} |"


def _count(name: str, outcome: Outcome) -> int:
    return outcome.injected.get(name, 0)


def _told(outcomes: Sequence[Outcome]) -> Counter[str]:
    return sum((Counter(outcome.reasons) for outcome in outcomes), Counter())
