"""A stage's merge to its end: one to five replicas, stragglers, what counts for whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from subnet.merging.butterfly import loss_counts
from subnet.protocol import keys
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, Pass, Phase
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

Worlds = Callable[..., "World"]
NAMES = "abcdefg"


def one_stage(worlds: Worlds, replicas: int, **spec: object) -> World:
    world = worlds(num_stages=1, **spec)
    world.join(*NAMES[:replicas])
    return world


def turned(world: World, epoch: int = 1) -> Callable[[], bool]:
    return lambda: world.stage().epoch == epoch


@pytest.mark.parametrize(("replicas", "copies"), [(1, 2), (2, 2), (3, 2), (5, 2), (5, 1), (5, 3), (2, 3)])
def test_a_merge_to_its_end(worlds: Worlds, replicas: int, copies: int) -> None:
    """1. Upload, shards, outer step, next epoch; every shard has its copies, and nothing is readable too early."""
    world = one_stage(worlds, replicas, copies=copies)
    world.to_step("upload")
    assert world.stage().phase is Phase.UPLOADING
    merge, names = world.merge(), list(world.players)
    weights = dict(merge.weights)
    assert set(weights) == set(names) and min(weights.values()) >= 3
    for name in names[:-1]:
        world.do(name, world.players[name].the(m.UploadWork))
    assert not any(world.players[name].works(m.ReduceWork) for name in names), "one upload is missing"
    world.do(names[-1], world.players[names[-1]].the(m.UploadWork))
    assert world.stage().phase is Phase.MERGING and merge.step == "reduce"
    assert [(entry.hotkey, entry.weight) for entry in merge.manifest] == sorted(weights.items())
    owners = [assignment.owners for assignment in merge.assignments]
    assert all(len(own) == min(copies, replicas) for own in owners)
    assert len(owners) == sum(loss_counts(replicas, 0, copies))
    world.work_until(turned(world))
    (record,) = world.stage().merges
    agreed = len(owners) if min(copies, replicas) > 1 else 0
    assert (record.replicas, record.batch, record.shards) == (replicas, sum(weights.values()), len(owners))
    assert (record.agreed, record.single, record.lost, record.disputed) == (agreed, len(owners) - agreed, 0, 0)
    assert world.stage().phase is Phase.TRAINING and {world.miner(n).synced_epoch for n in names} == {1}
    assert keys.parse(world.stage().parameters.key)[1:3] == (1, 0)
    for name in names:
        world.exchange(name)
        assert not world.players[name].works(m.SyncWork), "all of them hold the new parameters already"


def test_grace_for_work_in_flight(worlds: Worlds) -> None:
    """2. Training closed: what is in flight may finish, and is paid; nothing new is opened; then uploads are due."""
    world = one_stage(worlds, 2, grace_s=5.0)
    world.work_until(lambda: world.stage().merge is not None)
    merge = world.merge()
    assert merge.step == "drain" and world.state.micro_batches
    late = next(name for name in world.players if world.miner(name).offers)
    world.exchange(late)
    work = world.players[late].works(Pass.LOSS)[0]
    opened = world.state.next_micro_batch
    world.wait(4.5)
    assert merge.step == "drain" and not any(world.players[n].works(m.UploadWork) for n in world.players)
    world.wait(0.5)
    assert merge.step == "upload" and world.state.next_micro_batch == opened
    weight = merge.weights[Hotkey(late)]
    assert world.verdict(late, work).outcome == "applied", "credited after the grace, too"
    assert merge.weights[Hotkey(late)] == weight, "but the upload's weight is frozen"
    assert world.stage().contributions == {Hotkey(late): 1}, "it counts for the next one"


def test_a_straggler_misses_the_upload(worlds: Worlds) -> None:
    """3. The merge closes without it; it hears PHASE_OVER, takes the outer step all the same, and starts at zero."""
    world = one_stage(worlds, 3)
    world.to_step("upload")
    late = world.players["c"].the(m.UploadWork)
    for name in "ab":
        world.do(name, world.players[name].the(m.UploadWork))
    world.idle(20.0)
    assert [entry.hotkey for entry in world.merge().manifest] == ["a", "b"]
    verdict = world.exchange("c", world.result(late)).verdicts[0]
    assert (verdict.outcome, verdict.reason) == ("ignored", Reason.PHASE_OVER)
    world.work_until(turned(world), limit_s=30.0)
    assert world.miner("c").synced_epoch == 1 and world.miner("c").faults == 0
    assert Hotkey("c") not in world.stage().contributions


def test_nobody_uploads(worlds: Worlds) -> None:
    """4. No pseudo-gradient in time: the epoch goes on, with fresh work, until the next try succeeds."""
    world = one_stage(worlds, 2)
    world.to_step("upload")
    world.idle(20.0)
    assert world.stage().phase is Phase.TRAINING and world.stage().epoch == 0
    assert "no pseudo-gradient arrived in time: the epoch goes on" in world.said[-1]
    assert world.stage().opened_at > world.at - 1.0, "a try that failed does not make the next one easier"
    world.work_until(turned(world), limit_s=120.0)
    assert world.stage().merges[0].batch >= 6, "B_min was done again"


def test_shards_lie_where_they_are_said_to_be(worlds: Worlds) -> None:
    """5. A merged shard's range lies in its owner's object, right behind the shards before it."""
    world = one_stage(worlds, 5)
    world.to_step("reduce")
    works = {name: world.players[name].the(m.ReduceWork) for name in world.players}
    world.work_until(lambda: world.merge().step == "apply")
    for name, work in works.items():
        end = 32  # the codec's header
        parts = {part.shard.index: part.source for part in world.merge().shards}
        for shard in work.shards:
            source = parts[shard.index]
            if source is not None and source.key == work.output.key:
                assert (source.offset, source.size_bytes) == (end, 4 * shard.length), name
            end += 4 * shard.length
        assert end == work.output.size_bytes


def test_a_straggler_in_the_outer_step(worlds: Worlds) -> None:
    """6. A late ApplyDone: the epoch turned at the deadline; it loads what the others published."""
    world = one_stage(worlds, 3)
    world.to_step("apply")
    late_name = next(n for n in world.players if not world.players[n].the(m.ApplyWork).publish_parameters)
    late = world.players[late_name].the(m.ApplyWork)
    for name in world.players:
        if name != late_name:
            world.do(name)
    assert world.stage().epoch == 0, "waited for until the deadline"
    world.idle(20.0)
    assert world.stage().epoch == 1
    reply = world.exchange(late_name, world.result(late))
    assert reply.verdicts[0].reason is Reason.PHASE_OVER
    sync = world.players[late_name].the(m.SyncWork)
    assert (sync.epoch, sync.parameters) == (1, world.stage().parameters)
    assert not world.players[late_name].works(m.PassWork)
    world.do(late_name)
    assert world.miner(late_name).synced_epoch == 1 and world.players[late_name].works(m.PassWork)


def test_contributions_follow_the_local_state(worlds: Worlds) -> None:
    """7. A replica below the floor uploads its log but no part of the merge; it starts afresh at the anchor, and its
    count with it."""
    world = one_stage(worlds, 2, num_microbatches_min=8, quorum=0.5)
    world.join("c")
    world.exchange("c", free=1)
    world.do("c", world.players["c"].the(Pass.LOSS))
    world.work_until(lambda: world.stage().merge is not None, names="ab")
    assert world.stage().contributions[Hotkey("c")] < 6
    world.work_until(lambda: world.merge().step == "upload")
    assert {h for h, weight in world.merge().weights.items() if weight} == {"a", "b"}
    world.work_until(lambda: bool(world.merge().manifest))
    assert {entry.hotkey for entry in world.merge().manifest} == {"a", "b"}
    world.work_until(turned(world))
    assert not world.stage().contributions and world.miner("c").synced_epoch == 1


def test_neighbours_are_never_two_epochs_apart(worlds: Worlds) -> None:
    """8. One stage is stuck: the others merge once, then train on and wait, and catch up when it goes on."""
    world = worlds()
    world.join(*"abcdef")
    slow = world.of_stage(1)
    world.work_until(lambda: world.stage(1).merge is not None and world.stage(1).merge.step == "upload")
    stuck, rest = set(slow), [name for name in world.players if name not in slow]
    for _ in range(15):
        for name in rest:
            world.do(name)
        for name in stuck:
            world.exchange(name, free=0)
        world.wait(1.0)
    epochs = [stage.epoch for stage in world.state.stages]
    assert epochs[1] == 0 and max(epochs) == 1
    assert any("waiting for a stage that is still in epoch 0" in stage.sentence for stage in world.state.stages)
    world.work_until(lambda: min(stage.epoch for stage in world.state.stages) >= 2, limit_s=200.0)
