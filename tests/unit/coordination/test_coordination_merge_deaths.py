"""Merges in which replicas die, hang, restart or have not come yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from subnet.merging.butterfly import loss_counts
from subnet.protocol import keys
from subnet.protocol import messages as m
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


def test_a_dead_owner_leaves_single_copies(worlds: Worlds) -> None:
    """1. One of five owners dies while it reduces: four shards have one copy, six are checked, none is lost."""
    world = one_stage(worlds, 5)
    world.to_step("reduce")
    del world.players["e"]
    world.work_until(turned(world))
    (record,) = world.stage().merges
    assert (record.lost, record.single, record.agreed) == loss_counts(5, 1)
    assert record.replicas == 5, "its upload counts"


def test_two_dead_owners_do_not_lose_their_common_shard(worlds: Worlds) -> None:
    """2. Both owners of a shard die: two survivors reduce it, and all the others that have a single copy, too."""
    world = one_stage(worlds, 5)
    world.to_step("reduce")
    common = next(a.shard for a in world.merge().assignments if set(a.owners) == {"d", "e"})
    del world.players["d"]
    del world.players["e"]
    world.work_until(lambda: bool(world.merge().handed_on))
    assert list(world.merge().handed_on) == [common.index]
    assert any("1 shards have no owner left (2 gone, 0 too late or failed): 2 replicas" in said for said in world.said)
    world.work_until(turned(world))
    (record,) = world.stage().merges
    assert (record.lost, record.single, record.agreed, record.handed_on) == (0, 0, 10, 1)
    assert loss_counts(5, 2) == (1, 6, 3), "what the plain scheme leaves"


def test_all_replicas_die_in_mid_merge(worlds: Worlds) -> None:
    """3. Uploads are in, then everybody is gone: the merge waits, and a joiner reduces and applies what they left."""
    world = one_stage(worlds, 2)
    world.to_step("reduce")
    batch = sum(world.merge().weights.values())
    for name in "ab":
        del world.players[name]
    world.wait(200.0)
    assert "nobody is there to reduce" in world.stage().sentence
    length = len(world.journal)
    world.wait(60.0)
    assert len(world.journal) == length, "waiting for a miner needs no ticks"
    world.join("c")
    world.work_until(turned(world), limit_s=30.0)
    (record,) = world.stage().merges
    assert (record.batch, record.lost, record.replicas) == (batch, 0, 2)
    assert world.miner("c").synced_epoch == 1


def test_a_single_replica_restarts_while_it_reduces(worlds: Worlds) -> None:
    """4. One replica a stage, killed in its reduction: its upload stands and is reduced after all, not lost."""
    world = one_stage(worlds, 1)
    world.to_step("reduce")
    world.join("a", session="s2")
    world.work_until(turned(world), limit_s=30.0)
    assert (world.stage().merges[0].lost, world.stage().merges[0].single) == (0, 1)


def test_owners_that_never_reduce(worlds: Worlds) -> None:
    """5. They live but do not reduce: after three tries the shards count as lost and training goes on."""
    world = one_stage(worlds, 2)
    world.to_step("reduce")
    world.idle(65.0)
    assert world.merge().step == "apply" and world.merge().handed_on == {0: 2}
    for name in world.players:
        world.exchange(name)
    world.work_until(turned(world), limit_s=30.0)
    assert world.stage().merges[0].lost == 1


def test_the_publisher_dies(worlds: Worlds) -> None:
    """6. One replica publishes at a time; it dies before it did, and one that has applied is asked to publish."""
    world = one_stage(worlds, 3)
    world.to_step("apply")
    works = {name: world.players[name].the(m.ApplyWork) for name in world.players}
    (publisher,) = [name for name, work in works.items() if work.publish_parameters]
    assert works[publisher].publish_momentum
    del world.players[publisher]
    for name in world.players:
        world.do(name)
    world.work_until(turned(world), limit_s=40.0)
    maker = keys.parse(world.stage().parameters.key).item.partition(".")[0]
    assert maker in world.players and world.stage().epoch == 1


def test_the_publisher_is_too_slow(worlds: Worlds) -> None:
    """7. It lives but never publishes: after the deadline somebody else may be drawn; its late answer hurts nobody."""
    world = one_stage(worlds, 3)
    world.to_step("apply")
    publisher = next(n for n in world.players if world.players[n].the(m.ApplyWork).publish_parameters)
    late = world.players[publisher].the(m.ApplyWork)
    others = [name for name in world.players if name != publisher]
    tries = 0
    while world.stage().epoch == 0:
        tries += 1
        assert tries < 60
        for name in others:
            world.do(name)
        world.exchange(publisher, free=0)
        world.wait(4.0)
    verdict = world.exchange(publisher, world.result(late)).verdicts[0]
    assert (verdict.outcome, verdict.reason) == ("ignored", Reason.PHASE_OVER)
    assert world.players[publisher].the(m.SyncWork).epoch == 1
    world.do(publisher)
    assert world.miner(publisher).synced_epoch == 1


@pytest.mark.parametrize("step", ["drain", "upload", "reduce", "apply"])
def test_a_joiner_in_mid_merge(worlds: Worlds, step: str) -> None:
    """8. Whoever joins while the stage merges holds nothing up, and trains from the next epoch's parameters."""
    world = one_stage(worlds, 2)
    if step == "drain":
        world.work_until(lambda: world.stage().merge is not None)
    else:
        world.to_step(step)
    world.join("late")
    world.exchange("late", free=0)  # loading; it takes part in nothing yet
    world.work_until(turned(world), names="ab", limit_s=30.0)
    assert world.stage().merges[0].replicas == 2
    world.work_until(lambda: world.credit("late") > 0, limit_s=30.0)
    assert world.miner("late").synced_epoch == 1
    assert world.miner("late").faults == 0


def test_all_replicas_die_in_the_outer_step(worlds: Worlds) -> None:
    """9. Reduced, and then nobody is left to apply it: the merge waits without ticks, and a joiner ends it."""
    world = one_stage(worlds, 2)
    world.to_step("apply")
    for name in "ab":
        del world.players[name]
    world.wait(60.0)
    assert "nobody is there to apply" in world.stage().sentence
    length = len(world.journal)
    world.wait(60.0)
    assert len(world.journal) == length
    world.join("c")
    world.work_until(turned(world), limit_s=30.0)
    assert world.stage().merges[0].lost == 0 and world.miner("c").synced_epoch == 1


def test_a_restart_after_the_outer_step(worlds: Worlds) -> None:
    """10. A replica has applied the merge and its process dies before the epoch turns: the new one loads the result."""
    world = one_stage(worlds, 3)
    world.to_step("apply")
    done = next(n for n in world.players if not world.players[n].the(m.ApplyWork).publish_parameters)
    world.do(done, world.players[done].the(m.ApplyWork))
    assert done in world.merge().applied
    world.join(done, session="s2")
    assert done not in world.merge().applied
    world.work_until(turned(world), names=[n for n in world.players if n != done], limit_s=30.0)
    assert world.miner(done).synced_epoch == 0
    world.exchange(done)
    world.do(done, world.players[done].the(m.SyncWork))
    assert world.miner(done).synced_epoch == 1


def test_a_joiner_holds_nothing_up_when_published(worlds: Worlds) -> None:
    """11. The result is in the store and only a newcomer has not applied it: the epoch turns at once."""
    world = one_stage(worlds, 2)
    world.to_step("apply")
    world.join("late")
    world.exchange("late", free=0)
    at = world.at
    world.work_until(turned(world), names="ab", limit_s=5.0)
    assert world.at - at <= 2.0
