"""Who gets what: take-over, slow, stuck and barred replicas, deadlines, bounds, groups of one optimizer step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from subnet.coordination import routing
from subnet.coordination.index import rebuild
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, MicroBatchId, Pass
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

Worlds = Callable[..., "World"]


def backward_in_hand(world: World, stage: int) -> tuple[str, m.PassWork]:
    """Everybody works until a replica of that stage holds a backward."""
    world.work_until(lambda: any(world.players[n].works(Pass.BACKWARD) for n in world.of_stage(stage)))
    name = next(n for n in world.of_stage(stage) if world.players[n].works(Pass.BACKWARD))
    return name, world.players[name].works(Pass.BACKWARD)[0]


def test_a_dead_replicas_item_is_taken_over(worlds: Worlds) -> None:
    """1. The forward's replica dies before the backward: another one gets it with the stage input, and is paid."""
    world = worlds()
    world.join(*"abcdef")
    assert Counter(world.miner(name).stage for name in "abcdef") == {0: 3, 1: 1, 2: 2}
    dead, work = backward_in_hand(world, 0)
    del world.players[dead]
    while world.miner(dead).live:
        world.idle(1.0)
    assert any(f"miner {dead} of stage 0 is gone: nothing was heard for" in line for line in world.said)
    for name in world.of_stage(0):
        world.exchange(name, free=4)
    taken = [(n, w) for n in world.of_stage(0) for w in world.players[n].works(m.PassWork)]
    name, again = next((n, w) for n, w in taken if w.micro_batch == work.micro_batch)
    assert (again.kind, again.gradient, again.stage_input) == (Pass.BACKWARD, work.gradient, work.stage_input)
    assert world.state.micro_batches[work.micro_batch].hops[0].forward_by == dead, "the pathway keeps who did it"
    before = world.credit(name)
    assert world.verdict(name, again).outcome == "applied" and world.credit(name) > before


def test_a_take_over_in_the_middle_names_the_stage_input(worlds: Worlds) -> None:
    """2. In a later stage, too, the backward of a lost graph can be recomputed: its stage input is in the store."""
    world = worlds(num_stages=2)
    world.join("a", "b", "c", "d")
    world.work_until(lambda: any(world.players[n].works(Pass.LOSS) for n in world.of_stage(1)))
    dead = next(n for n in world.of_stage(1) if world.players[n].works(Pass.LOSS))
    work = world.players[dead].works(Pass.LOSS)[0]
    world.join(dead, session="another process")
    other = next(n for n in world.of_stage(1) if n != dead)
    world.exchange(other, free=4)
    again = next(w for w in world.players[other].works(Pass.LOSS) if w.micro_batch == work.micro_batch)
    assert again.stage_input == work.stage_input and again.item != work.item and again.output.key != work.output.key


def test_a_backward_waits_for_its_graph_but_not_for_ever(worlds: Worlds) -> None:
    """3. The forward's replica lives and beats its heart but takes no work: after a deadline anybody may have it."""
    world = worlds(num_stages=2, in_flight_per_replica=1)
    world.join("hung", "last", "x", "y")
    other = next(name for name in "xy" if world.miner(name).stage == 0)
    world.exchange("hung", free=2)
    (forward,) = world.players["hung"].works(Pass.FORWARD)
    world.exchange("hung", world.result(forward), free=0)
    world.exchange("last")
    world.exchange("last", *(world.result(work) for work in world.players["last"].works(Pass.LOSS)), free=0)
    hop = world.state.micro_batches[forward.micro_batch].hops[0]
    assert hop.bound and forward.micro_batch in world.stage(0).backward_ready
    world.exchange(other, free=4)
    assert not world.players[other].works(Pass.BACKWARD), "the graph lies with the one that did the forward"
    world.idle(29.0)
    assert hop.bound
    world.idle(2.0)
    assert not hop.bound
    assert f"micro-batch {forward.micro_batch} waited 30 s for hung: any replica of stage 0" in world.said[-1]
    world.exchange(other, free=4)
    assert [work.micro_batch for work in world.players[other].works(Pass.BACKWARD)] == [forward.micro_batch]


def test_a_sole_replica_that_failed_gets_the_piece_again(worlds: Worlds) -> None:
    """4. Whoever failed a piece is passed over, unless nobody else lives: then it tries again."""
    world = worlds(num_stages=1)
    world.join("only")
    world.exchange("only")
    work = world.players["only"].works(Pass.LOSS)[0]
    world.exchange("only", m.Failed(item=work.item, reason=Reason.NOT_FINITE, sentence="overflow"))
    assert work.micro_batch in [w.micro_batch for w in world.players["only"].works(Pass.LOSS)]
    world.join("second")
    (again,) = [w for w in world.players["only"].works(Pass.LOSS) if w.micro_batch == work.micro_batch]
    world.exchange("only", m.Failed(item=again.item, reason=Reason.NOT_FINITE, sentence="overflow"))
    assert work.micro_batch not in [w.micro_batch for w in world.players["only"].works(Pass.LOSS)]
    world.exchange("second", free=4)
    assert work.micro_batch in [w.micro_batch for w in world.players["second"].works(Pass.LOSS)]


def test_who_failed_one_pass_may_do_the_next(worlds: Worlds) -> None:
    """5. A forward that failed bars the replica from that forward only: the backward may well go to it."""
    world = worlds(num_stages=2, in_flight_per_replica=1)
    world.join("one", "last", "x", "y")
    two = next(name for name in "xy" if world.miner(name).stage == 0)
    world.exchange("one", free=2)
    (work,) = world.players["one"].works(Pass.FORWARD)
    world.exchange("one", m.Failed(item=work.item, reason=Reason.NOT_FINITE, sentence="overflow"), free=0)
    batch = world.state.micro_batches[work.micro_batch]
    assert batch.barred == ["one"]
    world.exchange(two, free=4)
    world.exchange(two, *(world.result(w) for w in world.players[two].works(Pass.FORWARD)), free=0)
    assert batch.barred == [] and batch.hops[0].forward_by == two
    world.join(two, session="s2")
    world.work_until(lambda: batch.id not in world.state.micro_batches, names=["one", "last"], limit_s=14.0)
    assert batch.hops[0].backward_by == "one"


def test_work_in_flight_is_bounded_by_the_weakest_stage(worlds: Worlds) -> None:
    """6. Two per replica of the weakest stage, times the stages; then miners hear that the pipeline is full."""
    world = worlds(in_flight_per_replica=2)
    world.join(*"abcdef", slots=4)
    for _ in range(10):
        for name in world.of_stage(0):
            world.do(name)
    assert len(world.state.micro_batches) == 2 * 1 * 3
    reason, sentence = routing.opening_refused(world.state) or (Reason.OK, "")
    assert reason is Reason.PIPELINE_FULL and "6 micro-batches are in flight" in sentence
    idle = next(n for n in world.of_stage(0) if not world.miner(n).offers)
    world.exchange(idle)
    assert world.players[idle].said.reason is Reason.PIPELINE_FULL and world.players[idle].said.remedy


def test_nothing_is_opened_while_a_stage_is_empty(worlds: Worlds) -> None:
    """7. Three stages and two miners: both hear which stage has nobody, and the third starts the run."""
    world = worlds()
    world.join("a", "b")
    for name in "ab":
        world.exchange(name)
        assert world.players[name].said.reason is Reason.STAGE_EMPTY
        assert "stage 2 has no live miner" in world.players[name].said.sentence
    assert not world.state.micro_batches
    world.join("c")
    assert world.players["a"].held == {} and world.exchange("a").work


def test_deadlines(worlds: Worlds) -> None:
    """8. The first deadline is long; then c x the own mean or c' x the stage's median, whichever is less, at least
    the floor: who slows down earns no slack."""
    world = worlds(num_stages=1, deadline_first_s=30.0, deadline_floor_s=10.0)
    world.join("a", "b", "c")
    a, b, c = (world.miner(name) for name in "abc")
    assert routing.deadline_s(world.state, a, Pass.LOSS) == 30.0
    for miner, mean_s in ((a, 1.0), (b, 4.0)):
        routing.note_speed(world.state, miner, Pass.LOSS, mean_s)
    assert routing.deadline_s(world.state, c, Pass.LOSS) == 15.0  # unknown: 6 x the median of the others
    routing.note_speed(world.state, c, Pass.LOSS, 100.0)
    assert routing.deadline_s(world.state, a, Pass.LOSS) == 10.0  # the floor, above 4 x 1
    assert routing.deadline_s(world.state, b, Pass.LOSS) == 16.0  # 4 x its own
    assert routing.deadline_s(world.state, c, Pass.LOSS) == 24.0  # 6 x the median, not 4 x its own
    routing.note_speed(world.state, b, Pass.LOSS, 14.0)
    assert b.mean_s[Pass.LOSS] == pytest.approx(5.0)
    for miner in (a, b, c):
        miner.mean_s.clear()
    rebuild(world.state)


def test_shares_follow_throughput(worlds: Worlds) -> None:
    """9. Work is pulled: a replica that answers three times as often does about three times as much."""
    world = worlds(num_stages=1, num_microbatches_min=1000, in_flight_per_replica=2)
    world.join("fast", "slow")
    for second in range(300):
        world.do("fast")
        if second % 3 == 0:
            world.do("slow")
        world.wait(1.0)
    fast, slow = world.credit("fast"), world.credit("slow")
    assert 2.0 < fast / slow < 4.0 and fast + slow == pytest.approx(world.state.completed)


def test_the_draw_is_fair_and_repeatable(worlds: Worlds) -> None:
    """10. Equally free replicas share the work evenly, and the same journal draws the same."""
    world = worlds(num_stages=1, num_microbatches_min=10_000, in_flight_per_replica=1)
    world.join(*"abcd", slots=1)
    world.work_until(lambda: world.state.completed >= 400)
    for name in "abcd":
        assert 70 < world.credit(name) < 130


def test_flush_opens_groups_of_one_optimizer_step(worlds: Worlds) -> None:
    """11. Synchronous mode: k micro-batches are opened, and the next only when all k came back."""
    world = worlds(flush=True, in_flight_per_replica=4, num_microbatches_min=1000)
    k = world.spec.inner.micro_batches_per_step
    world.join("a", "b", "c", slots=4)
    opened = []
    while world.state.completed < 5 * k:
        for name in "abc":
            before = world.state.next_micro_batch
            world.do(name)
            if world.state.next_micro_batch != before:
                opened.append((before, world.state.completed))
            assert world.state.next_micro_batch - world.state.completed <= k
        world.wait(1.0)
    assert all(completed % k == 0 or before % k for before, completed in opened)
    assert max(before for before, _ in opened) >= 4 * k
    assert {(before // k) * k for before, _ in opened} <= {completed for _, completed in opened} | {0}


def test_flush_goes_on_after_a_death(worlds: Worlds) -> None:
    """12. A replica dies with part of a group: the group is finished by the others, then the next one opens."""
    world = worlds(flush=True, in_flight_per_replica=4, num_stages=1, num_microbatches_min=1000)
    world.join("a", "b", slots=4)
    world.exchange("a")
    world.exchange("b")
    held = {work.micro_batch for work in world.players["a"].works(Pass.LOSS)}
    assert held
    del world.players["a"]
    world.work_until(lambda: world.state.completed >= 12)
    assert world.state.abandoned == 0 and all(MicroBatchId(b) not in world.state.micro_batches for b in held)
    assert world.credit("b") == pytest.approx(world.state.completed - world.credit("a"))
    assert world.state.miners[Hotkey("a")].live is False
