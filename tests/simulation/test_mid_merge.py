"""A third of a stage's replicas dies in mid-merge, with the production roles: what is merged does not depend on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from subnet.coordination.merge_state import Merge, MergeRecord
from subnet.coordination.state import State
from subnet.protocol.ids import Digest
from subnet.protocol.messages import ManifestEntry
from subnet.simulation.world import World

pytestmark = pytest.mark.looptime(end=20_000)
REPLICAS, DEAD = 8, ("miner1", "miner4", "miner6")


def merge_of(state: State) -> Merge | None:
    return state.stages[0].merge


async def merged(world: World, dead: tuple[str, ...]) -> tuple[MergeRecord, Digest, Digest, tuple[ManifestEntry, ...]]:
    """Run one epoch of one stage; kill these as soon as the shards are handed out."""
    async with world:
        for number in range(REPLICAS):
            await world.start(f"miner{number}")
        await world.until(lambda state: bool((merge := merge_of(state)) and merge.assignments))
        manifest = merge_of(world.state).manifest  # type: ignore[union-attr]
        for name in dead:
            world.kill(name)
        await world.finished()
    stage = world.state.stages[0]
    return stage.merges[0], stage.parameters.digest, stage.momentum.digest, manifest


async def test_the_result_does_not_depend_on_who_reduced(
    make_world: Callable[..., World], lively: dict[str, Any]
) -> None:
    """1. Eight replicas upload; three of them die while they reduce, and three shards lose both owners. Survivors take
    them over: parameters and momentum are bit for bit those of the same merge undisturbed, nothing is lost, nobody is
    blamed, and the uploads of the dead are in it."""
    change = {**lively, "b_min": 2, "outer_momentum": 0.9, "outer_lr": 0.7, "dead_after_s": 6.0}
    calm = await merged(make_world(1, 1, name="calm", **change), ())
    storm_world = make_world(1, 1, name="storm", **change)
    storm = await merged(storm_world, DEAD)
    assert [entry.chunk_digests for entry in calm[3]] == [entry.chunk_digests for entry in storm[3]]
    assert (storm[0].replicas, storm[0].shards, storm[0].lost) == (REPLICAS, 28, 0)
    assert storm[0].handed_on == 3 and calm[0].handed_on == 0
    assert storm[0].single == 0, "second copies were made while others waited for the three"
    assert storm[1:3] == calm[1:3]
    assert not any(miner.faults for miner in storm_world.state.miners.values())
    assert any("shards have no owner left (3 gone, 0 too late or failed)" in said for said in storm_world.said)
