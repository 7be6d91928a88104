"""Who replays an audit, what it is given for it, and what happens when it does not answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from subnet.coordination import audits
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, ItemId
from subnet.protocol.reasons import Reason
from subnet.scoring import audit as rules

if TYPE_CHECKING:
    from conftest import Court

Courts = Callable[..., "Court"]
STAKES = {"v1": 10.0, "v2": 20.0, "v3": 30.0}
REPLAY_S = 20.0


def wait(court: Court, seconds: float, *present: str) -> None:
    """Time passes; miners and the named validators are there, and take nothing."""
    until = court.world.at + seconds
    while court.world.at < until:
        court.world.idle(min(2.0, until - court.world.at))
        for name in present:
            court.review(name, free=0)


def to_replay(court: Court, *present: str) -> m.AuditWork:
    """One miner's audit, its states shown, before these validators; the work of the one that is chosen."""
    court.to_epoch(1)
    court.see(stakes=STAKES)
    for name in present:
        court.review(name, free=0)
    court.draw(0, {"a": 1}, **STAKES)
    court.reveal("a")
    return next(work for name in present for work in court.given(name))


def in_line(court: Court, present: tuple[str, ...], attempt: int) -> str:
    """Who is to replay it, by the rules."""
    audit = court.audit("a")
    run_id, names = court.world.spec.run_id, map(Hotkey, present)
    chosen = rules.choose_validator(audit.block_hash, run_id, 0, 0, Hotkey("a"), attempt, names)
    assert chosen is not None
    return chosen


# ---- who is heard ----------------------------------------------------------------------------------------------------


def test_only_who_may_validate_is_heard(courts: Courts) -> None:
    """1. A miner and a stranger are refused, and a validator whose permit is gone too; before the chain was read it is
    the run's own evaluator who may."""
    court = courts("a", "b")
    assert isinstance(court.review("evaluator"), m.Reviewed)
    work = to_replay(court, "v1")
    for name in ("a", "b", "stranger", "evaluator"):
        reply = court.review(name, court.found(work.item, None, Reason.BAD_OBJECT))
        assert isinstance(reply, m.Refusal) and reply.notice.reason is Reason.NO_PERMIT
        weights = m.WeightsSet(index=0, head="0" * 64, weights=((0, 1.0),), block=1, sentence="set")
        assert isinstance(court.world.send(Hotkey(name), weights), m.Refusal)
    assert court.standing("a").failed == 0 and not court.audit("a").findings and not court.state.pay.weights
    assert set(court.state.pay.reviewers) == {"evaluator", "v1"}
    court.see(stakes={"v2": 20.0})
    assert isinstance(court.review("v1", court.found(work.item)), m.Refusal) and court.audited() == ["a", "b"]


def test_who_was_not_asked_is_not_heard(courts: Courts) -> None:
    """2. Another validator's finding, one on an audit that nobody knows, and one sent twice: nothing follows."""
    court = courts("a", "b")
    work = to_replay(court, *STAKES)
    chosen = court.audit("a").validator
    for other in sorted(set(STAKES) - {chosen}):
        reply = court.review(other, court.found(work.item, None, Reason.BAD_OBJECT))
        assert isinstance(reply, m.Reviewed) and not court.audit("a").findings
    court.review(str(chosen), court.found(ItemId("w0.0.99.a")))
    assert court.audited() == ["a", "b"]
    court.review(str(chosen), court.found(work.item), court.found(work.item, None, Reason.BAD_OBJECT))
    assert court.audited() == ["b"] and (court.standing("a").passed, court.standing("a").failed) == (1, 0)
    court.review(str(chosen), court.found(work.item, None, Reason.BAD_OBJECT))
    assert (court.standing("a").passed, court.standing("a").failed) == (1, 0)


def test_an_audit_is_repeated_until_it_is_answered(courts: Courts) -> None:
    """3. A lost reply loses nothing; who takes no more is given no more; files come when they are asked for."""
    court = courts("a", "b")
    work = to_replay(court, "v1")
    assert court.given("v1") == [work] == court.given("v1")
    court.reveal("b")
    assert {w.hotkey for w in court.given("v1")} == {"a", "b"}
    assert len(court.review("v1", free=1).audits) == 1
    (next_one,) = court.world.send(Hotkey("v1"), m.Review(free=1, holding=(work.item,), found=())).audits  # type: ignore[union-attr]
    assert next_one.hotkey == "b"  # the one in hand takes no place from it
    reply = court.review("v1", free=0)
    assert reply.audits == () and reply.data == () and reply.notice.reason is Reason.NO_WORK
    with_data = court.world.send(Hotkey("v1"), m.Review(free=0, found=(), with_data=True))
    assert isinstance(with_data, m.Reviewed) and len(with_data.data) == 3
    (other,) = court.review("v1", court.found(work.item)).audits
    assert other.hotkey == "b"


# ---- who replays it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_validator_is_drawn_from_those_who_are_there(courts: Courts, seed: int) -> None:
    """4. By the rules, among the present ones with a permit; only that one gets the work."""
    court = courts("a", segment_steps=99)
    court.to_epoch(1)
    court.see(stakes=STAKES)
    court.review("v3", free=0)
    wait(court, 16.0, "v1", "v2")
    court.see(0, seed, STAKES)
    court.show_all()
    chosen = in_line(court, ("v1", "v2"), 0)
    assert court.audit("a").validator == chosen
    assert {name: len(court.given(name)) for name in ("v1", "v2")} == {"v1": 0, "v2": 0} | {chosen: 1}


def test_the_first_to_come_gets_it(courts: Courts) -> None:
    """5. Nobody was there: the audit waits, and whoever comes has the whole time for it."""
    court = courts("a", "b", segment_steps=99)
    court.to_epoch(1)
    court.draw(0, None, **STAKES)
    court.show_all()
    assert court.audit("a").validator is None
    wait(court, 15.0)
    (work, _) = court.given("v2")
    assert court.audit("a").validator == "v2" and court.audit("a").deadline == court.world.at + REPLAY_S
    assert court.audit("b").deadline == court.world.at + 2 * REPLAY_S, "one after the other"
    assert work.deadline_s == REPLAY_S
    wait(court, 19.0, "v1", "v2")
    assert court.audit("a").validator == "v2" and court.audit("a").attempt == 0


def test_nobody_replays_its_own_work(courts: Courts) -> None:
    """6. A miner with a permit is given the other's audit, never its own."""
    court = courts("a", "b", segment_steps=99)
    court.to_epoch(1)
    court.see(0, 0, {"a": 50.0})
    court.show_all()
    assert [work.hotkey for work in court.given("a")] == ["b"]
    assert court.audit("a").validator is None
    court.review("a", court.found(court.audit("a").item))
    assert court.audited() == ["a", "b"]


# ---- who does not answer ---------------------------------------------------------------------------------------------


def test_the_next_in_line_when_one_does_not_answer(courts: Courts) -> None:
    """7. Each has its time; after the third the audit is given up, and the credit counts: it did its part."""
    court = courts("a")
    work = to_replay(court, *STAKES)
    for attempt in range(audits.REPLAYS_MAX):
        chosen = in_line(court, tuple(STAKES), attempt)
        assert court.audit("a").attempt == attempt
        assert [name for name in STAKES if court.given(name) == [work]] == [chosen]
        wait(court, REPLAY_S, *STAKES)
    assert not court.state.pay.audits and court.standing("a").unreadable == 1
    assert court.standing("a").failed == court.standing("a").not_revealed == court.standing("a").passed == 0
    assert court.pays("a") == {0: Reason.PAID} and court.standing("a").trusted_from == 0
    court.review("v1", court.found(work.item, None, Reason.BAD_OBJECT))
    assert court.standing("a").failed == 0, "too late"


def test_without_any_validator_no_run_waits_for_ever(courts: Courts) -> None:
    """8. Nobody ever comes: after the time of three the credit counts."""
    court = courts("a", target_epochs=1, segment_steps=99)
    court.to_epoch(1)
    court.see(closes=0)
    court.show_all()
    wait(court, 59.0)
    assert court.audited() == ["a"] and not court.world.players["a"].finished
    wait(court, 2.0)
    assert not court.state.pay.audits and court.pays("a") == {0: Reason.PAID}
    assert court.world.players["a"].finished


@pytest.mark.parametrize("reason", [Reason.UNREADABLE, Reason.OK, Reason.NO_WORK])
def test_who_cannot_read_it_blames_nobody(courts: Courts, reason: Reason) -> None:
    """9. An input is gone: the next one tries; when all three could not, the credit counts."""
    court = courts("a")
    work = to_replay(court, *STAKES)
    for attempt in range(3):
        chosen = in_line(court, tuple(STAKES), attempt)
        assert [name for name in STAKES if court.given(name) == [work]] == [chosen]
        court.review(chosen, court.found(work.item, None, reason, "gone"))
        for name in STAKES:
            court.review(name, free=0)
    assert not court.state.pay.audits and "gone" in court.standing("a").sentence
    assert (court.standing("a").unreadable, court.standing("a").failed) == (1, 0)
    assert court.pays("a") == {0: Reason.PAID}


def test_a_second_validator_can_still_pass_it(courts: Courts) -> None:
    """10. What the first could not read the second one could."""
    court = courts("a")
    work = to_replay(court, *STAKES)
    first, second = in_line(court, tuple(STAKES), 0), in_line(court, tuple(STAKES), 1)
    court.review(first, court.found(work.item, None, Reason.UNREADABLE))
    court.review(second, court.found(work.item))
    assert not court.state.pay.audits and (court.standing("a").passed, court.standing("a").unreadable) == (1, 0)
    assert court.state.pay.replay_s == 2.0 and court.state.pay.replayed_passes == len(work.passes)


# ---- the merged model ------------------------------------------------------------------------------------------------


def test_one_validator_measures_the_merged_model(courts: Courts) -> None:
    """11. The first in line is given the newest model that all stages agree on, until somebody has measured it; a
    second figure for it, or one of an epoch that is not there yet, is refused."""
    court = courts("a")
    assert court.review("evaluator").evaluate is None, "epoch 0 is what the run began with"
    court.to_epoch(1)
    court.see(stakes=STAKES)
    for name in STAKES:
        court.review(name, free=0)
    given = {name: court.review(name).evaluate for name in STAKES}
    assert [name for name, work in given.items() if work is not None] == ["v1"]
    assert given["v1"] == m.EvaluateWork(epoch=1, parameters=(court.world.stage().parameters,))

    def tell(name: str, epoch: int) -> m.Reply | None:
        return court.world.send(Hotkey(name), m.Evaluated(epoch=epoch, loss=4.5, num_tokens=32, parameters=()))

    assert isinstance(tell("v1", 2), m.Refusal) and isinstance(tell("a", 1), m.Refusal)
    assert isinstance(tell("v1", 1), m.Noted) and isinstance(tell("v2", 1), m.Refusal)
    assert [(e.epoch, e.loss) for e in court.state.evaluations] == [(1, 4.5)]
    assert court.review("v1").evaluate is None
