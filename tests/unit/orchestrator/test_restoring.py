"""A restart by way of a snapshot leads where the whole journal leads, and no bad snapshot leads anywhere."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any

import msgspec
import pytest
from loguru import logger

from subnet.errors import Unavailable
from subnet.orchestrator import restoring
from subnet.orchestrator.publication import Publication, live_secret
from subnet.orchestrator.restoring import Restored, Snapshooter, restore, rules_digest
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Hotkey
from subnet.runtime import LoopRuntime
from subnet.simulation.long_journal import LongRun
from subnet.storage.base import Journal, JournalRecord, Snapshot
from subnet.storage.memory import MemoryJournal, MemorySnapshots

pytestmark = pytest.mark.looptime(end=3_600)
Host = Callable[..., Awaitable[Any]]
ROWS, EVERY = 2_000, 300


class CountedJournal(MemoryJournal):
    """Counts the records that are read."""

    def __init__(self, records: list[JournalRecord]) -> None:
        super().__init__(records)
        self.read_records = 0

    async def read(self, start: int, limit: int) -> list[JournalRecord]:
        found = await super().read(start, limit)
        self.read_records += len(found)
        return found


class Long:
    """The journal of a run, and the snapshots that its orchestrator took on the way."""

    def __init__(self) -> None:
        self.records: list[JournalRecord] = []
        self.kept: dict[int, Snapshot] = {}

    async def grow(self, rows: int) -> Long:
        journal, run = MemoryJournal(self.records), LongRun(Hotkey("owner"), 4, 2, begin_at=1.7e9)
        publication = Publication()
        snapshooter = Snapshooter(MemorySnapshots(self.kept), LoopRuntime(b"s"), EVERY, -1)
        for envelope in islice(run.records(), rows):
            (record,) = await journal.append([msgspec.json.encode(envelope)])
            publication.note(record, envelope.message, live_secret(run.state), False)
            if snapshooter.is_due(record.index):
                await snapshooter.take(run.state, publication)
        return self

    async def restored(self, *snapshots: MemorySnapshots) -> Restored:
        found = await restore(MemoryJournal(self.records), *snapshots)
        assert found is not None
        return found

    @property
    def snapshots(self) -> MemorySnapshots:
        return MemorySnapshots(dict(self.kept))


@pytest.fixture(scope="module")
def long() -> Long:
    return asyncio.run(Long().grow(ROWS))


@pytest.fixture
def warnings() -> Any:
    """What the operator reads."""
    lines: list[str] = []
    logger.enable("subnet")
    number = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    yield lines
    logger.remove(number)


def same(a: Restored, b: Restored) -> bool:
    return canonical(a.state) == canonical(b.state) and a.publication.at == b.publication.at


def canonical(state: Any) -> bytes:
    """A state's bytes; the order inside a set is each process's own."""
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=type(state))
    registered, fresh = sorted(state.registered), sorted(state.pay.fresh)
    state.registered, state.pay.fresh = set(), set()
    return msgspec.msgpack.encode((state, registered, fresh))


async def test_only_the_tail_is_folded(long: Long) -> None:
    """1. The orchestrator is started again over 2,000 records: it reads and folds what came after the newest snapshot,
    and is where a reader of the whole journal is."""
    journal = CountedJournal(long.records)
    by_snapshot = await restore(journal, long.snapshots)
    whole = await long.restored()
    assert by_snapshot is not None and whole.replayed == ROWS and whole.snapshot_index == -1
    assert 0 < by_snapshot.replayed <= EVERY and by_snapshot.snapshot_index == ROWS - by_snapshot.replayed - 1
    assert journal.read_records <= by_snapshot.replayed + 2
    assert same(by_snapshot, whole) and len(long.kept) == restoring.KEPT
    assert min(s.epoch for s in whole.state.stages) >= 1 and live_secret(whole.state), "a run that gets somewhere"
    assert by_snapshot.publication.sealed_from > 0


def half(snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(body=snapshot.body[: len(snapshot.body) // 2])


def flipped(snapshot: Snapshot) -> Snapshot:
    middle = len(snapshot.body) // 2
    return snapshot._replace(
        body=snapshot.body[:middle] + bytes([snapshot.body[middle] ^ 1]) + snapshot.body[middle + 1 :]
    )


def misshapen(snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(body=zlib.compress(msgspec.msgpack.encode({"state": {}})))


def of_other_code(snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(rules=Digest("0" * 64))


def of_another_journal(snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(head=Digest("0" * 64))


def empty(snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(body=b"")


@pytest.mark.parametrize("spoil", [half, flipped, misshapen, of_other_code, of_another_journal, empty])
async def test_a_bad_snapshot_is_passed_over(long: Long, warnings: list[str], spoil: Callable[..., Snapshot]) -> None:
    """2. The newest snapshot is damaged, was made by another version, or belongs to a journal that was put aside: the
    one before it serves. Both are bad: the whole journal does. Each is said in a line."""
    older, newest = sorted(long.kept)
    one_bad = long.kept | {newest: spoil(long.kept[newest])}
    restored = await long.restored(MemorySnapshots(one_bad))
    assert restored.snapshot_index == older and len(warnings) == 1
    both_bad = {index: spoil(snapshot) for index, snapshot in long.kept.items()}
    again = await long.restored(MemorySnapshots(both_bad))
    assert again.snapshot_index == -1 and again.replayed == ROWS and len(warnings) == 3
    assert same(restored, again) and same(again, await long.restored())
    assert all(line.startswith("the snapshot of record ") and "\n" not in line for line in warnings)


async def test_a_snapshot_ahead_of_its_journal(long: Long) -> None:
    """3. The operator went back to a copy of the journal from before the newest snapshots: they are not even asked."""
    journal = MemoryJournal(long.records[: min(long.kept) - 1])
    restored = await restore(journal, long.snapshots)
    assert restored is not None and restored.snapshot_index == -1 and restored.replayed == min(long.kept) - 1


async def test_an_empty_journal_beside_snapshots(long: Long) -> None:
    """4. The journal was deleted, the snapshots were not: it is a new run."""
    assert await restore(MemoryJournal(), long.snapshots) is None


async def test_a_service_takes_snapshots(host: Host) -> None:
    """5. A live service takes one whenever so many records have come, and one when it is stopped in order; the next
    process folds nothing then. One that is killed leaves the last."""
    run = await host(snapshot_every=10)
    await run.join("one", "two")
    for _ in range(20):
        await run.exchange("one")
        await asyncio.sleep(0.1)
    newest = await run.snapshots.newest(10**9)
    assert newest is not None and len(run.records) - 11 <= newest.index < len(run.records)
    await run.stop()
    killed = await restore(run.journal, run.snapshots)
    assert killed is not None and killed.snapshot_index == newest.index
    assert canonical(killed.state) == canonical(run.state)
    await run.service.snapshot()
    stopped = await restore(run.journal, run.snapshots)
    assert stopped is not None and stopped.replayed == 0 and canonical(stopped.state) == canonical(run.state)
    await run.start()
    assert run.folded() is not None and canonical(run.state) == canonical((await whole(run.journal)).state)


async def whole(journal: Journal) -> Restored:
    found = await restore(journal)
    assert found is not None
    return found


async def test_snapshots_that_cannot_be_written(host: Host, warnings: list[str]) -> None:
    """6. The disk takes journal records but no snapshot: a line each time, and the run goes on."""

    class Full(MemorySnapshots):
        async def put(self, snapshot: Snapshot, keep: int) -> None:
            raise Unavailable("the disk is full")

    run = await host(snapshot_every=10, snapshots=Full())
    await run.join("one")
    for _ in range(30):
        await run.exchange("one")
        await asyncio.sleep(0.1)
    assert await run.snapshots.newest(10**9) is None
    assert 2 <= len([line for line in warnings if "the disk is full" in line]) <= 4
    assert run.folded() == run.state_bytes()


async def test_no_snapshot_of_half_a_decision(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """7. The machine breaks in the middle of a record, and the process is stopped: what it leaves in memory is nothing
    to go on from, so no snapshot is taken of it."""
    run = await host(snapshot_every=1_000)
    await run.join("one")

    def breaks(state: Any, envelope: m.Envelope) -> Any:
        state.completed += 1
        raise RuntimeError("a defect")

    monkeypatch.setattr("subnet.coordination.machine.handle", breaks)
    with pytest.raises(Unavailable):
        await run.exchange("one")
    await run.service.snapshot()
    assert await run.snapshots.newest(10**9) is None
    await asyncio.wait([run.task])


def test_the_digest_of_the_rules() -> None:
    """8. It is the same in every process of one version."""
    assert rules_digest() == rules_digest.__wrapped__() and len(rules_digest()) == 64
