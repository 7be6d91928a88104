"""Cheats among honest miners, in the whole subnet under virtual time: who is caught, by what, who is not accused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from subnet.adversaries.catalogue import find
from subnet.adversaries.names import Name
from subnet.coordination.settlement import sheet
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason
from subnet.simulation.world import World

pytestmark = pytest.mark.looptime(end=20_000)

AUDITED = {"rate": 1.0, "settled_epochs": 100, "segment_steps": 1, "reveal_deadline_s": 20.0, "replay_deadline_s": 20.0}

MakeWorld = Callable[..., World]


async def start_all(world: World, cast: dict[str, Name | None]) -> None:
    """Start everybody, and a validator."""
    for hotkey, name in cast.items():
        trainer, reduction = find(name or "")
        await world.start(hotkey, trainer=trainer, reduction=reduction)
    world.start_validator()


def pay(world: World) -> dict[str, float]:
    """Weights by hotkey of those that get any."""
    weights, uids = sheet(world.state).emission.weights, world.state.pay.chain.uids
    return {hotkey: weights[uid] for hotkey, uid in uids.items() if weights.get(uid)}


def accused(world: World) -> set[str]:
    """Who failed an audit or was proven to have reduced wrongly, ever."""
    standing = world.state.pay.standing
    return {hotkey for hotkey, s in standing.items() if s.failed or s.wrong_shard_at is not None}


async def test_one_of_each_at_once(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """1. Half of the miners cheat, each in another way. All four are caught and paid nothing; the four honest ones are
    never accused, share everything in proportion to their work, and the run reaches its goal."""
    cast: dict[str, Name | None] = dict.fromkeys(("a", "b", "c", "d"))
    cast |= {f"cheat-{name}": name for name in Name}
    async with make_world(2, 2, **lively, **AUDITED) as world:
        await start_all(world, cast)
        await world.finished()
    assert accused(world) == {hotkey for hotkey, name in cast.items() if name}
    credits = [by for epoch, by in world.state.ledger.epochs.items() if epoch < 2]
    work = {h: sum(by[Hotkey(h)].work_units for by in credits) for h in "abcd"}
    assert pay(world) == {h: pytest.approx(units / sum(work.values()), rel=1e-9) for h, units in work.items()}


@pytest.mark.parametrize(("name", "place"), [(Name.FREELOADER, 2), (Name.LAZY_BACKWARD, 1), (Name.UPDATE_SKIPPER, 0)])
async def test_no_stage_is_a_hiding_place(
    make_world: MakeWorld, lively: dict[str, Any], name: Name, place: int
) -> None:
    """2. First, middle or last stage: the first audit is the cheat's last. Its operator reads why on the way out."""
    cast: dict[str, Name | None] = {f"m{number}": name if number == place else None for number in range(6)}
    async with make_world(3, 3, **lively, **AUDITED) as world:
        await start_all(world, cast)
        await world.finished()
    assert accused(world) == {f"m{place}"} and set(pay(world)) == set(cast) - {f"m{place}"}
    standing = world.state.pay.standing[Hotkey(f"m{place}")]
    assert (standing.passed, standing.failed) == (0, 1) and f"stage {place} epoch 0" in standing.failure
    cheat = world.miners[Hotkey(f"m{place}")].task
    assert cheat is not None and cheat.result().reason is Reason.AUDIT_FAILED


async def test_a_majority_of_cheats_convicts_nobody(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """3. Three of a stage's four replicas skip their updates: a replay asks no neighbour, so the one honest miner
    passes and finishes the run alone."""
    cast: dict[str, Name | None] = {"honest": None} | dict.fromkeys(("x", "y", "z"), Name.UPDATE_SKIPPER)
    async with make_world(1, 3, **lively, **AUDITED) as world:
        await start_all(world, cast)
        await world.finished()
    assert accused(world) == {"x", "y", "z"} and pay(world) == {"honest": 1.0}


async def test_wrong_mergers_that_agree_with_each_other(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """4. Two of five reduce alike: their common shard agrees, but each shares others with honest owners, whose copies
    name it."""
    cast: dict[str, Name | None] = dict.fromkeys(("a", "b", "c")) | dict.fromkeys(("x", "y"), Name.WRONG_MERGER)
    async with make_world(1, 2, **lively, **AUDITED) as world:
        await start_all(world, cast)
        await world.finished()
    assert accused(world) == {"x", "y"} and set(pay(world)) == {"a", "b", "c"}
    assert all(not s.failed for s in world.state.pay.standing.values()), "they train honestly"
