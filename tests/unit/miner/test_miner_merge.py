"""Two replicas of one stage merge: real trainers, reductions and objects, the orchestrator's part played by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from subnet.merging import compression
from subnet.merging.butterfly import assign
from subnet.merging.shards import reduced_range
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, Pass, Stage, Values
from subnet.protocol.keys import Kind, ObjectKey
from subnet.protocol.messages import (
    ApplyDone,
    ApplyWork,
    Failed,
    ManifestEntry,
    MergedShard,
    PassDone,
    RangeSource,
    ReduceDone,
    ReduceWork,
    Source,
    SyncDone,
    SyncWork,
    Target,
    UploadDone,
    UploadWork,
)
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

pytestmark = pytest.mark.looptime

MIDDLE = Stage(1)
EXPIRES_AT = 1.8e9


class Merge:
    """Two miners of the middle stage with a store in common."""

    def __init__(self, world: World, folder: Path) -> None:
        self.spec, self.store = world.spec, world.store
        other = type(world)(folder, store=world.store)
        self.worlds = {Hotkey("one"): world, Hotkey("two"): other}
        self.count = self.spec.stages[1].num_params
        self.assignments = assign(b"s" * 32, 1, 0, list(self.worlds), self.count, 2)
        self.reduced: dict[Hotkey, ReduceDone] = {}

    def key(self, name: str, kind: Kind, epoch: int = 0) -> ObjectKey:
        return keys.make(self.spec.run_id, epoch, 1, name, kind)

    def target(self, name: str, kind: Kind, size_bytes: int, epoch: int = 0) -> Target:
        key = self.key(name, kind, epoch)
        return Target(key=key, size_bytes=size_bytes, url=self.store.grant_put(key, size_bytes, EXPIRES_AT))

    def source(self, name: str, kind: Kind, size_bytes: int, digest: str, epoch: int = 0) -> Source:
        key = self.key(name, kind, epoch)
        url = self.store.grant_get(key, EXPIRES_AT)
        return Source(key=key, digest=Digest(digest), size_bytes=size_bytes, url=url)

    async def train(self) -> None:
        """Each replica does four micro-batches of its own: one inner step."""
        for number, world in enumerate(self.worlds.values()):
            world.start()
            batches = range(10 * number, 10 * number + 4)
            world.script.give(*[await world.script.work(Pass.BACKWARD, mb) for mb in batches])
            await world.until(*(f"b{mb}" for mb in batches))

    async def reduce(self) -> None:
        """Upload, manifest, reduction."""
        size = compression.encoded_size(self.spec.merge.upload_values, self.count)
        manifest = []
        for hotkey, world in self.worlds.items():
            item, target = ItemId(f"u-{hotkey}"), self.target(hotkey, Kind.UPLOAD, size)
            world.script.give(UploadWork(item=item, stage=MIDDLE, epoch=Epoch(0), output=target, deadline_s=60.0))
            await world.until(item)
            done = world.result(item)
            assert isinstance(done, UploadDone) and done.norm > 0
            manifest.append(
                ManifestEntry(
                    hotkey=hotkey,
                    weight=4.0,
                    scale=1.0,
                    source=self.source(hotkey, Kind.UPLOAD, size, done.digest),
                    chunk_digests=done.chunk_digests,
                )
            )
        shards = tuple(assignment.shard for assignment in self.assignments)
        size = compression.encoded_size(Values.FP32, self.count)
        for hotkey, world in self.worlds.items():
            item = ItemId(f"r-{hotkey}")
            work = ReduceWork(
                item=item,
                stage=MIDDLE,
                epoch=Epoch(0),
                manifest=tuple(manifest),
                shards=shards,
                output=self.target(hotkey, Kind.REDUCED, size),
                deadline_s=60.0,
            )
            world.script.give(work)
            await world.until(item)
            done = world.result(item)
            assert isinstance(done, ReduceDone)
            self.reduced[hotkey] = done

    def apply_work(self, item: str, publish: bool) -> ApplyWork:
        """Take all shards from the second replica's object."""
        shards = tuple(assignment.shard for assignment in self.assignments)
        key, merged = self.key("two", Kind.REDUCED), []
        for position, shard in enumerate(shards):
            offset, size = reduced_range(shards, position)
            digest = Digest(self.reduced[Hotkey("two")].shard_digests[position])
            url = self.store.grant_get(key, EXPIRES_AT)
            source = RangeSource(key=key, offset=offset, size_bytes=size, digest=digest, url=url)
            merged.append(MergedShard(shard=shard, source=source))
        size = compression.encoded_size(Values.FP32, self.count)
        return ApplyWork(
            item=ItemId(item),
            stage=MIDDLE,
            epoch=Epoch(0),
            shards=tuple(merged),
            counted=True,
            publish_parameters=self.target(item, Kind.PARAMETERS, size, 1) if publish else None,
            publish_momentum=self.target(item, Kind.MOMENTUM, size, 1) if publish else None,
            deadline_s=60.0,
        )

    async def apply(self, hotkey: str, item: str, publish: bool) -> ApplyDone:
        world = self.worlds[Hotkey(hotkey)]
        world.script.give(self.apply_work(item, publish))
        await world.until(item)
        done = world.result(item)
        assert isinstance(done, ApplyDone), done
        return done

    async def finish(self) -> None:
        for world in self.worlds.values():
            await world.finish()


@pytest.fixture
def merge(world: World, tmp_path: Path) -> Merge:
    return Merge(world, tmp_path / "two")


async def test_two_replicas_merge_and_a_third_loads_the_result(merge: Merge, world: World, tmp_path: Path) -> None:
    """1. Both copies of every shard are equal, both replicas arrive at the same parameters, and those lie in the store
    for a straggler, which reports the same digest. The result is the mean of the two."""
    await merge.train()
    await merge.reduce()
    one, two = merge.reduced.values()
    assert one.shard_digests == two.shard_digests
    first, second = await merge.apply("one", "a1", True), await merge.apply("two", "a2", False)
    assert first.parameters_digest == second.parameters_digest and first.momentum_digest == second.momentum_digest

    late = type(world)(tmp_path / "three", store=merge.store)
    late.start()
    size = compression.encoded_size(Values.FP32, merge.count)
    sync = SyncWork(
        item=ItemId("y"),
        stage=MIDDLE,
        epoch=Epoch(1),
        parameters=merge.source("a1", Kind.PARAMETERS, size, first.parameters_digest, 1),
        momentum=merge.source("a1", Kind.MOMENTUM, size, first.momentum_digest, 1),
        deadline_s=60.0,
    )
    late.script.give(sync)
    await late.until("y")
    assert late.result("y") == SyncDone(item=ItemId("y"), parameters_digest=first.parameters_digest)
    await late.finish()
    await merge.finish()

    deltas = [
        compression.decode(await merge.store.get(merge.key(name, Kind.UPLOAD)), Values.FP32, merge.count)
        for name in merge.worlds
    ]
    start = compression.decode(await merge.store.get(merge.key("start", Kind.PARAMETERS)), Values.FP32, merge.count)
    merged = compression.decode(await merge.store.get(merge.key("a1", Kind.PARAMETERS, 1)), Values.FP32, merge.count)
    np.testing.assert_allclose(merged, start - (deltas[0] + deltas[1]) / 2, rtol=0, atol=1e-6)
    assert not np.array_equal(deltas[0], deltas[1])


async def test_training_goes_on_while_the_stage_merges(merge: Merge) -> None:
    """2. One replica trains on between its upload and the outer step: what all share is still equal."""
    await merge.train()
    await merge.reduce()
    world = merge.worlds[Hotkey("one")]
    world.script.give(*[await world.script.work(Pass.BACKWARD, mb) for mb in range(20, 24)])
    await world.until(*(f"b{mb}" for mb in range(20, 24)))
    first, second = await merge.apply("one", "a1", False), await merge.apply("two", "a2", False)
    assert first.parameters_digest == second.parameters_digest
    world.script.give(await world.script.work(Pass.FORWARD, 30))
    await world.until("f30")
    assert isinstance(world.result("f30"), PassDone)
    await merge.finish()


async def test_the_publisher_dies_and_another_replica_is_asked(merge: Merge) -> None:
    """3. A replica that has applied the merge already is asked to publish it: same digests, the objects are there; and
    it goes on from the stage's old epoch when it joins again before the stage turns."""
    await merge.train()
    await merge.reduce()
    before = await merge.apply("two", "a1", False)
    world = merge.worlds[Hotkey("two")]
    world.script.refusals = [Reason.NOT_JOINED]
    world.script.wake()
    await asyncio.sleep(30)
    again = await merge.apply("two", "a2", True)
    assert msgspec.structs.replace(again, item=ItemId("a1")) == before
    size = compression.encoded_size(Values.FP32, merge.count)
    assert await merge.store.size_bytes(merge.key("a2", Kind.PARAMETERS, 1)) == size
    assert await merge.store.size_bytes(merge.key("a2", Kind.MOMENTUM, 1)) == size
    assert len(world.script.joins) == 2 and world.built == [MIDDLE]
    await merge.finish()


async def test_a_wrong_shard_is_named_and_work_for_another_epoch_refused(merge: Merge) -> None:
    """4. An owner overwrites its reduced shards: the replica that reads them names the object and changes nothing; an
    upload for an epoch that is over is refused as such."""
    await merge.train()
    await merge.reduce()
    world, key = merge.worlds[Hotkey("one")], merge.key("two", Kind.REDUCED)
    good = await merge.store.get(key)
    await merge.store.put(key, good[:-4] + b"\0\0\0\0")
    world.script.give(merge.apply_work("a1", False))
    await world.until("a1")
    failed = world.result("a1")
    assert isinstance(failed, Failed) and (failed.reason, failed.object_key) == (Reason.BAD_DIGEST, key)
    await merge.store.put(key, good)
    await merge.apply("one", "a2", False)
    target = merge.target("late", Kind.UPLOAD, compression.encoded_size(Values.FP32, merge.count))
    world.script.give(UploadWork(item=ItemId("u"), stage=MIDDLE, epoch=Epoch(0), output=target, deadline_s=60.0))
    await world.until("u")
    refused = world.result("u")
    assert isinstance(refused, Failed) and (refused.reason, refused.object_key) == (Reason.WRONG_ANCHOR, None)
    await merge.finish()
