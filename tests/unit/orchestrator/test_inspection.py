"""What the orchestrator finds when it looks for itself, and what it does while its store is away."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from subnet.coordination.effects import CheckObject, DropEpoch, RecomputeShard
from subnet.errors import Unavailable
from subnet.merging import compression, reduction
from subnet.merging.butterfly import Assignment
from subnet.merging.shards import range_digest
from subnet.model import wire
from subnet.orchestrator import errands, inspection
from subnet.protocol import keys
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Epoch, Hotkey, Stage, Values
from subnet.protocol.keys import Kind
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import LoopRuntime
from subnet.storage.memory import MemoryObjectStore

pytestmark = pytest.mark.looptime(end=3_600)
LENGTH = 2 * compression.BLOCK_VALUES


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


class Bench:
    """A store, and objects as honest miners of stage 0 leave them."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec, self.runtime = spec, LoopRuntime(b"inspection")
        self.store = MemoryObjectStore(self.runtime.now)
        self.count = spec.stages[0].num_params
        self.random = np.random.default_rng(3)

    def vector(self, count: int) -> np.ndarray:
        return self.random.standard_normal(count).astype(np.float32)

    def boundary(self) -> bytes:
        z_BTK = self.vector(2 * 16 * self.spec.boundary.width).reshape(2, 16, -1)
        return wire.encode(self.spec, z_BTK, None)

    def upload(self) -> bytes:
        return compression.encode(Values.FP32, self.vector(self.count))

    def reduced(self) -> bytes:
        return compression.encode(Values.FP32, self.vector(LENGTH))

    async def put(self, kind: Kind, data: bytes, name: str = "x") -> m.Source:
        key = keys.make(self.spec.run_id, 0, 0, name, kind)
        await self.store.put(key, data)
        return m.Source(key=key, digest=digest_of(data), size_bytes=len(data))

    def chunks(self, upload: bytes) -> tuple[str, ...]:
        return compression.chunk_digests(upload, Values.FP32, self.count)

    async def check(self, asked: CheckObject) -> Reason:
        checked = await inspection.check(self.spec, self.store, asked, self.runtime)
        assert checked.key == asked.source.key
        return checked.reason


@pytest.fixture
def bench(spec: RunSpec) -> Bench:
    return Bench(spec)


def with_nan(data: bytes) -> bytes:
    return data[:-4] + np.float32(np.nan).tobytes()


async def test_tensors_between_stages(bench: Bench) -> None:
    """1. A good boundary and gradient; then other bytes under the key, a cut one, another header, and a NaN, each with
    the digest its maker reported."""
    good = bench.boundary()
    for kind in (Kind.BOUNDARY, Kind.GRADIENT):
        source = await bench.put(kind, good)
        assert await bench.check(CheckObject(source)) is Reason.OK
        await bench.store.put(source.key, bench.boundary())
        assert await bench.check(CheckObject(source)) is Reason.BAD_DIGEST
        await bench.store.put(source.key, good[:-1])
        assert await bench.check(CheckObject(source)) is Reason.BAD_SIZE
        for bad, reason in ((b"\0" * 32 + good[32:], Reason.BAD_OBJECT), (with_nan(good), Reason.NOT_FINITE)):
            assert await bench.check(CheckObject(await bench.put(kind, bad))) is reason


async def test_uploads(bench: Bench) -> None:
    """2. A pseudo-gradient is what its chunk digests say, of the stage's length, and finite."""
    good = bench.upload()
    assert await bench.check(CheckObject(await bench.put(Kind.UPLOAD, good), bench.chunks(good))) is Reason.OK
    other = bench.chunks(bench.upload())
    assert await bench.check(CheckObject(await bench.put(Kind.UPLOAD, good), other)) is Reason.BAD_DIGEST
    nan = with_nan(good)
    assert await bench.check(CheckObject(await bench.put(Kind.UPLOAD, nan), bench.chunks(nan))) is Reason.NOT_FINITE
    missing = m.Source(
        key=keys.make(bench.spec.run_id, 0, 0, "gone", Kind.UPLOAD), digest=digest_of(good), size_bytes=len(good)
    )
    assert await bench.check(CheckObject(missing, bench.chunks(good))) is Reason.BAD_OBJECT


async def test_reduced_shards(bench: Bench) -> None:
    """3. An owner reports the right digests of its shards and stores something else, whose own digest it reports too:
    it is not what readers were promised."""

    def promised(data: bytes, source: m.Source) -> CheckObject:
        values_S = np.frombuffer(data[compression.HEADER_BYTES :], "<f4")
        offset, size_bytes = compression.byte_range(Values.FP32, 0, LENGTH, LENGTH)
        part = m.RangeSource(key=source.key, offset=offset, size_bytes=size_bytes, digest=range_digest(values_S))
        return CheckObject(source, ranges=(part,))

    good = bench.reduced()
    assert await bench.check(promised(good, await bench.put(Kind.REDUCED, good))) is Reason.OK
    assert await bench.check(promised(good, await bench.put(Kind.REDUCED, bench.reduced()))) is Reason.BAD_DIGEST
    nan = with_nan(good)
    assert await bench.check(promised(nan, await bench.put(Kind.REDUCED, nan))) is Reason.NOT_FINITE


async def dispute(bench: Bench) -> tuple[RecomputeShard, list[np.ndarray]]:
    """Two uploads, and their first shard in dispute."""
    entries, parts = [], []
    for name, weight, scale in (("one", 3.0, 1.0), ("two", 1.0, 0.5)):
        data = bench.upload()
        parts.append(compression.decode(data, Values.FP32, bench.count))
        source = await bench.put(Kind.UPLOAD, data, name)
        entries.append(
            m.ManifestEntry(
                hotkey=Hotkey(name), weight=weight, scale=scale, source=source, chunk_digests=bench.chunks(data)
            )
        )
    owners = (Hotkey("one"), Hotkey("two"))
    assignment = Assignment(m.Shard(index=0, start=0, length=LENGTH), owners)
    return RecomputeShard(Stage(0), Epoch(0), 4, tuple(entries), assignment), parts


async def test_a_disputed_shard(bench: Bench) -> None:
    """4. The orchestrator's own reduction: bit for bit what an honest owner gets, readable where the record says."""
    asked, parts = await dispute(bench)
    record = await inspection.recompute(bench.spec, bench.store, asked, bench.runtime)
    assert isinstance(record, m.ShardRecomputed) and record.source is not None
    expected_S = reduction.reduce_shard([part[:LENGTH] for part in parts], [3.0, 1.0], [1.0, 0.5])
    read = record.source
    body = await bench.store.get(read.key, read.offset, read.size_bytes)
    assert body == expected_S.tobytes() and read.digest == range_digest(expected_S)
    assert keys.parse(read.key).item.endswith(".4"), "the answer says which question it is for"


async def test_a_dispute_over_bad_uploads(bench: Bench) -> None:
    """5. One upload was overwritten: it is named instead. One is gone: the shard cannot be had."""
    asked, _ = await dispute(bench)
    guilty = asked.manifest[1].source.key
    await bench.store.put(guilty, bench.upload())
    record = await inspection.recompute(bench.spec, bench.store, asked, bench.runtime)
    assert record == m.ObjectChecked(key=guilty, reason=Reason.BAD_DIGEST)
    await bench.store.delete_prefix(f"{bench.spec.run_id}/0/0/two/")
    record = await inspection.recompute(bench.spec, bench.store, asked, bench.runtime)
    assert record == m.ShardRecomputed(stage=Stage(0), epoch=Epoch(0), shard=0, source=None)


class Away(MemoryObjectStore):
    """Out of reach until a moment of the loop's time."""

    until = 0.0

    def _reach(self) -> None:
        if asyncio.get_running_loop().time() < self.until:
            raise Unavailable("the bucket does not answer")

    async def get(self, key: keys.ObjectKey, offset: int = 0, length: int | None = None) -> bytes:
        self._reach()
        return await super().get(key, offset, length)

    async def delete_prefix(self, prefix: str) -> int:
        self._reach()
        return await super().delete_prefix(prefix)


async def test_a_store_that_is_away_is_waited_for(bench: Bench) -> None:
    """6. The bucket is out of reach for a minute while the orchestrator has to look at an object, reduce a shard and
    delete an epoch: it does all three when the bucket is back, and nobody is blamed."""
    bench.store = store = Away(bench.runtime.now)
    source = await bench.put(Kind.BOUNDARY, bench.boundary())
    asked, _ = await dispute(bench)
    store.until = asyncio.get_running_loop().time() + 60.0

    async def carry_out(errand: errands.Errand) -> m.OwnRecord | None:
        return await errands.carry_out(errand, bench.spec, store, None, bench.runtime)

    checked, reduced = await asyncio.gather(carry_out(CheckObject(source)), carry_out(asked))
    assert checked == m.ObjectChecked(key=source.key, reason=Reason.OK)
    assert isinstance(reduced, m.ShardRecomputed) and reduced.source is not None
    store.until = asyncio.get_running_loop().time() + 60.0
    assert await carry_out(DropEpoch(Epoch(0))) is None
    assert await store.size_bytes(source.key) is None


async def test_an_errand_comes_back_through_the_journal(host: Callable[..., Awaitable[Any]]) -> None:
    """7. A complaint about an object that does not exist: the finding is a record before anybody acts on it."""
    run = await host()
    await run.join("one", "two")
    (work,) = (await run.exchange("one", free_slots=1)).work
    await run.exchange("one", results=(m.PassDone(item=work.item, digest="0" * 64, param_version=1, compute_s=0.1),))
    (read,) = (await run.exchange("two", free_slots=1)).work
    failed = m.Failed(item=read.item, reason=Reason.BAD_OBJECT, sentence="it is gone", object_key=read.stage_input.key)
    await run.exchange("two", results=(failed,))
    await asyncio.sleep(1.0)
    found = [message for message in run.messages() if isinstance(message, m.ObjectChecked)]
    assert found == [m.ObjectChecked(key=read.stage_input.key, reason=Reason.BAD_OBJECT)]
    assert run.state.miners["one"].faults == 1 and run.state.ledger.total("one") == 0.0
    assert run.folded() == run.state_bytes()
