"""Who takes part: joining, coming back, sessions, registration, silence, moving to a stage that starves; the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from subnet.coordination import machine
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, Pass, Phase
from subnet.protocol.reasons import REMEDY, Reason

if TYPE_CHECKING:
    from conftest import World

Worlds = Callable[..., "World"]
JOIN = m.Join(session="s1", device="cpu", software="test")


def refused(reply: m.Reply | None) -> Reason:
    assert isinstance(reply, m.Refusal)
    assert reply.notice.sentence and reply.notice.remedy == REMEDY[reply.notice.reason]
    return reply.notice.reason


def test_who_is_not_in(worlds: Worlds) -> None:
    """1. Unregistered, registered but not joined, and an old process: each is refused with its own reason."""
    world = worlds()
    stranger = Hotkey("stranger")
    exchange = m.Exchange(session="s1", free_slots=1, holding=(), results=())
    assert refused(world.send(stranger, JOIN)) is Reason.NOT_REGISTERED
    assert refused(world.send(stranger, exchange)) is Reason.NOT_JOINED
    world.register("stranger")
    assert refused(world.send(stranger, exchange)) is Reason.NOT_JOINED
    world.join("stranger")
    world.join("stranger", session="newer")
    assert refused(world.send(stranger, exchange)) is Reason.OLD_SESSION
    assert isinstance(world.exchange("stranger"), m.ExchangeReply)


def test_a_hotkey_that_left_the_subnet(worlds: Worlds) -> None:
    """2. Deregistered while at work: out at once, its work offered again, its credit kept; it may come back."""
    world = worlds(num_stages=1)
    world.join("a", "b")
    world.work_until(lambda: world.credit("a") > 0)
    world.exchange("a")
    work = world.players["a"].works(Pass.LOSS)[0]
    credit = world.credit("a")
    world.register("b")
    assert not world.miner("a").live and not world.miner("a").offers and world.credit("a") == credit
    assert refused(world.exchange("a")) is Reason.DEREGISTERED
    world.exchange("b", free=4)
    assert work.micro_batch in [w.micro_batch for w in world.players["b"].works(Pass.LOSS)]
    world.register("a", "b")
    assert refused(world.exchange("a")) is Reason.NOT_JOINED
    world.join("a", session="s2")
    assert world.miner("a").live and world.credit("a") == credit


def test_a_restarted_miner(worlds: Worlds) -> None:
    """3. A new session keeps credit and stage; its offers go to others and its count for the merge begins anew."""
    world = worlds(num_stages=1, num_microbatches_min=50)
    world.join("a", "b")
    world.work_until(lambda: world.credit("a") >= 3)
    world.exchange("a")
    held = [work.micro_batch for work in world.players["a"].works(Pass.LOSS)]
    credit, stage = world.credit("a"), world.stage()
    assert held and stage.contributions[Hotkey("a")] == credit
    world.join("a", session="s2")
    assert (world.credit("a"), world.miner("a").stage) == (credit, 0)
    assert Hotkey("a") not in stage.contributions and not world.miner("a").offers
    assert not world.miner("a").ready and world.miner("a").free_slots == 0, "no work before it asks"
    assert stage.forward_ready == held
    assert "miner a came back to stage 0: your stage of before" in world.said
    world.exchange("b", free=4)
    assert set(held) & {work.micro_batch for work in world.players["b"].works(Pass.LOSS)}


def test_a_zombie_hears_nothing(worlds: Worlds) -> None:
    """4. The old process's exchange is still held open when the new one gets work: it is told to drop all it holds."""
    world = worlds(num_stages=1)
    world.join("a")
    world.exchange("a")
    old = m.Exchange(session="s1", free_slots=1, holding=tuple(world.players["a"].held), results=())
    world.join("a", session="s2")
    world.exchange("a")
    assert world.miner("a").offers
    reply = machine.exchange_reply(world.state, Hotkey("a"), old, ())
    assert (reply.work, reply.drop, reply.notice.reason) == ((), old.holding, Reason.OLD_SESSION)


def test_the_same_session_joins_twice(worlds: Worlds) -> None:
    """5. The reply to a Join was lost: joining again changes nothing and counts as a sign of life."""
    world = worlds(num_stages=1)
    world.join("a")
    world.exchange("a")
    offers = list(world.miner("a").offers)
    world.wait(10.0)
    assert isinstance(world.send(Hotkey("a"), JOIN), m.Joined)
    world.wait(10.0)
    assert world.miner("a").live and world.miner("a").offers == offers


def test_a_joiner_in_mid_epoch(worlds: Worlds) -> None:
    """6. Placed in the weakest stage, with the epoch's parameters, at work at once; it does not raise the quorum."""
    world = worlds(num_microbatches_min=6)
    world.join(*"abcdef")
    world.work_until(lambda: world.stage(1).contributions.get(Hotkey(world.of_stage(1)[0]), 0) >= 2)
    world.register(*"abcdefg")
    reply = world.send(Hotkey("g"), JOIN)
    assert isinstance(reply, m.Joined)
    assert (reply.stage, reply.epoch, reply.parameters) == (1, 0, world.stage(1).parameters)
    assert "placed in stage 1: stage 1 has 1 replicas, the least for its size" in reply.notice.sentence
    world.join("g")
    world.work_until(lambda: bool(world.players["g"].works(m.PassWork)), limit_s=10.0)
    # it hangs from here on: the quorum is a share of those who were there when the epoch began
    while world.stage(1).merge is None:
        world.exchange("g", free=0)
        for name in "abcdef":
            world.do(name)
        world.wait(1.0)
        assert world.at < 1_060.0


def test_newcomers_are_all_there_is_at_first(worlds: Worlds) -> None:
    """7. In the run's first epoch nobody was there when it began: the quorum is a share of all, not of nobody."""
    world = worlds(num_stages=1, num_microbatches_min=4, quorum=0.75)
    world.wait(1.0)
    world.join(*"abcd")
    while world.credit("a") < 10:
        for name in "bcd":
            world.exchange(name, free=0)
        world.do("a")
        world.wait(1.0)
    assert world.stage().merge is None and "1 of 4 replicas did 4 micro-batches, 3 needed" in world.stage().sentence
    world.work_until(lambda: world.stage().merge is not None, limit_s=60.0)


def test_placement_goes_by_measured_speed(worlds: Worlds) -> None:
    """8. Two slow replicas are weaker than one fast one, the last stage's loss passes count like backwards."""
    world = worlds(num_stages=2, num_microbatches_min=1000, in_flight_per_replica=1)
    world.join("a", "b", "c", "d")
    assert Counter(world.miner(name).stage for name in "abcd") == {0: 2, 1: 2}
    for _ in range(60):
        for name in world.of_stage(0):
            world.do(name)
        if world.at % 8 == 0:  # the last stage is slow
            for name in world.of_stage(1):
                world.do(name)
        for name in world.of_stage(1):
            world.exchange(name)
        world.wait(1.0)
    world.join("e")
    assert world.miner("e").stage == 1
    world.join("f")
    assert world.miner("f").stage == 1, "three of them are weaker still"


def test_silence(worlds: Worlds) -> None:
    """9. Heartbeats stop: after dead_after_s the miner is out; it hears why and joins again with its credit."""
    world = worlds(num_stages=1)
    world.join("a", "b")
    world.work_until(lambda: world.credit("a") > 0)
    for _ in range(8):
        world.wait(2.0)
        world.exchange("b", free=0)
    reply = world.exchange("a")
    assert refused(reply) is Reason.NOT_JOINED
    assert "join again: nothing was heard for 16 s" in reply.notice.sentence
    assert world.miner("a").removed.reason is Reason.SILENT
    world.join("a")
    assert world.miner("a").live and world.credit("a") > 0


def test_a_stage_without_replicas_is_filled_first(worlds: Worlds) -> None:
    """10. Its only replica died: who comes back to a stage that has others goes to the empty one instead."""
    world = worlds(num_stages=2)
    world.join("a", "b", "c", "d")
    (first, second), dead = world.of_stage(0), world.of_stage(1)
    for name in dead:
        del world.players[name]
    world.idle(16.0)
    world.join(second, session="s2")
    assert (world.miner(first).stage, world.miner(second).stage) == (0, 1)
    assert "stage 1 has no replica; your own has others" in world.said[-1]


def test_a_replica_moves_to_a_stage_that_starves(worlds: Worlds) -> None:
    """11. Nobody new comes: after a while one replica of the best provisioned stage is asked to move, the one that
    loses least by it."""
    world = worlds(num_stages=2)
    world.join(*"abcdef")
    dead, rich = world.of_stage(1), world.of_stage(0)
    for name in dead:
        del world.players[name]
    world.idle(25.0)
    assert not world.state.replicas(1), "too early: they may come back"
    done = world.state.completed
    world.work_until(lambda: world.state.completed > done + 10, limit_s=60.0)
    assert any("stage 1 has no replica, and yours has others" in line for line in world.said)
    assert len([name for name in rich if world.miner(name).stage == 1]) == 1


def test_the_last_replica_of_a_stage_does_not_move(worlds: Worlds) -> None:
    """12. Two stages and one miner left: it stays, and nothing is due for ever because of that."""
    world = worlds(num_stages=2)
    world.join("a", "b")
    del world.players["b"]
    world.idle(60.0)
    assert world.miner("a").live and world.miner("a").stage == 0
    length = len(world.journal)
    world.wait(10.0)
    assert len(world.journal) == length


def test_only_evaluators_report_losses(worlds: Worlds) -> None:
    """13. A miner's validation loss is not asked for; the evaluator's is noted."""
    world = worlds(num_stages=1)
    world.join("a")
    report = m.Evaluated(epoch=0, loss=6.5, num_tokens=1000, parameters=("0" * 64,))
    assert refused(world.send(Hotkey("a"), report)) is Reason.NOT_ALLOWED and not world.state.evaluations
    assert isinstance(world.send(Hotkey("evaluator"), report), m.Noted)
    assert [(e.epoch, e.loss, e.num_tokens) for e in world.state.evaluations] == [(0, 6.5, 1000)]


def test_refusals_at_the_door_are_counted(worlds: Worlds) -> None:
    """14. A flood of unsigned requests is one number."""
    world = worlds()
    world.own(m.Refused(reason=Reason.UNSIGNED, claimed="x", sentence="no signature", times=40))
    world.own(m.Refused(reason=Reason.UNSIGNED, claimed="y", sentence="no signature"))
    assert world.state.refusals == {Reason.UNSIGNED: 41}


def test_the_run_ends_when_all_stages_are_there(worlds: Worlds) -> None:
    """15. A stage that has all its epochs trains on until the last one is there; then all pause, and miners hear it."""
    world = worlds(target_epochs=2)
    world.join(*"abcdef")
    seen = set()

    def ended() -> bool:
        seen.add(tuple((stage.epoch, stage.phase) for stage in world.state.stages))
        return all(player.finished for player in world.players.values())

    world.work_until(ended)
    assert any((2, Phase.TRAINING) in phases for phases in seen)
    assert all({phase for _, phase in phases} == {Phase.PAUSED} for phases in seen if (2, Phase.PAUSED) in phases)
    assert [stage.reason for stage in world.state.stages] == [Reason.TARGET_REACHED] * 3
    assert world.players["a"].said.reason in (Reason.TARGET_REACHED, Reason.BUSY)
    before = world.state.next_micro_batch
    for name in world.players:
        world.do(name)
    assert world.state.next_micro_batch == before, "nothing is opened any more"


@pytest.mark.parametrize(("target", "goes_on"), [(2, False), (1, False), (3, True), (0, True)])
def test_a_resumed_run_with_another_target(worlds: Worlds, target: int, goes_on: bool) -> None:
    """16. --resume --epochs: a larger target, or none, lets the stages go on where they paused."""
    world = worlds(target_epochs=2, num_stages=2)
    world.join("a", "b")
    world.work_until(lambda: world.players["a"].finished and world.players["b"].finished)
    world.own(m.RunResumed(target_epochs=target))
    assert {stage.phase for stage in world.state.stages} == {Phase.TRAINING if goes_on else Phase.PAUSED}
    if goes_on:
        world.work_until(lambda: all(stage.epoch == 3 for stage in world.state.stages))
