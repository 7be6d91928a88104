"""Who reduces which part of a stage's vector (ALGORITHMS 4): pure arithmetic and one verifiable draw.

N owners and r copies give one shard to every group of r owners: C(N, r) shards, for r = 2 the N(N-1)/2 pairs of IOTA.
Each owner reduces r/N of the vector, and two owners meet in few shards, so a liar is seen by many.

    up  W + rW/N      down  rW + W      total  (r + 2)W + rW/N        W: bytes of the whole vector; O(1) per miner

The owners stand on a ring in drawn order; a group is a base set of positions, turned by every step around the ring.
So each base set loads all owners equally, and when there may be only n < C(N, r) shards (short vector, very many
owners) the first n groups differ in load by at most r. A second draw says which group gets which shard.

Law: any party with the epoch's secret computes the same assignment, whatever order it lists the owners in. Shards are
block-aligned, not empty, and cover the vector exactly once; no group appears twice. Where owners fall away, `heirs`
draws others in the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import combinations, islice
from math import comb
from typing import NamedTuple

from subnet.merging.compression import BLOCK_VALUES
from subnet.protocol.draw import shuffled
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Shard

SHARDS_MAX = 4_096
"""Cap on C(N, r): beyond it (N > 91 for r = 2) some groups get no shard, loads stay equal, messages stay small."""


class Assignment(NamedTuple):
    """One shard and the owners that reduce it, each for itself."""

    shard: Shard
    owners: tuple[Hotkey, ...]


def assign(
    secret: bytes, stage: int, epoch: int, owners: Sequence[Hotkey], count: int, copies: int
) -> tuple[Assignment, ...]:
    """The assignment of a vector of `count` values, by shard index. Fewer than `copies` owners all own everything."""
    if not owners or len(set(owners)) != len(owners) or count < 1 or copies < 1:
        raise ValueError(f"cannot assign {count} values to {len(owners)} distinct owners, {copies} copies")
    ring = shuffled(secret, sorted(owners), "butterfly-ring", stage, epoch)
    size = min(copies, len(ring))
    num_blocks = -(-count // BLOCK_VALUES)
    num_shards = min(comb(len(ring), size), num_blocks, SHARDS_MAX)
    groups = list(islice(_groups(len(ring), size), num_shards))
    cuts = [min(count, index * num_blocks // num_shards * BLOCK_VALUES) for index in range(num_shards)] + [count]
    return tuple(
        Assignment(
            Shard(index=index, start=cuts[index], length=cuts[index + 1] - cuts[index]),
            tuple(sorted(ring[position] for position in group)),
        )
        for index, group in enumerate(shuffled(secret, groups, "butterfly-shards", stage, epoch))
    )


def _groups(num_owners: int, size: int) -> Iterator[tuple[int, ...]]:
    """Every set of `size` ring positions once, base set by base set, each turned all the way around the ring."""
    seen: set[tuple[int, ...]] = set()
    for rest in combinations(range(1, num_owners), size - 1):
        for turn in range(num_owners):
            group = tuple(sorted((position + turn) % num_owners for position in (0, *rest)))
            if group not in seen:
                seen.add(group)
                yield group


class Orphan(NamedTuple):
    """A shard that lacks owners."""

    shard: Shard
    barred: Collection[Hotkey]
    """Who may not get it: it was asked before."""
    wanted: int
    """Owners to find, at most."""


def heirs(
    secret: bytes,
    stage: int,
    epoch: int,
    attempt: int,
    orphans: Iterable[Orphan],
    loads: Mapping[Hotkey, tuple[int, int]],
) -> dict[int, tuple[Hotkey, ...]]:
    """New owners by shard index. `loads` gives each candidate's rank and the values it has to reduce already: the first
    rank comes first, in it whoever has least to do, and among equals the draw decides."""
    drawn = shuffled(secret, sorted(loads), "butterfly-heirs", stage, epoch, attempt)
    queue = [(*loads[hotkey], place, hotkey) for place, hotkey in enumerate(drawn)]
    heapify(queue)
    found: dict[int, tuple[Hotkey, ...]] = {}
    for shard, barred, wanted in orphans:
        chosen: list[tuple[int, int, int, Hotkey]] = []
        passed: list[tuple[int, int, int, Hotkey]] = []
        while queue and len(chosen) < wanted:
            entry = heappop(queue)
            (passed if entry[3] in barred else chosen).append(entry)
        for rank, values, place, hotkey in chosen:
            heappush(queue, (rank, values + shard.length, place, hotkey))
        for entry in passed:
            heappush(queue, entry)
        found[shard.index] = tuple(hotkey for *_, hotkey in chosen)
    return found


class LossCounts(NamedTuple):
    """Shards by how many of their owners are left."""

    lost: int
    single: int
    """One copy left: it stands, unchecked."""
    checked: int
    """At least two copies left to compare."""


def loss_counts(num_owners: int, dead: int, copies: int = 2) -> LossCounts:
    """What is left of the C(N, r) shards when `dead` owners fail during the merge. N = 5, 2 dead: 1, 6, 3."""
    size = min(copies, num_owners)
    lost = comb(dead, size)
    single = (num_owners - dead) * comb(dead, size - 1)
    return LossCounts(lost, single, comb(num_owners, size) - lost - single)


def traffic_vectors(num_owners: int, copies: int = 2) -> float:
    """Traffic of one miner in one merge, up and down, in units of the vector's size. N = 5: 4.4."""
    size = min(copies, num_owners)
    return size + 2 + size / num_owners
