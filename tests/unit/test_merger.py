"""The miner's side of a merge, against a store in memory: what it reads, what it returns, whom it blames."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.errors import PeerFault, Unavailable
from subnet.merging import compression as codec
from subnet.merging.butterfly import Assignment, assign
from subnet.merging.reduction import reduce_shard
from subnet.merging.shards import reduced_range
from subnet.miner import merger
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, RunId, Stage, Values
from subnet.protocol.messages import (
    ApplyWork,
    ManifestEntry,
    MergedShard,
    RangeSource,
    ReduceDone,
    ReduceWork,
    Source,
    Target,
)
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.runtime import LoopRuntime
from subnet.storage.memory import MemoryObjectStore
from subnet.transport.memory import MemoryObjectClient

RUN = RunId("run")
COUNT = 70_001
EXPIRES_AT = 2e9


def run_spec(values: Values) -> RunSpec:
    """A run of one stage whose vector has COUNT values, uploaded as `values`."""
    file = DataFile(key=keys.make(RUN, 0, 0, "text", keys.Kind.DATA), digest=Digest("0" * 64), size_bytes=1)
    data = DataSpec(tokenizer=file, train=(file,), validation=(file,), micro_batch_size=1, seq_len=16)
    preset = presets.equivalence(presets.Size(num_miners=1, num_stages=1, epochs=1))
    spec = presets.run_spec(preset, run_id=RUN, seed=1, num_stages=1, data=data)
    return msgspec.structs.replace(
        spec,
        stages=(msgspec.structs.replace(spec.stages[0], num_params=COUNT),),
        merge=msgspec.structs.replace(spec.merge, upload_values=values),
    )


class CountingClient(MemoryObjectClient):
    """Remembers what was read and how many reads were under way at once."""

    def __init__(self, store: MemoryObjectStore) -> None:
        super().__init__(store)
        self.reads: list[tuple[str, int, int]] = []
        self.under_way = self.most_under_way = 0
        self.first_read = asyncio.Event()

    async def get(self, url: str, offset: int, size_bytes: int, timeout_s: float) -> bytes:
        self.reads.append((url.partition("?")[0], offset, size_bytes))
        self.first_read.set()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        try:
            return await super().get(url, offset, size_bytes, timeout_s)
        finally:
            self.under_way -= 1


class Merge:
    """One stage with `num_replicas` uploads in a store, and the orchestrator's part of the merge played by hand."""

    def __init__(self, num_replicas: int, values: Values = Values.INT8, copies: int = 2) -> None:
        self.spec, self.values = run_spec(values), values
        self.runtime = LoopRuntime(b"test")
        self.store = MemoryObjectStore(lambda: 1e9)
        self.client = CountingClient(self.store)
        self.hotkeys = [Hotkey(f"hk{i}") for i in range(num_replicas)]
        self.assignments = assign(b"s" * 32, 0, 0, self.hotkeys, COUNT, copies)
        rng = np.random.default_rng(num_replicas)
        self.uploads = [codec.encode(values, rng.standard_normal(COUNT).astype(np.float32)) for _ in self.hotkeys]
        self.weights = [10.0 + i for i in range(num_replicas)]
        self.manifest: tuple[ManifestEntry, ...] = ()
        self.results: dict[Hotkey, ReduceDone] = {}

    async def open(self) -> Merge:
        entries = []
        for hotkey, data, weight in zip(self.hotkeys, self.uploads, self.weights, strict=True):
            key = keys.make(RUN, 0, 0, hotkey, keys.Kind.UPLOAD)
            await self.store.put(key, data)
            source = Source(
                key=key,
                digest=Digest(hashlib.sha256(data).hexdigest()),
                size_bytes=len(data),
                url=self.store.grant_get(key, EXPIRES_AT),
            )
            digests = codec.chunk_digests(data, self.values, COUNT)
            entries.append(ManifestEntry(hotkey=hotkey, weight=weight, scale=1.0, source=source, chunk_digests=digests))
        self.manifest = tuple(entries)
        return self

    def work(self, owner: Hotkey) -> ReduceWork:
        shards = tuple(a.shard for a in self.assignments if owner in a.owners)
        size_bytes = codec.encoded_size(Values.FP32, sum(shard.length for shard in shards))
        return ReduceWork(
            item=ItemId(f"reduce-{owner}"),
            stage=Stage(0),
            epoch=Epoch(0),
            manifest=self.manifest,
            shards=shards,
            output=Target(key=keys.make(RUN, 0, 0, owner, keys.Kind.REDUCED), size_bytes=size_bytes),
            deadline_s=9,
        )

    async def reduce(self, owner: Hotkey, parallel: int = 4) -> tuple[bytes, ReduceDone]:
        return await merger.reduce(self.work(owner), self.client, parallel, spec=self.spec, runtime=self.runtime)

    async def reduce_all(self) -> None:
        for owner in self.hotkeys:
            data, self.results[owner] = await self.reduce(owner)
            await self.store.put(keys.make(RUN, 0, 0, owner, keys.Kind.REDUCED), data)

    def apply_work(self, lost: Sequence[int] = ()) -> ApplyWork:
        def merged(assignment: Assignment) -> MergedShard:
            owner, shard = assignment.owners[0], assignment.shard
            if shard.index in lost:
                return MergedShard(shard=shard, source=None)
            shards = self.work(owner).shards
            position = shards.index(shard)
            offset, size_bytes = reduced_range(shards, position)
            key = keys.make(RUN, 0, 0, owner, keys.Kind.REDUCED)
            digest = self.results[owner].shard_digests[position]
            url = self.store.grant_get(key, EXPIRES_AT)
            return MergedShard(
                shard=shard, source=RangeSource(key=key, offset=offset, size_bytes=size_bytes, digest=digest, url=url)
            )

        return ApplyWork(
            item=ItemId("apply"),
            stage=Stage(0),
            epoch=Epoch(0),
            shards=tuple(merged(assignment) for assignment in self.assignments),
            counted=True,
            publish_parameters=None,
            publish_momentum=None,
            deadline_s=9,
        )

    async def fetch(self, work: ApplyWork) -> list[merger.MergedPart]:
        return await merger.fetch_merged(work, self.client, 3, runtime=self.runtime)


@pytest.mark.parametrize("values", list(Values))
@pytest.mark.parametrize(("num_replicas", "copies"), [(1, 2), (2, 2), (3, 2), (5, 2), (5, 3), (4, 1)])
async def test_a_whole_merge(num_replicas: int, copies: int, values: Values) -> None:
    """1. All replicas reduce their shards, everybody fetches all: the same bits as reducing the whole vectors at once,
    both copies of every shard with the same digest."""
    merge = await Merge(num_replicas, values, copies).open()
    await merge.reduce_all()
    parts = [codec.decode(data, values, COUNT) for data in merge.uploads]
    whole_P = reduce_shard(parts, merge.weights, [1.0] * num_replicas)
    fetched = await merge.fetch(merge.apply_work())
    assert [(start, length) for start, length, _ in fetched] == [(s.start, s.length) for s, _ in merge.assignments]
    assert np.concatenate([g for _, _, g in fetched if g is not None]).tobytes() == whole_P.tobytes()
    for shard, owners in merge.assignments:
        digests = {merge.results[owner].shard_digests[merge.work(owner).shards.index(shard)] for owner in owners}
        assert len(digests) == 1


async def test_what_is_returned_is_what_is_stored() -> None:
    """2. The object fits its exact-size slot, and the result's digest is the object's."""
    merge = await Merge(3).open()
    data, done = await merge.reduce(merge.hotkeys[0])
    work = merge.work(merge.hotkeys[0])
    assert len(data) == work.output.size_bytes and done.item == work.item
    assert done.digest == hashlib.sha256(data).hexdigest() and len(done.shard_digests) == len(work.shards)
    codec.decode(data, Values.FP32, sum(shard.length for shard in work.shards))


async def test_only_ranges_are_read_and_never_too_many_at_once() -> None:
    """3. Ten replicas on a slow line: an owner reads each chunk it needs once, at most two at a time; the whole
    result comes in one read per owner's object."""
    merge = await Merge(10).open()
    await merge.reduce(merge.hotkeys[0], parallel=2)
    assert merge.client.most_under_way == 2
    by_upload = Counter(url for url, _, _ in merge.client.reads)
    assert len(by_upload) == 10
    for url in by_upload:  # shards share chunks here, and no byte comes twice
        ranges = sorted((offset, size) for read_url, offset, size in merge.client.reads if read_url == url)
        assert all(a + size <= b for (a, size), (b, _) in pairwise(ranges))
    await merge.reduce_all()
    merge.client.reads.clear()
    await merge.fetch(merge.apply_work())
    objects = {url for url, _, _ in merge.client.reads}
    assert len(merge.client.reads) < len(merge.assignments)
    assert sum(size for _, _, size in merge.client.reads) == 4 * COUNT and len(objects) == 9


async def test_a_swapped_upload_is_named() -> None:
    """4. A replica overwrites its upload after the manifest closed: its key is the evidence, no result comes out."""
    merge = await Merge(3).open()
    victim = merge.manifest[2]
    await merge.store.put(victim.source.key, merge.uploads[0])
    with pytest.raises(PeerFault) as fault:
        await merge.reduce(merge.hotkeys[0])
    assert (fault.value.code, fault.value.evidence) == (Reason.BAD_DIGEST, victim.source.key)


async def test_a_missing_upload_is_named() -> None:
    """5. The object is gone from the store. The transport knows no keys, only URLs: the fault gets the key here."""

    class KeylessClient(CountingClient):
        async def get(self, url: str, offset: int, size_bytes: int, timeout_s: float) -> bytes:
            try:
                return await super().get(url, offset, size_bytes, timeout_s)
            except PeerFault as fault:
                raise PeerFault(fault.code, fault.sentence) from fault

    merge = await Merge(2).open()
    merge.client = KeylessClient(merge.store)
    await merge.store.delete_prefix(keys.epoch_prefix(RUN, 0))
    with pytest.raises(PeerFault) as fault:
        await merge.reduce(merge.hotkeys[0])
    assert fault.value.evidence in {entry.source.key for entry in merge.manifest}


async def test_a_store_that_is_away_may_be_asked_again() -> None:
    """6. The store restarts during a merge: Unavailable comes through as it is, and the second try works."""
    merge = await Merge(2).open()
    real_read, failures = merge.store.read, [1]

    async def flaky(key: str, query: dict[str, str], offset: int, length: int | None) -> bytes:
        if failures:
            failures.pop()
            raise Unavailable("the store restarts")
        return await real_read(key, query, offset, length)

    merge.store.read = flaky  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await merge.reduce(merge.hotkeys[0])
    data, _ = await merge.reduce(merge.hotkeys[0])
    assert len(data) == merge.work(merge.hotkeys[0]).output.size_bytes


async def test_a_wrong_target_is_refused_before_reading() -> None:
    """7. The orchestrator granted a slot of another size: nothing is read for a result that could not be stored."""
    merge = await Merge(2).open()
    work = merge.work(merge.hotkeys[0])
    work = msgspec.structs.replace(work, output=Target(key=work.output.key, size_bytes=7))
    with pytest.raises(PeerFault) as fault:
        await merger.reduce(work, merge.client, 4, spec=merge.spec, runtime=merge.runtime)
    assert fault.value.code == Reason.MALFORMED and not merge.client.reads


async def test_lost_shards_stay_none() -> None:
    """8. Both owners of two shards died: those come back as None and nothing is read for them."""
    merge = await Merge(5).open()
    await merge.reduce_all()
    merge.client.reads.clear()
    fetched = await merge.fetch(merge.apply_work(lost=[2, 7]))
    assert [i for i, (_, _, g) in enumerate(fetched) if g is None] == [2, 7]
    kept = sum(shard.length for shard, _ in merge.assignments if shard.index not in (2, 7))
    assert sum(size for _, _, size in merge.client.reads) == 4 * kept
    everything_lost = await merge.fetch(merge.apply_work(lost=range(10)))
    assert all(g is None for _, _, g in everything_lost)


async def test_a_reduced_object_changed_after_the_vote_is_named() -> None:
    """9. An owner reports the right digests and stores something else: every reader names its object."""
    merge = await Merge(3).open()
    await merge.reduce_all()
    owner = merge.assignments[1].owners[0]
    key = keys.make(RUN, 0, 0, owner, keys.Kind.REDUCED)
    data = bytearray(await merge.store.get(key))
    offset, _ = reduced_range(merge.work(owner).shards, merge.work(owner).shards.index(merge.assignments[1].shard))
    data[offset] ^= 1
    await merge.store.put(key, bytes(data))
    with pytest.raises(PeerFault) as fault:
        await merge.fetch(merge.apply_work())
    assert (fault.value.code, fault.value.evidence) == (Reason.BAD_DIGEST, key)


async def test_a_range_of_another_length_is_refused() -> None:
    """10. Range and shard do not fit each other: a size fault, never a vector of the wrong length."""
    merge = await Merge(1).open()
    await merge.reduce_all()
    work = merge.apply_work()
    source = work.shards[0].source
    assert source is not None
    body = (await merge.store.get(source.key, source.offset, source.size_bytes))[:-4]
    short = msgspec.structs.replace(source, size_bytes=len(body), digest=Digest(hashlib.sha256(body).hexdigest()))
    work = msgspec.structs.replace(work, shards=(MergedShard(shard=work.shards[0].shard, source=short),))
    with pytest.raises(PeerFault) as fault:
        await merge.fetch(work)
    assert (fault.value.code, fault.value.evidence) == (Reason.BAD_SIZE, source.key)


async def test_giving_up_leaves_nothing_behind() -> None:
    """11. The merge is withdrawn while reads are under way: cancelling ends them all."""
    merge = await Merge(10).open()
    task = asyncio.create_task(merge.reduce(merge.hotkeys[0], parallel=1))
    await merge.client.first_read.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert merge.client.under_way == 0 and len(asyncio.all_tasks()) == 1
