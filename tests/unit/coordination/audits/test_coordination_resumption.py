"""A process dies and the next one goes on from its last committed state: what counts again, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from subnet.localnet.lost_work import Fate, LostWork
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, Pass

if TYPE_CHECKING:
    from conftest import Court

Courts = Callable[..., "Court"]
A = Hotkey("a")


def left_on_disk(court: Court, name: str = "a") -> m.Resumes:
    """What the process of now has committed, as it would lie on its disk were it killed at this moment."""
    book, stage = court.book(name), court.world.stage()
    return m.Resumes(
        run_id=court.world.spec.run_id,
        stage=0,
        epoch=book.epoch,
        anchor=stage.parameters.digest,
        log=tuple(book.log[: book.commitments[-1].position]),
        commitments=tuple(book.commitments),
        applied_at=book.applied_at,
        loaded=book.loaded,
    )


def comes_back(court: Court, found: m.Resumes | None, session: str = "s2") -> bool:
    """A new process joins with what it found; where the orchestrator agrees, its book goes on there."""
    world, old = court.world, court.book("a")
    reply = world.send(A, m.Join(session=session, device="cpu", software="test", resumes=found))
    assert isinstance(reply, m.Joined)
    world.join("a", session=session)  # joining again changes nothing but that the test's player is there
    if reply.resumed:
        assert found is not None
        resumed = world.send(A, m.Join(session=session, device="cpu", software="test", resumes=found))
        assert isinstance(resumed, m.Joined) and resumed.resumed, "the answer that was lost comes again"
        book = court.book("a")
        book.log, book.commitments = list(found.log), list(found.commitments)
        last = book.commitments[-1]
        book.version, book.step, book.optimizer_steps = last.version, last.step, last.optimizer_steps
        book.applied_at, book.loaded, book.since, book.accumulated = found.applied_at, found.loaded, 0, 0
        book.epoch, book.ran = old.epoch, {logged.item: old.ran[logged.item] for logged in found.log}
    return reply.resumed


def trained(court: Court, count: int) -> None:
    """Both work until the first has so many micro-batches behind it in this epoch."""
    world = court.world
    for name in world.players:
        court.book(name)
    world.work_until(lambda: world.stage().contributions.get(A, 0) >= count)


def test_the_progress_of_a_killed_process_is_merged(courts: Courts) -> None:
    """1. Killed after five micro-batches: the next process goes on with the five, uploads one log over both, is audited
    for it, and nothing that it was credited is left unpaid."""
    court = courts("a", "b", num_microbatches_min=12)
    world = court.world
    trained(court, 5)
    found, credit, counted = left_on_disk(court), world.credit("a"), world.stage().contributions[A]
    assert comes_back(court, found)
    assert world.stage().contributions[A] == counted >= 5
    court.to_epoch(1)
    entry = court.dossier(0, "a")
    assert entry.upload is not None and entry.loaded and len(entry.log) >= 12
    assert {logged.item for logged in found.log} <= {logged.item for logged in entry.log}
    assert world.credit("a") > credit and not world.state.pay.unlogged.get(0, {}).get(A)
    court.draw(0)
    court.settle_all()
    assert court.standing("a").passed == 1


def test_it_goes_on_in_a_later_epoch(courts: Courts) -> None:
    """2. The log began at the upload of the epoch before, and a merge was applied in it: it goes on from there too."""
    court = courts("a", "b", num_microbatches_min=12)
    court.to_epoch(1)
    trained(court, 4)
    found = left_on_disk(court)
    assert not found.loaded and comes_back(court, found)
    assert court.world.stage().contributions[A] >= 4 and A not in court.state.pay.fresh
    court.to_epoch(2)
    entry = court.dossier(1, "a")
    assert entry.upload is not None and not entry.loaded


def test_what_came_after_the_commitment_is_gone(courts: Courts) -> None:
    """3. A step takes two micro-batches; the one after the last step is in no state, so it does not count again."""
    court = courts("a", "b", num_microbatches_min=12, micro_batches_per_step=2)
    trained(court, 5)
    counted = court.world.stage().contributions[A]
    found = left_on_disk(court)
    assert comes_back(court, found)
    assert court.world.stage().contributions[A] == counted - counted % 2
    court.to_epoch(1)
    assert court.dossier(0, "a").upload is not None


def test_a_long_absence(courts: Courts) -> None:
    """4. It was taken for dead before it came back: its progress counts all the same, and is not reported as lost."""
    court = courts("a", "b", num_microbatches_min=40)
    lost = LostWork()
    court.world.watch = lambda envelope, reply: lost.note(court.state)
    trained(court, 5)
    found, counted = left_on_disk(court), court.world.stage().contributions[A]
    for _ in range(10):
        court.world.wait(2.0)
        court.world.exchange("b", free=0)
    assert A not in court.world.stage().contributions and not court.world.miner("a").live
    assert lost.counts[Fate.PROGRESS_GONE] == counted
    assert comes_back(court, found)
    assert court.world.stage().contributions[A] == counted and not lost.counts[Fate.PROGRESS_GONE]
    court.to_epoch(1)
    assert lost.totals(court.state)[Fate.MERGED] == court.state.passes_merged > 60


def test_nothing_found(courts: Courts) -> None:
    """5. A new disk: the miner starts at the epoch's parameters, as it always did."""
    court = courts("a", "b", num_microbatches_min=12)
    trained(court, 5)
    assert not comes_back(court, None)
    assert A not in court.world.stage().contributions and A in court.state.pay.fresh


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "other"},
        {"stage": 1},
        {"epoch": 1},
        {"anchor": "f" * 64},
        {"log": "of somebody else"},
        {"log": "twice"},
        {"log": "longer than its states"},
        {"loaded": False, "applied_at": 0},
        {"applied_at": 0},
    ],
    ids=str,
)
def test_what_does_not_fit_is_not_gone_on_from(courts: Courts, change: dict[str, Any]) -> None:
    """6. Of another run, stage or anchor, or a log that cannot be: nobody is accused, the miner just starts afresh."""
    court = courts("a", "b", num_microbatches_min=12)
    trained(court, 5)
    found = left_on_disk(court)
    others = tuple(m.Logged(logged.item, logged.version) for logged in left_on_disk(court, "b").log)
    logs = {
        "of somebody else": others[: len(found.log)],
        "twice": (*found.log[:-1], found.log[0]),
        "longer than its states": (*found.log, m.Logged(found.log[0].item, found.log[-1].version + 1)),
    }
    if "log" in change:
        change = {"log": logs[change["log"]]}
    assert not comes_back(court, msgspec.structs.replace(found, **change))
    assert A not in court.world.stage().contributions and court.world.miner("a").faults == 0


def test_a_stage_that_merges_waits_for_nobody(courts: Courts) -> None:
    """7. The stage has asked for the pseudo-gradients: what the dead process had is not among them any more; and once
    the process before was asked, the epoch's progress is not taken up again, whatever became of that merge."""
    court = courts("a", "b", num_microbatches_min=6)
    trained(court, 5)
    found = left_on_disk(court)
    world = court.world
    world.work_until(lambda: world.stage().merge is not None and world.merge().step == "upload")
    assert not comes_back(court, found)
    assert A not in world.stage().contributions


def test_a_miner_that_works_already_is_not_reset(courts: Courts) -> None:
    """8. Its Join is sent once more while it trains: what it has done since stays counted."""
    court = courts("a", "b", num_microbatches_min=40)
    trained(court, 5)
    found = left_on_disk(court)
    assert comes_back(court, found)
    trained(court, 8)
    reply = court.world.send(A, m.Join(session="s2", device="cpu", software="test", resumes=found))
    assert isinstance(reply, m.Joined) and not reply.resumed
    assert court.world.stage().contributions[A] >= 8


def test_passes_that_never_counted_do_not_count_now(courts: Courts) -> None:
    """9. Three of its passes are in the state but their results never arrived: the log names them, nothing is added."""
    court = courts("a", "b", num_microbatches_min=40)
    trained(court, 5)
    world, book = court.world, court.book("a")
    counted = world.stage().contributions[A]
    world.exchange("a")
    for work in world.players["a"].works(Pass.LOSS):
        court.honest(work)  # computed and committed, then killed before the exchange
    found = left_on_disk(court)
    assert len(found.log) > counted and len(book.log) == len(found.log)
    assert comes_back(court, found)
    assert world.stage().contributions[A] == counted


def test_what_an_upload_has_is_not_counted_again(courts: Courts) -> None:
    """In the next epoch a process claims to go on from passes that are in the merge already: it starts afresh."""
    court = courts("a", "b", num_microbatches_min=12)
    trained(court, 5)
    found = left_on_disk(court)
    court.to_epoch(1)
    stage = court.world.stage()
    again = msgspec.structs.replace(found, epoch=1, anchor=stage.parameters.digest)
    assert not comes_back(court, again)
    assert A not in stage.contributions
