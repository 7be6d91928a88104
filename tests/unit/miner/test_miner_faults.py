"""What is wrong with an input, a store or ourselves: who is named, what is waited out, what crashes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from subnet.errors import InvariantViolation
from subnet.protocol.ids import ItemId, Pass, Stage
from subnet.protocol.messages import Failed, PassDone
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

pytestmark = pytest.mark.looptime

MIDDLE = Stage(1)


async def test_takeover_recomputes_from_the_stage_input(world: World) -> None:
    """6. The replica that did the forward died: our backward fetches the stage input. Where the forward was ours, the
    graph is here and nothing but the gradient is read."""
    world.start()
    foreign = await world.script.work(Pass.BACKWARD, 5)
    world.script.give(foreign, await world.script.work(Pass.FORWARD, 6))
    await world.until("b5", "f6")
    own = await world.script.work(Pass.BACKWARD, 6)
    world.script.give(own)
    await world.until("b6")
    await world.finish()
    assert foreign.stage_input and own.stage_input and own.gradient
    assert world.objects.reads.count(foreign.stage_input.key) == 1
    assert world.objects.reads.count(own.stage_input.key) == 1, "for the forward only"
    assert world.objects.reads.count(own.gradient.key) == 1
    assert isinstance(world.result("b5"), PassDone)


async def test_a_graph_that_went_with_its_version_is_recomputed(world: World, tmp_path: Path) -> None:
    """7. When its backward is taken up the graph is still here; two optimizer steps later, at its turn, it is gone:
    the stage input is fetched then. (Backwards of one urgency go in the order they came.)"""
    world = type(world)(tmp_path, slots=16)
    world.start()
    world.script.give(await world.script.work(Pass.FORWARD, 0))
    await world.until("f0")
    world.runtime.compute_s = 1.0
    steps = [await world.script.work(Pass.BACKWARD, mb) for mb in range(1, 9)]
    late = await world.script.work(Pass.BACKWARD, 0)
    world.script.give(*steps, late)
    await world.until("b0", *(f"b{mb}" for mb in range(1, 9)))
    assert late.stage_input and world.objects.reads.count(late.stage_input.key) == 2
    assert isinstance(world.result("b0"), PassDone)
    await world.finish()


async def test_bad_inputs_are_named(world: World) -> None:
    """8. Other bytes under the key, an object that is missing, and one that does not decode: each Failed names it."""
    world.start()
    swapped = await world.script.work(Pass.FORWARD, 0)
    assert swapped.stage_input
    await world.store.put(swapped.stage_input.key, b"x" * swapped.stage_input.size_bytes)
    missing = await world.script.work(Pass.FORWARD, 1)
    assert missing.stage_input
    await world.store.delete_prefix(f"{world.spec.run_id}/0/0/in1/")
    garbled = await world.script.work(Pass.BACKWARD, 2)
    assert garbled.gradient
    source = await world.script.put(garbled.gradient.key, b"\xff" * world.spec.boundary_size_bytes)
    garbled = msgspec.structs.replace(garbled, gradient=source)
    world.script.give(swapped, missing, garbled)
    await world.until("f0", "f1", "b2")
    blamed = {}
    for item in ("f0", "f1", "b2"):
        failed = world.result(item)
        assert isinstance(failed, Failed)
        blamed[item] = failed.reason, failed.object_key
    assert blamed == {
        "f0": (Reason.BAD_DIGEST, swapped.stage_input.key),
        "f1": (Reason.BAD_OBJECT, missing.stage_input.key),
        "b2": (Reason.BAD_OBJECT, source.key),
    }
    await world.finish()


async def test_a_refused_grant_blames_nobody(world: World) -> None:
    """9. The URL has expired: the work fails, but the object and its maker are not accused."""
    world.start()
    work = await world.script.work(Pass.FORWARD, 0)
    assert work.stage_input
    stale = world.store.grant_get(work.stage_input.key, 1.0)
    world.script.give(msgspec.structs.replace(work, stage_input=msgspec.structs.replace(work.stage_input, url=stale)))
    await world.until("f0")
    failed = world.result("f0")
    assert isinstance(failed, Failed) and failed.reason is Reason.STALE and failed.object_key is None
    await world.finish()


async def test_a_store_that_is_away_is_waited_out_until_the_deadline(world: World) -> None:
    """10. The store does not answer for longer than the work's 60 s: the item is given up in silence, nobody is blamed,
    and the slot is free again; an outage of 20 s costs nothing but time."""
    world.start()
    await asyncio.sleep(1)
    world.objects.away = True
    world.script.give(await world.script.work(Pass.FORWARD, 0))
    await asyncio.sleep(20)
    world.objects.away = False
    await world.until("f0")
    world.objects.away = True
    work = await world.script.work(Pass.FORWARD, 1)
    world.script.give(work)
    await asyncio.sleep(1)
    del world.script.given[ItemId("f1")]  # expired: offered to another replica
    await asyncio.sleep(75)
    assert "f1" not in world.script.answered
    assert world.script.exchanges[-1][1].holding == () and world.script.exchanges[-1][1].free_slots == 4
    await world.finish()


async def test_a_bug_is_not_swallowed(world: World) -> None:
    """19. A target whose size cannot be right means that program and RunSpec contradict each other: crash, loudly."""
    world.start()
    work = await world.script.work(Pass.FORWARD, 0)
    assert work.output
    world.script.give(msgspec.structs.replace(work, output=msgspec.structs.replace(work.output, size_bytes=7)))
    assert world.life is not None
    with pytest.raises(InvariantViolation, match="room for 7 bytes"):
        async with asyncio.timeout(60):
            await world.life
