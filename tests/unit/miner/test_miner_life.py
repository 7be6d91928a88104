"""How a miner begins, comes back and ends: joining, restarts of either side, refusals, stopping."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from subnet.miner.line import Ending
from subnet.miner.receipts import RECEIPTS_FILE, credited, load_receipts
from subnet.protocol.ids import Pass, Stage
from subnet.protocol.messages import Failed, PassDone
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

pytestmark = pytest.mark.looptime

MIDDLE = Stage(1)


async def test_an_orchestrator_that_restarts_finds_the_miner_with_its_work(world: World) -> None:
    """14. The orchestrator restarts while a pass computes: the miner joins again under the same session, keeps what it
    trained (the backward needs no stage input), and hands in what it has finished."""
    world.start()
    await asyncio.sleep(1)
    world.runtime.compute_s = 3.0
    world.script.give(await world.script.work(Pass.FORWARD, 0))
    await asyncio.sleep(1)
    world.script.refusals = [Reason.NOT_JOINED, Reason.NOT_JOINED]  # the held poll's successor, or the hand-in
    world.script.wake()
    await world.until("f0")
    own = await world.script.work(Pass.BACKWARD, 0)
    world.script.give(own)
    await world.until("b0")
    assert len({join.session for join in world.script.joins}) == 1 and len(world.script.joins) >= 2
    assert own.stage_input and world.objects.reads.count(own.stage_input.key) == 1
    assert world.built == [MIDDLE]
    await world.finish()


async def test_a_miner_that_is_placed_elsewhere_starts_anew(world: World) -> None:
    """15. While it was away its place was taken: joining again gives it the last stage, and it loads that."""
    world.start()
    await asyncio.sleep(1)
    world.script.stage = Stage(2)
    world.script.refusals = [Reason.NOT_JOINED]
    world.script.wake()
    await asyncio.sleep(30)
    assert world.built == [MIDDLE, Stage(2)]
    work = msgspec.structs.replace(await world.script.work(Pass.LOSS, 0), stage=Stage(2))
    stray = await world.script.work(Pass.FORWARD, 1)
    world.script.give(work, stray)
    await world.until("l0", "f1")
    loss, refused = world.result("l0"), world.result("f1")
    assert isinstance(loss, PassDone) and loss.loss is not None and 4.0 < loss.loss < 8.0
    assert isinstance(refused, Failed) and refused.reason is Reason.WRONG_ANCHOR
    await world.finish()


@pytest.mark.parametrize("reason", [Reason.NOT_REGISTERED, Reason.OLD_SESSION, Reason.WRONG_RUN])
async def test_a_refusal_for_good_ends_the_miner(world: World, reason: Reason) -> None:
    """16. Not registered, or a newer process runs with this hotkey: the miner ends and says what to do."""
    world.start()
    await asyncio.sleep(1)
    world.script.refusals = [reason] * 3
    world.script.wake()
    assert world.life is not None
    async with asyncio.timeout(60):
        ending = await world.life
    assert ending == Ending(reason, f"refused: {reason.value}", "act")


async def test_an_orchestrator_that_is_slow_to_come_up_is_waited_for(world: World) -> None:
    """17. Rate-limited and paused at first: the miner backs off, then joins."""
    world.script.refusals = [Reason.RATE_LIMITED, Reason.PAUSED, Reason.RATE_LIMITED]
    world.start()
    world.script.give(await world.script.work(Pass.FORWARD, 0))
    await world.until("f0")
    await world.finish()


async def test_the_last_result_is_handed_in_before_leaving(world: World) -> None:
    """18. The call with a result breaks off in the moment the run finishes: it is handed in again before leaving."""
    world.start()
    await asyncio.sleep(1)
    world.runtime.compute_s = 1.0
    world.script.give(await world.script.work(Pass.FORWARD, 0))
    await asyncio.sleep(0.99)
    world.script.lose_results = 1
    await asyncio.sleep(0.02)
    assert world.script.lose_results == 0 and world.script.answered == {}
    await world.finish()
    assert "f0" in world.script.answered


async def test_a_late_refusal_of_an_old_call_changes_nothing(world: World) -> None:
    """19. The restarted orchestrator refuses the hand-in at once and the older poll two seconds later, when the miner
    has long joined again: it does not join a third time."""
    world.start()
    await asyncio.sleep(1)
    world.runtime.compute_s = 1.0
    world.script.give(await world.script.work(Pass.FORWARD, 0))
    await asyncio.sleep(0.5)
    world.script.refuse_held_after_s = 2.0
    world.script.refusals = [Reason.NOT_JOINED]
    world.script.wake()
    await world.until("f0")
    world.script.refuse_held_after_s = None
    await asyncio.sleep(20)
    assert len(world.script.joins) == 2
    await world.finish()


async def test_stopping_hands_nothing_in(world: World) -> None:
    """20. SIGTERM in the middle of a pass: the miner is gone at once and says nothing more."""
    world.start()
    await asyncio.sleep(1)
    world.runtime.compute_s = 30.0
    world.script.give(await world.script.work(Pass.FORWARD, 0))
    await asyncio.sleep(1)
    calls = len(world.script.exchanges)
    assert world.life is not None
    world.life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await world.life
    assert len(world.script.exchanges) == calls and world.script.answered == {}


async def test_a_second_start_finds_its_files(world: World, tmp_path: Path) -> None:
    """21. Killed and started again in the same folder: the training text is not downloaded twice, receipts go on."""
    world.start()
    world.script.give(await world.script.work(Pass.FORWARD, 0))
    await world.until("f0")
    await world.finish()
    again = type(world)(tmp_path)
    again.start()
    again.script.give(await again.script.work(Pass.FORWARD, 1))
    await again.until("f1")
    await again.finish()
    assert world.spec.data.train[0].key not in again.objects.reads
    assert set(credited(load_receipts(tmp_path / RECEIPTS_FILE))) == {"f0", "f1"}
