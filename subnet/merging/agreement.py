"""Which copy of each shard stands, and who sent a wrong one (ALGORITHMS 4).

The reduction is bit-exact, so two copies of a shard are equal or at least one is wrong. For each shard, from the
digests its owners reported and the orchestrator's own recomputation, if there was one:

    recomputed   reports                      outcome    winner                    faulty
    ----------   --------------------------   --------   -----------------------   ------------------------
    no           none                         lost       none                      nobody
    no           one                          single     its owner                 nobody
    no           two or more, all equal       agreed     first owner               nobody
    no           two or more, not all equal   disputed   none yet                  nobody yet
    yes          any                          settled    first owner that equals   every owner that differs
    failed       not all equal                lost       none                      nobody

"Settled" without a winner: no owner had it right; the recomputed values themselves stand. With a failed recomputation
(its inputs could not be read) reports that agree, or stand alone, keep their outcome. A majority settles nothing:
colluders could be the majority. An owner that did not report is late, not faulty.

Law: pure; reports of non-owners and of unknown shards are not looked at; every shard has exactly one outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import combinations
from math import comb
from typing import NamedTuple

from subnet.merging.butterfly import Assignment
from subnet.protocol.ids import Digest, Hotkey

Reports = Mapping[Hotkey, Mapping[int, Digest]]
"""Owner -> shard index -> SHA-256 of the shard's raw fp32 bytes."""


class Outcome(StrEnum):
    AGREED = "agreed"
    SINGLE = "single"
    LOST = "lost"
    DISPUTED = "disputed"
    SETTLED = "settled"


class Settlement(NamedTuple):
    """The outcome of a merge; the first five fields part the shard indices between them."""

    agreed: tuple[int, ...]
    single: tuple[int, ...]
    lost: tuple[int, ...]
    disputed: tuple[int, ...]
    """Still to be recomputed."""
    settled: tuple[int, ...]
    """Decided by recomputation."""
    faulty: dict[Hotkey, tuple[int, ...]]
    """Who reported something else than the recomputed digest, and where."""
    winners: dict[int, Hotkey | None]
    """Whose copy to read, for every shard; None where no owner's copy stands."""


def settle(assignments: Sequence[Assignment], reports: Reports, recomputed: Mapping[int, Digest | None]) -> Settlement:
    """The table above for every shard. `recomputed` maps to None where the recomputation failed."""
    by_outcome: dict[Outcome, list[int]] = {outcome: [] for outcome in Outcome}
    faulty: dict[Hotkey, tuple[int, ...]] = {}
    winners: dict[int, Hotkey | None] = {}
    for shard, owners in assignments:
        said = {owner: reports[owner][shard.index] for owner in owners if shard.index in reports.get(owner, {})}
        truth = recomputed.get(shard.index)
        outcome, winner = _outcome(said, truth, failed=shard.index in recomputed and truth is None)
        by_outcome[outcome].append(shard.index)
        winners[shard.index] = winner
        for owner, digest in said.items():
            if truth is not None and digest != truth:
                faulty[owner] = (*faulty.get(owner, ()), shard.index)
    return Settlement(
        agreed=tuple(by_outcome[Outcome.AGREED]),
        single=tuple(by_outcome[Outcome.SINGLE]),
        lost=tuple(by_outcome[Outcome.LOST]),
        disputed=tuple(by_outcome[Outcome.DISPUTED]),
        settled=tuple(by_outcome[Outcome.SETTLED]),
        faulty=faulty,
        winners=winners,
    )


def _outcome(said: Mapping[Hotkey, Digest], truth: Digest | None, failed: bool) -> tuple[Outcome, Hotkey | None]:
    """Outcome and winner of one shard; `said` is in owner order."""
    if truth is not None:
        return Outcome.SETTLED, next((owner for owner, digest in said.items() if digest == truth), None)
    if not said:
        return Outcome.LOST, None
    if len(set(said.values())) > 1:
        return (Outcome.LOST if failed else Outcome.DISPUTED), None
    return (Outcome.AGREED if len(said) > 1 else Outcome.SINGLE), next(iter(said))


class Pair(NamedTuple):
    """How often two owners reported the same shard."""

    equal: int
    different: int


def matrix(assignments: Sequence[Assignment], reports: Reports) -> dict[tuple[Hotkey, Hotkey], Pair]:
    """The agreement matrix: for every two owners, in sorted order, that both reported a shard."""
    pairs: dict[tuple[Hotkey, Hotkey], Pair] = {}
    for shard, owners in assignments:
        present = sorted(owner for owner in owners if shard.index in reports.get(owner, {}))
        for one, other in combinations(present, 2):
            equal = reports[one][shard.index] == reports[other][shard.index]
            before = pairs.get((one, other), Pair(0, 0))
            pairs[one, other] = Pair(before.equal + equal, before.different + (not equal))
    return pairs


def disagreements(assignments: Sequence[Assignment], reports: Reports) -> dict[Hotkey, int]:
    """Row sums of the matrix's disagreement, for every owner that could be compared.

    N = 50 with 5 liars: 49 for a liar (45 if they collude), 5 for an honest owner.
    """
    rows: dict[Hotkey, int] = {}
    for pair, counts in matrix(assignments, reports).items():
        for owner in pair:
            rows[owner] = rows.get(owner, 0) + counts.different
    return rows


def silent_share(num_owners: int, colluding: int, copies: int = 2) -> float:
    """Share of shards all of whose owners collude, which no comparison can see: C(f, r) / C(N, r)."""
    size = min(copies, num_owners)
    return comb(colluding, size) / comb(num_owners, size)
