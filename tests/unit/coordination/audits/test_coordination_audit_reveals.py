"""What a drawn miner is asked to show, and what follows when it does not, or shows something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from subnet.coordination import audits
from subnet.coordination.settlement import sheet
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import Court

Courts = Callable[..., "Court"]


def test_a_miner_is_asked_once_and_again_after_a_restart(courts: Courts) -> None:
    """1. The reveal names the states that were committed. It is repeated until the miner has it, and given anew to a
    new process, with other keys: the old one's writes are not waited for."""
    court = courts("a", "b")
    court.to_epoch(1)
    court.draw(0, {"a": 1})
    (work,) = court.reveals("a")
    begins, ends = court.dossier(0, "a").commitments[1:3]
    assert (work.start_digest, work.end_digest) == (begins.digest, ends.digest)
    assert (work.stage, work.epoch, work.segment) == (0, 0, 1) and len(work.start) == len(work.end) == 4
    assert work.deadline_s == pytest.approx(court.audit("a").deadline - court.world.at)
    assert len(court.reveals("a")) == 1
    court.world.exchange("b", free=0, lost=True)
    assert len(court.reveals("b")) == 1
    court.world.join("a", session="s2")
    (again,) = court.reveals("a")
    assert again.item != work.item and not {t.key for t in again.start} & {t.key for t in work.start}
    assert court.world.verdict("a", again).outcome == "applied" and court.audit("a").step == "replay"
    assert court.reveals("a") == []


def test_who_is_away_is_asked_when_it_is_back(courts: Courts) -> None:
    """2. The miner was gone when it was drawn; it comes back in time, and what it shows counts."""
    court = courts("a", "b")
    court.to_epoch(1)
    court.world.wait(16.0)
    assert not court.world.miner("a").live
    court.draw(0, {"a": 1})
    assert court.audit("a").step == "reveal" and not court.state.offers
    court.world.join("a", session="s2")
    assert not court.state.offers, "it has not said that it is ready"
    assert court.reveal("a").outcome == "applied" and court.audit("a").step == "replay"


@pytest.mark.parametrize(("segment", "start", "end"), [(0, 0, 4), (1, 4, 4), (-1, 4, 4)])
def test_what_everybody_knows_is_not_asked_for(courts: Courts, segment: int, start: int, end: int) -> None:
    """3. The first segment begins at the loaded parameters, which everybody knows; every other state is shown."""
    court = courts("a")
    court.to_epoch(1)
    num_segments = len(court.dossier(0, "a").commitments) - 1
    court.draw(0, {"a": segment % num_segments})
    (work,) = court.reveals("a")
    assert (len(work.start), len(work.end)) == (start, end)
    court.world.do("a", work)
    audit = court.audit("a")
    assert audit.step == "replay" and (len(audit.start), len(audit.end)) == (start, end)
    states = [court.states[work.start_digest] if start else (), court.states[work.end_digest]]
    assert [tuple(source.digest for source in sources) for sources in (audit.start, audit.end)] == states
    assert [s.key for s in (*audit.start, *audit.end)] == [t.key for t in (*work.start, *work.end)]


def test_a_single_segment(courts: Courts) -> None:
    """4. From loaded parameters to the upload in one segment: its end is shown, the moments are in no upload."""
    court = courts("a", segment_steps=99)
    court.to_epoch(1)
    court.see(closes=0)
    (work,) = court.reveals("a")
    assert (work.segment, work.start, len(work.end)) == (0, (), 4)
    assert court.world.verdict("a", work).outcome == "applied" and court.audit("a").step == "replay"


@pytest.mark.parametrize("how", ["late", "failed", "another result"])
def test_states_that_are_not_shown(courts: Courts, how: str) -> None:
    """5. The epoch's credit does not count and trust begins anew, but nobody calls it a cheat: it stays in the run,
    and its other epochs are paid."""
    court = courts("a", "b", rate=0.5, settled_epochs=2)
    court.to_epoch(1)
    court.draw(0)
    court.settle_all()
    court.to_epoch(2)
    court.draw(1, {"a": 1})
    (work,) = court.reveals("a")
    match how:
        case "late":
            court.world.idle(9.0)
            assert "a" in court.audited()
            court.world.idle(2.0)
        case "failed":
            said = m.Failed(item=work.item, reason=Reason.NOT_REVEALED, sentence="the disk is gone")
            (verdict,) = court.world.exchange("a", said).verdicts
            assert (verdict.outcome, verdict.reason) == ("applied", Reason.NOT_REVEALED)
            assert "the disk is gone" in court.standing("a").sentence
        case _:
            court.world.exchange("a", m.SyncDone(item=work.item, parameters_digest="0" * 64))
    assert "a" not in court.audited()
    standing = court.standing("a")
    assert (standing.not_revealed, standing.failed, standing.failed_at, standing.trusted_from) == (1, 0, None, 2)
    assert court.pays("a") == {0: Reason.PAID, 1: Reason.NOT_REVEALED}
    assert court.world.miner("a").live and court.world.miner("a").faults == 0
    assert [i.reason for i in court.state.incidents if i.hotkey == "a"] == [Reason.NOT_REVEALED]
    court.to_epoch(3)
    court.see(closes=2)
    assert "a" in court.audited(), "a newcomer again: rate 0.5 x 2 epochs over one"
    assert [audits.num_unexpired(court.state, Hotkey(name), 2) for name in "ab"] == [1, 3]


@pytest.mark.parametrize("which", ["start", "end"])
@pytest.mark.parametrize("lie", ["another part", "one part less", "nothing", "swapped"])
def test_another_state_than_the_committed_one(courts: Courts, which: str, lie: str) -> None:
    """6. What does not have the committed digest fails the audit at once: no validator is needed to see it."""
    court = courts("a", "b")
    court.to_epoch(1)
    court.draw(0, {"a": 1})
    (work,) = court.reveals("a")
    right = getattr(court.world.result(work), which)
    wrong = {
        "another part": ("0" * 64, *right[1:]),
        "one part less": right[:3],
        "nothing": (),
        "swapped": (right[1], right[0], *right[2:]),
    }[lie]
    verdict = court.world.verdict("a", work, **{which: wrong})
    assert (verdict.outcome, verdict.reason) == ("rejected", Reason.BAD_DIGEST)
    standing = court.standing("a")
    assert (standing.failed, standing.failed_at, standing.trusted_from) == (1, court.world.at, 1)
    assert court.audited() == ["b"] and not court.world.miner("a").live
    assert court.score("a") == 0.0 and "committed" in standing.failure


def test_states_that_nobody_waits_for(courts: Courts) -> None:
    """7. Shown after the deadline: ignored, and no fault."""
    court = courts("a", "b")
    court.to_epoch(1)
    court.draw(0, {"a": 1})
    (work,) = court.reveals("a")
    court.world.idle(11.0)
    verdict = court.world.verdict("a", work)
    assert (verdict.outcome, verdict.reason) == ("ignored", Reason.PHASE_OVER)
    assert court.world.miner("a").faults == 0 and court.standing("a").not_revealed == 1


def test_two_audits_are_revealed_one_after_the_other(courts: Courts) -> None:
    """8. Two epochs of one miner are drawn in one moment; both go to their validator."""
    court = courts("a")
    court.to_epoch(2)
    court.draw(0, {"a": 1})
    court.draw(1, {"a": 1})
    seen = []
    for _ in range(2):
        (work,) = court.reveals("a")
        seen.append(work.epoch)
        court.world.do("a", work)
    assert seen == [0, 1] and [a.step for a in court.state.pay.audits.values()] == ["replay", "replay"]
    assert all(a.start and a.end for a in court.state.pay.audits.values())


def test_silence_twice_costs_what_failing_costs(courts: Courts) -> None:
    """9. Not to answer must not be the cheaper way to fail: the second time within γ every score is forfeited; once
    in a while, each time alone, it is not."""
    court = courts("a", "b", gamma_s=200.0)
    for epoch in range(2):
        court.to_epoch(epoch + 1)
        court.draw(epoch, {"a": 1})
        court.show_all("b")
        court.world.idle(11.0)
        forfeits = sheet(court.state).payslip(Hotkey("a")).gate.forfeit == 0.0
        assert forfeits == (epoch == 1) and court.standing("a").not_revealed == epoch + 1
    assert court.standing("a").withheld_again_at is not None and court.standing("a").failed == 0
    assert sheet(court.state).payslip(Hotkey("a")).reason is Reason.NOT_REVEALED and court.world.miner("a").live
    court.to_epoch(3)
    court.see(closes=2)
    assert set(court.audited()) == {"b"}, "what pays nothing is not drawn"
    court.world.idle(201.0)
    assert sheet(court.state).payslip(Hotkey("a")).gate.forfeit == 1.0
    court.to_epoch(4)
    court.draw(3, {"a": 1})
    court.world.idle(11.0)
    assert court.standing("a").not_revealed == 3 and sheet(court.state).payslip(Hotkey("a")).gate.forfeit == 1.0
