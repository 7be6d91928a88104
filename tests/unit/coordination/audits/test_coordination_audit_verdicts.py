"""What findings mean: one against several validators, stake, and what a failed audit costs for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import pytest

from subnet.coordination.settlement import sheet
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import Court

Courts = Callable[..., "Court"]
GOOD, BAD = m.AuditFigures(outputs=1), m.AuditFigures(outputs=1, state=9.0)
GAMMA_S, REPLAY_S = 500.0, 20.0


def opened(court: Court, **stakes: float) -> m.AuditWork:
    """An audit of `a` that one of these validators was given; all of them are there."""
    court.to_epoch(1)
    court.see(stakes=stakes)
    for name in stakes:
        court.review(name, free=0)
    court.see(closes=0, stakes=stakes)
    court.show_all()
    return next(work for name in stakes for work in court.given(name) if work.hotkey == "a")


def drawn_first(court: Court) -> str:
    return str(court.audit("a").validator)


# ---- one finding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "reason", "failed"),
    [
        (GOOD, Reason.OK, 0),
        (BAD, Reason.OK, 1),
        (m.AuditFigures(outputs=3, cosine_min=0.5), Reason.OK, 1),
        (m.AuditFigures(outputs=0, cosine_min=0.5), Reason.OK, 0),  # nothing was compared but the state
        (BAD, Reason.UNREADABLE, 1),  # figures speak for themselves
        (None, Reason.BAD_OBJECT, 1),
        (None, Reason.BAD_DIGEST, 1),
        (None, Reason.BAD_SIZE, 1),
        (None, Reason.NOT_FINITE, 1),
        (None, Reason.MALFORMED, 1),
    ],
)
def test_what_a_finding_means(courts: Courts, figures: m.AuditFigures | None, reason: Reason, failed: int) -> None:
    """1. Figures are judged by the rules, whatever the validator thinks of them; bytes that are not what the miner said
    are its fault. With no other validator there, one finding is the verdict."""
    court = courts("a", segment_steps=99)
    work = opened(court, v=1.0)
    court.review("v", court.found(work.item, figures, reason, "as it was found"))
    standing = court.standing("a")
    assert not court.state.pay.audits and (standing.failed, standing.passed) == (failed, 1 - failed)
    assert (standing.failed_at is not None) == bool(failed) and standing.unreadable == 0
    assert "stage 0 epoch 0 segment 0" in standing.sentence
    if figures is None:
        assert "as it was found" in standing.failure


# ---- several ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stakes", "against", "failed"),
    [
        ((10.0, 20.0, 30.0), {"v1"}, 0),
        ((10.0, 20.0, 30.0), {"v1", "v2"}, 0),  # a tie
        ((10.0, 20.0, 31.0), {"v1", "v2"}, 0),
        ((10.0, 20.0, 30.0), {"v1", "v3"}, 1),
        ((10.0, 20.0, 30.0), {"v3"}, 0),  # half is not more than half
        ((10.0, 20.0, 31.0), {"v3"}, 1),
        ((10.0, 20.0, 30.0), {"v1", "v2", "v3"}, 1),
        ((0.0, 0.0, 5.0), {"v1", "v2"}, 0),  # no stake, no voice
        ((0.0, 0.0, 0.0), {"v1"}, 0),  # a chain without any stake: one each
        ((0.0, 0.0, 0.0), {"v1", "v2"}, 1),
    ],
)
def test_where_one_finds_a_fault_everybody_is_asked(
    courts: Courts, stakes: tuple[float, ...], against: set[str], failed: int
) -> None:
    """2. The verdict is what more than half of the reporting stake says. If the drawn one finds nothing, it passes."""
    court = courts("a", segment_steps=99)
    work = opened(court, **dict(zip(("v1", "v2", "v3"), stakes, strict=True)))
    first = drawn_first(court)
    findings = {name: court.found(work.item, BAD if name in against else GOOD) for name in ("v1", "v2", "v3")}
    court.review(first, findings[first])
    if first not in against:
        assert court.standing("a").passed == 1
        return
    assert court.audit("a").contested and court.world.miner("a").live and court.standing("a").failed == 0
    assert court.given(first) == [] and court.audit("a").deadline == court.world.at + REPLAY_S
    second, third = (name for name in findings if name != first)
    assert court.given(second) == court.given(third) == [work]
    court.review(second, findings[second])
    assert court.audited() == ["a"]
    court.review(third, findings[third])
    assert court.audited() == [] and court.standing("a").failed == failed
    assert court.world.miner("a").live == (not failed)
    assert (court.score("a") > 0) == (not failed)


@pytest.mark.parametrize("others", ["v2", "v3"])
def test_one_validator_cannot_convict_alone(courts: Courts, others: str) -> None:
    """3. A lying validator is drawn; the others have more stake and find nothing: the miner keeps everything."""
    court = courts("a", segment_steps=99)
    work = opened(court, v1=10.0, v2=20.0, v3=30.0)
    liar = drawn_first(court)
    court.review(liar, court.found(work.item, BAD), court.found(work.item, BAD))
    assert court.audit("a").contested and list(court.audit("a").findings) == [liar]
    court.review(liar, court.found(work.item, BAD))
    rest = [name for name in ("v1", "v2", "v3") if name != liar]
    for name in rest:
        court.review(name, court.found(work.item))
    assert (court.standing("a").passed, court.standing("a").failed) == (1, 0)
    assert liar[:8] in court.standing("a").sentence, "dissent is published"


def test_who_does_not_report_has_no_part_in_it(courts: Courts) -> None:
    """4. A contested audit ends at its deadline with those who reported: the richest one kept silent."""
    court = courts("a", segment_steps=99)
    work = opened(court, v1=10.0, v2=20.0, v3=300.0)
    while drawn_first(court) == "v3":
        for _ in range(10):
            court.world.idle(2.0)
            for name in ("v1", "v2", "v3"):
                court.review(name, free=0)
    first = drawn_first(court)
    (second,) = {"v1", "v2"} - {first}
    court.review(first, court.found(work.item, BAD))
    court.review(second, court.found(work.item, None, Reason.BAD_OBJECT, "no tensor"))
    for _ in range(9):
        court.world.idle(2.0)
        court.review("v3", free=0)
    assert court.audited() == ["a"]
    court.world.idle(2.5)
    assert court.standing("a").failed == 1
    assert all(said in court.standing("a").failure for said in ("v1: ", "v2: ", "no tensor"))


def test_who_could_not_read_it_has_no_vote(courts: Courts) -> None:
    """5. In a contested audit the rich validator's copy was unreadable: the others decide."""
    court = courts("a", segment_steps=99)
    work = opened(court, v1=10.0, v2=20.0, v3=300.0)
    first = drawn_first(court)
    if first == "v3":
        court.review("v3", court.found(work.item, None, Reason.UNREADABLE))
        for name in ("v1", "v2"):
            court.review(name, free=0)
        first = drawn_first(court)
    for name in (first, *sorted({"v1", "v2"} - {first})):
        court.review(name, court.found(work.item, BAD))
    if court.audited():
        court.review("v3", court.found(work.item, None, Reason.UNREADABLE))
    assert court.standing("a").failed == 1


def test_nobody_votes_on_its_own_work(courts: Courts) -> None:
    """6. The audited miner has a permit and most of the stake: it is not asked, and what it says does not count."""
    court = courts("a", segment_steps=99)
    work = opened(court, v1=1.0, v2=2.0, a=500.0)
    first = drawn_first(court)
    (second,) = {"v1", "v2"} - {first}
    court.review(first, court.found(work.item, BAD))
    assert court.given("a") == []
    court.review("a", court.found(work.item))
    assert list(court.audit("a").findings) == [first]
    court.review(second, court.found(work.item, BAD))
    assert court.standing("a").failed == 1


# ---- what it costs ---------------------------------------------------------------------------------------------------


def test_what_a_failed_audit_costs(courts: Courts) -> None:
    """7. The session ends with the verdict, work goes to others; no score that is not expired pays, and the hotkey
    cannot join until γ has passed. Epochs that close after that count again."""
    court = courts("a", "b", segment_steps=99, gamma_s=100.0)
    world = court.world
    court.to_epoch(1)
    court.see(closes=0)
    court.settle_all()
    assert court.score("a") > 0
    court.to_epoch(2)
    court.see(closes=1)
    world.exchange("a", free=4)
    held = [work.item for work in world.players["a"].works(m.PassWork)]
    item = court.audit("a").item
    court.reveal("a")
    court.given("v")
    court.review("v", court.found(item, BAD))
    failed_at = court.standing("a").failed_at
    assert failed_at == world.at and not world.miner("a").live and held
    assert not set(held) & set(court.state.offers)
    refused = world.exchange("a")
    assert isinstance(refused, m.Refusal) and "audit failed" in refused.notice.sentence
    assert court.pays("a") == {0: Reason.AUDIT_FAILED, 1: Reason.AUDIT_FAILED} and court.score("a") == 0.0
    assert sheet(court.state).payslip(Hotkey("a")).gate.forfeit == 0.0
    assert [i.reason for i in court.state.incidents if i.hotkey == "a"] == [Reason.AUDIT_FAILED]
    join = m.Join(session="s2", device="cpu", software="test")
    for _ in range(2):
        reply = world.send(Hotkey("a"), join)
        assert isinstance(reply, m.Refusal) and reply.notice.reason is Reason.AUDIT_FAILED
        assert f"out for {failed_at + 100.0 - world.at:.0f} s" in reply.notice.sentence
        del world.players["a"]
        world.idle(failed_at + 99.0 - world.at)
        world.players["a"] = type(world.players["b"])(Hotkey("a"), "s2", 2)
    del world.players["a"]
    world.idle(1.5)
    world.join("a", session="s3")
    closed = court.state.stages[0].epoch + 1  # the first one that it trains from its start
    court.to_epoch(closed + 1)
    for epoch in range(2, closed + 1):
        court.see(closes=epoch)
        court.settle_all()
    pays = court.pays("a")
    assert pays[closed] is Reason.PAID and court.score("a") > 0
    assert court.standing("a").trusted_from == 2
    for epoch, closed_at in court.state.pay.closed_at.items():
        assert epoch not in pays or (pays[epoch] is Reason.PAID) == (closed_at > failed_at + 100.0)


def test_who_forfeits_is_not_drawn(courts: Courts) -> None:
    """8. An epoch that closes while a forfeit lasts pays nothing, so nobody spends a replay on it."""
    court = courts("a", "b", segment_steps=99)
    court.to_epoch(2)
    court.see(closes=0)
    item = court.audit("a").item
    court.show_all()
    court.given("v")
    court.review("v", court.found(item, BAD))
    court.see(closes=1)
    assert {a.epoch for a in court.state.pay.audits.values() if a.hotkey == "a"} == set()
    assert {a.epoch for a in court.state.pay.audits.values() if a.hotkey == "b"} == {0, 1}


def test_failing_in_the_middle_of_an_exchange(courts: Courts) -> None:
    """9. The state shown is wrong, and more results come in the same request: nothing of them is credited any more."""
    court = courts("a", "b")
    world = court.world
    court.to_epoch(1)
    court.draw(0, {"a": 1})
    world.exchange("a", free=4)
    passes, work = world.players["a"].works(m.PassWork), world.players["a"].the(m.RevealWork)
    credit = world.credit("a")
    lie = msgspec.structs.replace(world.result(work), start=("0" * 64,) * 4)
    reply = world.exchange("a", lie, *(world.result(one) for one in passes))
    assert passes and not world.miner("a").live and world.credit("a") == credit
    assert [verdict.outcome for verdict in reply.verdicts] == ["rejected"] + ["ignored"] * len(passes)
    assert "audit failed" in reply.notice.sentence
