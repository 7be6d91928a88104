"""The orchestrator looks at every upload of a merge that went wrong: are its bytes what was said, what does it do.

Law: numpy only; a bounded range of all uploads at a time, off the loop; the outcome is an own record for the journal,
and who is to blame is for `merging.contributions` to say. An upload that is gone from the store is nobody's fault.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial

import numpy as np

from subnet.coordination.merge_state import InspectMerge, Upload
from subnet.errors import PeerFault
from subnet.merging import compression
from subnet.merging.compression import CHUNK_VALUES
from subnet.merging.contributions import Gram
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import MergeInspected, UploadSeen
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import Runtime
from subnet.storage.base import ObjectStore

PIECE_VALUES = 2**21
"""Held of all uploads together at once."""


async def inspect(spec: RunSpec, store: ObjectStore, asked: InspectMerge, runtime: Runtime) -> MergeInspected:
    """Read the uploads chunk by chunk. One that is bad in itself is left out of the comparison with the others."""
    bad: dict[Hotkey, Reason] = {}
    while True:
        good = [hotkey for hotkey in asked.uploads if hotkey not in bad]
        before, gram = len(bad), Gram(len(good))
        for chunks in _pieces(spec, asked, len(good)):
            bodies = {h: await _read(spec, store, asked.uploads[h], asked.stage, chunks) for h in good}
            await runtime.run_blocking(partial(_add, spec, asked, chunks, bodies, gram, bad))
        if len(bad) == before:
            break  # else once more, without those
    figures = dict(zip(good, gram.figures(), strict=True))
    return MergeInspected(
        stage=asked.stage,
        epoch=asked.epoch,
        number=asked.number,
        uploads=tuple(
            UploadSeen(hotkey=h, reason=bad[h])
            if h in bad
            else UploadSeen(hotkey=h, reason=Reason.OK, norm=figures[h].norm, cosine=figures[h].cosine)
            for h in asked.uploads
        ),
    )


def _pieces(spec: RunSpec, asked: InspectMerge, uploads: int) -> Iterator[range]:
    """Neighbouring chunks, as many as may be held at once."""
    num_chunks = compression.num_chunks(spec.stages[asked.stage].num_params)
    most = max(1, PIECE_VALUES // (CHUNK_VALUES * max(1, uploads)))
    wanted = asked.chunks or tuple(range(num_chunks))
    start = 0
    for position in range(1, len(wanted) + 1):
        full = position - start == most
        if position == len(wanted) or full or wanted[position] != wanted[position - 1] + 1:
            yield range(wanted[start], wanted[position - 1] + 1)
            start = position


def _values(spec: RunSpec, stage: int, chunks: range) -> tuple[int, int]:
    """Start and length of neighbouring chunks, in values."""
    start = chunks.start * CHUNK_VALUES
    return start, min(chunks.stop * CHUNK_VALUES, spec.stages[stage].num_params) - start


async def _read(spec: RunSpec, store: ObjectStore, upload: Upload, stage: int, chunks: range) -> bytes | None:
    count = spec.stages[stage].num_params
    offset, size_bytes = compression.byte_range(spec.merge.upload_values, *_values(spec, stage, chunks), count)
    try:
        return await store.get(upload.source.key, offset, size_bytes)
    except KeyError:
        return None


def _add(
    spec: RunSpec,
    asked: InspectMerge,
    chunks: range,
    bodies: dict[Hotkey, bytes | None],
    gram: Gram,
    bad: dict[Hotkey, Reason],
) -> None:
    """Check and decode one piece of every upload; whatever is wrong with one is noted in `bad`."""
    length, parts = _values(spec, asked.stage, chunks)[1], []
    for hotkey, body in bodies.items():
        part = np.zeros(length, np.float32)
        try:
            if body is None:
                bad.setdefault(hotkey, Reason.UNREADABLE)
            else:
                part = _decode(spec, asked.uploads[hotkey], chunks, body, length)
        except PeerFault as fault:
            bad.setdefault(hotkey, Reason(fault.code))
        parts.append(part)
    if parts:
        gram.add(parts)


def _decode(spec: RunSpec, upload: Upload, chunks: range, body: bytes, length: int) -> np.ndarray:
    """The values of neighbouring chunks. Raises PeerFault."""
    values, view, at = spec.merge.upload_values, memoryview(body), 0
    for number, chunk in enumerate(chunks):
        size_bytes = compression.body_size(values, min(CHUNK_VALUES, length - number * CHUNK_VALUES))
        if hashlib.sha256(view[at : at + size_bytes]).hexdigest() != upload.chunk_digests[chunk]:
            raise PeerFault(Reason.BAD_DIGEST, f"chunk {chunk} is not what was said", upload.source.key)
        at += size_bytes
    return compression.decode_range(body, values, length)
