"""The table of `make bench`: rows from the figures, as text for a terminal and as Markdown for the README.

Law: pure; the same bench.json gives the same table. A figure with a target says whether it is met; a quick run's
targets that need a whole run are left unjudged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from statistics import mean

from subnet.errors import ConfigError
from subnet.simulation.bench_figures import Bench, Efficiency, Learning, Row, Trust, Wire

EFFICIENCY_MIN = 0.6
DRIFT_MAX = 0.2
"""Above it the machine had other work, and speeds say little: measure again."""
VS_REFERENCE_MAX = 1.05
BELOW_UNIGRAM_MIN = 0.5
FIRST_MICRO_BATCH_MAX_S = 60.0
RUN_MAX_S = 240.0
EPOCHS_MIN = 3
MINER_MAX_MB = 600
ORCHESTRATOR_MAX_MB = 180
AUDIT_COST_MAX = 0.05
PAYOUT_R_MIN = 0.99
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

_WIRE_NAMES = {
    "boundary": "boundaries, forward",
    "gradient": "gradients of boundaries, back",
    "upload": "uploads (pseudo-gradients)",
    "reduced": "reduced shards",
    "anchor": "merged parameters and outer momentum",
}


def rows(bench: Bench) -> list[Row]:
    """The whole table."""
    judged = not bench.quick
    found: list[Row] = []
    for one in bench.efficiency:
        found += _efficiency(one, judged)
    found += _learning(bench.learning, judged)
    found += _launch(bench, judged)
    found += _trust(bench.trust, judged)
    found += _wire(bench.wire)
    big = bench.wire_128x
    batch, length = big.micro_batch
    section = f"Boundary of a large model, by arithmetic: D = {big.d_model}, B = {batch}, T = {length}, int8"
    limit = 2 * big.d_model / 128
    found += [
        _row(section, f"bytes a token at K = {big.width}", big.bytes_per_token, f"{big.bytes_per_token:.2f}",
             f"≤ {limit:g}", big.bytes_per_token <= limit),
        _row(section, "ratio against bf16, each way", big.ratio_vs_bf16, f"{big.ratio_vs_bf16:.1f}x", "≥ 128x",
             big.ratio_vs_bf16 >= 128),
        _row(section, "ratio against fp32, each way", 2 * big.ratio_vs_bf16, f"{2 * big.ratio_vs_bf16:.1f}x"),
    ]  # fmt: skip
    return found


def _row(section: str, name: str, value: float, shown: str, target: str = "", met: bool | None = None) -> Row:
    return Row(section=section, name=name, value=value, shown=shown, target=target, met=met)


def _efficiency(one: Efficiency, judged: bool) -> Iterator[Row]:
    batch, length = one.micro_batch
    section = (
        f"Speed, preset {one.preset}: {one.miners} miners on {one.stages} stages, "
        f"{one.num_params / 1e6:.2f}M parameters ({one.baseline_num_params / 1e6:.2f}M uncut), "
        f"micro-batches of {batch} x {length}"
    )
    for name, speeds in one.baselines.items():
        course = ", ".join(f"{speed:,.0f}" for speed in speeds)
        yield _row(section, f"{name}: before, after", mean(speeds), f"{course} tokens/s")
    yield _row(section, "drift of the faster one", one.drift, f"{one.drift:.0%}", f"≤ {DRIFT_MAX:.0%}",
               one.drift <= DRIFT_MAX)  # fmt: skip
    speed, events = one.swarm_tokens_per_s, f"{one.merges} merges, {one.journal_records:,} journal records"
    yield _row(section, f"swarm: {events}", speed, f"{speed:,.0f} tokens/s")
    ratio = one.ratio
    met = ratio >= EFFICIENCY_MIN if judged else None
    yield _row(section, f"swarm ÷ {one.fastest_baseline[0]}", ratio, f"{ratio:.2f}", f"≥ {EFFICIENCY_MIN:g}", met)


def _learning(learning: Learning, judged: bool) -> Iterator[Row]:
    section = f"Held-out loss after {learning.tokens:,} tokens, nats/token"
    losses = [
        ("swarm, merged", learning.swarm),
        ("reference: same cut, bottleneck and quantiser in one process", learning.reference),
        ("reference with the replicas' joint batch per step", learning.reference_swarm_batch),
        ("uncompressed reference: the model uncut", learning.uncompressed),
        ("control: nothing crosses but the side information (K = 0)", learning.control),
        ("unigram entropy", learning.unigram_entropy),
    ]
    for name, loss in losses:
        yield _row(section, name, loss, f"{loss:.3f}")
    vs, below, control = learning.swarm_vs_reference, learning.below_unigram, learning.control_vs_reference
    met = vs <= VS_REFERENCE_MAX if judged else None
    yield _row(section, "swarm ÷ reference", vs, f"{vs:.3f}", f"≤ {VS_REFERENCE_MAX:g}", met)
    joint = learning.swarm / learning.reference_swarm_batch
    yield _row(section, "swarm ÷ reference with the joint batch", joint, f"{joint:.3f}")
    met = below >= BELOW_UNIGRAM_MIN if judged else None
    yield _row(section, "swarm below unigram entropy", below, f"{below:.2f} nats", f"≥ {BELOW_UNIGRAM_MIN:g}", met)
    yield _row(section, "control ÷ reference", control, f"{control:.3f}")


def _launch(bench: Bench, judged: bool) -> Iterator[Row]:
    launch, section = bench.launch, "The default run from its start, text not yet prepared"

    def limited(name: str, value: float, shown: str, limit: float, unit: str, by_size: bool = False) -> Row:
        met = value <= limit if judged or by_size else None
        return _row(section, name, value, shown, f"≤ {limit:g} {unit}", met)

    first = launch.first_micro_batch_s
    yield limited("first trained micro-batch after the launch", first, f"{first:.0f} s", FIRST_MICRO_BATCH_MAX_S, "s")
    yield limited("launch to report", launch.wall_s, f"{launch.wall_s:.0f} s", RUN_MAX_S, "s")
    met = launch.epochs >= EPOCHS_MIN if judged else None
    yield _row(section, "epochs", launch.epochs, f"{launch.epochs}", f"≥ {EPOCHS_MIN}", met)
    size = launch.largest_miner_mb
    yield limited("memory of the largest miner (peak RSS)", size, f"{size} MB", MINER_MAX_MB, "MB", by_size=True)
    size = launch.orchestrator_mb
    yield limited("memory of the orchestrator (peak RSS)", size, f"{size} MB", ORCHESTRATOR_MAX_MB, "MB", by_size=True)
    loads = launch.orchestrator_loads_torch
    yield _row(section, "orchestrator imports torch", float(loads), "yes" if loads else "no", "no", not loads)


def _trust(trust: Trust, judged: bool) -> Iterator[Row]:
    section = "Trust and pay: audits of the default run at its rate, and a run of miners that differ in speed"
    share = trust.audit_cost_share
    met = share <= AUDIT_COST_MAX if judged else None
    yield _row(section, "audits: seconds of replay ÷ seconds of training", share, f"{share:.1%}",
               f"≤ {AUDIT_COST_MAX:.0%}", met)  # fmt: skip
    verdicts = f"{trust.audits_passed}, {trust.audits_failed}, {trust.audits_without_verdict}"
    yield _row(section, "audits of honest miners: passed, failed, without verdict", trust.audits_failed, verdicts,
               "0 failed", trust.audits_failed == 0)  # fmt: skip
    about = f"{trust.speeds_miners} miners, speeds {trust.speeds}: r of"
    r = trust.weights_vs_work
    met = r >= PAYOUT_R_MIN if judged else None
    yield _row(section, f"{about} weights and verified work", r, f"{r:.4f}", f"≥ {PAYOUT_R_MIN:g}", met)
    r = trust.incentive_vs_work
    met = r >= PAYOUT_R_MIN if judged else None
    yield _row(section, f"{about} the chain's incentive and verified work", r, f"{r:.4f}", f"≥ {PAYOUT_R_MIN:g}", met)


def _wire(wire: Wire) -> Iterator[Row]:
    section = f"Bytes a trained token: objects written in the default run, framing included (D = {wire.d_model})"
    for kind, size in wire.bytes_per_token.items():
        yield _row(section, _WIRE_NAMES.get(kind, kind), size, f"{size:.1f}")
    journal = wire.journal_bytes / wire.tokens
    yield _row(section, "journal on disk", journal, f"{journal:.1f}")
    for kind, way in (("boundary", "forward"), ("gradient", "back")):
        bf16, fp32 = wire.ratio(kind, 2), wire.ratio(kind, 4)
        yield _row(section, f"one link {way}, K = {wire.width}: ratio against bf16 (fp32)", bf16,
                   f"{bf16:.1f}x ({fp32:.1f}x)")  # fmt: skip


# ---- as text ---------------------------------------------------------------------------------------------------------


def _verdict(row: Row) -> str:
    return "" if row.met is None else "met" if row.met else "MISSED"


def text_table(table: Sequence[Row]) -> str:
    """Sections with aligned columns: figure, value, target, verdict."""
    names = max(len(row.name) for row in table)
    values = max(len(row.shown) for row in table)
    targets = max(len(row.target) for row in table)
    lines = []
    for section, members in groupby(table, key=lambda row: row.section):
        lines += ["", section]
        for row in members:
            cells = f"  {row.name:<{names}}  {row.shown:>{values}}  {row.target:<{targets}}  {_verdict(row)}"
            lines.append(cells.rstrip())
    return "\n".join(lines[1:])


def headline(bench: Bench) -> str:
    """When, where and with what it was measured."""
    machine = bench.machine
    quick = "; a quick run: too short to quote" if bench.quick else ""
    return (
        f"Measured {bench.measured_at[:10]} with `{bench.command}` in {bench.duration_s / 60:.0f} minutes on "
        f"{machine.cores} cores of {machine.processor}, {machine.system}, Python {machine.python}, "
        f"torch {machine.torch}{quick}."
    )


def markdown_table(bench: Bench, table: Iterable[Row]) -> str:
    """For the README."""
    lines = [headline(bench), "", "| figure | measured | target | |", "|---|---:|---|---|"]
    for section, members in groupby(table, key=lambda row: row.section):
        lines.append(f"| **{section}** | | | |")
        lines += [f"| {row.name} | {row.shown} | {row.target} | {_verdict(row)} |" for row in members]
    return "\n".join(lines)


def fill(readme: str, block: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """The README with what is between two marks replaced. Raises ConfigError when they are not there once each."""
    first, last = marks
    begin, end = readme.find(first), readme.find(last)
    if readme.count(first) != 1 or readme.count(last) != 1 or end < begin:
        raise ConfigError("--readme", f"README.md has not one {first} before one {last}", "put the two lines back")
    return f"{readme[: begin + len(first)]}\n{block}\n{readme[end:]}"
