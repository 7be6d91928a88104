"""The miner's small parts: the turn to compute, the receipts, files in pieces."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from subnet.errors import PeerFault, Unavailable
from subnet.miner.receipts import ReceiptBook, credited, load_receipts
from subnet.miner.turn import BACKWARD, FORWARD, LOADING, MERGE, Turn
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Epoch, ItemId, RunId, Stage
from subnet.protocol.messages import Receipt, Source, Verdict
from subnet.protocol.reasons import Reason
from subnet.runtime import LoopRuntime
from subnet.storage.memory import MemoryObjectStore
from subnet.transport import transfer
from subnet.transport.memory import MemoryObjectClient

pytestmark = pytest.mark.looptime

RUN = RunId("run")


async def test_the_most_urgent_waiter_goes_next() -> None:
    """1. Whatever the order of arrival: parameters, merge work, backwards, forwards; equals as they came."""
    turn, order = Turn(), list[str]()

    async def work(name: str, urgency: int) -> None:
        async with turn.hold(urgency):
            order.append(name)
            await asyncio.sleep(1)

    async with asyncio.TaskGroup() as group:
        group.create_task(work("first", FORWARD))
        await asyncio.sleep(0.1)
        for name, urgency in ("f1", FORWARD), ("b1", BACKWARD), ("f2", FORWARD), ("m", MERGE), ("l", LOADING):
            group.create_task(work(name, urgency))
    assert order == ["first", "l", "m", "b1", "f1", "f2"]


@pytest.mark.parametrize("granted", [False, True])
async def test_a_waiter_that_is_cancelled_leaves_no_trace(granted: bool) -> None:
    """2. Work is dropped while it waits, or in the very moment the turn came to it: the next one gets the turn."""
    turn, release = Turn(), asyncio.Event()
    done: list[str] = []

    async def hold_until_released() -> None:
        async with turn.hold(FORWARD):
            await release.wait()

    async def work(name: str) -> None:
        async with turn.hold(FORWARD):
            done.append(name)

    holder = asyncio.create_task(hold_until_released())
    await asyncio.sleep(0)
    dropped, waiting = asyncio.create_task(work("dropped")), asyncio.create_task(work("waiting"))
    await asyncio.sleep(0)
    release.set()
    if granted:
        await asyncio.sleep(0)  # the holder passes the turn on; `dropped` has not run yet
    dropped.cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(holder, waiting)
        async with turn.hold(FORWARD):
            pass
    assert done == ["waiting"]


def a_verdict(item: str, units: float, outcome: str = "applied") -> Verdict:
    return Verdict(item=ItemId(item), outcome=outcome, reason=Reason.OK, sentence="", work_units=units)


def test_a_kill_in_the_middle_of_a_line_costs_that_line_only(tmp_path: Path) -> None:
    """3. Killed while it wrote: the torn receipt is skipped, those before and after it count, doubles count once."""
    path = tmp_path / "receipts.jsonl"
    assert load_receipts(path) == []
    receipt = Receipt(journal_index=7, head=Digest("a" * 64))
    for torn in (True, False):
        book = ReceiptBook(path)
        verdicts = [a_verdict("a", 0.5), a_verdict("b", 0.25), a_verdict("c", 0.0, "ignored")]
        book.append(RUN, Stage(1), Epoch(2), verdicts, receipt)
        book.append(RUN, Stage(1), Epoch(2), [a_verdict("d", 1.0)], None)
        book.close()
        if torn:
            path.write_bytes(path.read_bytes()[:-20])
    lines = load_receipts(path)
    assert [line.item for line in lines] == ["a", "b", "c", "a", "b", "c", "d"]
    assert (lines[0].journal_index, lines[0].head, lines[-1].journal_index) == (7, "a" * 64, None)
    assert credited(lines) == {"a": 0.5, "b": 0.25, "d": 1.0}


class BreakingClient(MemoryObjectClient):
    """Every second read breaks off."""

    reads = 0

    async def get(self, url: str, offset: int, size_bytes: int, timeout_s: float) -> bytes:
        self.reads += 1
        if self.reads % 2:
            raise Unavailable("broke off")
        return await super().get(url, offset, size_bytes, timeout_s)


async def test_a_large_file_comes_in_pieces_over_a_bad_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4. A file longer than one piece, every second read breaks off: it is whole; a file that lies there is kept; a
    spoilt one is fetched again; other bytes under the key are the uploader's fault and never take the file's place."""
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1000)
    runtime = LoopRuntime(b"test")
    store = MemoryObjectStore(runtime.now)
    client = BreakingClient(store)
    moves = transfer.Transfer(client, runtime)
    data, key = bytes(range(256)) * 10, keys.make(RUN, 0, 0, "text", keys.Kind.DATA)
    await store.put(key, data)
    digest = Digest(hashlib.sha256(data).hexdigest())
    source = Source(key=key, digest=digest, size_bytes=len(data), url=store.grant_get(key, 1.8e9))
    path = tmp_path / "data" / digest
    deadline = runtime.now() + 600

    assert await moves.fetch(source, deadline) == data
    await moves.fetch_file(source, path, deadline)
    assert path.read_bytes() == data and client.reads == 12
    await moves.fetch_file(source, path, deadline)
    assert client.reads == 12
    path.write_bytes(data[:-1] + b"x")
    await moves.fetch_file(source, path, deadline)
    assert path.read_bytes() == data
    path.unlink()
    await store.put(key, data[:-1] + b"x")
    with pytest.raises(PeerFault) as caught:
        await moves.fetch_file(source, path, deadline)
    assert (caught.value.code, caught.value.evidence) == (Reason.BAD_DIGEST, key) and not path.exists()
