"""The wrong merger: one upload instead of all of them."""

from __future__ import annotations

from collections.abc import Sequence

from subnet.merging.shards import ShardReduction
from subnet.protocol.ids import Values
from subnet.protocol.messages import ManifestEntry, Shard


class WrongMerger(ShardReduction):
    """Trains honestly; when it reduces, it reads the first upload that has weight and takes it for the mean of all.
    Object and digests are those of the wrong result, so they agree with each other.

    Skips    all downloads of its shards but one, and the sum: (N - 1)/N of the bandwidth that a merge asks of an owner.
    Gains    bandwidth, and a say: the chosen replica's pseudo-gradient counts for everybody's.
    Caught   by the shard's other owner, whose digest differs: the orchestrator recomputes the shard and names it. Where
             both owners do it, by the ranges of agreed shards that are recomputed at random. With a single upload of
             weight there is nothing to skip, and the result is right.
    """

    def __init__(self, manifest: Sequence[ManifestEntry], shards: Sequence[Shard], values: Values, count: int) -> None:
        super().__init__(manifest, shards, values, count)
        self._manifest = [next(entry for entry in manifest if entry.weight > 0)]
