"""Who is audited: from the closed epoch to the draw, and whose work cannot be seen at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from subnet.coordination.notices import finished
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason
from subnet.scoring import audit as rules

if TYPE_CHECKING:
    from conftest import Court

Courts = Callable[..., "Court"]


# ---- the draw --------------------------------------------------------------------------------------------------------


def test_nobody_is_drawn_before_a_block_closes_the_epoch(courts: Courts) -> None:
    """1. The epoch's end asks for a block once; a block that closes nothing, or another epoch, draws nobody."""
    court = courts("a", "b")
    court.to_epoch(1)
    assert court.world.blocks == [0] and court.state.pay.drawn == -1 and not court.state.pay.audits
    court.see()
    court.see(closes=1)
    court.see(closes=7)
    assert not court.state.pay.audits and court.state.pay.drawn == -1
    court.see(closes=0)
    assert court.audited() == ["a", "b"] and court.state.pay.drawn == 0
    before = dict(court.state.pay.audits)
    court.see(closes=0, seed=1)
    assert court.state.pay.audits == before
    assert court.world.blocks == [0]


def test_epochs_are_drawn_one_after_the_other(courts: Courts) -> None:
    """2. The block of epoch 1 is read before that of epoch 0: it draws nothing until its turn."""
    court = courts("a")
    court.to_epoch(2)
    court.see(closes=1)
    assert court.state.pay.drawn == -1 and court.world.blocks == [0]
    court.see(closes=0)
    assert court.world.blocks == [0, 1], "one question at a time"
    court.see(closes=1)
    assert court.world.blocks == [0, 1] and court.state.pay.drawn == 1
    assert {a.epoch for a in court.state.pay.audits.values()} == {0, 1}


def test_an_epoch_closes_when_its_last_stage_does(courts: Courts) -> None:
    """3. Two stages: the block is asked for when the slower one has merged too."""
    court = courts("a", "b", num_stages=2)
    world = court.world
    world.work_until(lambda: max(stage.epoch for stage in court.state.stages) == 1)
    if min(stage.epoch for stage in court.state.stages) == 0:
        assert not world.blocks and not court.state.pay.closed_at
    court.to_epoch(1)
    assert world.blocks == [0] and court.state.pay.closed_at == {0: world.at}


def test_no_audits_no_dossiers_no_chain(courts: Courts) -> None:
    """4. Rate 0: nothing is kept, no block is asked for, logs are not looked at, and the run finishes without one."""
    court = courts("a", "b", rate=0.0, target_epochs=2)
    for name in "ab":
        court.book(name).log.append(m.Logged(item="f0.0.99", version=7))
    court.to_epoch(2)
    assert not court.state.pay.dossiers and not court.state.pay.fresh and not court.world.blocks
    assert finished(court.state) and court.state.pay.drawn == 1
    assert court.score("a") > 0 and set(court.pays("a").values()) == {Reason.PAID}


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_settled_are_drawn_less_often(courts: Courts, rate: float) -> None:
    """5. In its first epochs a newcomer is audited always; later the draw is the rules', over its unexpired epochs."""
    court = courts("a", "b", "c", rate=rate, settled_epochs=2)
    drawn = 0
    for epoch in range(6):
        court.to_epoch(epoch + 1)
        court.see(closes=epoch, seed=epoch)
        q, run_id, block_hash = rules.probability(rate, 2, epoch + 1), court.world.spec.run_id, court.block_hash(epoch)
        said = [name for name in "abc" if rules.is_drawn(block_hash, run_id, 0, epoch, Hotkey(name), q)]
        assert court.audited() == said
        drawn += len(said)
        court.settle_all()
    assert 0 < drawn < 18


def test_who_did_nothing_is_not_audited(courts: Courts) -> None:
    """6. A replica that came for the last moment of an epoch has no credit in it: there is nothing to pay for."""
    court = courts("a")
    world = court.world
    world.work_until(lambda: world.stage().merge is not None)
    world.join("late")
    court.to_epoch(1)
    court.see(closes=0)
    assert court.audited() == ["a"]


# ---- nothing to show -------------------------------------------------------------------------------------------------


def test_an_upload_that_never_came(courts: Courts) -> None:
    """7. Asked to upload and did not: its work of the epoch cannot be seen, so there is nothing to draw or to pay."""
    court = courts("a", "b", "c")
    world = court.world
    world.work_until(lambda: world.stage().merge is not None and world.merge().step == "upload")
    world.work_until(lambda: world.stage().epoch == 1, names=["a", "b"])
    assert "c" not in world.stage().contributions and court.dossier(0, "c").asked == 1
    court.see(closes=0)
    assert court.audited() == ["a", "b"] and court.standing("c").not_revealed == 0
    court.settle_all()
    assert court.pays("c") == {0: Reason.SKIPPED_MERGE} and court.score("c") == 0.0
    ledger = court.state.ledger.epochs[0][Hotkey("c")]
    assert court.state.pay.unlogged[0][Hotkey("c")] == pytest.approx(ledger.work_units) and ledger.work_units > 0


def test_a_process_that_took_its_work_with_it(courts: Courts) -> None:
    """8. It died after some passes and came back with loaded parameters: what the old process did is in no log, so it
    is not paid; what the new one did is audited and paid like anybody's."""
    court = courts("a", "b")
    world = court.world
    court.book("a")
    world.work_until(lambda: world.credit("a") > 0)
    before = world.credit("a")
    world.join("a", session="s2")
    court.to_epoch(1)
    earned = court.state.ledger.epochs[0][Hotkey("a")].work_units
    assert earned > before
    court.see(closes=0)
    assert court.audited() == ["a", "b"] and court.state.pay.unlogged == {0: {Hotkey("a"): pytest.approx(before)}}
    court.settle_all()
    assert court.score("a") == pytest.approx(earned - before) and court.pays("a") == {0: Reason.PAID}
    assert court.standing("a").failed == court.standing("a").not_revealed == 0


def test_who_did_too_little_for_the_merge(courts: Courts) -> None:
    """9. It came late and did a pass or two: it uploads with weight 0, so that its work can be audited and paid."""
    court = courts("a", "b", "c", num_microbatches_min=8, quorum=0.5)
    world = court.world
    for name in "abc":
        court.book(name)
    world.work_until(lambda: world.credit("c") > 0, names=["c"])
    while world.stage().epoch == 0:
        for name in "ab":
            world.do(name)
        world.exchange("c", *map(world.result, world.players["c"].works(m.UploadWork)), free=0)
        if world.stage().merge is not None and Hotkey("c") in world.merge().weights:
            assert world.merge().weights[Hotkey("c")] == 0
        world.wait(0.5)
    assert world.stage().merges[-1].replicas == 2
    court.see(closes=0)
    assert court.audited() == ["a", "b", "c"] and not court.state.pay.unlogged
    court.settle_all()
    assert court.pays("c") == {0: Reason.PAID} and court.score("c") > 0


def test_a_block_that_was_known_before_draws_nothing(courts: Courts) -> None:
    """The orchestrator answers with a block that everybody knew when the epoch closed: it could have chosen it, so
    nothing is drawn; the next one draws."""
    court = courts("a", "b", segment_steps=99)
    court.see()
    known = court.block
    court.to_epoch(1)
    court.block = known - 1
    court.see(closes=0)
    assert court.state.pay.drawn == -1 and not court.state.pay.audits
    court.see(closes=0)
    assert court.state.pay.drawn == 0 and court.state.pay.audits
