"""Shards whose owners fall away within a merge: who gets them, and that none is lost while anybody is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subnet.coordination.effects import RecomputeShard
from subnet.coordination.owners import ASSIGNMENTS_MAX
from subnet.coordination.status import merge_row
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

Worlds = Callable[..., "World"]
NAMES = "abcdefgh"


def reducing(worlds: Worlds, replicas: int, **spec: object) -> World:
    """Uploads are in, everybody has its shards in hand."""
    world = worlds(num_stages=1, **spec)
    world.do_errands()
    world.join(*NAMES[:replicas])
    world.to_step("reduce")
    return world


def die(world: World, *names: str) -> None:
    for name in names:
        del world.players[name]


def reduce(world: World, *names: str) -> None:
    for name in names:
        world.do(name, *world.players[name].works(m.ReduceWork))


def in_hand(world: World, name: str) -> set[int]:
    """Shards that a miner has to reduce, asked for now."""
    world.exchange(name, free=0)
    return {shard.index for work in world.players[name].works(m.ReduceWork) for shard in work.shards}


def of_owners(world: World, *names: str) -> set[int]:
    """Shards that belong to these alone."""
    return {a.shard.index for a in world.merge().assignments if set(a.owners) <= set(names)}


def finish(world: World) -> None:
    world.auto = True
    world.do_errands()
    world.work_until(lambda: world.stage().epoch == 1, limit_s=120.0)


def test_one_dead_owner_is_replaced_early(worlds: Worlds) -> None:
    """1. One of two owners dies and is missed while there is time: idle uploaders make the second copies, each a fair
    share of them; nothing was orphaned, and what was reduced is not asked for again."""
    world = reducing(worlds, 5, dead_after_s=6.0)
    die(world, "e")
    reduce(world, *"abcd")
    reported = {name: set(world.merge().reports[Hotkey(name)]) for name in "abcd"}
    world.idle(7.0)
    given = {name: in_hand(world, name) for name in "abcd"}
    assert sorted(len(shards) for shards in given.values()) == [1, 1, 1, 1]
    assert not any(given[name] & reported[name] for name in "abcd")
    finish(world)
    (record,) = world.stage().merges
    assert (record.agreed, record.single, record.lost, record.handed_on) == (10, 0, 0, 0)


def test_one_dead_owner_is_missed_late(worlds: Worlds) -> None:
    """2. More than half of the time is gone when it is missed: a second copy is not worth the wait, one stands."""
    world = reducing(worlds, 5, dead_after_s=12.0)
    die(world, "e")
    reduce(world, *"abcd")
    world.idle(13.0)
    assert world.merge().step == "apply"
    finish(world)
    assert (world.stage().merges[0].single, world.stage().merges[0].lost) == (4, 0)


def test_all_but_one_die(worlds: Worlds) -> None:
    """3. Five owners, one survivor: it reduces what nobody has and, as the merge waits anyway, checks what only a dead
    one has; all in one more piece of work, and nothing twice."""
    world = reducing(worlds, 5)
    reduce(world, "a", "b")
    die(world, *"acde")
    world.idle(16.0)
    assert in_hand(world, "b") == set(range(10)) - set(world.merge().reports[Hotkey("b")])
    finish(world)
    (record,) = world.stage().merges
    assert (record.lost, record.handed_on, record.agreed, record.single) == (0, 3, 4, 6)
    assert merge_row(record)["handed_on"] == 3


def test_everybody_dies_and_a_newcomer_comes(worlds: Worlds) -> None:
    """4. Two have reduced, then all are gone: no ticks while the merge waits, a joiner does the rest and applies all,
    the copies of the dead included."""
    world = reducing(worlds, 5)
    reduce(world, "a", "b")
    done = {index for digests in world.merge().reports.values() for index in digests}
    die(world, *"abcde")
    world.wait(60.0)
    assert world.stage().sentence == "waiting for a miner: nobody is there to reduce 3 shards"
    length = len(world.journal)
    world.wait(60.0)
    assert len(world.journal) == length
    world.join("new")
    assert in_hand(world, "new") == set(range(10)) - done
    finish(world)
    assert (world.stage().merges[0].lost, world.miner("new").synced_epoch) == (0, 1)


def test_a_stalled_pair(worlds: Worlds) -> None:
    """5. Both owners of a shard live and do not answer: at the deadline others get it, with a whole new deadline; what
    the two bring later is late, not wrong; and the reason is told in words."""
    world = reducing(worlds, 5)
    late = world.players["d"].the(m.ReduceWork)
    reduce(world, *"abc")
    (orphan,) = of_owners(world, "d", "e")
    world.idle(20.0)
    assert world.merge().handed_on == {orphan: 1}
    assert world.merge().deadline == world.at + 20.0
    assert "1 shards have no owner left (0 gone, 2 too late or failed): 2 replicas reduce them now" in world.said[-1]
    assert "1 shards got other owners" in world.stage().sentence
    takers = {name for name in "abcde" if orphan in in_hand(world, name)}
    assert len(takers) == 2 and takers <= set("abc"), "not those that were asked before"
    assert world.verdict("d", late).outcome == "ignored" and world.miner("d").faults == 0
    finish(world)
    (record,) = world.stage().merges
    assert (record.lost, record.handed_on, record.single) == (0, 1, 0), "idle hands made second copies meanwhile"


def test_the_last_hand_out_goes_to_everybody(worlds: Worlds) -> None:
    """6. Whoever gets the shard stalls: the third time all that live get it; if none of them answers, it is lost and
    training goes on."""
    world = reducing(worlds, 5)
    world.idle(20.0)
    world.idle(20.0)
    assert set(world.merge().handed_on.values()) == {ASSIGNMENTS_MAX - 1}
    assert {frozenset(in_hand(world, name)) for name in "abcde"} == {frozenset(range(10))}
    reduce(world, "c")
    world.idle(20.0)
    finish(world)
    assert (world.stage().merges[0].lost, world.stage().merges[0].single) == (0, 10)


def test_a_newcomer_helps_where_uploaders_are_few(worlds: Worlds) -> None:
    """7. It joins in mid-merge. While an uploader is left, that one comes first; the second copy is the newcomer's. For
    second copies alone it is not asked: it holds nothing up."""
    world = reducing(worlds, 3)
    world.join("new")
    world.exchange("new", free=0)
    die(world, "a", "b")
    orphans = of_owners(world, "a", "b")
    reduce(world, "c")
    world.idle(16.0)
    assert in_hand(world, "new") == in_hand(world, "c") == orphans
    finish(world)
    (record,) = world.stage().merges
    assert (record.replicas, record.lost, record.agreed, record.single) == (3, 0, 1, 2)


def test_who_reduced_wrongly_before_comes_last(worlds: Worlds) -> None:
    """8. A replica with a proven wrong shard uploads like the others, but gets a dead pair's shard only where nobody
    else is left."""
    world = reducing(worlds, 4)
    work = world.players["a"].the(m.ReduceWork)
    world.do("a", work, shard_digests=("f" * 64,) * len(work.shards))
    world.work_until(lambda: world.stage().epoch == 1)
    world.to_step("reduce")
    assert Hotkey("a") in world.merge().uploads and not any("a" in asked for _, asked in world.merge().assignments)
    die(world, "b", "c")
    reduce(world, "d")
    world.idle(16.0)
    assert not in_hand(world, "a") and len(in_hand(world, "d")) == 1
    die(world, "d")
    world.idle(16.0)
    assert len(in_hand(world, "a")) == 1
    world.work_until(lambda: world.stage().epoch == 2, limit_s=120.0)
    assert [record.lost for record in world.stage().merges] == [0, 0]


def test_a_discarded_object_of_an_heir(worlds: Worlds) -> None:
    """9. The only survivor's second object is unreadable: it is named, its first object stands, and a newcomer reduces
    once more what was in the second."""
    world = reducing(worlds, 3, auto=False)
    die(world, "a", "b")
    (orphan,) = of_owners(world, "a", "b")
    reduce(world, "c")
    world.idle(16.0)
    work = world.players["c"].the(m.ReduceWork)
    world.do("c", work)
    world.exchange("c", free=0)
    apply = world.players["c"].the(m.ApplyWork)
    source = next(part.source for part in apply.shards if part.shard.index == orphan)
    assert source is not None and source.key == work.output.key
    world.join("new")
    world.exchange("new", free=0)
    complaint = world.players["new"].the(m.ApplyWork)
    failed = m.Failed(item=complaint.item, reason=Reason.BAD_DIGEST, sentence="no", object_key=source.key)
    world.exchange("new", failed)
    world.bad_objects[source.key] = Reason.BAD_DIGEST
    world.do_errands()
    assert in_hand(world, "new") == {orphan} and not in_hand(world, "c")
    finish(world)
    (record,) = world.stage().merges
    assert (record.lost, record.single, world.miner("c").faults) == (0, 3, 1)


def test_a_dispute_among_heirs(worlds: Worlds) -> None:
    """10. One of the two that got the dead pair's shard lies about it: the orchestrator reduces it, names the liar, and
    the other one's copy stands."""
    world = reducing(worlds, 5, auto=False)
    die(world, "d", "e")
    (orphan,) = of_owners(world, "d", "e")
    reduce(world, *"abc")
    world.idle(16.0)
    takers = [name for name in "abc" if orphan in in_hand(world, name)]
    for name in "abc":
        for work in world.players[name].works(m.ReduceWork):
            honest = world.result(work).shard_digests
            lies = name == takers[0]
            digests = ["f" * 64 if lies and s.index == orphan else d for s, d in zip(work.shards, honest, strict=True)]
            world.do(name, work, shard_digests=tuple(digests))
    (errand,) = world.errands
    assert isinstance(errand, RecomputeShard) and set(takers) < set(errand.assignment.owners)
    finish(world)
    (record,) = world.stage().merges
    assert record.faulty == {takers[0]: [orphan]} and (record.disputed, record.lost) == (1, 0)


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_the_orchestrator_restarts_meanwhile(worlds: Worlds, moment: str) -> None:
    """11. Its process dies before the deaths are noticed, while the heirs reduce, or when one of them has: the replay
    is the live state (conftest), the heirs keep their work, and nothing is lost."""
    world = reducing(worlds, 5)
    die(world, "d", "e")
    reduce(world, *"abc")
    if moment == "before":
        world.own(m.RunResumed(target_epochs=0))
    world.idle(16.0)
    assert world.merge().handed_on
    given = {name: in_hand(world, name) for name in "abc"}
    if moment == "after":
        reduce(world, "a")
    if moment != "before":
        world.own(m.RunResumed(target_epochs=0))
        assert {name: in_hand(world, name) for name in "abc"} | {"a": given["a"]} == given
    finish(world)
    assert (world.stage().merges[0].lost, world.stage().merges[0].handed_on) == (0, 1)


def test_owners_come_back_with_empty_hands(worlds: Worlds) -> None:
    """12. Both owners of a shard are started again: their old work is gone, so the shard goes to others at once."""
    world = reducing(worlds, 4)
    orphans = of_owners(world, "c", "d")
    world.join("c", "d", session="s2")
    assert set(world.merge().handed_on) == orphans
    assert in_hand(world, "a") > orphans and in_hand(world, "b") > orphans
    finish(world)
    assert world.stage().merges[0].lost == 0 and world.stage().merges[0].agreed == 6


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_whoever_dies_whenever(worlds: Worlds, data: st.DataObject) -> None:
    """13. Any of the replicas die at any second of a merge, quick and slow ones, noticed early, late, or only after
    their deadlines; some are started again. As long as one lives on, no shard is lost and the merge ends."""
    replicas, copies = data.draw(st.integers(1, 7), "replicas"), data.draw(st.integers(1, 3), "copies")
    dead_after_s = data.draw(st.sampled_from([5.0, 15.0, 40.0]), "dead_after_s")
    world = worlds(num_stages=1, copies=copies, dead_after_s=dead_after_s)
    world.join(*NAMES[:replicas])
    world.to_step(data.draw(st.sampled_from(["upload", "reduce"]), "first step"))
    survivor = data.draw(st.sampled_from(NAMES[:replicas]), "survivor")
    dies_at = {name: data.draw(st.integers(0, 60), f"{name} dies at") for name in world.players if name != survivor}
    back_at = {
        name: at + data.draw(st.sampled_from([1, 12, 30, 900]), f"{name} is back after") for name, at in dies_at.items()
    }
    needs_s = {name: data.draw(st.integers(1, 9), f"{name} needs") for name in world.players}
    begun: dict[str, int] = {}
    for second in range(400):
        for name in [name for name in world.players if dies_at.get(name) == second]:
            del world.players[name]
        for name in [name for name, at in back_at.items() if at == second]:
            world.join(name, session=f"back {second}")
        for name in list(world.players):
            world.exchange(name, free=0)
            held = world.players[name].held
            for item in held:
                begun.setdefault(item, second)
            done = [work for item, work in held.items() if second - begun[item] >= needs_s[name]]
            if isinstance(world.do(name, *done) if done else None, m.Refusal):
                world.join(name, session=f"s{second}")
        if world.stage().epoch == 1:
            break
        world.wait(1.0)
    assert world.stage().epoch == 1, world.stage().sentence
    (record,) = world.stage().merges
    assert record.lost == 0 and record.agreed + record.single == record.shards
