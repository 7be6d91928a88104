"""What a miner or the clock may do to an audit out of turn: odd, doubled and late answers change nothing else."""

from __future__ import annotations

from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey

BAD = m.AuditFigures(outputs=1, state=9.0)


def test_more_digests_than_were_asked_for(courts):
    """1. RevealDone.start where none was asked: must not crash the machine."""
    court = courts("a", "b")
    court.to_epoch(1)
    court.draw(0, {"a": 0})
    (work,) = court.reveals("a")
    assert work.start == ()
    court.world.verdict("a", work, start=("0" * 64,) * 4)


def test_a_reveal_sent_twice_is_no_fault(courts):
    """2. the reply is lost, the miner sends its RevealDone again."""
    court = courts("a", "b")
    court.to_epoch(1)
    court.draw(0, {"a": 1})
    (work,) = court.reveals("a")
    done = court.world.result(work)
    court.world.exchange("a", done, lost=True)
    (verdict,) = court.world.exchange("a", done).verdicts
    assert (verdict.outcome, court.world.miner("a").faults) == ("ignored", 0), verdict


def test_an_old_reveal_does_not_block_the_next(courts):
    """3. epoch 0's states were not shown in time; epoch 1's are asked for all the same."""
    court = courts("a", "b")
    world = court.world
    for name in "ab":
        court.book(name)

    def go_on(epoch):
        while world.stage().epoch < epoch:
            for name, player in world.players.items():
                works = [w for w in player.held.values() if not isinstance(w, m.RevealWork)]
                world.exchange(name, *map(world.result, works))
            world.wait(1.0)

    go_on(1)
    court.draw(0, {"a": 1})
    (work,) = court.reveals("a")
    world.idle(11.0)
    assert court.standing("a").not_revealed == 1
    go_on(2)
    court.draw(1, {"a": 1})
    assert [w.epoch for w in court.reveals("a")] == [1], court.reveals("a")


def test_a_tick_that_is_not_due_changes_nothing(courts):
    """4. after a validator's time is over the next one is found at once, not with the next envelope."""
    court = courts("a", segment_steps=99)
    court.to_epoch(1)
    stakes = {"v1": 1.0, "v2": 1.0}
    court.see(stakes=stakes)
    for v in stakes:
        court.review(v, free=0)
    court.see(closes=0, stakes=stakes)
    court.show_all()
    until = court.audit("a").deadline
    while court.world.at < until - 2:
        court.world.idle(2.0)
        for v in stakes:
            court.review(v, free=0)
    court.world.wait(until - court.world.at)
    assert court.audit("a").attempt == 1 and court.audit("a").validator is not None


def test_late_results_of_a_process_that_restarts_one_epoch_later(courts):
    """5. passes credited after the upload; the miner goes on, is given work of the next epoch, restarts: they are in no
    log, and must not be paid (the epoch is drawn after that)."""
    court = courts("a", "b", segment_steps=99)
    between = court.upload_first("a")
    court.world.do("a", *between)
    court.to_epoch(1)
    court.world.work_until(lambda: Hotkey("a") in court.state.pay.dossiers.get(1, {}))
    court.world.join("a", session="s2")
    court.to_epoch(2)
    court.see(closes=0)
    court.see(closes=1)
    assert 0 in court.state.pay.unlogged
