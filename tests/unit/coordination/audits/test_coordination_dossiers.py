"""Work logs against the journal: what an upload must say about what was given and what was credited."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, ItemId
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import Court

Courts = Callable[..., "Court"]


def uploading(court: Court, name: str = "a") -> m.UploadWork:
    """The stage asks for the uploads; nothing is uploaded yet."""
    world = court.world
    for player in world.players:
        court.book(player)
    world.work_until(lambda: world.stage().merge is not None and world.merge().step == "upload")
    world.exchange(name, free=0)
    return world.players[name].the(m.UploadWork)


def rejected(court: Court, done: m.UploadDone, said: str) -> None:
    """Not in the merge, and named: the miner is told what does not fit."""
    faults = court.world.miner("a").faults
    (verdict,) = court.world.exchange("a", done).verdicts
    assert (verdict.outcome, verdict.reason) == ("rejected", Reason.MALFORMED)
    assert said in verdict.sentence, verdict.sentence
    assert Hotkey("a") not in court.world.merge().uploads and court.world.miner("a").faults == faults + 1


def told(done: m.UploadDone) -> list[tuple[int, m.Commitment]]:
    return list(enumerate(done.commitments))


def replaced(done: m.UploadDone, **change: Any) -> m.UploadDone:
    return msgspec.structs.replace(done, **change)


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("an item of nobody", "never given"),
        ("an item of the other", "never given"),
        ("no item", "is no pass"),
        ("twice", "twice"),
        ("a commitment missing", "commitment"),
        ("an early merge", "both, or neither"),
        ("a wrong version", "version"),
        ("nothing committed", "no training state"),
    ],
)
def test_a_log_that_fits_nothing(courts: Courts, lie: str, said: str) -> None:
    """1. Invented, borrowed, doubled or misplaced entries: the upload is refused, and so the epoch's credit is void."""
    court = courts("a", "b")
    work = uploading(court)
    done = court.world.result(work)
    log, commitments = list(done.log), list(done.commitments)
    loaded = True
    applied_at = None
    match lie:
        case "an item of nobody":
            log[0] = m.Logged(ItemId("l77.0.77"), log[0].version)
        case "an item of the other":
            log[0] = m.Logged(next(iter(court.dossier(0, "b").given)), log[0].version)
        case "no item":
            log[0] = m.Logged(work.item, log[0].version)
        case "twice":
            log[1] = m.Logged(log[0].item, log[1].version)
        case "a commitment missing":
            del commitments[1]
        case "an early merge":
            applied_at = 0
        case "a wrong version":
            log[1] = m.Logged(log[1].item, log[1].version + 1)
        case "nothing committed":
            commitments = []
    told = {"log": tuple(log), "commitments": tuple(commitments), "applied_at": applied_at, "loaded": loaded}
    rejected(court, replaced(done, **told), said)


def test_a_rejected_upload_skips_the_merge(courts: Courts) -> None:
    """2. The miner lives and its upload is not there: the epoch is void, and the next log begins with a load."""
    court = courts("a", "b", "c")
    work = uploading(court)
    rejected(court, replaced(court.world.result(work), log=()), "due")
    court.to_epoch(1)
    assert court.pays("a") == {0: Reason.SKIPPED_MERGE}
    court.to_epoch(2)
    assert court.dossier(1, "a").loaded and court.dossier(1, "a").upload is not None


def test_a_log_must_go_on_where_the_upload_ended(courts: Courts) -> None:
    """3. In the second epoch the first commitment is the upload's, not any other that fits in numbers."""
    court = courts("a", "b")
    court.to_epoch(1)
    work = uploading(court)
    done = court.world.result(work)
    first = msgspec.structs.replace(done.commitments[0], digest="0" * 64)
    assert not done.loaded and done.applied_at == 0
    rejected(court, replaced(done, commitments=(first, *done.commitments[1:])), "where the upload before ended")


def test_nobody_loads_without_reason(courts: Courts) -> None:
    """4. To begin at loaded parameters would leave the state of before behind: only who had to load may say so."""
    court = courts("a", "b")
    court.to_epoch(1)
    work = uploading(court)
    done = court.world.result(work)
    first = msgspec.structs.replace(done.commitments[0], step=0, optimizer_steps=0)
    lie = replaced(done, commitments=(first, *done.commitments[1:]), applied_at=None, loaded=True)
    rejected(court, lie, "no reason to load")


def test_a_newcomer_has_no_upload_to_go_on_from(courts: Courts) -> None:
    """5. A log that begins with a merge, when no upload of this miner is known."""
    court = courts("a", "b")
    work = uploading(court)
    done = court.world.result(work)
    moved = [m.Commitment(c.position, c.version + (n > 0), c.step, c.optimizer_steps, c.digest) for n, c in told(done)]
    log = tuple(m.Logged(one.item, one.version + 1) for one in done.log)
    lie = replaced(done, loaded=False, applied_at=0, log=log, commitments=tuple(moved))
    rejected(court, lie, "not known")


def test_credited_work_must_be_in_a_log(courts: Courts) -> None:
    """6. Passes were credited after the upload had been computed: the next log must hold them. What is left out could
    not be drawn."""
    court = courts("a", "b", segment_steps=99)
    between = court.upload_first("a")
    assert between and all(v.outcome == "applied" for v in court.world.do("a", *between).verdicts)
    court.to_epoch(1)
    book = court.book("a")
    assert [one.item for one in book.log] == [one.item for one in between]
    work = uploading(court)
    left_out = book.log.pop(0)
    book.applied_at = 0
    for number, one in enumerate(book.log):  # the whole log, one pass and one inner step shorter
        book.log[number] = m.Logged(one.item, one.version - 1)
    done = court.world.result(work)
    first, *rest = done.commitments
    shorter = [m.Commitment(c.position - 0, c.version - 1, c.step, c.optimizer_steps, c.digest) for c in rest]
    verdict = court.world.exchange("a", replaced(done, commitments=(first, *shorter))).verdicts[0]
    assert verdict.outcome == "rejected"
    assert left_out.item in verdict.sentence and "was credited" in verdict.sentence, verdict.sentence


@pytest.mark.parametrize(("epoch", "restarts"), [(0, False), (0, True), (1, True)])
def test_late_results_are_paid_if_a_log_holds_them(courts: Courts, epoch: int, restarts: bool) -> None:
    """7. Passes that came in after the upload are owed to the next log, so they count; a process that ends before it
    takes them with it, and they do not."""
    court = courts("a", "b", segment_steps=99)
    court.to_epoch(epoch)
    between = court.upload_first("a")
    credit = court.world.credit("a")
    court.world.do("a", *between)
    owed = court.world.credit("a") - credit
    assert owed > 0 and all(court.dossier(epoch, "a").given[one.item].late for one in between)
    if restarts:
        court.world.join("a", session="s2")
    court.to_epoch(epoch + 2)
    for closed in range(epoch + 2):
        court.see(closes=closed)
    assert court.state.pay.unlogged == ({epoch: {Hotkey("a"): pytest.approx(owed)}} if restarts else {})
    assert court.dossier(epoch + 1, "a").loaded == restarts


# ---- what does -------------------------------------------------------------------------------------------------------


def test_work_that_earned_nothing_may_be_in_the_log(courts: Courts) -> None:
    """8. A pass that came too late was computed all the same: the log holds it and the upload counts."""
    court = courts("a", "b", num_microbatches_min=2)
    world = court.world
    world.exchange("a", free=1)
    world.exchange("b", free=1)
    (late,) = world.players["a"].works(m.PassWork)
    done = world.result(late)
    world.idle(31.0)
    world.work_until(lambda: world.state.completed >= 2, names=["b"])
    assert world.exchange("a", done).verdicts[0].outcome == "ignored"
    court.to_epoch(1)
    given = court.dossier(0, "a").given[late.item]
    assert given.answered and not given.credited and given.loss == done.loss
    assert late.item in [one.item for one in court.dossier(0, "a").log]


def test_an_upload_that_came_too_late(courts: Courts) -> None:
    """9. Computed, sent after the deadline, not counted: the miner starts the next epoch at the anchor, and its next
    log may begin with loaded parameters, this once."""
    court = courts("a", "b", "c")
    world = court.world
    work = uploading(court)
    done = world.result(work)
    while world.merge().step == "upload":
        for name in "bc":
            world.do(name)
        world.exchange("a", free=0, lost=True)
        world.wait(1.0)
    assert world.exchange("a", done).verdicts[0].reason is Reason.PHASE_OVER
    assert court.dossier(0, "a").upload is None and court.dossier(0, "a").log == ()
    court.to_epoch(1)
    assert Hotkey("a") in court.state.pay.fresh
    court.to_epoch(2)
    assert court.dossier(1, "a").loaded and Hotkey("a") not in court.state.pay.fresh
    court.to_epoch(3)
    assert not court.dossier(2, "a").loaded


def test_one_log_over_two_rounds(courts: Courts) -> None:
    """10. Nobody's upload arrived: the epoch goes on, and one log holds both rounds. It was asked twice, so the first
    upload's commitment is where it may be."""
    court = courts("a", "b", micro_batches_per_step=2, num_microbatches_min=3, segment_steps=99)
    world = court.world
    for name in "ab":
        court.book(name)
    world.work_until(lambda: world.stage().merge is not None and world.merge().step == "upload")
    for name in "ab":
        world.exchange(name, free=0)
        world.result(world.players[name].the(m.UploadWork))  # computed, never sent
        world.players[name].held.clear()
    world.idle(21.0)
    assert world.stage().merge is None and world.stage().epoch == 0
    court.to_epoch(1)
    assert court.dossier(0, "a").asked == 2 and court.dossier(0, "a").upload is not None
    court.see(closes=0)
    assert court.audited() == ["a", "b"]


def test_a_result_that_was_found_bad_is_not_owed(courts: Courts) -> None:
    """11. Its boundary was looked at and is no tensor: the credit is gone, here as in the ledger."""
    court = courts("a", "b", num_stages=2)
    world = court.world
    maker = next(n for n in "ab" if world.miner(n).stage == 0)
    reader = "b" if maker == "a" else "a"
    world.work_until(lambda: bool(world.players[reader].works(m.PassWork)), names=[maker, reader])
    work = world.players[reader].works(m.PassWork)[0]
    item = next(i for i, g in court.dossier(0, maker).given.items() if g.work.micro_batch == work.micro_batch)
    assert court.dossier(0, maker).given[item].credited
    world.bad_objects[work.stage_input.key] = Reason.BAD_OBJECT
    failed = m.Failed(item=work.item, reason=Reason.BAD_OBJECT, sentence="bad", object_key=work.stage_input.key)
    world.exchange(reader, failed)
    assert not court.dossier(0, maker).given[item].credited and court.dossier(0, maker).given[item].answered
    court.to_epoch(2)
    assert court.dossier(1, maker).upload is not None


def test_dossiers_are_kept_as_long_as_audits_may_ask(courts: Courts) -> None:
    """12. Three epochs behind the running one, and one more: a log may name a pass that was given the epoch before."""
    court = courts("a", "b")
    court.to_epoch(4)
    assert min(court.state.pay.dossiers) == 0 and court.world.dropped == [0]
    court.to_epoch(5)
    assert min(court.state.pay.dossiers) == 1 and court.world.dropped == [0, 1]


def go_on(court: Court, epoch: int) -> None:
    """Everybody trains; nobody shows anything."""
    world = court.world
    for name in world.players:
        court.book(name)
    while world.stage().epoch < epoch:
        for name, player in world.players.items():
            works = [work for work in player.held.values() if not isinstance(work, m.RevealWork)]
            world.exchange(name, *map(world.result, works))
        world.wait(1.0)


@pytest.mark.parametrize("shown", [False, True])
def test_an_audit_does_not_outlive_its_objects(courts: Courts, shown: bool) -> None:
    """13. The epoch's objects go before it was replayed: nobody's fault, and the credit counts; unless it was the miner
    who had not shown its states yet."""
    court = courts("a", "b", replay_deadline_s=8e4, reveal_deadline_s=8e4, gamma_s=8e4, segment_steps=99)
    for epoch in range(2):
        go_on(court, epoch + 1)
        court.see(closes=epoch)
        if shown:
            court.show_all()
    go_on(court, 3)
    assert {a.epoch for a in court.state.pay.audits.values()} == {0, 1}
    go_on(court, 4)
    assert {a.epoch for a in court.state.pay.audits.values()} == {1}
    standing = court.standing("a")
    assert (standing.unreadable, standing.not_revealed, standing.failed) == (int(shown), int(not shown), 0)
    assert court.pays("a")[0] is (Reason.PAID if shown else Reason.NOT_REVEALED)
