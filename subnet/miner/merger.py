"""The miner's side of a merge: read ranges of the uploads, reduce, and later read everybody's reduced shards.

Law: moves bytes and calls `merging`; no arithmetic of its own. Reads only the chunks that cover its shards, never a
whole upload, at most `parallel` at once. Every byte is checked against a digest from the orchestrator before use; the
PeerFault for a bad one names the object's key as evidence. Unavailable passes through: the caller may try again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from subnet.errors import PeerFault
from subnet.merging.compression import decode_range, encode, encoded_size
from subnet.merging.shards import ShardReduction, range_digest
from subnet.protocol.ids import Digest, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import ApplyWork, MergedShard, RangeSource, ReduceDone, ReduceWork
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import Runtime
from subnet.transport.base import ObjectClient

SPAN_BYTES_MAX = 8 * 2**20
"""Neighbouring reduced shards are joined into one read up to this size."""
READ_TIMEOUT_S = 60.0

T = TypeVar("T")
MergedPart = tuple[int, int, np.ndarray | None]
"""Start, length, and the reduced float32 values; None where the shard is lost."""


async def reduce(
    work: ReduceWork,
    objects: ObjectClient,
    parallel: int,
    *,
    spec: RunSpec,
    runtime: Runtime,
    timeout_s: float = READ_TIMEOUT_S,
    reduction: type[ShardReduction] = ShardReduction,
) -> tuple[bytes, ReduceDone]:
    """The object to put at `work.output`, and the result to report once it is there.

    The object is fp32 in the vector codec, its count the sum of the shards' lengths; `merging.shards.reduced_range`
    says where each shard is in it. Raises PeerFault with the faulty upload's key as evidence, or Unavailable.
    """
    length = sum(shard.length for shard in work.shards)
    if not work.shards or work.output.size_bytes != encoded_size(Values.FP32, length):
        raise PeerFault(Reason.MALFORMED, f"the target does not fit {length} reduced values", work.output.key)
    values, count = spec.merge.upload_values, spec.stages[work.stage].num_params
    reader = _Reader(objects, parallel, timeout_s)
    job = reduction(work.manifest, work.shards, values, count)
    for piece in job.pieces:
        reads = job.reads(piece)
        bodies = await _all([reader.get(r.entry.source.url, r.entry.source.key, r.offset, r.size_bytes) for r in reads])
        await runtime.run_blocking(partial(job.add, piece, bodies))
    return await runtime.run_blocking(partial(_finish, work, job))


def _finish(work: ReduceWork, job: ShardReduction) -> tuple[bytes, ReduceDone]:
    reduced = job.results()
    data = encode(Values.FP32, np.concatenate(reduced))
    digests = tuple(range_digest(g_S) for g_S in reduced)
    return data, ReduceDone(item=work.item, digest=Digest(hashlib.sha256(data).hexdigest()), shard_digests=digests)


# ---- what the owners reduced -----------------------------------------------------------------------------------------


class _Span(NamedTuple):
    """Neighbouring ranges of one object that are read at once, with their places in the work's list."""

    sources: tuple[RangeSource, ...]
    positions: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return sum(source.size_bytes for source in self.sources)

    @property
    def end(self) -> tuple[ObjectKey, int]:
        """The object and the offset at which a neighbour would begin."""
        return self.sources[0].key, self.sources[0].offset + self.size_bytes


async def fetch_merged(
    work: ApplyWork,
    objects: ObjectClient,
    parallel: int,
    *,
    runtime: Runtime,
    timeout_s: float = READ_TIMEOUT_S,
) -> list[MergedPart]:
    """Every shard's (start, length, values), in the order of the work; values are None where the shard is lost.

    Raises PeerFault with the faulty reduced object's key as evidence, or Unavailable.
    """
    reader = _Reader(objects, parallel, timeout_s)
    merged: list[MergedPart] = [(part.shard.start, part.shard.length, None) for part in work.shards]

    async def read(span: _Span) -> None:
        first = span.sources[0]
        body = await reader.get(first.url, first.key, first.offset, span.size_bytes)
        found = await runtime.run_blocking(partial(_open_span, span, work.shards, body))
        for position, g_S in zip(span.positions, found, strict=True):
            merged[position] = (*merged[position][:2], g_S)

    await _all([read(span) for span in _spans(work.shards)])
    return merged


def _spans(shards: Sequence[MergedShard]) -> list[_Span]:
    """All ranges there are to read; neighbours in one object are joined up to SPAN_BYTES_MAX."""
    found = [(part.source, position) for position, part in enumerate(shards) if part.source is not None]
    spans: list[_Span] = []
    for source, position in sorted(found, key=lambda entry: (entry[0].key, entry[0].offset)):
        last = spans[-1] if spans else None
        joins = last is not None and last.end == (source.key, source.offset)
        if last is not None and joins and last.size_bytes + source.size_bytes <= SPAN_BYTES_MAX:
            spans[-1] = _Span((*last.sources, source), (*last.positions, position))
        else:
            spans.append(_Span((source,), (position,)))
    return spans


def _open_span(span: _Span, shards: Sequence[MergedShard], body: bytes) -> list[np.ndarray]:
    """The reduced values of each range of the span, checked."""
    view, start, values = memoryview(body), 0, []
    for source, position in zip(span.sources, span.positions, strict=True):
        part = view[start : start + source.size_bytes]
        start += source.size_bytes
        if hashlib.sha256(part).hexdigest() != source.digest:
            raise PeerFault(Reason.BAD_DIGEST, "a reduced shard is not what its owner reported", source.key)
        try:
            values.append(decode_range(part, Values.FP32, shards[position].shard.length))
        except PeerFault as fault:
            raise PeerFault(fault.code, f"reduced shard: {fault.sentence}", source.key) from fault
    return values


# ---- bounded reading -------------------------------------------------------------------------------------------------


class _Reader:
    """Ranged reads of one piece of work, at most `parallel` under way."""

    def __init__(self, objects: ObjectClient, parallel: int, timeout_s: float) -> None:
        self._objects, self._timeout_s = objects, timeout_s
        self._slots = asyncio.Semaphore(parallel)

    async def get(self, url: str, key: ObjectKey, offset: int, size_bytes: int) -> bytes:
        """One range, when a slot is free; a fault of the transport gets the key as its evidence."""
        try:
            async with self._slots:
                body = await self._objects.get(url, offset, size_bytes, self._timeout_s)
        except PeerFault as fault:
            raise PeerFault(fault.code, fault.sentence, key) from fault
        if len(body) != size_bytes:
            raise PeerFault(Reason.BAD_SIZE, f"{len(body)} bytes came where {size_bytes} were due", key)
        return body


async def _all(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all calls in their order. The first failure cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
