"""Replicas move to the stage that starves: when, who, what it costs them, and that it comes to an end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

Worlds = Callable[..., "World"]
AFTER_S = 60.0


def unbalanced(worlds: Worlds, **change: object) -> World:
    """Three replicas in stage 0; of the larger stage 1's five only one is left."""
    world = worlds(num_stages=2, rebalance_after_s=AFTER_S, num_microbatches_min=2, **change)
    world.join(*"abcdefgh")
    world.work_until(lambda: world.state.completed > 10)
    for name in world.of_stage(1)[1:]:
        del world.players[name]
    world.work_until(lambda: len(world.state.replicas(1)) == 1)
    return world


def stages(world: World) -> dict[int, int]:
    return dict(Counter(miner.stage for miner in world.state.miners.values() if miner.live))


def moves(world: World) -> list[str]:
    return [line for line in world.said if "is gone: stage" in line]


def test_a_weak_stage_gets_one_replica_at_the_turn_of_an_epoch(worlds: Worlds) -> None:
    """1. Three against one: not at once, but after a minute, in the moment in which its stage turns an epoch, one
    moves; its upload is in the merge, it is credited in both stages, and that is the end of it."""
    world = unbalanced(worlds)
    began = world.at
    world.work_until(lambda: bool(moves(world)), limit_s=300.0)
    assert world.at - began >= AFTER_S - 10.0, "it may be that the dead ones come back"
    (mover,) = world.state.balance.moved_at
    miner = world.state.miners[mover]
    assert not miner.live and miner.removed.reason is Reason.MOVED and miner.removed.remedy
    assert world.stage(0).opened_at == world.at and world.stage(1).epoch >= world.stage(0).epoch
    assert mover in world.state.ledger.epochs[world.stage(0).epoch - 1]
    assert mover not in world.stage(0).contributions and world.stage(0).merges[-1].replicas == 3
    world.work_until(lambda: world.state.miners[mover].live)
    assert f"miner {mover} came back to stage 1: moved here: stage 1 has" in " ".join(world.said)
    done = world.state.completed
    world.work_until(lambda: world.at > began + 8 * AFTER_S)
    assert stages(world) == {0: 2, 1: 2} and len(moves(world)) == 1 and world.state.completed > done


def test_moves_come_to_an_end(worlds: Worlds) -> None:
    """2. The dead ones of stage 1 are back after half a minute: until then nobody has moved. Their speeds are measured
    anew; after a few moves, never two within a minute and never the same miner twice, all is quiet."""
    world = unbalanced(worlds)
    began = world.at
    world.work_until(lambda: world.at > began + AFTER_S / 2)
    world.join(*(hotkey for hotkey, miner in world.state.miners.items() if not miner.live), session="s2")
    assert stages(world) == {0: 3, 1: 5} and not moves(world)
    world.work_until(lambda: world.at > began + 6 * AFTER_S)
    moved = [line.split()[1] for line in moves(world)]
    assert len(moved) == len(set(moved)) <= 3
    world.work_until(lambda: world.at > began + 9 * AFTER_S)
    assert len(moves(world)) == len(moved)


@pytest.mark.parametrize("back", ["nobody came", "a newcomer came"])
def test_a_miner_that_comes_back(worlds: Worlds, back: str) -> None:
    """3. A miner returns after a minute: identity, credit and stage are its own, even where newcomers sit in its
    place; only an empty stage would need it more."""
    world = worlds(num_stages=2, num_microbatches_min=4)
    world.join(*"abcde")
    world.work_until(lambda: world.credit("a") > 2)
    stage, credit = world.miner("a").stage, world.credit("a")
    del world.players["a"]
    world.work_until(lambda: not world.miner("a").live)
    if back == "a newcomer came":
        world.join("f", "g")
    world.join("a", session="s2")
    assert (world.miner("a").stage, world.credit("a")) == (stage, credit)
    assert Hotkey("a") in world.state.registered and world.miner("a").session == "s2"
    world.work_until(lambda: world.credit("a") > credit)
