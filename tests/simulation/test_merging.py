"""Merges of a whole stage with the production roles: any number of replicas, and replicas that cheat.

The cheats sit between an honest miner and the outside, so they cheat consistently: what they store and what they report
fit each other, unless that is the point.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from subnet.coordination.merge_state import Merge
from subnet.merging import compression, reduction
from subnet.merging.shards import range_digest
from subnet.protocol import keys
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Hotkey, Values
from subnet.protocol.keys import Kind
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.simulation.world import World
from subnet.transport.base import ControlClient, ObjectClient

pytestmark = pytest.mark.looptime(end=20_000)
MakeWorld = Callable[..., World]
HEADER = compression.HEADER_BYTES
CHEAT = Hotkey("miner0")


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


class Cheat:
    """Both lines of one miner: what it stores and what it reports may be changed on the way out."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.work: dict[str, m.Work] = {}
        self.stored: dict[str, bytes] = {}

    def control(self, line: ControlClient) -> ControlClient:
        self.line = line
        return self

    def objects(self, store: ObjectClient) -> ObjectClient:
        self.store = store
        return self

    async def call(self, message: m.Message, spec_digest: Digest | None, timeout_s: float) -> m.Reply:
        if isinstance(message, m.Exchange):
            message = msgspec.structs.replace(message, results=tuple(map(self.report, message.results)))
        reply = await self.line.call(message, spec_digest, timeout_s)
        if isinstance(reply, m.ExchangeReply):
            self.work |= {work.item: work for work in reply.work}
        return reply

    async def get(self, url: str, offset: int, size_bytes: int, timeout_s: float) -> bytes:
        return await self.store.get(url, offset, size_bytes, timeout_s)

    async def put(self, url: str, data: bytes, timeout_s: float) -> None:
        key = url.partition("/objects/")[2].partition("?")[0]
        self.stored[key] = self.bytes_for(keys.parse(key).kind, data)
        await self.store.put(url, self.stored[key], timeout_s)

    async def close(self) -> None: ...

    def output(self, result: m.Result) -> bytes:
        """What was stored for the work that `result` answers."""
        return self.stored[self.work[result.item].output.key]  # type: ignore[union-attr]

    def bytes_for(self, kind: Kind, data: bytes) -> bytes:
        return data

    def report(self, result: m.Result) -> m.Result:
        return result


class WrongReducer(Cheat):
    """Reduces to the opposite direction, and reports that."""

    def bytes_for(self, kind: Kind, data: bytes) -> bytes:
        return data[:HEADER] + (-np.frombuffer(data[HEADER:], "<f4")).tobytes() if kind is Kind.REDUCED else data

    def report(self, result: m.Result) -> m.Result:
        if not isinstance(result, m.ReduceDone):
            return result
        values, digests = np.frombuffer(self.output(result)[HEADER:], "<f4"), []
        for shard in self.work[result.item].shards:  # type: ignore[union-attr]
            digests.append(range_digest(values[: shard.length]))
            values = values[shard.length :]
        return msgspec.structs.replace(result, digest=digest_of(self.output(result)), shard_digests=tuple(digests))


class ShardSwitcher(WrongReducer):
    """Reports the right digests of its shards, and other bytes under them whose digest as an object it reports too."""

    def report(self, result: m.Result) -> m.Result:
        if not isinstance(result, m.ReduceDone):
            return result
        return msgspec.structs.replace(result, digest=digest_of(self.output(result)))


class BadUploader(Cheat):
    """Uploads other bytes than its pseudo-gradient, and reports their digests."""

    def bytes_for(self, kind: Kind, data: bytes) -> bytes:
        return self.spoilt(data) if kind is Kind.UPLOAD else data

    def spoilt(self, data: bytes) -> bytes:
        raise NotImplementedError

    def report(self, result: m.Result) -> m.Result:
        if not isinstance(result, m.UploadDone):
            return result
        data = self.output(result)
        chunk_bytes = 4 * compression.CHUNK_VALUES
        chunks = tuple(digest_of(data[at : at + chunk_bytes]) for at in range(HEADER, len(data), chunk_bytes))
        return msgspec.structs.replace(result, digest=digest_of(data), chunk_digests=chunks)


class NanUploader(BadUploader):
    """One value of thousands is NaN."""

    def spoilt(self, data: bytes) -> bytes:
        return data[:-4] + np.float32(np.nan).tobytes()


class GarbageUploader(BadUploader):
    """Noise of the right size."""

    def spoilt(self, data: bytes) -> bytes:
        return np.random.default_rng(1).bytes(len(data))


class UploadSwitcher(BadUploader):
    """Reports its honest upload, and overwrites it with another one."""

    def spoilt(self, data: bytes) -> bytes:
        return data[:HEADER] + data[HEADER:][::-1]

    def report(self, result: m.Result) -> m.Result:
        return result


class Merged:
    """One stage of a world that ran to its end with `replicas` miners, the first of which may cheat."""

    def __init__(self, world: World, cheat: type[Cheat] | None, replicas: int) -> None:
        self.world, self._cheat, self.replicas = world, cheat, replicas

    async def start_all(self) -> None:
        for number in range(self.replicas):
            cheat = self._cheat(self.world.spec) if self._cheat is not None and number == 0 else None
            lines = {} if cheat is None else {"control": cheat.control, "objects": cheat.objects}
            await self.world.start(f"miner{number}", **lines)

    async def run(self) -> Merged:
        async with self.world:
            await self.start_all()
            await self.world.finished()
        return self

    async def check_equal(self) -> np.ndarray:
        """All replicas stand at the stage's merged parameters, bit for bit; so say their own reports."""
        theta_P = await self.world.parameters(0)
        for miner in self.world.miners.values():
            assert miner.trainer is not None and miner.trainer.local_parameters().tobytes() == theta_P.tobytes()
        reports = [
            (result.parameters_digest, result.momentum_digest)
            for envelope in self.world.envelopes()
            for result in (envelope.message.results if isinstance(envelope.message, m.Exchange) else ())
            if isinstance(result, m.ApplyDone)
        ]
        assert set(reports[-self.replicas :]) == {
            (self.world.state.stages[0].parameters.digest, self.world.state.stages[0].momentum.digest)
        }
        return theta_P

    def names(self, reason: Reason) -> set[Hotkey | None]:
        """Whom the incidents with this reason name as the one at fault: whoever gathered faults."""
        assert reason in {incident.reason for incident in self.world.state.incidents}
        return {miner.hotkey for miner in self.world.state.miners.values() if miner.faults}


@pytest.fixture
def merged(make_world: MakeWorld) -> Callable[..., Merged]:
    def make(replicas: int, cheat: type[Cheat] | None = None, epochs: int = 1, **change: Any) -> Merged:
        name = f"{cheat.__name__ if cheat else 'honest'}-{epochs}"
        change = {"b_min": 4, "flush": False, "heartbeat_s": 2.0, "dead_after_s": 10.0} | change
        return Merged(make_world(1, epochs, name=name, **change), cheat, replicas)

    return make


@pytest.mark.parametrize(("replicas", "shards"), [(1, 1), (2, 1), (3, 3), (5, 10)])
async def test_any_number_of_replicas(merged: Callable[..., Merged], replicas: int, shards: int) -> None:
    """1. One replica, two, three, five: two copies of every shard wherever there are two replicas, all of them equal,
    and every replica ends both epochs at the same parameters, bit for bit."""
    run = await merged(replicas, epochs=2, outer_lr=0.7, outer_momentum=0.9, outer_momentum_first=0.5).run()
    await run.check_equal()
    records = run.world.state.stages[0].merges
    assert [(r.replicas, r.shards, r.agreed + r.single) for r in records] == [(replicas, shards, shards)] * 2
    assert [(r.single, r.lost, r.disputed) for r in records] == [(shards if replicas == 1 else 0, 0, 0)] * 2
    assert not run.world.state.incidents


@pytest.mark.parametrize("cheat", [WrongReducer, ShardSwitcher])
@pytest.mark.parametrize("replicas", [2, 3])
async def test_a_wrong_shard(merged: Callable[..., Merged], cheat: type[Cheat], replicas: int) -> None:
    """2. An owner reduces wrongly, or stores something else than it reports. It is named; its shards are recomputed by
    the orchestrator, or taken from the other copy; and everybody arrives at exactly what an honest merge gives."""
    honest, run = await merged(replicas).run(), await merged(replicas, cheat).run()
    assert (await run.check_equal()).tobytes() == (await honest.check_equal()).tobytes()
    (record,) = run.world.state.stages[0].merges
    if cheat is WrongReducer:
        assert run.names(Reason.WRONG_SHARD) == {CHEAT}
        assert record.faulty.keys() == {CHEAT}
        assert len(record.faulty[CHEAT]) == record.disputed == record.disagreements[CHEAT] == replicas - 1
        honest_rows = [count for hotkey, count in record.disagreements.items() if hotkey != CHEAT]
        assert honest_rows == [1] * (replicas - 1)
    else:
        assert run.names(Reason.BAD_DIGEST) == {CHEAT} and record.lost == 0


@pytest.mark.parametrize(
    ("cheat", "reason"),
    [(NanUploader, Reason.NOT_FINITE), (GarbageUploader, Reason.NOT_FINITE), (UploadSwitcher, Reason.BAD_DIGEST)],
)
async def test_a_bad_upload(merged: Callable[..., Merged], cheat: type[Cheat], reason: Reason) -> None:
    """3. NaN, noise, or other bytes than reported: the pseudo-gradient is left out, its maker is named, and the result
    is the weighted mean of the others', bit for bit."""
    run = await merged(3, cheat).run()
    assert run.names(reason) == {CHEAT}
    theta_P = await run.check_equal()
    (record,) = run.world.state.stages[0].merges
    assert record.replicas == 2
    manifest = [state.stages[0].merge.manifest for state in run.world.fold() if state.stages[0].merge is not None][-1]
    assert [entry.hotkey for entry in manifest] == ["miner1", "miner2"]
    spec, store = run.world.spec, run.world.store
    count = spec.stages[0].num_params
    parts = [compression.decode(await store.get(entry.source.key), Values.FP32, count) for entry in manifest]
    g_P = reduction.reduce_shard(parts, [entry.weight for entry in manifest], [entry.scale for entry in manifest])
    start_P = compression.decode(
        await store.get(keys.make(spec.run_id, 0, 0, "start", Kind.PARAMETERS)), Values.FP32, count
    )
    expected_P, _ = reduction.outer_step(start_P, np.zeros_like(start_P), g_P, spec.merge.outer_lr, 0.0)
    assert theta_P.tobytes() == expected_P.tobytes()


@pytest.mark.parametrize("cheat", [WrongReducer, NanUploader])
async def test_the_orchestrator_dies_while_it_looks(merged: Callable[..., Merged], cheat: type[Cheat]) -> None:
    """4. The process ends between asking itself for a look (at a disputed shard, at an accused upload) and journaling
    what it found: the next one looks again, the merge completes and the cheat is named."""
    run = merged(3, cheat)
    async with run.world as world:
        await run.start_all()
        await world.until(lambda state: _owes_a_look(state.stages[0].merge))
        found = len(_findings(world))
        world.stop_orchestrator()
        await asyncio.sleep(5.0)
        assert len(_findings(world)) == found, "it was too quick to be stopped"
        await world.start_orchestrator()
        await world.finished()
    assert {miner.hotkey for miner in world.state.miners.values() if miner.faults} == {CHEAT}
    await run.check_equal()


def _owes_a_look(merge: Merge | None) -> bool:
    return merge is not None and bool(merge.recomputing or merge.checking)


def _findings(world: World) -> list[m.Envelope]:
    return [e for e in world.envelopes() if isinstance(e.message, m.ObjectChecked | m.ShardRecomputed)]
