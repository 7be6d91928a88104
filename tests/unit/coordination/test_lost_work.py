"""Where passes go: every one that is given out is in one place at the end, and the cause of a loss is the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subnet.localnet.lost_work import Fate, LostWork
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, Pass
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

Worlds = Callable[..., "World"]


def watched(world: World) -> LostWork:
    lost = LostWork()
    lost.note(world.state)
    world.watch = lambda envelope, reply: lost.note(world.state)
    return lost


def of(lost: LostWork, world: World) -> dict[str, int]:
    """What is not zero; it adds up."""
    totals = lost.totals(world.state)
    assert sum(totals.values()) == world.state.passes_started
    assert totals[Fate.MERGED] == world.state.passes_merged
    return {fate: count for fate, count in totals.items() if count}


def test_an_undisturbed_run_loses_nothing(worlds: Worlds) -> None:
    """1. Three stages, four epochs, nobody dies: all is merged but what the last epoch left open."""
    world = worlds()
    lost = watched(world)
    world.join(*"abcdef")
    world.work_until(lambda: all(stage.epoch >= 4 for stage in world.state.stages))
    found = of(lost, world)
    assert set(found) <= {Fate.MERGED, Fate.OPEN}
    assert found[Fate.MERGED] > 100 and found[Fate.OPEN] < 60


def test_a_death_takes_progress_and_what_was_in_hand(worlds: Worlds) -> None:
    """2. A miner of the only stage dies with five micro-batches behind it and two in hand."""
    world = worlds(num_stages=1, num_microbatches_min=50)
    lost = watched(world)
    world.join("a", "b")
    world.work_until(lambda: world.stage().contributions.get(Hotkey("a"), 0) >= 5)
    world.exchange("a")
    behind, in_hand = world.stage().contributions[Hotkey("a")], len(world.players["a"].works(Pass.LOSS))
    world.join("a", session="s2")
    assert in_hand and of(lost, world) == {
        Fate.PROGRESS_GONE: behind, Fate.MINER_GONE: in_hand,
        Fate.OPEN: world.state.passes_started - behind - in_hand,
    }  # fmt: skip


def test_too_little_to_count(worlds: Worlds) -> None:
    """3. Somebody did one micro-batch where five count when its stage merged: uploaded and paid, but weight 0."""
    world = worlds(num_stages=1, num_microbatches_min=6, quorum=0.5)
    lost = watched(world)
    world.join("a", "b", "c")
    world.exchange("c", free=1)
    world.do("c")
    while world.stage().epoch == 0:
        world.do("a")
        world.do("b")
        held = world.players["c"].held.values()
        world.exchange("c", *(world.result(work) for work in held if not isinstance(work, m.PassWork)), free=0)
        world.wait(1.0)
        assert world.at < 1_060.0
    assert world.stage().merges[0].replicas == 2 and of(lost, world)[Fate.TOO_LITTLE] == 1


def test_failed_and_overtaken(worlds: Worlds) -> None:
    """4. One cannot do its pass and says so; another is late, and a third does it first."""
    world = worlds(num_stages=1, num_microbatches_min=50, deadline_first_s=30.0)
    lost = watched(world)
    world.join("a", "b", "c")
    world.exchange("a")
    failed, late = world.players["a"].works(Pass.LOSS)[:2]
    world.exchange("a", m.Failed(item=failed.item, reason=Reason.NOT_FINITE, sentence="a NaN"))
    assert of(lost, world)[Fate.FAILED] == 1
    for _ in range(8):
        world.wait(4.0)
        world.exchange("a", free=0)
        for name in "bc":
            world.exchange(name, free=0)
    world.work_until(lambda: late.item not in world.state.offers, names="bc")
    assert of(lost, world)[Fate.OVERTAKEN] >= 1


@given(deaths=st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abcdef"), st.booleans()), max_size=6))
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")
def test_whoever_dies_it_adds_up(worlds: Worlds, deaths: list[tuple[int, str, bool]]) -> None:
    """5. Anybody dies at any moment, comes back at once or stays away: each pass has one fate, and what is called
    merged is what the run state counts as merged."""
    world = worlds(num_stages=2, num_microbatches_min=4)
    lost = watched(world)
    world.join(*"abcdef")
    due = sorted(deaths)
    for moment in range(45):
        while due and due[0][0] <= moment:
            _, name, returns = due.pop(0)
            if returns:
                world.join(name, session=f"s{moment}.{len(due)}")
            else:
                world.players.pop(name, None)
        for name in list(world.players):
            if isinstance(world.do(name), m.Refusal):
                world.join(name, session=world.players[name].session)
        world.wait(1.0)
    of(lost, world)
