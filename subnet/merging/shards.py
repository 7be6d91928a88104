"""Reducing shards from ranges of the uploads: the same for an owner and for the orchestrator's recomputation.

    job = ShardReduction(manifest, shards, values, count)
    for piece in job.pieces:
        bodies = [the bytes read.offset, read.size_bytes of read.entry.source  for read in job.reads(piece)]
        job.add(piece, bodies)
    job.results()                                                         one array per shard

The caller does the reading; this decides what to read, checks it and does the arithmetic. Only whole chunks have
digests, so a piece is a run of neighbouring chunks that the shards need, at most PIECE_CHUNKS: each chunk of each
upload is read once even where several shards lie in it, and memory holds one piece of every upload at a time.

Law: pure; no I/O. Each body is checked against the digests of the closed manifest before a single value is used; what
does not fit raises PeerFault whose evidence is the upload's key. How shards are cut never changes a bit of the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from subnet.errors import PeerFault
from subnet.merging.compression import (
    CHUNK_VALUES,
    byte_range,
    covering_chunks,
    decode_range,
    encoded_size,
    num_chunks,
    to_fp32_bytes,
)
from subnet.merging.reduction import reduce_shard
from subnet.protocol.ids import Digest, Values
from subnet.protocol.messages import ManifestEntry, Shard
from subnet.protocol.reasons import Reason

PIECE_CHUNKS = 64
"""Chunks in one piece: a million values, so a read is 1 to 4 MB."""


class Piece(NamedTuple):
    """Values of whole, consecutive chunks; the vector's last chunk may be shorter."""

    start: int
    length: int


class Read(NamedTuple):
    """The bytes of one upload that hold a piece."""

    entry: ManifestEntry
    offset: int
    size_bytes: int


class ShardReduction:
    """One reduction of some shards over a closed manifest."""

    def __init__(self, manifest: Sequence[ManifestEntry], shards: Sequence[Shard], values: Values, count: int) -> None:
        """Raises PeerFault before anything is read: MALFORMED for work that cannot be done (the orchestrator's fault),
        BAD_SIZE or BAD_OBJECT for an entry whose size or number of digests does not fit a vector of `count` values."""
        _check_work(manifest, shards, count)
        for entry in manifest:
            if entry.source.size_bytes != encoded_size(values, count):
                raise PeerFault(Reason.BAD_SIZE, f"the upload of {entry.hotkey} has a wrong size", entry.source.key)
            if len(entry.chunk_digests) != num_chunks(count):
                raise PeerFault(Reason.BAD_OBJECT, f"{entry.hotkey} reported too few or many chunks", entry.source.key)
        self._manifest, self._shards, self._values, self._count = manifest, shards, values, count
        self._reduced = [np.zeros(shard.length, np.float32) for shard in shards]
        self.pieces = _plan(shards, count)
        self._missing = set(self.pieces)

    def reads(self, piece: Piece) -> tuple[Read, ...]:
        """What `add` needs: one read per manifest entry, in manifest order."""
        offset, size_bytes = byte_range(self._values, *piece, self._count)
        return tuple(Read(entry, offset, size_bytes) for entry in self._manifest)

    def add(self, piece: Piece, bodies: Sequence[bytes]) -> None:
        """Check and reduce one piece from the bodies of its reads, in the same order.

        Raises PeerFault(BAD_SIZE, BAD_DIGEST, BAD_OBJECT or NOT_FINITE) with the upload's key as evidence.
        """
        parts = (self._part(entry, piece, body) for entry, body in zip(self._manifest, bodies, strict=True))
        weights, scales = [e.weight for e in self._manifest], [e.scale for e in self._manifest]
        g_S = reduce_shard(parts, weights, scales)
        for shard, reduced_S in zip(self._shards, self._reduced, strict=True):
            start = max(piece.start, shard.start)
            end = min(piece.start + piece.length, shard.start + shard.length)
            if start < end:
                reduced_S[start - shard.start : end - shard.start] = g_S[start - piece.start : end - piece.start]
        self._missing.discard(piece)

    def results(self) -> list[np.ndarray]:
        """The reduced float32 values of each shard, in the order given; every piece must have been added."""
        if self._missing:
            raise ValueError(f"{len(self._missing)} of {len(self.pieces)} pieces were not added")
        return self._reduced

    def _part(self, entry: ManifestEntry, piece: Piece, body: bytes) -> np.ndarray:
        """The piece's values of one upload, checked."""
        key = entry.source.key
        origin, size_bytes = byte_range(self._values, *piece, self._count)
        if len(body) != size_bytes:
            raise PeerFault(Reason.BAD_SIZE, f"{len(body)} bytes of {entry.hotkey} where {size_bytes} were due", key)
        view = memoryview(body)
        for chunk in covering_chunks(*piece):
            start = chunk * CHUNK_VALUES
            length = min(CHUNK_VALUES, self._count - start)
            offset, size_bytes = byte_range(self._values, start, length, self._count)
            found = hashlib.sha256(view[offset - origin : offset - origin + size_bytes]).hexdigest()
            if found != entry.chunk_digests[chunk]:
                raise PeerFault(Reason.BAD_DIGEST, f"chunk {chunk} of {entry.hotkey} is not what was uploaded", key)
        try:
            return decode_range(body, self._values, piece.length)
        except PeerFault as fault:
            raise PeerFault(fault.code, f"upload of {entry.hotkey}: {fault.sentence}", key) from fault


def range_digest(values_S: np.ndarray) -> Digest:
    """SHA-256 of the raw little-endian fp32 bytes: what owners report for a shard and a RangeSource binds."""
    return Digest(hashlib.sha256(to_fp32_bytes(values_S)).hexdigest())


def reduced_range(shards: Sequence[Shard], position: int) -> tuple[int, int]:
    """(offset, size) in bytes of the shard at `position` inside its owner's reduced object (fp32, one after the other).

    Shards are whole blocks but for the vector's last one, which ends the list because the list is in index order.
    """
    start = sum(shard.length for shard in shards[:position])
    return byte_range(Values.FP32, start, shards[position].length, sum(shard.length for shard in shards))


def _plan(shards: Sequence[Shard], count: int) -> tuple[Piece, ...]:
    """The chunks that any of the shards needs, each once, as runs of at most PIECE_CHUNKS."""
    needed = sorted({chunk for shard in shards for chunk in covering_chunks(shard.start, shard.length)})
    runs: list[range] = []
    for chunk in needed:
        if runs and runs[-1].stop == chunk and len(runs[-1]) < PIECE_CHUNKS:
            runs[-1] = range(runs[-1].start, chunk + 1)
        else:
            runs.append(range(chunk, chunk + 1))
    starts = [(run.start * CHUNK_VALUES, run.stop * CHUNK_VALUES) for run in runs]
    return tuple(Piece(start, min(end, count) - start) for start, end in starts)


def _check_work(manifest: Sequence[ManifestEntry], shards: Sequence[Shard], count: int) -> None:
    for shard in shards:
        if not 0 <= shard.start < shard.start + shard.length <= count:
            raise PeerFault(Reason.MALFORMED, f"shard {shard.index} reaches outside the vector's {count} values")
    for entry in manifest:
        if not (entry.weight >= 0 and 0 < entry.scale <= 1):
            raise PeerFault(Reason.MALFORMED, f"weight or scale of {entry.hotkey} is out of range")
    if not any(entry.weight for entry in manifest):
        raise PeerFault(Reason.MALFORMED, "the manifest gives nobody any weight")
