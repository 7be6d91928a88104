"""The orchestrator looks for itself: objects someone complained about, shards that owners reduced differently.

Law: numpy only, the very same codec and reduction that miners run; blocking arithmetic runs off the loop. The outcome
is an own record for the journal, never a change of anything.
"""

from __future__ import annotations

import hashlib
from functools import partial

from subnet.coordination.effects import CheckObject, RecomputeShard
from subnet.errors import PeerFault
from subnet.merging import compression
from subnet.merging.shards import ShardReduction, range_digest, reduced_range
from subnet.model import wire
from subnet.protocol import keys
from subnet.protocol.ids import Values
from subnet.protocol.messages import ObjectChecked, RangeSource, ShardRecomputed
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import Runtime
from subnet.storage.base import ObjectStore

FP32_BYTES = 4


async def check(spec: RunSpec, store: ObjectStore, asked: CheckObject, runtime: Runtime) -> ObjectChecked:
    """Whether an object is what its maker said and what the RunSpec asks for."""
    key = asked.source.key
    try:
        data = await store.get(key)
    except KeyError:
        return ObjectChecked(key=key, reason=Reason.BAD_OBJECT)
    return ObjectChecked(key=key, reason=await runtime.run_blocking(lambda: judge(spec, asked, data)))


def judge(spec: RunSpec, asked: CheckObject, data: bytes) -> Reason:
    """OK, or what is wrong with the bytes."""
    source, parsed = asked.source, keys.parse(asked.source.key)
    if len(data) != source.size_bytes:
        return Reason.BAD_SIZE
    if hashlib.sha256(data).hexdigest() != source.digest:
        return Reason.BAD_DIGEST
    try:
        if parsed.kind in (keys.Kind.BOUNDARY, keys.Kind.GRADIENT):
            wire.decode(spec, data)
        elif parsed.kind is keys.Kind.UPLOAD:
            count, values = spec.stages[parsed.stage].num_params, spec.merge.upload_values
            if compression.chunk_digests(data, values, count) != asked.chunk_digests:
                return Reason.BAD_DIGEST
            compression.decode(data, values, count)
        elif parsed.kind is keys.Kind.REDUCED:
            for part in asked.ranges:
                if hashlib.sha256(data[part.offset : part.offset + part.size_bytes]).hexdigest() != part.digest:
                    return Reason.BAD_DIGEST
            compression.decode(data, Values.FP32, (len(data) - compression.HEADER_BYTES) // FP32_BYTES)
    except PeerFault as fault:
        return Reason(fault.code)
    return Reason.OK


async def recompute(
    spec: RunSpec, store: ObjectStore, asked: RecomputeShard, runtime: Runtime
) -> ShardRecomputed | ObjectChecked:
    """Reduce one disputed shard and store it. An unreadable or broken upload is reported instead."""
    shard = asked.assignment.shard
    job = ShardReduction(asked.manifest, (shard,), spec.merge.upload_values, spec.stages[asked.stage].num_params)
    nothing = ShardRecomputed(stage=asked.stage, epoch=asked.epoch, shard=shard.index, source=None)
    try:
        for piece in job.pieces:
            bodies = [await store.get(read.entry.source.key, read.offset, read.size_bytes) for read in job.reads(piece)]
            await runtime.run_blocking(partial(job.add, piece, bodies))
    except KeyError:
        return nothing
    except PeerFault as fault:
        known = {entry.source.key for entry in asked.manifest}
        guilty = next((key for key in known if key == fault.evidence), None)
        return nothing if guilty is None else ObjectChecked(key=guilty, reason=Reason(fault.code))
    (reduced_S,) = job.results()
    item = f"orchestrator.{shard.index}.{asked.attempt}"
    key = keys.make(spec.run_id, asked.epoch, asked.stage, item, keys.Kind.REDUCED)
    await store.put(key, compression.encode(Values.FP32, reduced_S))
    offset, size_bytes = reduced_range((shard,), 0)
    source = RangeSource(key=key, offset=offset, size_bytes=size_bytes, digest=range_digest(reduced_S))
    return ShardRecomputed(stage=asked.stage, epoch=asked.epoch, shard=shard.index, source=source)
