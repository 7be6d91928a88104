"""Miners die and miners come while the run goes on: both are normal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from subnet.coordination.notices import finished
from subnet.coordination.state import State
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason
from subnet.simulation.world import World

pytestmark = pytest.mark.looptime(end=20_000)
MakeWorld = Callable[..., World]


def holds_graph(state: State, stage: int) -> Hotkey | None:
    """A replica of the stage that has done a forward whose backward is still to come."""
    for batch in state.micro_batches.values():
        hop = batch.hops[stage]
        if hop.bound and hop.backward_epoch < 0:
            return hop.forward_by
    return None


def take_overs(world: World, dead: Hotkey) -> set[tuple[int, Hotkey]]:
    """(micro-batch, replica): backwards done by another replica than the forward, which `dead` did."""
    return {
        (batch.id, hop.backward_by)
        for state in world.fold()
        for batch in state.micro_batches.values()
        for hop in batch.hops
        if hop.forward_by == dead and hop.backward_by not in (None, dead)
    }


async def test_a_death_and_a_newcomer(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """1. A miner of the middle stage dies without a word while it holds graphs. Another replica takes its items over
    from the stored stage input and the run never stops; a newcomer joins in the running epoch and works in it. No
    micro-batch is given up, nobody is blamed, and the dead one keeps its credit."""
    async with make_world(3, 2, b_min=6, **lively) as world:
        for number in range(7):
            await world.start(f"miner{number}")
        await world.until(lambda s: len(s.replicas(1)) > 1 and s.completed >= 4 and holds_graph(s, 1) is not None)
        dead = holds_graph(world.state, 1)
        assert dead is not None
        world.kill(dead)
        done, epoch = world.state.completed, world.state.stages[1].epoch
        newcomer = (await world.start("newcomer")).hotkey
        await world.until(lambda state: not state.miners[dead].live)
        assert world.state.miners[dead].removed.reason is Reason.SILENT
        credit = world.state.ledger.total(dead)
        await world.finished()
    state = world.state
    assert [stage.epoch for stage in state.stages] == [2, 2, 2] and state.completed > done and not state.abandoned
    assert len(take_overs(world, dead)) >= 1
    assert state.miners[newcomer].stage == 1
    assert newcomer in state.ledger.epochs[epoch], "a newcomer need not wait for the next epoch"
    assert state.ledger.total(dead) == credit > 0 and not any(miner.faults for miner in state.miners.values())


async def test_a_miner_that_comes_back(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """2. A killed miner is started again on the same machine while the run goes on: it has its stage and its credit,
    works on, and its receipts of both lives add up to its ledger."""
    async with make_world(2, 2, b_min=6, **lively) as world:
        for number in range(4):
            await world.start(f"miner{number}")
        await world.until(lambda state: state.completed >= 4)
        world.kill("miner3")
        before = world.state.miners[Hotkey("miner3")]
        stage, credit = before.stage, world.state.ledger.total(before.hotkey)
        await world.until(lambda state: state.completed >= 8)
        await world.start("miner3")
        await world.finished()
    after = world.state.miners[Hotkey("miner3")]
    assert after.stage == stage and after.session != before.session and not after.faults
    assert world.state.ledger.total(after.hotkey) > credit > 0
    receipts = sum(world.miners[Hotkey("miner3")].credited.values())
    # the answer to what it handed in last may have come too late for its first life
    assert world.state.ledger.total(after.hotkey) - 1.5 <= receipts <= world.state.ledger.total(after.hotkey) + 1e-9


async def test_a_stage_loses_everybody(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """3. The only miner of a stage dies: the others hear that the stage is empty, the next one to join is placed there,
    fetches the last merged parameters, and the run goes on to its end."""
    async with make_world(2, 2, b_min=4, **lively) as world:
        first, second = await world.start("first"), await world.start("second")
        await world.until(lambda state: all(stage.epoch == 1 for stage in state.stages))
        world.kill(second.hotkey)
        await world.until(lambda state: not state.replicas(1))
        before = world.state.completed
        heir = await world.start("heir")
        await world.finished()
    assert world.state.miners[heir.hotkey].stage == 1 and world.state.completed > before
    assert [stage.epoch for stage in world.state.stages] == [2, 2]
    assert first.task is not None and first.task.result().reason is Reason.TARGET_REACHED
    assert not any(miner.faults for miner in world.state.miners.values())


async def test_a_run_that_loses_miners_again_and_again(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """4. Whoever has worked longest is killed every three seconds and started again two seconds later, through two
    epochs and their merges: the run completes and no credit is lost."""
    async with make_world(2, 2, b_min=8, **lively) as world:
        for number in range(4):
            await world.start(f"miner{number}", compute_s=0.3)
        for round_ in range(6):
            at, victim = world.state.at, f"miner{round_ % 4}"
            await world.until(lambda state, at=at: state.at >= at + 3.0 or finished(state))
            if finished(world.state):
                break
            world.kill(victim)
            await world.until(lambda state, at=at: state.at >= at + 5.0)
            await world.start(victim, compute_s=0.3)
        await world.finished()
    assert [stage.epoch for stage in world.state.stages] == [2, 2]
    for hotkey, miner in world.miners.items():
        assert 0 < sum(miner.credited.values()) <= world.state.ledger.total(hotkey) + 1e-9
        assert not world.state.miners[hotkey].faults


async def test_a_killed_miner_goes_on_from_its_last_committed_state(
    make_world: MakeWorld, lively: dict[str, Any]
) -> None:
    """5. With audits, states are committed on each miner's disk: one that is killed in mid-epoch and started again goes
    on from the last of them. What it was credited before is in the merge, its log of both lives passes the audit, and
    all parties agree on the parameters."""
    audited = {"rate": 1.0, "settled_epochs": 100, "segment_steps": 1, "micro_batches_per_step": 1}
    async with make_world(2, 2, b_min=16, **lively, **audited) as world:
        for number in range(4):
            await world.start(f"miner{number}", compute_s=0.3)
        validator = world.start_validator()
        victim = Hotkey("miner3")
        await world.until(lambda s: victim in s.miners and s.stage_of(victim).contributions.get(victim, 0) >= 6)
        before = world.state.stage_of(victim).contributions[victim]
        world.kill("miner3")
        session, done = world.state.miners[victim].session, world.state.completed
        await world.until(lambda state: state.completed > done)
        await world.start("miner3", compute_s=0.3)
        await world.until(lambda s: s.miners[victim].session != session)
        assert before - 1 <= world.state.stage_of(victim).contributions[victim] <= before
        await world.finished()
        await validator.finished.wait()
    standing = world.state.pay.standing[victim]
    assert standing.passed == 2 and not standing.failed and not any(m.faults for m in world.state.miners.values())
    assert all(record.replicas == 2 for stage in world.state.stages for record in stage.merges)
