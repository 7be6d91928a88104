"""What a validator is given to replay: the segment as the miner ran it, and every state that is not known to all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from subnet.protocol import messages as m
from subnet.protocol.ids import Pass

if TYPE_CHECKING:
    from conftest import Court

Courts = Callable[..., "Court"]


def work_for(court: Court, name: str) -> m.AuditWork:
    """The one audit of a miner, its states shown."""
    if court.reveals(name):
        court.reveal(name)
    (work,) = [work for work in court.given("v") if work.hotkey == name]
    return work


def check_passes(court: Court, name: str, work: m.AuditWork) -> None:
    """As they were given, as they were logged, with what the miner said it stored."""
    log = court.dossier(work.epoch, name).log[work.begins.position : work.ends.position]
    assert [(one.work.item, one.version) for one in work.passes] == [(one.item, one.version) for one in log]
    for one in work.passes:
        done, target = court.book(name).ran[one.work.item], one.work.output
        assert one.loss == done.loss and one.work.stage == work.stage
        if target is None:
            assert one.output is None
        else:
            assert one.output == m.Source(key=target.key, digest=done.digest, size_bytes=target.size_bytes)


@pytest.mark.parametrize("segment", [0, 1, -1])
def test_the_work_is_the_segment(courts: Courts, segment: int) -> None:
    """1. Two stages: exactly the segment's passes in the miner's own order, forwards and backwards."""
    court = courts("a", "b", num_stages=2, micro_batches_per_step=2, num_microbatches_min=7)
    name = next(n for n in "ab" if court.world.miner(n).stage == 0)
    anchor = court.world.stage(0).parameters
    court.to_epoch(1)
    dossier = court.dossier(0, name)
    num_segments = len(dossier.commitments) - 1
    court.draw(0, {name: segment % num_segments})
    work = work_for(court, name)
    number = segment % num_segments
    assert (work.segment, work.stage, work.epoch, work.anchor) == (number, 0, 0, anchor)
    assert (work.begins, work.ends) == dossier.commitments[number : number + 2]
    check_passes(court, name, work)
    kinds = {one.work.kind for one in work.passes}
    assert kinds == {Pass.BACKWARD} if segment == -1 else kinds == {Pass.FORWARD, Pass.BACKWARD}
    assert work.applies_after is None and work.loaded == (number == 0)
    assert (work.start == ()) == (number == 0)
    assert (segment == -1) == (work.upload is not None) and len(work.end) == 4
    if work.upload is not None:
        (sent,) = [entry for entry in court.uploads if entry.key == work.upload.key]
        assert work.upload == sent and f"/{name}." in sent.key
    for sources, commitment in (work.start, work.begins), (work.end, work.ends):
        assert not sources or tuple(source.digest for source in sources) == court.states[commitment.digest]


def test_a_pass_whose_result_never_came_is_still_replayed(courts: Courts) -> None:
    """2. The miner computed it, then somebody else was faster: it is in the log, and so in the work; nothing to compare
    where no result came, and what came late is compared all the same."""
    court = courts("a", "b", num_microbatches_min=2, segment_steps=99, slots_max=4)
    world = court.world
    for name in "ab":
        world.exchange(name, free=2)
    lost, late = world.players["a"].works(Pass.LOSS)
    results = [world.result(work) for work in (lost, late)]
    world.idle(31.0)
    world.work_until(lambda: world.state.completed >= 4, names=["b"])
    (verdict,) = world.exchange("a", results[1]).verdicts
    assert verdict.outcome == "ignored"
    assert lost.item not in world.players["a"].held
    court.to_epoch(1)
    court.see(closes=0)
    work = work_for(court, "a")
    passes = {one.work.item: one for one in work.passes}
    assert passes[lost.item].output is None and passes[lost.item].loss is None
    assert passes[late.item].loss == results[1].loss
    assert not court.dossier(0, "a").given[late.item].credited


def test_the_next_epoch_begins_at_the_upload(courts: Courts) -> None:
    """3. Two passes came after the upload and before the merge: the next epoch's first segment begins at the uploaded
    state, holds both, and says that the merge comes after them; its anchor is the new epoch's."""
    court = courts("a", "b", segment_steps=4)
    between = court.upload_first("a")
    assert between
    assert court.world.do("a", *between).verdicts[0].outcome == "applied"
    court.to_epoch(1)
    anchor = court.world.stage().parameters
    court.to_epoch(2)
    court.see(closes=0)
    court.settle_all()
    court.draw(1, {"a": 0})
    (asked,) = court.reveals("a")
    before, dossier = court.dossier(0, "a"), court.dossier(1, "a")
    assert asked.start_digest == before.commitments[-1].digest and len(asked.start) == 4
    assert dossier.applied_at == len(between) and not dossier.loaded
    work = work_for(court, "a")
    assert (work.loaded, work.applies_after, work.anchor) == (False, len(between), anchor)
    assert [one.work.item for one in work.passes][: len(between)] == [one.item for one in between]
    assert {one.work.epoch for one in work.passes[: len(between)]} == {0}
    check_passes(court, "a", work)


def test_the_merge_belongs_to_one_segment(courts: Courts) -> None:
    """4. In a later segment of such an epoch the merge is behind; with none between upload and merge it comes first."""
    court = courts("a", "b")
    court.to_epoch(2)
    court.see(closes=0)
    court.settle_all()
    court.draw(1, {"a": 1, "b": 0})
    assert work_for(court, "a").applies_after is None
    assert work_for(court, "b").applies_after == 0 and work_for(court, "b").start


@pytest.mark.parametrize("seed", range(3))
def test_steps_between_upload_and_merge_are_not_drawn(courts: Courts, seed: int) -> None:
    """5. An inner step was committed between the two: what lies before the merge was trained from the epoch before and
    cannot be replayed from this one's start. Only segments after it are drawn."""
    court = courts("a", "b")
    between = court.upload_first("a")
    court.world.do("a", *between)
    court.to_epoch(2)
    court.see(closes=0)
    court.settle_all()
    court.see(closes=1, seed=seed)
    dossier = court.dossier(1, "a")
    assert dossier.applied_at == len(between) == dossier.commitments[len(between)].position
    assert court.audit("a").segment > len(between)
    work = work_for(court, "a")
    assert work.applies_after is None and work.start
    check_passes(court, "a", work)
