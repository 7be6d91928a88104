"""Nothing takes effect before it is in the journal, and the journal alone gives the state again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from subnet.errors import Unavailable
from subnet.protocol import messages as m
from subnet.runtime import LoopRuntime
from subnet.storage.base import JournalRecord, verify_chain
from subnet.storage.memory import MemoryJournal

pytestmark = pytest.mark.looptime(end=3_600)
Host = Callable[..., Awaitable[Any]]


class GatedJournal(MemoryJournal):
    """A disk that takes its time, or breaks; `batches` are the sizes of what was appended together."""

    def __init__(self, records: list[JournalRecord]) -> None:
        super().__init__(records)
        self.open, self.broken = asyncio.Event(), False
        self.open.set()
        self.batches: list[int] = []

    async def append(self, bodies: Sequence[bytes]) -> list[JournalRecord]:
        await self.open.wait()
        if self.broken:
            raise Unavailable("the disk is full")
        self.batches.append(len(bodies))
        return await super().append(bodies)


async def gated(host: Host) -> tuple[Any, GatedJournal]:
    records: list[JournalRecord] = []
    run = await host(journal=(journal := GatedJournal(records)))
    run.records = records
    await run.join("one", "two")
    return run, journal


async def test_a_blocked_journal_holds_everything_back(host: Host) -> None:
    """1. The disk stalls for 15 s while a miner asks for work: no offer exists, no reply leaves, and the public
    status says what it said before. When the disk is back, the work is given."""
    run, journal = await gated(host)
    before, status = run.state_bytes(), run.service.status()
    journal.open.clear()
    asking = asyncio.create_task(run.exchange("one", free_slots=1))
    await asyncio.sleep(15.0)
    assert not asking.done() and run.state_bytes() == before and run.service.status() == status
    journal.open.set()
    (work,) = (await asking).work
    assert list(run.state.offers) == [work.item] and run.folded() == run.state_bytes()


async def test_a_slow_orchestrator_takes_nobody_for_dead(host: Host) -> None:
    """2. The disk stalls for a minute, twice as long as a silence that means death. The miners kept calling meanwhile:
    when it is back, what they said counts from when it arrived."""
    run, journal = await gated(host)
    journal.open.clear()
    calls = []
    for _ in range(6):
        calls += [asyncio.create_task(run.exchange(name)) for name in ("one", "two")]
        await asyncio.sleep(10.0)
    journal.open.set()
    await asyncio.gather(*calls)
    await asyncio.sleep(1.0)
    assert [miner.live for miner in run.state.miners.values()] == [True, True]


async def test_a_broken_journal_stops_the_service(host: Host) -> None:
    """3. The disk is full: the process ends with that error, the state is still what the journal says, and the miner
    whose request was lost hears that it may ask again."""
    run, journal = await gated(host)
    before = run.state_bytes()
    journal.broken = True
    with pytest.raises(Unavailable, match="the orchestrator stops"):
        await run.exchange("one", free_slots=1)
    with pytest.raises(ExceptionGroup) as broken:
        await run.task
    assert broken.group_contains(Unavailable, match="the disk is full")
    assert run.state_bytes() == before == run.folded()


async def test_what_arrives_together_is_appended_together(host: Host) -> None:
    """4. Forty requests arrive while the disk is busy: they are one append, in their order, and each receipt names the
    record of its own request; a chain that anybody can check."""
    run, journal = await gated(host)
    journal.open.clear()
    first = asyncio.create_task(run.exchange("two"))
    await asyncio.sleep(0.01)
    waiting = [asyncio.create_task(run.exchange("one", session="s")) for _ in range(40)]
    await asyncio.sleep(0.01)
    journal.open.set()
    replies = [reply.receipt for reply in await asyncio.gather(first, *waiting)]
    assert journal.batches[-2:] == [1, 40]
    assert [(r.journal_index, r.head) for r in replies] == [(r.index, r.head) for r in run.records[-41:]]
    assert await verify_chain(run.journal) is None


async def test_a_restart_is_a_replay(host: Host) -> None:
    """5. The process is killed and starts again over the same journal: the miners go on with the same session and the
    work they hold, and what follows is the same as for a reader of the whole journal."""
    run = await host()
    await run.join("one", "two")
    (work,) = (await run.exchange("one", free_slots=1)).work
    before = run.state_bytes()
    await run.stop()
    assert run.folded() == before
    await run.start()
    done = m.PassDone(item=work.item, digest="0" * 64, param_version=1, compute_s=0.1)
    reply = await run.exchange("one", results=(done,))
    assert [verdict.outcome for verdict in reply.verdicts] == ["applied"]
    assert [work.item for work in (await run.exchange("two", free_slots=1)).work] == ["l0.1.1"]
    assert run.folded() == run.state_bytes()
    assert run.said[-1].startswith("the orchestrator is back") or "the orchestrator is back" in str(run.said)


async def test_a_killed_orchestrator_draws_the_secret_it_owed(host: Host) -> None:
    """6. The process dies between opening the run and journaling the first secret: the next one draws it, and there is
    one secret for each epoch in either case."""
    run = await host()
    await run.stop()
    assert Counter(x.epoch for x in run.messages() if isinstance(x, m.SecretDrawn)) == {0: 1}
    del run.records[1:]
    run.journal = MemoryJournal(run.records)
    await run.start()
    await run.service.submit(m.Registered(hotkeys=("one", "two")))
    await run.join("one", "two")
    assert (await run.exchange("one", free_slots=1)).work
    assert Counter(x.epoch for x in run.messages() if isinstance(x, m.SecretDrawn)) == {0: 1}


class Stumbling(LoopRuntime):
    """A clock that an operator sets back."""

    back_s = 0.0

    def now(self) -> float:
        return super().now() - self.back_s


async def test_a_clock_set_back_does_not_run_the_journal_backwards(host: Host) -> None:
    """7. NTP corrects the server's clock by an hour: times in the journal stand still until the clock has caught up."""
    run = await host(runtime=(runtime := Stumbling(b"seed")))
    await run.join("one")
    before, runtime.back_s = run.state.at, 3600.0
    await run.join("two")
    assert run.state.at == before and run.folded() == run.state_bytes()
