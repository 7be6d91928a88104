"""A merge poisons the run: what counts as proof, what is taken back, who is blamed, who is paid."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

import pytest

from subnet.coordination import routing
from subnet.coordination.merge_state import InspectMerge, Upload
from subnet.coordination.status import status
from subnet.localnet.lost_work import Fate, LostWork
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, Pass, Phase
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

Worlds = Callable[..., "World"]


def trained(worlds: Worlds, replicas: int = 6, **change: Any) -> World:
    """Two stages that have merged their first epoch."""
    world = worlds(num_stages=2, **change)
    world.join(*"abcdefghij"[:replicas])
    world.work_until(lambda: all(stage.epoch >= 1 for stage in world.state.stages))
    return world


def losses(world: World, bad: Callable[[Hotkey, m.PassWork], bool], high: float = 9.0) -> None:
    """From now on a replica of the last stage reports a high loss where `bad` says so."""
    plain = world.honest

    def honest(work: m.Work) -> m.Result:
        done = plain(work)
        if isinstance(done, m.PassDone) and isinstance(work, m.PassWork) and work.kind is Pass.LOSS:
            offer = world.state.offers.get(work.item)
            if offer is not None:
                loss = high if bad(offer.hotkey, work) else 5.0
                return m.PassDone(item=work.item, digest=done.digest, loss=loss, param_version=0, compute_s=0.1)
        return done

    world.honest = honest


def spoilt_by(world: World, hotkey: str) -> None:
    """What the orchestrator sees when it looks: one upload is not what it was said to be."""

    def seen(sender: Hotkey, upload: Upload) -> m.UploadSeen:
        norm = 100.0 if sender == hotkey else upload.norm
        return m.UploadSeen(hotkey=sender, reason=Reason.OK, norm=norm, cosine=0.3)

    world.seen = seen


def rolled(world: World, times: int = 1) -> Callable[[], bool]:
    return lambda: world.state.poison.count >= times


def calm(world: World) -> None:
    losses(world, lambda hotkey, work: False)


def go_on(world: World, epoch: int) -> None:
    world.work_until(lambda: all(stage.epoch >= epoch for stage in world.state.stages), limit_s=300.0)


def test_taken_back_and_done_again_without_the_offender(worlds: Worlds) -> None:
    """1. The loss explodes after the first merges: both are taken back, one upload turns out to be a lie, and the run
    goes on without it. Only its maker's epoch is unpaid; all other credit stands; no key was ever used twice."""
    world = trained(worlds)
    targets: list[str] = []

    def watch(envelope: m.Envelope, reply: m.Reply | None) -> None:
        for work in reply.work if isinstance(reply, m.ExchangeReply) else ():
            found = [getattr(work, name, None) for name in ("output", "publish_parameters", "publish_momentum")]
            new = [(work.item, target.key) for target in found if isinstance(target, m.Target)]
            targets.extend(key for item, key in dict.fromkeys(new) if (item, key) not in told)
            told.update(new)

    told: set[tuple[str, str]] = set()
    world.watch = watch
    liar = world.of_stage(1)[0]
    spoilt_by(world, liar)
    before = {name: world.credit(name) for name in world.players}
    base = [(stage.closed[0].parameters, stage.closed[0].momentum) for stage in world.state.stages]
    losses(world, lambda hotkey, work: True)
    world.work_until(lambda: world.state.poison.rolling is not None)
    assert [(stage.epoch, stage.phase) for stage in world.state.stages] == [(0, Phase.MERGING)] * 2
    assert [(stage.parameters, stage.momentum) for stage in world.state.stages] == base
    assert not world.state.micro_batches and status(world.state)["rollbacks"][0]["outcome"].startswith("the orch")
    assert all(world.credit(name) > before[name] for name in world.players), "what they did since is credited"
    calm(world)
    go_on(world, 2)
    (done,) = world.state.poison.roll_backs
    assert (done.epoch, done.stages, set(done.offenders)) == (0, [0, 1], {liar})
    assert {e: dict(by) for e, by in world.state.pay.void.items() if by}.keys() == {0}
    assert list(world.state.pay.void[0]) == [liar] and world.state.pay.void[0][Hotkey(liar)].reason is Reason.POISONED
    assert [world.miner(name).faults for name in sorted(world.players)] == [
        int(n == liar) for n in sorted(world.players)
    ]
    again = [record for record in world.stage(1).merges if not record.undone]
    assert [record.epoch for record in again] == [0, 1] and again[0].replicas == len(world.of_stage(1)) - 1
    assert liar in world.state.stages[1].closed[-1].excluded, "its later uploads do not count either"
    assert len(targets) == len(set(targets))
    assert status(world.state)["rollbacks"][0]["offenders"] == done.offenders


@pytest.mark.parametrize("honest", [True, False])
def test_one_liar_neither_starts_nor_stops_it(worlds: Worlds, honest: bool) -> None:
    """2. Three replicas report losses. One alone cries wolf: nothing happens. One alone hides what the others see: the
    merge is taken back all the same."""
    world = trained(worlds)
    liar = world.of_stage(1)[0]
    losses(world, lambda hotkey, work: (hotkey == liar) == honest)
    if honest:
        go_on(world, 3)
        assert not world.state.poison.count
    else:
        world.work_until(rolled(world), limit_s=300.0)


def test_noise_from_one_replica_is_no_poisoned_merge(worlds: Worlds) -> None:
    """3. Whatever goes through one replica of stage 0 comes out with a terrible loss: its merge is not to blame."""
    world = trained(worlds)
    noisy = world.of_stage(0)[0]
    losses(world, lambda hotkey, work: world.state.micro_batches[work.micro_batch].hops[0].forward_by == noisy)
    go_on(world, 3)
    assert not world.state.poison.count


@pytest.mark.parametrize("nats", [0.0, 1.0, 5.0])
def test_the_limit_is_the_owner_s(worlds: Worlds, nats: float) -> None:
    """4. Losses rise by 4 nats: taken back at a limit of 1, not at 5, never at 0."""
    world = trained(worlds, explosion_nats=nats)
    losses(world, lambda hotkey, work: True)
    if nats == 1.0:
        world.work_until(rolled(world), limit_s=300.0)
    else:
        go_on(world, 3)
        assert not world.state.poison.count


def test_nobody_can_be_named(worlds: Worlds) -> None:
    """5. Every upload looks sound: both merges are dropped, the next epoch starts where the last one did, nobody is
    blamed or unpaid."""
    world = trained(worlds)
    base = [stage.closed[0].parameters for stage in world.state.stages]
    losses(world, lambda hotkey, work: True)
    world.work_until(rolled(world), limit_s=300.0)
    assert [stage.epoch for stage in world.state.stages] == [1, 1]
    assert [stage.parameters for stage in world.state.stages] == base
    calm(world)
    go_on(world, 2)
    assert not any(world.state.pay.void.values()) and not any(miner.faults for miner in world.state.miners.values())
    assert world.state.poison.count == 1


def test_three_times_and_it_waits_for_the_operator(worlds: Worlds) -> None:
    """6. The loss stays high whatever is taken back: after the third time the run pauses and says what to do. Started
    again by its operator it goes on."""
    world = trained(worlds)
    losses(world, lambda hotkey, work: True)
    world.work_until(rolled(world, 3), limit_s=600.0)
    assert all(stage.phase is Phase.PAUSED for stage in world.state.stages)
    assert world.stage().reason is Reason.PAUSED and "tune" in world.stage().sentence
    assert routing.opening_refused(world.state) is not None
    calm(world)
    world.own(m.RunResumed(target_epochs=0))
    go_on(world, 3)
    assert world.state.poison.count == 3


def fail_all(world: World, names: Container[str]) -> None:
    """These replicas come to no finite number, each as often as it is asked."""
    for name in [player for player in world.players if player in names]:
        works = world.players[name].works(m.PassWork)
        said = [m.Failed(item=w.item, reason=Reason.NOT_FINITE, sentence="the loss is nan") for w in works]
        world.exchange(name, *said)


@pytest.mark.parametrize("step", ["drain", "upload", "reduce", "apply"])
def test_not_finite_whatever_the_other_stage_is_doing(worlds: Worlds, step: str) -> None:
    """7. Most of the last stage's replicas come to NaN while stage 0 is somewhere in its next merge: that merge is
    given up, both stages go back and forward again, and nobody is at fault for a NaN that a merge brought."""
    world = trained(worlds)
    here, last = world.of_stage(0), world.of_stage(1)
    world.work_until(lambda: world.stage(0).merge is not None and world.stage(0).epoch == 1 and _waiting(world) > 1)
    for _ in range(60):
        if world.merge().step == step:
            break
        for name in here:
            world.do(name)
        for name in last:
            world.exchange(name)
        world.wait(1.0)
    assert (world.stage(0).epoch, world.merge().step) == (1, step)
    for _ in range(20):
        if world.state.poison.rolling is not None or world.state.poison.count:
            break
        for name in last:
            world.exchange(name)
        fail_all(world, last[:2])
        world.wait(1.0)
    assert world.state.poison.rolling is not None and "no finite numbers" in world.state.poison.rolling.sentence
    go_on(world, 3)
    assert not any(miner.faults for miner in world.state.miners.values())
    assert not any(by for by in world.state.pay.void.values())


def _waiting(world: World) -> int:
    return sum(batch.hops[1].forward_epoch < 0 for batch in world.state.micro_batches.values())


def test_one_broken_device_is_no_poison(worlds: Worlds) -> None:
    """8. One replica of three computes NaN for ever: others do its pieces, nothing is taken back."""
    world = trained(worlds)
    broken = world.of_stage(1)[:1]
    for _ in range(20):
        for name in world.players:
            if name not in broken:
                world.do(name)
        world.exchange(broken[0])
        fail_all(world, broken)
        world.wait(1.0)
    assert not world.state.poison.count and world.state.poison.rolling is None


def test_a_restart_while_the_uploads_are_looked_at(worlds: Worlds) -> None:
    """9. The orchestrator dies in the middle: started again it is asked again, under the same number; an answer to
    another question is not taken for it."""
    world = trained(worlds)
    spoilt_by(world, world.of_stage(1)[0])
    losses(world, lambda hotkey, work: True)
    world.auto = False
    world.work_until(lambda: world.state.poison.rolling is not None)
    asked = [errand for errand in world.errands if isinstance(errand, InspectMerge)]
    assert [errand.stage for errand in asked] == [0, 1]
    world.errands.clear()
    world.own(m.RunResumed(target_epochs=0))
    again = [errand for errand in world.errands if isinstance(errand, InspectMerge)]
    assert again == asked
    wrong = m.MergeInspected(stage=again[0].stage, epoch=0, number=again[0].number + 1000, uploads=())
    world.own(wrong)
    world.idle(60.0)
    assert world.state.poison.rolling is not None, "it waits, without a tick for every quarter of a second"
    world.auto = True
    world.do_errands()
    calm(world)
    go_on(world, 2)
    assert world.state.poison.count == 1 and world.state.poison.roll_backs[0].offenders


def test_who_comes_back_in_the_middle_loads_what_counts(worlds: Worlds) -> None:
    """10. A replica's process was away for a moment while its stage went back: it holds what was taken back, under an
    epoch number that comes again, and so it is made to load the base."""
    world = trained(worlds)
    spoilt_by(world, world.of_stage(1)[0])
    losses(world, lambda hotkey, work: True)
    world.auto = False
    world.work_until(lambda: world.state.poison.rolling is not None)
    name = world.of_stage(0)[0]
    world.join(name, session="s2")
    world.exchange(name)
    (work,) = world.players[name].works(m.SyncWork)
    assert (work.epoch, work.parameters) == (0, world.stage(0).parameters)
    world.auto = True
    world.do_errands()
    calm(world)
    go_on(world, 2)


def test_the_outer_step_overflows(worlds: Worlds) -> None:
    """11. Nobody can apply the merge, since its result is not finite: its uploads are looked at before anybody trains
    on it, and the merge goes on without the offender."""
    world = worlds(num_stages=1)
    world.join(*"abcd")
    spoilt_by(world, "c")
    world.work_until(lambda: world.stage().merge is not None and world.merge().step == "apply")
    for name in "abd":
        world.exchange(name)
        work = world.players[name].the(m.ApplyWork)
        world.exchange(name, m.Failed(item=work.item, reason=Reason.NOT_FINITE, sentence="the step leaves the numbers"))
    assert world.state.poison.rolling is not None
    go_on(world, 1)
    assert set(world.state.poison.roll_backs[0].offenders) == {"c"}
    assert world.stage().merges[-1].replicas == 3 and world.miner("a").faults == 0


@pytest.mark.parametrize("named", [True, False])
def test_where_the_passes_of_an_undone_merge_go(worlds: Worlds, named: bool) -> None:
    """A merge is taken back and done again without one upload, or dropped: every pass is still in one place, and what
    counts as merged is what the state counts."""
    world = worlds(num_stages=2)
    lost = LostWork()
    lost.note(world.state)
    world.watch = lambda envelope, reply: lost.note(world.state)
    world.join(*"abcdef")
    world.work_until(lambda: all(stage.epoch >= 1 for stage in world.state.stages))
    liar = world.of_stage(1)[0]
    if named:
        spoilt_by(world, liar)
    losses(world, lambda hotkey, work: True)
    world.work_until(lambda: world.state.poison.rolling is not None)
    calm(world)
    go_on(world, 3)
    totals = lost.totals(world.state)
    assert sum(totals.values()) == world.state.passes_started and min(totals.values()) >= 0
    assert totals[Fate.MERGED] == world.state.passes_merged
    assert totals[Fate.EXCLUDED if named else Fate.UNDONE] > 0
