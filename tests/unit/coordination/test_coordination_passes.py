"""What becomes of pass results: one micro-batch's way, and everything that may be wrong with an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from subnet.coordination import machine
from subnet.coordination.routing import due
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, ItemId, MicroBatchId, Pass
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

Worlds = Callable[..., "World"]
FIRST = MicroBatchId(0)


def at_backward(world: World, stage: int, micro_batch: MicroBatchId = FIRST) -> m.PassWork:
    """Let the micro-batch come to its backward of that stage; the work, still in its replica's hands."""
    waits_for = None
    while waits_for != (Pass.BACKWARD, stage):
        for name in list(world.players):
            works = [w for w in world.players[name].works(m.PassWork) if w.micro_batch == micro_batch]
            world.exchange(name, *(world.result(w) for w in works if (w.kind, w.stage) != (Pass.BACKWARD, stage)))
        waits_for = due(world.state.micro_batches[micro_batch])
    for name in world.of_stage(stage):
        world.exchange(name)
    (work,) = [
        work
        for name in world.of_stage(stage)
        for work in world.players[name].works(Pass.BACKWARD)
        if work.micro_batch == micro_batch
    ]
    return work


def holder(world: World, work: m.Work) -> str:
    (name,) = [name for name, player in world.players.items() if work.item in player.held]
    return name


def test_a_micro_batch_goes_through_all_stages_and_back(worlds: Worlds) -> None:
    """1. Forward over three stages, loss, back along the same pathway; each pass is paid once and inputs are named."""
    world = worlds(in_flight_per_replica=1)
    world.join("a", "b", "c")
    world.exchange("a")
    forward = world.players["a"].works(Pass.FORWARD)[0]
    assert forward.stage_input is None and forward.gradient is None and forward.output is not None
    world.do("a", forward)
    world.exchange("b")
    second = world.players["b"].the(Pass.FORWARD)
    assert second.stage_input.key == forward.output.key and second.stage_input.digest == world.result(forward).digest
    world.do("b", second)
    world.exchange("c")
    loss = world.players["c"].the(Pass.LOSS)
    assert loss.stage_input.key == second.output.key and loss.gradient is None
    world.do("c", loss)
    back = at_backward(world, 1)
    assert (back.gradient.key, back.stage_input.key) == (loss.output.key, forward.output.key)
    assert holder(world, back) == "b"
    world.do("b", back)
    last = at_backward(world, 0)
    assert last.output is None and last.stage_input is None and last.gradient.key == back.output.key
    assert world.do("a", last).verdicts[0].sentence == "backward credited"
    assert FIRST not in world.state.micro_batches
    assert (world.state.completed, world.state.recent_losses) == (1, [5.0])
    paid = {name: [v.work_units for v in world.players[name].verdicts if "0." in v.item] for name in "abc"}
    assert sum(sum(units) for units in paid.values()) == pytest.approx(3.0)
    assert paid["a"][1] == pytest.approx(2 * paid["a"][0])


def test_backward_comes_before_forward(worlds: Worlds) -> None:
    """2. A replica with one free slot gets the waiting backward, however many forwards wait with it."""
    world = worlds(in_flight_per_replica=4)
    world.join("a", "b", "c", slots=4)
    world.exchange("a")
    world.do("a")
    world.exchange("b")
    first = world.players["b"].works(Pass.FORWARD)[0]
    world.exchange("b", world.result(first), free=0)
    world.exchange("c")
    world.do("c", world.players["c"].the(Pass.LOSS))
    for work in world.players["b"].works(Pass.FORWARD):
        world.exchange("b", world.result(work), free=0)
    world.do("a")
    assert world.stage(1).backward_ready and world.stage(1).forward_ready
    world.exchange("b", free=1)
    assert [work.kind for work in world.players["b"].held.values()] == [Pass.BACKWARD]


def test_the_last_free_slot_is_kept_for_the_way_back(worlds: Worlds) -> None:
    """3. Forwards cannot dam up the way back: a replica with work gets a forward only while two slots are free."""
    world = worlds(in_flight_per_replica=4)
    world.join("a", "b", "c", slots=2)
    world.exchange("a")
    assert len(world.players["a"].held) == 1 and world.miner("a").free_slots == 1
    world.exchange("c", free=2)
    assert world.players["c"].held == {}, "the last stage has only losses, and none is there yet"


def test_a_late_result(worlds: Worlds) -> None:
    """4. Past its deadline a piece is offered to another replica; who comes first is paid, the other one is ignored."""
    world = worlds(num_stages=1, in_flight_per_replica=1)
    world.join("slow", "fast")
    world.exchange("slow", free=1)
    late = world.players["slow"].the(Pass.LOSS)
    world.idle(31.0)
    world.exchange("slow", free=2)
    assert [w for w in world.players["slow"].works(Pass.LOSS) if w.micro_batch == late.micro_batch] == [late]
    world.exchange("fast")
    (again,) = [w for w in world.players["fast"].works(Pass.LOSS) if w.micro_batch == late.micro_batch]
    assert again.item != late.item
    assert any(f"{late.item} is late at slow (30 s): offered again" in line for line in world.said)
    assert world.verdict("fast", again).outcome == "applied"
    assert world.exchange("slow", free=0).drop == (late.item,)
    verdict = world.exchange("slow", world.result(late), free=0).verdicts[0]
    assert (verdict.outcome, verdict.reason, verdict.work_units) == ("ignored", Reason.LATE, 0.0)
    assert world.miner("slow").faults == 0


def test_a_late_result_that_comes_first(worlds: Worlds) -> None:
    """5. The slow replica's result is welcome while the second offer is open; the second one is withdrawn."""
    world = worlds(num_stages=1, in_flight_per_replica=1)
    world.join("slow", "fast")
    world.exchange("slow", free=1)
    late = world.players["slow"].the(Pass.LOSS)
    world.idle(31.0)
    world.exchange("fast")
    (again,) = [w for w in world.players["fast"].works(Pass.LOSS) if w.micro_batch == late.micro_batch]
    assert world.verdict("slow", late).outcome == "applied"
    assert again.item in world.exchange("fast").drop
    assert world.exchange("fast", world.result(again)).verdicts[0].reason is Reason.LATE


def test_a_doubled_result_keeps_its_credit(worlds: Worlds) -> None:
    """6. The reply got lost and the result comes again: ignored as a duplicate, with the credit it had brought."""
    world = worlds(num_stages=1)
    world.join("a")
    world.exchange("a")
    work = world.players["a"].works(Pass.LOSS)[0]
    world.exchange("a", world.result(work), lost=True)
    verdict = world.exchange("a", world.result(work)).verdicts[0]
    assert (verdict.outcome, verdict.reason, verdict.work_units) == ("ignored", Reason.DUPLICATE, pytest.approx(1.0))
    assert world.credit("a") == pytest.approx(1.0)
    first, second = world.do("a", *world.players["a"].works(Pass.LOSS)[:1] * 2).verdicts
    assert (first.outcome, second.reason) == ("applied", Reason.DUPLICATE)


def test_a_lost_reply_loses_no_work(worlds: Worlds) -> None:
    """7. Work whose delivery failed is in every reply until the miner holds it, and takes its slots meanwhile."""
    world = worlds(num_stages=1, in_flight_per_replica=8)
    world.join("a", slots=3)
    world.exchange("a", lost=True)
    given = list(world.miner("a").offers)
    assert len(given) == 3
    reply = world.exchange("a")
    assert [work.item for work in reply.work] == given and world.miner("a").offers == given
    assert world.exchange("a").work == ()


def test_nobody_holds_more_than_it_may(worlds: Worlds) -> None:
    """8. A greedy miner claims free slots with its hands full: what it was given and has not answered counts."""
    world = worlds(num_stages=1, in_flight_per_replica=20, slots_max=4)
    world.join("greedy")
    for _ in range(5):
        world.exchange("greedy", free=64)
        assert len(world.miner("greedy").offers) == 4


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("f0.2.0", Reason.NEVER_GIVEN),  # the last stage has no forwards
        ("l0.0.0", Reason.NEVER_GIVEN),  # nor the first one losses
        ("f99.0.0", Reason.NEVER_GIVEN),  # a micro-batch that was never opened
        ("f0.0.7", Reason.NEVER_GIVEN),  # an offer beyond those made
        ("f00.0.0", Reason.NEVER_GIVEN),
        ("f0.9.0", Reason.NEVER_GIVEN),
        ("anything", Reason.NEVER_GIVEN),
        ("u9.0.1.a", Reason.NEVER_GIVEN),  # no such stage
        ("u0.5.1.a", Reason.NEVER_GIVEN),  # no such epoch yet
        ("u0.0.99.a", Reason.NEVER_GIVEN),  # more than was ever given out
        ("u0.0.0.nobody", Reason.NEVER_GIVEN),
        ("s0.0.0.a", Reason.NEVER_GIVEN),  # no such letter
        ("u0.0.0.b", Reason.NOT_YOURS),
    ],
)
def test_an_invented_item(worlds: Worlds, item: str, reason: Reason) -> None:
    """9. A result for work that was never given out, or cannot have been, is a fault and changes nothing else."""
    world = worlds()
    world.join("a", "b", "c")
    world.exchange("a")
    before = dict(world.state.offers)
    done = m.PassDone(item=ItemId(item), digest="0" * 64, param_version=0, compute_s=0.1)
    verdict = world.exchange("a", done).verdicts[0]
    assert (verdict.outcome, verdict.reason, world.miner("a").faults) == ("rejected", reason, 1)
    assert world.state.offers == before and world.credit("a") == 0.0


def test_a_result_for_somebody_elses_item(worlds: Worlds) -> None:
    """10. Another hotkey's open item: rejected, and the rightful holder is paid as if nothing had happened."""
    world = worlds()
    world.join("a", "b", "c")
    world.exchange("a")
    work = world.players["a"].works(Pass.FORWARD)[0]
    verdict = world.exchange("b", world.result(work)).verdicts[0]
    assert (verdict.outcome, verdict.reason) == ("rejected", Reason.NOT_YOURS)
    assert (world.miner("b").faults, world.miner("a").faults) == (1, 0)
    assert world.verdict("a", work).outcome == "applied"


@pytest.mark.parametrize(
    ("stage", "change", "reason"),
    [
        (2, {"loss": float("nan")}, Reason.NOT_FINITE),
        (2, {"loss": float("inf")}, Reason.NOT_FINITE),
        (2, {"loss": -1.0}, Reason.NOT_FINITE),
        (2, {"loss": None}, Reason.MALFORMED),
        (2, {"digest": None}, Reason.MALFORMED),
        (0, {"digest": None}, Reason.MALFORMED),
        (0, {"loss": 5.0}, Reason.MALFORMED),
    ],
)
def test_a_result_that_is_broken_in_itself(
    worlds: Worlds, stage: int, change: dict[str, Any], reason: Reason
) -> None:
    """11. NaN loss, no loss, a loss too many, no digest: rejected, named, and the piece goes to another replica."""
    world = worlds()
    world.join(*"abcdef")
    world.work_until(lambda: any(world.players[name].works(m.PassWork) for name in world.of_stage(stage)))
    name = next(name for name in world.of_stage(stage) if world.players[name].works(m.PassWork))
    work = world.players[name].works(m.PassWork)[0]
    # straight into the machine: JSON has no NaN, but the machine must not rely on that
    broken = world.result(work, **change)
    player = world.players[name]
    message = m.Exchange(session=player.session, free_slots=0, holding=(), results=(broken,))
    copy = world.copy()
    reply = machine.handle(copy, m.Envelope(sender=player.hotkey, at=world.at, message=message)).reply
    assert isinstance(reply, m.ExchangeReply)
    assert (reply.verdicts[0].outcome, reply.verdicts[0].reason) == ("rejected", reason)
    assert copy.miners[player.hotkey].faults == 1 and work.item not in copy.offers
    assert Hotkey(name) in copy.micro_batches[work.micro_batch].barred


def test_a_digest_too_many(worlds: Worlds) -> None:
    """12. Stage 0's backward writes nothing: a digest with it is malformed."""
    world = worlds(in_flight_per_replica=1)
    world.join("a", "b", "c")
    verdict = world.verdict("a", at_backward(world, 0), digest="0" * 64)
    assert (verdict.outcome, verdict.reason) == ("rejected", Reason.MALFORMED)


def test_an_answer_of_another_kind(worlds: Worlds) -> None:
    """13. A SyncDone for a pass: rejected, and the piece is not asked of this replica again while others live."""
    world = worlds(num_stages=1)
    world.join("a", "b")
    world.exchange("a")
    work = world.players["a"].works(Pass.LOSS)[0]
    reply = world.exchange("a", m.SyncDone(item=work.item, parameters_digest="0" * 64), free=0)
    assert (reply.verdicts[0].outcome, reply.verdicts[0].reason) == ("rejected", Reason.MALFORMED)
    world.exchange("b")
    assert work.micro_batch in [other.micro_batch for other in world.players["b"].works(Pass.LOSS)]
