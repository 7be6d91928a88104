"""The owner tunes the rules in the middle of a run: when what changes, and what stays as it was opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from subnet.errors import InvariantViolation
from subnet.protocol import messages as m
from subnet.protocol import tuning
from subnet.protocol.ids import Phase

Worlds = Callable[..., Any]


def tune(world: Any, text: str) -> None:
    """As the orchestrator does when the owner's file has changed."""
    first, newest = world.state.versions[0], world.state.versions[-1]
    world.own(m.Tuned(spec=tuning.tuned(first, tuning.parse(text.encode()), newest.version + 1)))


def test_each_stage_takes_the_rules_over_with_its_next_epoch(worlds: Worlds) -> None:
    """1. B_min and quorum are changed while both stages train: the running epoch closes by the old ones, the next by
    the new ones; pay and routing change when the last stage is over."""
    world = worlds(num_stages=2, num_microbatches_min=4)
    world.join("a", "b", "c", "d")
    tune(world, "[merge]\nnum_microbatches_min = 20\n[score]\nburn_fraction = 0.5\n")
    assert any("merge.num_microbatches_min 4 → 20" in said for said in world.said)
    assert world.state.rules_of(0).merge.num_microbatches_min == 4 and world.state.spec.version == 1
    world.work_until(lambda: any(stage.rules == 1 for stage in world.state.stages))
    ahead = next(stage for stage in world.state.stages if stage.rules == 1)
    assert ahead.epoch == 1 and world.state.rules_of(ahead.stage).merge.num_microbatches_min == 20
    if any(stage.rules == 0 for stage in world.state.stages):
        assert world.state.spec.version == 1
    world.work_until(lambda: all(stage.rules == 1 for stage in world.state.stages))
    assert world.state.spec.version == 2 and world.state.spec.score.burn_fraction == 0.5
    world.work_until(lambda: all(stage.epoch == 2 for stage in world.state.stages))
    first, second = (world.stage().merges[epoch].batch for epoch in (0, 1))
    assert first < 20 <= second


def test_the_merge_names_the_rules_of_the_next_epoch(worlds: Worlds) -> None:
    """2. The outer step brings every replica the RunSpec it goes on by; once tuned, so does a load. Rules that come
    when training has closed already are for the epoch after."""
    world = worlds(num_stages=1)
    world.join("a", "b")
    tune(world, "[inner]\nlr_peak = 0.001\nlr_final = 0.0\n")
    world.to_step("apply")
    tune(world, "[inner]\nlr_peak = 0.002\nlr_final = 0.0\n")
    works = [player.the(m.ApplyWork) for player in world.players.values() if player.works(m.ApplyWork)]
    assert works and {work.spec.version for work in works} == {2}
    world.join("late")
    world.work_until(lambda: world.stage().epoch == 1)
    assert world.stage().rules == 1
    for name in world.players:
        world.exchange(name)
    loads = [work for player in world.players.values() for work in player.works(m.SyncWork)]
    assert loads and {work.spec.version for work in loads} == {2}
    world.work_until(lambda: world.stage().epoch == 2)
    assert world.stage().rules == 2


def test_an_untuned_run_names_no_rules(worlds: Worlds) -> None:
    """3. Where nothing was tuned, works are as small as before."""
    world = worlds(num_stages=1)
    world.join("a", "b")
    world.to_step("apply")
    assert all(work.spec is None for player in world.players.values() for work in player.works(m.ApplyWork))


def test_who_joins_gets_the_stages_own_rules(worlds: Worlds) -> None:
    """4. A joiner trains by what its stage's running epoch goes by, not by what is to come."""
    world = worlds(num_stages=1)
    world.join("a")
    tune(world, "[merge]\nquorum = 0.5\n")
    world.register("a", "b")
    reply = world.send("b", m.Join(session="s", device="cpu", software="t"))
    assert isinstance(reply, m.Joined) and reply.spec.version == 1
    assert world.stage().phase is Phase.TRAINING


@pytest.mark.parametrize("what", ["skips a number", "another model", "no audits", "everybody is dead"])
def test_an_orchestrator_that_changes_more_than_it_may(worlds: Worlds, what: str) -> None:
    """5. A record that is no tuning breaks the journal for everybody who follows it."""
    world = worlds(num_stages=1)
    spec = tuning.tuned(world.spec, tuning.parse(b"[merge]\nquorum = 0.5\n"), 2)
    bad = {
        "skips a number": msgspec.structs.replace(spec, version=3),
        "no audits": msgspec.structs.replace(spec, audit=msgspec.structs.replace(spec.audit, rate=1 - spec.audit.rate)),
        "everybody is dead": msgspec.structs.replace(
            spec, routing=msgspec.structs.replace(spec.routing, dead_after_s=0.001)
        ),
        "another model": msgspec.structs.replace(spec, model=msgspec.structs.replace(spec.model, d_ff=8)),
    }[what]
    with pytest.raises(InvariantViolation, match="no tuning"):
        world.own(m.Tuned(spec=bad))
    world.journal.pop()


def test_pay_follows_the_new_window_from_the_common_version_on(worlds: Worlds) -> None:
    """6. γ is shortened: credit that was paid grows too old at once when all stages have taken it over."""
    world = worlds(num_stages=1, gamma_s=1_000.0)
    world.join("a", "b")
    world.work_until(lambda: world.stage().epoch == 1)
    tune(world, "[score]\ngamma_s = 0.001\n")
    assert world.state.spec.score.gamma_s == 1_000.0
    world.work_until(lambda: world.stage().epoch == 2)
    assert world.state.spec.score.gamma_s == 0.001
