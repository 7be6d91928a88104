"""A miner at work: results in, work out, in the right order and exactly once, over a line that may break."""

from __future__ import annotations

import asyncio
import hashlib
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from subnet.miner.receipts import RECEIPTS_FILE, credited, load_receipts
from subnet.model.initial import initial_parameters
from subnet.protocol import keys
from subnet.protocol.ids import Epoch, ItemId, MicroBatchId, Pass, Stage
from subnet.protocol.keys import Kind
from subnet.protocol.messages import PassDone
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

pytestmark = pytest.mark.looptime

MIDDLE = Stage(1)


async def test_a_normal_day(world: World) -> None:
    """1. Join, download, forwards and backwards, receipts, end of the run: the bytes are those of a trainer alone."""
    world.start()
    works = [await world.script.work(Pass.FORWARD, mb) for mb in range(4)]
    world.script.give(*works)
    await world.until("f0", "f1", "f2", "f3")
    world.script.give(await world.script.work(Pass.BACKWARD, 2))
    await world.until("b2")
    ending = await world.finish()
    assert ending.reason is Reason.TARGET_REACHED

    alone = world.trainer(MIDDLE)
    alone.load(Epoch(0), initial_parameters(world.spec, MIDDLE), np.zeros(world.spec.stages[1].num_params, np.float32))
    for mb, work in enumerate(works):
        expected = alone.forward(MicroBatchId(mb), world.tensor(mb))
        assert work.output is not None and await world.store.get(work.output.key) == expected
        assert world.result(f"f{mb}") == PassDone(
            item=ItemId(f"f{mb}"), digest=hashlib.sha256(expected).hexdigest(), param_version=1, compute_s=0.0
        )
    assert await world.store.get(keys.make(world.spec.run_id, 0, 1, "b2", Kind.GRADIENT)) == alone.backward(
        MicroBatchId(2), None, world.tensor(-3)
    )
    lines = load_receipts(world.folder / RECEIPTS_FILE)
    assert credited(lines) == {ItemId(i): 1.0 for i in ("f0", "f1", "f2", "f3", "b2")}
    assert lines[0].journal_index is not None and lines[0].run_id == world.spec.run_id


async def test_backward_goes_first_and_inputs_come_while_another_item_computes(world: World) -> None:
    """2. Three forwards and a backward arrive together and a pass takes 4 s: all inputs are there before the first
    result, the backward is the second to be done, and never do two compute at once (the runtime would say so)."""
    world.start()
    await asyncio.sleep(1)
    world.runtime.compute_s = 4.0
    forwards = [await world.script.work(Pass.FORWARD, mb) for mb in range(3)]
    world.script.give(*forwards, await world.script.work(Pass.BACKWARD, 9))
    await asyncio.sleep(3)
    assert {work.stage_input.key for work in forwards if work.stage_input} <= set(world.objects.reads)
    await world.until("f0", "f1", "f2", "b9")
    assert list(world.script.answered)[:2] == ["f0", "b9"]
    first = world.result("f1")
    assert isinstance(first, PassDone) and first.compute_s == 0.0, "waiting for the turn is not computing"
    await world.finish()


async def test_a_result_goes_out_while_a_poll_is_held(world: World) -> None:
    """3. A poll is held when the pass ends 3 s later: the result is handed in at once, in a second call."""
    world.start()
    await asyncio.sleep(1)
    world.runtime.compute_s = 3.0
    given_at = world.script.time()
    world.script.give(await world.script.work(Pass.FORWARD, 0))
    await world.until("f0")
    told_at = next(at for at, exchange in world.script.exchanges if exchange.results)
    assert told_at - given_at == pytest.approx(3.0, abs=0.1)
    await world.finish()


async def test_the_reply_is_lost_after_the_result_was_accepted(world: World) -> None:
    """4. The line breaks at the wrong moment: the result goes out again, is credited once, computed once."""
    world.start()
    await asyncio.sleep(1)
    world.runtime.compute_s = 1.0
    work = await world.script.work(Pass.FORWARD, 0)
    world.script.give(work)
    await asyncio.sleep(0.5)
    world.script.lose_replies = 2  # the held poll's, and that of the hand-in
    await world.until("f0")
    assert world.script.doubled == []
    await world.eventually(lambda: bool(world.script.doubled))
    await world.finish()
    assert world.script.doubled == ["f0"]
    assert work.stage_input is not None and world.objects.reads.count(work.stage_input.key) == 1


async def test_work_whose_delivery_was_lost_comes_again(world: World) -> None:
    """5. The reply with the work is lost; the orchestrator sees that the miner does not hold it and sends it again."""
    world.start()
    await asyncio.sleep(1)
    world.script.lose_replies = 1
    world.script.give(await world.script.work(Pass.FORWARD, 0))
    await world.until("f0")
    await world.finish()
    assert world.script.doubled == []


async def test_dropped_work_is_not_computed(world: World) -> None:
    """11. While one pass computes, another one that waits is withdrawn: it is never computed and the slot is free."""
    world.start()
    await asyncio.sleep(1)
    world.runtime.compute_s = 12.0
    world.script.give(await world.script.work(Pass.FORWARD, 0), await world.script.work(Pass.FORWARD, 1))
    await asyncio.sleep(1)
    world.script.withdrawn.add(ItemId("f1"))
    del world.script.given[ItemId("f1")]
    await world.until("f0")
    await asyncio.sleep(30)
    assert "f1" not in world.script.answered
    assert await world.store.size_bytes(keys.make(world.spec.run_id, 0, 1, "f1", Kind.BOUNDARY)) is None
    await world.finish()


async def test_a_busy_miner_is_heard_of(world: World) -> None:
    """12. All four slots are taken and a pass takes a minute: a heartbeat without free slots every 5 s."""
    world.start()
    await asyncio.sleep(1)
    world.runtime.compute_s = 60.0
    world.script.give(*[await world.script.work(Pass.FORWARD, mb) for mb in range(4)])
    await asyncio.sleep(30)
    beats = [(at, e) for at, e in world.script.exchanges if e.free_slots == 0]
    assert 5 <= len(beats) <= 7
    assert set(beats[-1][1].holding) == {"f0", "f1", "f2", "f3"}
    assert all(b[0] - a[0] == pytest.approx(world.spec.routing.heartbeat_s / 2, abs=0.1) for a, b in pairwise(beats))
    await world.finish()


async def test_an_idle_miner_keeps_one_poll_open(world: World) -> None:
    """13. No work for a minute: as soon as a call is answered the next one is made, never two at once."""
    world.start()
    await asyncio.sleep(61)
    assert len(world.script.exchanges) == 1 + int(61 / world.spec.routing.hold_s)
    await world.finish()
