"""A share of a stage's replicas dies in mid-merge: `python -m subnet.simulation.mid_merge [--owners 20] [--seeds 200]`.

The curve of the plain two-owner scheme (ALGORITHMS 4: k(k-1) / N(N-1) of the shards are lost when k of N fail, about
p², 12.25 % at 35 %), counted in the very assignments in which replicas died; beside it what the machine made of the
same deaths, with lost shards given to survivors, and what that took. All die at once, after the uploads and before any
of them has reduced anything: the worst moment.

Exit codes: 0 no shard was lost, 1 some were, 2 the operator must act (one line says how).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import mean
from typing import Annotated, NamedTuple

from msgspec import Meta

from subnet import config
from subnet.config import Config
from subnet.merging.butterfly import loss_counts
from subnet.simulation.mid_merge_stage import ModelledStage, Outcome

SHARES_PERCENT = range(0, 51, 5)
BAR_WIDTH = 50


class MidMergeConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.simulation.mid_merge`: how many shards are lost when replicas die in mid-merge."""

    owners: Annotated[int, Meta(description="replicas of the stage, all of them uploaders", ge=2, le=200)] = 20
    seeds: Annotated[int, Meta(description="merges for each share of dead replicas", ge=1, le=100_000)] = 200
    seed: Annotated[int, Meta(description="the first seed; the next ones count on", ge=0, le=2**31)] = 7


class Row(NamedTuple):
    """All merges with one share of dead replicas; shares of shards, times in reduce deadlines."""

    percent: int
    dead: int
    exact_lost: float
    plain_lost: float
    plain_single: float
    lost: float
    single: float
    handed_on: float
    added: float
    """Mean time that the deaths added to the merge."""
    added_max: float
    handing_on: float
    """The part of it after the deaths were noticed, which the plain scheme would not have needed."""


def measure(owners: int, seeds: int, first_seed: int) -> list[Row]:
    """Every share of dead replicas, in the same merges."""
    numbers = {percent: round(owners * percent / 100) for percent in SHARES_PERCENT}
    outcomes: dict[int, list[Outcome]] = {percent: [] for percent in numbers}
    stage = None
    for seed in range(first_seed, first_seed + seeds):
        stage = ModelledStage(owners, seed)
        stage.begin()
        known: dict[int, Outcome] = {}
        for percent, number in numbers.items():
            if number not in known:
                known[number] = stage.merged(stage.drawn(number))
            outcomes[percent].append(known[number])
    assert stage is not None
    deadline_s, calm = stage.spec.merge.reduce_deadline_s, mean(one.took_s for one in outcomes[0])
    return [_row(percent, numbers[percent], owners, outcomes[percent], deadline_s, calm) for percent in numbers]


def _row(percent: int, dead: int, owners: int, outcomes: Sequence[Outcome], deadline_s: float, calm_s: float) -> Row:
    exact = loss_counts(owners, dead)
    shards = outcomes[0].shards
    return Row(
        percent=percent,
        dead=dead,
        exact_lost=exact.lost / sum(exact),
        plain_lost=mean(one.plain_lost for one in outcomes) / shards,
        plain_single=mean(one.plain_single for one in outcomes) / shards,
        lost=mean(one.lost for one in outcomes) / shards,
        single=mean(one.single for one in outcomes) / shards,
        handed_on=mean(one.handed_on for one in outcomes) / shards,
        added=(mean(one.took_s for one in outcomes) - calm_s) / deadline_s,
        added_max=(max(one.took_s for one in outcomes) - calm_s) / deadline_s,
        handing_on=mean(one.took_s - one.handed_on_after_s for one in outcomes) / deadline_s,
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown; percent of the shards, times in units of the reduce deadline."""
    heads = (
        "dead", "of", "p²", "plain: exact", "plain: lost", "plain: single", "handed on", "lost", "single",
        "time added", "at most", "of it handing on",
    )  # fmt: skip
    lines = [" | ".join(heads), " | ".join("--:" for _ in heads)]
    for row in rows:
        shares = (
            (row.percent / 100) ** 2, row.exact_lost, row.plain_lost, row.plain_single, row.handed_on, row.lost,
            row.single,
        )  # fmt: skip
        times = row.added, row.added_max, row.handing_on
        cells = [f"{row.percent} %", str(row.dead), *(f"{share:.2%}" for share in shares)]
        lines.append(" | ".join([*cells, *(f"{units:.2f}" for units in times)]))
    return "\n".join(f"| {line} |" for line in lines)


def curve(rows: Sequence[Row]) -> str:
    """Lost shards by share of dead replicas: ▒ the plain scheme, █ with new owners."""
    full = max(row.plain_lost for row in rows) or 1.0
    lines = []
    for row in rows:
        for sign, share in ("▒", row.plain_lost), ("█", row.lost):
            label = f"{row.percent:3d} %" if sign == "▒" else " " * 5
            lines.append(f"{label} {sign * round(BAR_WIDTH * share / full)} {share:.2%}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    with config.one_line_errors():
        asked = config.parse(MidMergeConfig, argv, "python -m subnet.simulation.mid_merge")
        rows = measure(asked.owners, asked.seeds, asked.seed)
        lost = sum(row.lost for row in rows)
        print(
            f"{asked.owners} owners, {asked.seeds} merges for each share of dead replicas, seeds from {asked.seed}\n\n"
            f"{table(rows)}\n\n"
            f"lost shards: ▒ two owners and no others, █ with new owners\n\n{curve(rows)}\n\n"
            f"p² at 35 % is 12.25 %; with {asked.owners} owners, {rows[7].dead} dead, exactly {rows[7].exact_lost:.2%}"
        )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
