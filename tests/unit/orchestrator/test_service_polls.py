"""Exchanges that the service holds open: who is answered when, and with what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from subnet.errors import Unavailable
from subnet.protocol import messages as m
from subnet.protocol.ids import ItemId
from subnet.protocol.reasons import Reason

pytestmark = pytest.mark.looptime(end=3_600)
Host = Callable[..., Awaitable[Any]]


def now() -> float:
    return asyncio.get_running_loop().time()


async def after(duration_s: float, work: Awaitable[Any]) -> None:
    await asyncio.sleep(duration_s)
    await work


async def test_new_work_answers_at_once(host: Host) -> None:
    """1. A stage-0 miner waits, because stage 1 has nobody. Three seconds later somebody joins there: the miner has its
    first forward in that moment, not at the end of the heartbeat, and its receipt is that of its own request."""
    run, began = await host(), now()
    await run.join("one")
    asked = len(run.records)
    reply, _ = await asyncio.gather(run.exchange("one", free_slots=1), after(3.0, run.join("two")))
    assert now() - began == pytest.approx(3.0)
    (work,) = reply.work
    assert (work.item, work.kind, work.stage_input) == ("f0.0.0", "forward", None)
    assert reply.notice.reason is Reason.BUSY
    assert reply.receipt == m.Receipt(journal_index=asked, head=run.records[asked].head)


async def test_the_heartbeat_answers_with_the_reason(host: Host) -> None:
    """2. Nothing happens: after 0.6 heartbeats the miner hears why it is idle and what to do."""
    run = await host()
    await run.join("one")
    began = now()
    reply = await run.exchange("one", free_slots=1)
    assert now() - began == pytest.approx(run.spec.routing.hold_s)
    assert (reply.work, reply.notice.reason) == ((), Reason.STAGE_EMPTY)
    assert "stage 1 has no live miner" in reply.notice.sentence and reply.notice.remedy


@pytest.mark.parametrize("pause_s", [1.0, 0.0])
async def test_a_newer_exchange_answers_the_older_one(host: Host, pause_s: float) -> None:
    """3. While a poll is held the miner calls again, with more slots, or both calls arrive together: the old one ends
    at once and empty, and the work goes to the new one only."""
    run, began = await host(), now()
    await run.join("one")
    older = asyncio.create_task(run.exchange("one", free_slots=1))
    if pause_s:
        await asyncio.sleep(pause_s)
    newer = asyncio.create_task(run.exchange("one", free_slots=3))
    reply = await older
    assert (now() - began, reply.work, reply.drop) == (pytest.approx(pause_s), (), ())
    await after(1.0, run.join("two"))
    assert [work.item for work in (await newer).work] == ["f0.0.0", "f1.0.0"]


async def test_work_goes_to_one_of_two_calls(host: Host) -> None:
    """4. A miner with an item in hand and one free slot, which is kept for a backward, polls; then it calls with two
    free slots, which brings a second forward: it is in the answer to the new call alone."""
    run = await host()
    await run.join("one", "two")
    (first,) = (await run.exchange("one", free_slots=1)).work
    older = asyncio.create_task(run.exchange("one", free_slots=1, holding=(first.item,)))
    await asyncio.sleep(1.0)
    newer = await run.exchange("one", free_slots=2, holding=(first.item,))
    assert [work.item for work in newer.work] == ["f1.0.0"]
    assert (await older).work == ()


async def test_whoever_has_no_free_slot_is_not_held(host: Host) -> None:
    """5. The heartbeat of a busy miner is answered at once; what it holds and nobody waits for, it may drop."""
    run, began = await host(), now()
    await run.join("one", "two")
    (work,) = (await run.exchange("one", free_slots=1)).work
    reply = await run.exchange("one", holding=(work.item, ItemId("f9.0.0")))
    assert (now() - began, reply.work, reply.drop) == (0.0, (), ("f9.0.0",))


async def test_what_was_not_received_is_sent_again(host: Host) -> None:
    """6. The reply with the work was lost: the miner asks again, holding nothing, and gets the same item once more."""
    run = await host()
    await run.join("one", "two")
    first = await run.exchange("one", free_slots=1)
    again = await run.exchange("one", free_slots=1)
    assert [work.item for work in again.work] == [work.item for work in first.work] == ["f0.0.0"]


async def test_a_stopping_service_leaves_nobody_waiting(host: Host) -> None:
    """7. Ctrl-C while a poll is held and a request waits for a slow journal: both hear at once that it ends."""
    run, began = await host(), now()
    await run.join("one", "two", "three")
    held = asyncio.create_task(run.exchange("two", free_slots=1))
    await asyncio.sleep(1.0)
    run.journal.append = lambda bodies: asyncio.sleep(1e6)
    queued = [asyncio.create_task(run.exchange("one", free_slots=1)) for _ in range(2)]
    await asyncio.sleep(1.0)
    await run.stop()
    for waiting in (held, *queued):
        with pytest.raises(Unavailable, match="the orchestrator stops"):
            await waiting
    with pytest.raises(Unavailable):
        await run.exchange("one")
    assert now() - began == pytest.approx(2.0)
