"""The journal is the run: whoever folds it arrives at the live state, and an orchestrator that dies goes on from it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import looptime
import msgspec
import pytest

from subnet.coordination.state import State
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, Phase
from subnet.simulation.world import World

MakeWorld = Callable[..., World]


def check_replay(world: World) -> None:
    """Live state == fold of the journal == decode(encode(live state)), byte by byte."""
    *_, folded = world.fold()
    live = msgspec.msgpack.encode(world.state)
    assert msgspec.msgpack.encode(folded) == live
    assert msgspec.msgpack.decode(live, type=State) == world.state


@pytest.mark.looptime(end=20_000)
async def test_the_live_state_is_the_fold_of_the_journal(
    make_world: MakeWorld, lively: dict[str, Any], check_credit: Callable[..., None]
) -> None:
    """1. A run with a death and a newcomer: the state at the end, and whenever the service has come to rest on the way,
    is what a reader of the journal arrives at. No URL is in any record, though every reply was full of them."""
    async with make_world(2, 2, b_min=4, **lively) as world:
        for number in range(4):
            await world.start(f"miner{number}")
        seen: dict[int, bytes] = {}
        await world.until(lambda state: _remember(world, seen) or state.completed >= 4)
        world.kill("miner1")
        await world.start("newcomer")
        await world.until(lambda state: _remember(world, seen) or not state.miners[Hotkey("miner1")].live)
        await world.finished()
    check_replay(world)
    check_credit(world, without=("miner1",))
    for length, state in enumerate(world.fold(), start=1):
        assert length not in seen or msgspec.msgpack.encode(state) == seen[length]
    assert len(seen) > 50
    for record in world.records:
        assert b"memory://" not in record.body and b"http" not in record.body


def _remember(world: World, seen: dict[int, bytes]) -> bool:
    seen[len(world.records)] = msgspec.msgpack.encode(world.state)
    return False


MOMENTS: dict[str, Callable[[State], bool]] = {
    "training": lambda state: state.completed >= 6,
    "uploading": lambda state: any(s.phase is Phase.UPLOADING and s.merge.step == "upload" for s in state.stages),
    "reducing": lambda state: any(s.merge is not None and s.merge.reports for s in state.stages),
    "applying": lambda state: any(s.merge is not None and s.merge.applied for s in state.stages),
    "between": lambda state: {s.epoch for s in state.stages} == {0, 1},
}


@pytest.mark.looptime(end=20_000)
@pytest.mark.parametrize("moment", MOMENTS)
async def test_another_orchestrator_goes_on(
    make_world: MakeWorld, lively: dict[str, Any], check_credit: Callable[..., None], moment: str
) -> None:
    """2. The orchestrator dies in the middle of an epoch or of any step of a merge, and is back after twenty seconds,
    longer than a silence that means death: the miners keep session, stage and finished work, nobody joins again, the
    epochs complete, every receipt's credit is in the final ledger and nothing is there twice."""
    async with make_world(2, 2, b_min=4, **lively) as world:
        for number in range(4):
            await world.start(f"miner{number}", compute_s=0.05 + 0.02 * number)
        await world.until(MOMENTS[moment])
        world.stop_orchestrator()
        before = len(world.records)
        await asyncio.sleep(20.0)
        assert len(world.records) == before
        await world.start_orchestrator()
        check_replay(world)
        await world.finished()
    check_replay(world)
    check_credit(world)
    assert Counter(type(envelope.message) for envelope in world.envelopes())[m.Join] == 4
    assert [stage.epoch for stage in world.state.stages] == [2, 2]
    assert not any(miner.faults for miner in world.state.miners.values())


def test_equal_seeds_give_equal_journals(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """3. A failing seed is a one-line reproduction: the same seed gives the same journal to the last byte, killed miner
    included; another seed gives another."""

    async def live(world: World) -> str:
        async with world:
            for number in range(3):
                await world.start(f"miner{number}")
            await world.until(lambda state: state.completed >= 3)
            world.kill("miner2")
            await world.finished()
        return world.records[-1].head

    def head(seed: int, name: str) -> str:
        with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
            return runner.run(live(make_world(2, 1, b_min=4, seed=seed, name=name, **lively)))

    first = head(1, "a")
    assert head(1, "b") == first != head(2, "c")
