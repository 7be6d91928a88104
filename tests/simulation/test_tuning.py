"""The owner tunes a run while it goes on: miners go over with their next epoch, and audits know by which rules each
epoch was trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from subnet.protocol import messages as m
from subnet.protocol import tuning
from subnet.protocol.run_spec import RunSpec
from subnet.simulation.world import World

AUDITED = {"rate": 1.0, "settled_epochs": 100, "segment_steps": 1, "reveal_deadline_s": 20.0, "replay_deadline_s": 20.0}
MakeWorld = Callable[..., World]
pytestmark = pytest.mark.looptime(end=20_000)


def tuned(spec: RunSpec, text: str, version: int) -> m.Tuned:
    return m.Tuned(spec=tuning.tuned(spec, tuning.parse(text.encode()), version))


async def test_another_learning_rate_and_every_audit_passes(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """1. In the middle of epoch 0 the owner trebles the learning rate and the outer step, in epoch 1 takes it back:
    each stage goes over with its next epoch, everybody's work is audited and passes, and no work is refused."""
    async with make_world(2, 5, **lively, **AUDITED) as world:
        for name in ("a", "b", "c", "d"):
            await world.start(name)
        validator = world.start_validator()
        await world.until(lambda state: state.completed > 2)
        first = world.spec
        text = "[inner]\nlr_peak = 0.009\nlr_final = 0.009\n[merge]\nouter_lr = 0.9\n[score]\nburn_fraction = 0.25\n"
        await world.service.submit(tuned(first, text, 2))
        assert all(stage.rules == 0 for stage in world.state.stages) and world.state.spec == first
        await world.until(lambda state: all(stage.rules == 1 for stage in state.stages))
        assert world.state.spec.version == 2 and world.state.spec.score.burn_fraction == 0.25
        await world.service.submit(tuned(first, "", 3))
        await world.finished()
        await validator.finished.wait()
    standing = world.state.pay.standing
    assert len(standing) == 4 and all(
        (one.passed, one.failed, one.unreadable, one.not_revealed) == (5, 0, 0, 0) for one in standing.values()
    ), standing
    assert world.state.spec.version == 3 and not world.state.refusals
    assert not [key for key in world.state.outcomes if key.startswith("rejected")]
    # the miners trained by the rules that the journal says
    trainers = [miner.trainer for miner in world.miners.values() if miner.trainer is not None]
    assert {trainer._spec.version for trainer in trainers} == {3}


async def test_a_miner_that_joins_and_one_that_comes_back_between_two_versions(
    make_world: MakeWorld, lively: dict[str, Any]
) -> None:
    """2. One miner joins when the rules are new, another one dies before they are and comes back after: both learn the
    stage's rules as they join, and their audits pass."""
    async with make_world(2, 5, **lively, **AUDITED) as world:
        for name in ("a", "b", "c", "d"):
            await world.start(name)
        validator = world.start_validator()
        await world.until(lambda state: state.completed > 2)
        world.kill("d")
        await world.service.submit(tuned(world.spec, "[inner]\nlr_peak = 0.009\n", 2))
        await world.until(lambda state: all(stage.rules == 1 for stage in state.stages))
        await world.start("d")
        await world.start("e")
        await world.finished()
        await validator.finished.wait()
    standing = world.state.pay.standing
    assert {h: (s.failed, s.not_revealed) for h, s in standing.items()} == dict.fromkeys("abcde", (0, 0))
    assert all(world.miners[h].trainer._spec.version == 2 for h in world.miners)  # type: ignore[union-attr]
