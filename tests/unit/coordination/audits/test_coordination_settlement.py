"""From the run state to pay: when credit counts, what voids it, whose uid is paid."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from subnet.coordination.notices import finished
from subnet.coordination.settlement import counts, sheet
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import Court

Courts = Callable[..., "Court"]


def weights(court: Court) -> dict[int, float]:
    return sheet(court.state).emission.weights


# ---- when credit counts ----------------------------------------------------------------------------------------------


def test_credit_is_pending_until_every_audit_is_settled(courts: Courts) -> None:
    """1. Of the whole epoch: b's credit waits for a's audit too. Before the draw nothing counts either."""
    court = courts("a", "b", segment_steps=99)
    court.to_epoch(1)
    assert not counts(court.state, 0) and court.pays("a") == {0: Reason.AUDIT_PENDING}
    assert weights(court) == {0: 1.0}, "no chain yet: the owner's uid is 0"
    court.see(closes=0)
    assert not counts(court.state, 0) and weights(court) == {255: 1.0}
    court.show_all()
    court.given("v")
    court.review("v", court.found(court.audit("b").item))
    assert court.pays("b") == court.pays("a") == {0: Reason.AUDIT_PENDING} and court.score("b") == 0.0
    court.review("v", court.found(court.audit("a").item))
    assert counts(court.state, 0) and court.pays("b") == court.pays("a") == {0: Reason.PAID}
    assert not counts(court.state, 1)
    assert court.score("a") == pytest.approx(court.state.ledger.epochs[0][Hotkey("a")].work_units)
    assert set(weights(court)) == {court.uids["a"], court.uids["b"]} and sum(weights(court).values()) == 1.0


def test_epochs_settle_each_for_itself(courts: Courts) -> None:
    """2. Epoch 1 is drawn while epoch 0 is settled: only the newer one waits."""
    court = courts("a", segment_steps=99)
    court.to_epoch(2)
    court.see(closes=0)
    court.settle_all()
    court.see(closes=1)
    assert court.pays("a") == {0: Reason.PAID, 1: Reason.AUDIT_PENDING}
    court.settle_all()
    assert court.pays("a") == {0: Reason.PAID, 1: Reason.PAID}


def test_credit_grows_old(courts: Courts) -> None:
    """3. γ after the epoch closed it pays no more."""
    court = courts("a", segment_steps=99, gamma_s=50.0)
    court.to_epoch(1)
    court.see(closes=0)
    court.settle_all()
    assert court.pays("a") == {0: Reason.PAID}
    court.world.idle(60.0)
    assert court.pays("a")[0] is Reason.EXPIRED and court.score("a") == 0.0


def test_the_run_ends_with_its_last_audit(courts: Courts) -> None:
    """4. All epochs are merged: miners and validators stay until the last audit is settled, and then hear that."""
    court = courts("a", "b", target_epochs=1)
    world = court.world
    court.to_epoch(1)
    world.idle(3.0)
    assert not world.players["a"].finished and not finished(court.state)
    court.draw(0, {"a": 1, "b": 0})
    assert not finished(court.state) and not court.review("v").finished
    assert world.exchange("b").notice.reason in (Reason.BUSY, Reason.TARGET_REACHED)
    for name in "ab":
        court.reveal(name)
    works = court.given("v")
    court.review("v", court.found(works[0].item))
    world.exchange("a")
    assert not world.players["a"].finished
    assert court.review("v", court.found(works[1].item)).finished and finished(court.state)
    world.exchange("a")
    assert world.players["a"].finished
    world.wait(60.0)
    assert world.miner("a").live, "who leaves a finished run is not reported as silent"


def test_the_end_may_go_on(courts: Courts) -> None:
    """5. A larger target: what was finished is not, and the next epoch is drawn and settled like any other."""
    court = courts("a", target_epochs=1, segment_steps=99)
    court.to_epoch(1)
    court.see(closes=0)
    court.settle_all()
    assert finished(court.state)
    court.world.own(m.RunResumed(target_epochs=2))
    assert not finished(court.state)
    court.to_epoch(2)
    assert court.world.blocks == [0, 1]
    court.see(closes=1)
    court.settle_all()
    assert finished(court.state) and court.pays("a") == {0: Reason.PAID, 1: Reason.PAID}


# ---- what voids it ---------------------------------------------------------------------------------------------------


def test_a_living_replica_that_skips_a_merge(courts: Courts) -> None:
    """6. It was asked, it was there, it did not upload: the epoch does not count for it, and only for it."""
    court = courts("a", "b", "c", rate=0.0)
    world = court.world
    world.work_until(lambda: world.stage().merge is not None and world.merge().step == "upload")
    for name in "ab":
        world.do(name)
    while world.stage().epoch == 0:
        world.wait(1.0)
        for name in "ab":
            world.do(name)
        world.exchange("c", free=0)
    assert court.pays("c") == {0: Reason.SKIPPED_MERGE} and court.score("c") == 0.0 < court.score("a")
    assert [i.hotkey for i in court.state.incidents if i.reason is Reason.SKIPPED_MERGE] == ["c"]
    assert court.standing("c").failed == 0 and world.miner("c").live
    world.players["c"].held.clear()
    court.to_epoch(2)
    assert court.pays("c")[1] is Reason.PAID


def test_who_dies_has_skipped_too(courts: Courts) -> None:
    """7. It was asked and its process ended: nothing shows what it did, so nothing is paid; it is no cheat."""
    court = courts("a", "b", "c", rate=0.0)
    world = court.world
    world.work_until(lambda: world.stage().merge is not None and world.merge().step == "upload")
    del world.players["c"]
    court.to_epoch(1)
    assert court.pays("c") == {0: Reason.SKIPPED_MERGE} and set(court.state.pay.void[0]) == {"c"}
    assert court.standing("c").failed == 0 and court.score("c") == 0.0 < court.score("a")


def test_shards_reduced_wrongly(courts: Courts) -> None:
    """8. Proven by the orchestrator's own reduction: the gate is 0 until γ later; then new epochs count. Meanwhile it
    is not asked to reduce while others are there."""
    court = courts("a", "b", "c", rate=0.0, gamma_s=60.0)
    world = court.world
    world.to_step("reduce")
    work = world.players["a"].the(m.ReduceWork)
    world.do("a", work, shard_digests=("f" * 64,) * len(work.shards))
    court.to_epoch(1)
    proven = court.standing("a").wrong_shard_at
    assert proven is not None and court.standing("a").failed_at is None
    payslip = sheet(court.state).payslip(Hotkey("a"))
    assert payslip.gate.forfeit == 0.0 and payslip.score == 0.0 and payslip.reason is Reason.WRONG_SHARD
    assert court.score("b") > 0 and world.miner("a").live
    world.to_step("reduce")
    assert not world.players["a"].works(m.ReduceWork) and world.players["b"].works(m.ReduceWork)
    court.to_epoch(2)
    assert court.pays("a")[1] is Reason.WRONG_SHARD
    world.idle(proven + 61.0 - world.at)
    court.to_epoch(court.state.stages[0].epoch + 1)
    assert court.score("a") > 0 and max(court.pays("a").items())[1] is Reason.PAID


# ---- whose uid -------------------------------------------------------------------------------------------------------


def test_a_uid_changes_hands(courts: Courts) -> None:
    """9. The hotkey behind a uid is pruned and another one takes it: what the old one earned does not go to the new
    one, and the others share it."""
    court = courts("a", "b", segment_steps=99)
    court.to_epoch(1)
    court.see(closes=0)
    court.settle_all()
    uid = court.uids["a"]
    assert weights(court)[uid] > 0
    court.see(new=uid)
    assert court.state.pay.chain.uids[Hotkey("new")] == uid and Hotkey("a") not in court.state.pay.chain.uids
    assert weights(court) == {court.uids["b"]: 1.0}
    assert any(f"a lost its place: uid {uid} is new's now" in said for said in court.world.said)
    assert not court.world.miner("a").live and Hotkey("new") in court.state.registered
    payslip = sheet(court.state).payslip(Hotkey("a"))
    assert payslip.score > 0 and payslip.weight == 0.0 and payslip.reason is Reason.NO_UID
    assert court.score("new") == 0.0


def test_the_same_hotkey_under_another_uid(courts: Courts) -> None:
    """10. It registered again: its score goes with the hotkey."""
    court = courts("a", "b", segment_steps=99)
    court.to_epoch(1)
    court.see(closes=0)
    court.settle_all()
    share = weights(court)[court.uids["a"]]
    court.see(a=77)
    assert weights(court)[77] == share and court.uids["a"] == 77


def test_weights_that_a_validator_reports(courts: Courts) -> None:
    """11. Noted as they were said, the latest of each."""
    court = courts("a")
    court.see()
    for index in (3, 9):
        said = m.WeightsSet(index=index, head="0" * 64, weights=((1, 0.25), (2, 0.75)), block=5, sentence="set")
        assert isinstance(court.world.send(Hotkey("v"), said), m.Noted)
    (report,) = court.state.pay.weights.values()
    assert (report.index, report.weights, report.block) == (9, ((1, 0.25), (2, 0.75)), 5)
