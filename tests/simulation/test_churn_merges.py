"""Miners come, go, and die together at every step of a merge: the run goes on by itself, and credit stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from subnet.coordination import invariants
from subnet.coordination.state import Miner, State
from subnet.protocol.ids import Hotkey
from subnet.simulation.world import World

pytestmark = pytest.mark.looptime(end=20_000)
MakeWorld = Callable[..., World]

STEPS: dict[str, Callable[[State], bool]] = {
    "training": lambda state: state.stages[1].contributions != {} and state.stages[1].merge is None,
    "drain": lambda state: _step(state) == "drain",
    "upload": lambda state: _step(state) == "upload",
    "upload, one is in": lambda state: _step(state) == "upload" and bool(_merge(state).uploads),
    "reduce": lambda state: _step(state) == "reduce",
    "reduce, one is in": lambda state: _step(state) == "reduce" and bool(_merge(state).reports),
    "apply": lambda state: _step(state) == "apply",
    "apply, one has": lambda state: _step(state) == "apply" and bool(_merge(state).applied),
}
EVERY_STEP = pytest.mark.parametrize("step", STEPS)
SOME_STEPS = pytest.mark.parametrize("step", ["training", "upload", "reduce", "apply, one has"])


def _merge(state: State) -> Any:
    return state.stages[1].merge


def _step(state: State) -> str:
    return "" if _merge(state) is None else _merge(state).step


@pytest.fixture
def quick(make_world: MakeWorld, lively: dict[str, Any]) -> World:
    """Two stages, one merge each, deaths noticed within two heartbeats."""
    change = lively | {"heartbeat_s": 4.0, "dead_after_s": 7.5, "grace_s": 10.0, "b_min": 2, "relax_after_s": 30.0}
    return make_world(2, 1, micro_batches_per_step=2, **change)


async def _begin(world: World, step: str, names: str = "abcd") -> None:
    for number, name in enumerate(names, 1):  # nobody is as quick as another, so that each step lasts a while
        await world.start(name, compute_s=0.05 * number)
    await world.until(STEPS[step], 300.0)


def _total(world: World) -> float:
    return sum(world.state.ledger.total(hotkey) for hotkey in world.miners)


def _of(world: World, stage: int) -> list[Miner]:
    return world.state.replicas(stage)


def _check(world: World, credit: float = 0.0) -> None:
    """The run is over and whole; `credit` is what had been earned at some moment before."""
    state = world.state
    assert [stage.epoch for stage in state.stages] == [1, 1] and list(invariants.broken(state)) == []
    assert all(record.lost == 0 for stage in state.stages for record in stage.merges)
    assert not any(miner.faults for miner in state.miners.values())
    assert _total(world) >= credit > 0
    for hotkey, miner in world.miners.items():
        assert sum(miner.credited.values()) <= state.ledger.total(hotkey) + 1e-9


@SOME_STEPS
async def test_a_newcomer(quick: World, step: str) -> None:
    """1. Somebody joins while the stage merges: it has a place and the stage's parameters at once, and holds nobody
    up."""
    async with quick as world:
        await _begin(world, step)
        credit = _total(world)
        newcomer = (await world.start("newcomer")).hotkey
        await world.until(lambda state: newcomer in state.miners)
        stage = world.state.stages[world.state.miners[newcomer].stage]
        assert world.state.miners[newcomer].synced_epoch == stage.epoch
        await world.finished(600.0)
    _check(world, credit)
    assert not world.state.abandoned


@SOME_STEPS
async def test_one_leaves(quick: World, step: str) -> None:
    """2. One of two replicas is gone without a word: the merge ends without it, and its credit stays."""
    async with quick as world:
        await _begin(world, step)
        gone, credit = _of(world, 1)[0].hotkey, _total(world)
        world.kill(gone)
        earned = world.state.ledger.total(gone)
        await world.finished(600.0)
    _check(world, credit)
    assert world.state.ledger.total(gone) >= earned


@pytest.mark.parametrize("restarts", [False, True], ids=["", "and the orchestrator restarts"])
@EVERY_STEP
async def test_a_whole_stage_dies_in_every_step(quick: World, step: str, restarts: bool) -> None:
    """3. Both replicas of a stage die in one moment. The next one to join is placed there, although its stage has as
    few registered miners as the other; it begins with the last merged parameters, and training goes on by itself."""
    async with quick as world:
        await _begin(world, step)
        credit, dead = _total(world), [miner.hotkey for miner in _of(world, 1)]
        for hotkey in dead:
            world.kill(hotkey)
        if restarts:
            world.stop_orchestrator()
            await world.start_orchestrator()
        await world.until(lambda state: not state.replicas(1))
        merged = world.state.stages[1].parameters
        heir = (await world.start("heir")).hotkey
        await world.until(lambda state: heir in state.miners)
        assert world.state.miners[heir].stage == 1 and world.state.stages[1].parameters == merged
        await world.finished(600.0)
    _check(world, credit)
    assert world.state.stages[1].merges[0].replicas >= 1


@EVERY_STEP
async def test_everybody_dies_in_every_step(quick: World, step: str) -> None:
    """4. A power cut takes all miners, and the orchestrator with them. When it is back and they are, everybody has his
    stage and his credit, and the run ends as if nothing had been."""
    async with quick as world:
        await _begin(world, step)
        credit, stages = _total(world), {name: world.state.miners[Hotkey(name)].stage for name in "abcd"}
        for name in "abcd":
            world.kill(name)
        world.stop_orchestrator()
        await world.start_orchestrator()
        await world.until(lambda state: not state.replicas(0) and not state.replicas(1))
        for name in "abcd":
            await world.start(name)
        await world.finished(600.0)
    _check(world, credit)
    assert {name: world.state.miners[Hotkey(name)].stage for name in "abcd"} == stages


@SOME_STEPS
async def test_nobody_comes_but_a_neighbour_moves(quick: World, step: str) -> None:
    """5. A stage is lost and nobody new comes: after dead_after_s one replica of the other stage is sent there."""
    async with quick as world:
        await _begin(world, step)
        credit = _total(world)
        for miner in _of(world, 1):
            world.kill(miner.hotkey)
        await world.finished(600.0)
    _check(world, credit)
    assert any("stage 1 has no replica, and yours has others" in line for line in world.said)
