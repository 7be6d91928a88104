"""Digests of what would have been computed: reduced shards and merged parameters.

Law: a digest follows from everything that the real bytes would follow from, and from nothing else, so honest parties
that read the same inputs agree and others do not. The hash of a tuple that many miners hold is taken once.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from subnet.protocol.ids import Digest
from subnet.protocol.messages import ManifestEntry, MergedShard
from subnet.simulation.crowd_spec import digest_of

REMEMBERED = 64
"""Tuples at once: a manifest and the merged shards of every stage, and their forerunners."""


class Digests:
    """Shared by all who compute."""

    def __init__(self) -> None:
        self._known: deque[tuple[Any, Digest]] = deque(maxlen=REMEMBERED)

    def shard(self, manifest: tuple[ManifestEntry, ...], index: int) -> Digest:
        """What reducing that shard gives."""
        return digest_of(f"{self._of(manifest)} {index}")

    def merged(self, anchor: Digest, shards: tuple[MergedShard, ...]) -> Digest:
        """The parameters that the outer step leads to, from those of the epoch before."""
        return digest_of(f"{anchor} {self._of(shards)}")

    def _of(self, parts: tuple[ManifestEntry, ...] | tuple[MergedShard, ...]) -> Digest:
        for known, digest in self._known:
            if known is parts:
                return digest
        digest = digest_of("\n".join(map(_spoken, parts)))
        self._known.appendleft((parts, digest))
        return digest


def _spoken(part: ManifestEntry | MergedShard) -> str:
    if isinstance(part, ManifestEntry):
        return f"{part.hotkey} {part.weight} {part.scale} {part.source.digest}"
    return f"{part.shard.start} {part.source.digest if part.source is not None else 'lost'}"
