"""Time and restarts: what a tick is for, what a journal is worth, what an orchestrator that was away owes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import pytest

from subnet.coordination import machine
from subnet.coordination.effects import CheckObject, DrawSecret, RecomputeShard
from subnet.coordination.status import status
from subnet.errors import InvariantViolation
from subnet.protocol import keys
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, Pass, Phase, RunId
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

Worlds = Callable[..., "World"]


def tick_changes(world: World, at: float) -> bool:
    """Whether a tick at that time would change more than the clock and the sentences that follow it."""
    before, copy = world.copy(), world.copy()
    machine.handle(copy, m.Envelope(sender=Hotkey("orchestrator"), at=at, message=m.Tick()))
    for state in (before, copy):
        state.at = 0.0
        for stage in state.stages:
            stage.sentence = ""
    return copy != before


@pytest.mark.parametrize("seed", range(3))
def test_a_tick_is_due_when_it_changes_something(worlds: Worlds, seed: int) -> None:
    """1. Through a run with a hung and a dead miner: at any later moment, due means changed and changed means due."""
    world = worlds(num_stages=2, num_microbatches_min=2, target_epochs=2, relax_after_s=20.0)
    world.join(*"abcd")
    drawn = hashlib.sha256(f"seed {seed}".encode()).digest()
    seen = set()
    for byte in drawn:
        for number, name in enumerate(sorted(world.players)):
            if byte >> number & 1:
                world.do(name)
            else:
                world.exchange(name, free=byte % 3)
        if byte % 11 == 0 and len(world.players) > 2:
            del world.players[max(world.players)]
        for ahead in (0.0, 0.5, 5.0, 16.0, 31.0, 100.0):
            due = machine.is_due(world.state, world.at + ahead)
            assert due == tick_changes(world, world.at + ahead), (byte, ahead)
            seen.add(due)
        world.wait(1.0 + byte % 5)
    assert seen == {True, False}


def test_nothing_happens_before_the_first_secret(worlds: Worlds) -> None:
    """2. Without a secret nothing can be drawn: miners join and wait; with it, work begins."""
    world = worlds(num_stages=1, auto=False)
    assert world.errands == [DrawSecret(0)]
    world.join("a")
    assert world.exchange("a").work == ()
    world.do_errands()
    assert world.exchange("a").work


def test_an_epochs_secret_is_drawn_once(worlds: Worlds) -> None:
    """3. A second secret for the same epoch changes no draw; each epoch asks for its own the moment it begins."""
    world = worlds(num_stages=1)
    first = world.state.secrets[0]
    world.own(m.SecretDrawn(epoch=0, secret="f" * 64))
    assert world.state.secrets == {0: first}
    world.join("a")
    world.auto = False
    world.work_until(lambda: world.stage().merge is not None and bool(world.merge().published))
    looks, world.errands = world.errands, []
    for look in looks:  # at the parameters that were published
        world.own(world.answer_to(look))
    world.work_until(lambda: world.stage().epoch == 1)
    assert world.errands == [DrawSecret(1)] and world.state.secret() == bytes.fromhex(first)
    world.do_errands()
    assert world.state.secret() == bytes.fromhex(world.state.secrets[1])


def test_a_journal_has_one_beginning_and_one_direction(worlds: Worlds) -> None:
    """4. No run without its opening, no second opening, no time that runs backwards: all are a developer's errors."""
    world = worlds(num_stages=1)
    opening = msgspec.json.decode(world.journal[0], type=m.Envelope)
    tick = m.Envelope(sender=Hotkey("orchestrator"), at=world.at - 1.0, message=m.Tick())
    for wrong in (tick, msgspec.structs.replace(opening, at=world.at)):
        with pytest.raises(InvariantViolation):
            machine.handle(world.copy(), wrong)
    for journal in ([], [tick]):
        with pytest.raises(InvariantViolation):
            machine.replay(journal)
    too_few = msgspec.structs.replace(opening.message, starts=())
    with pytest.raises(InvariantViolation):
        machine.open_run(msgspec.structs.replace(opening, message=too_few))


def test_nobody_is_blamed_for_the_time_away(worlds: Worlds) -> None:
    """5. The orchestrator was away for an hour: no miner is silent, no item late, no merge past its deadline."""
    world = worlds(num_stages=1)
    world.join("a", "b", "c")
    world.work_until(lambda: world.stage().merge is not None)
    world.exchange("c", free=4)
    world.wait(5.0)
    assert any(isinstance(offer.work, m.PassWork) for offer in world.state.offers.values())
    offers, live = dict(world.state.offers), len(world.state.replicas(0))
    world.at += 3600.0
    world.own(m.RunResumed(target_epochs=0))
    assert world.state.offers == offers and len(world.state.replicas(0)) == live
    assert not any(offer.expired for offer in world.state.offers.values())
    assert world.merge().step == "upload" and not machine.is_due(world.state, world.at)
    world.work_until(lambda: world.stage().epoch == 1, limit_s=60.0)


def test_what_was_asked_and_not_answered_is_asked_again(worlds: Worlds) -> None:
    """6. A crash between question and answer: secret, complaint and disputed shard are all asked for once more."""
    world = worlds(num_stages=1, auto=False)
    world.errands.clear()
    world.own(m.RunResumed(target_epochs=0))
    assert world.errands == [DrawSecret(0)]
    world.do_errands()
    world.join("a", "b", "c")
    world.to_step("reduce")
    work = world.players["a"].the(m.ReduceWork)
    source = work.manifest[0].source
    world.exchange("a", m.Failed(item=work.item, reason=Reason.BAD_DIGEST, sentence="bad", object_key=source.key))
    asked = list(world.errands)
    world.errands.clear()
    world.own(m.RunResumed(target_epochs=0))
    assert world.errands == [*asked, DrawSecret(0)] and isinstance(asked[0], CheckObject)
    world.do_errands()
    world.do("b", world.players["b"].the(m.ReduceWork))
    c = world.players["c"].the(m.ReduceWork)
    world.do("c", c, shard_digests=tuple("f" * 64 for _ in c.shards))
    for name in "bc":  # the second copies that the first one did not make
        world.exchange(name)
        world.do(name, world.players[name].the(m.ReduceWork))
    asked = list(world.errands)
    assert asked and all(isinstance(errand, RecomputeShard) for errand in asked)
    world.own(world.answer_to(asked[0]))
    world.errands.clear()
    world.own(m.RunResumed(target_epochs=0))
    assert world.errands == [*asked[1:], DrawSecret(0)]
    world.auto = True
    world.do_errands()
    world.work_until(lambda: world.stage().epoch == 1, limit_s=60.0)
    assert set(world.stage().merges[0].faulty) == {"c"}


def test_a_complaint_about_a_pass_survives_a_restart(worlds: Worlds) -> None:
    """7. The withheld micro-batch is not forgotten: its object is looked at after the restart."""
    world = worlds(num_stages=2, auto=False)
    world.do_errands()
    world.join("a", "b")
    world.exchange("a")
    world.do("a")
    world.exchange("b")
    work = world.players["b"].works(Pass.LOSS)[0]
    key = work.stage_input.key
    world.exchange("b", m.Failed(item=work.item, reason=Reason.BAD_SIZE, sentence="bad", object_key=key))
    world.errands.clear()
    world.own(m.RunResumed(target_epochs=0))
    assert world.errands == [CheckObject(work.stage_input), DrawSecret(0)]
    world.do_errands()
    world.work_until(lambda: work.micro_batch not in world.state.micro_batches, limit_s=60.0)


def test_old_epochs_are_dropped_with_all_that_reads_them(worlds: Worlds) -> None:
    """8. Objects behind the window go; a micro-batch that hung in there since then is given up, nobody is at fault."""
    world = worlds(num_stages=1, num_microbatches_min=2, grace_s=0.5, in_flight_per_replica=4, deadline_first_s=9000.0)
    world.join("a", "hung")
    world.exchange("hung", free=1)
    old = world.players["hung"].the(Pass.LOSS).micro_batch
    while not world.dropped:
        world.do("a")
        for work in list(world.players["hung"].held.values()):
            world.exchange("hung", *([] if isinstance(work, m.PassWork) else [world.result(work)]), free=0)
        world.wait(1.0)
        assert world.at < 3_000.0
    assert world.dropped == [0] and world.stage().epoch == 4
    assert old not in world.state.micro_batches and world.state.abandoned == 1
    assert keys.parse(world.stage().parameters.key).epoch == 4
    world.exchange("hung", free=0)
    assert not world.players["hung"].works(Pass.LOSS) and world.miner("hung").faults == 0


def test_the_public_view(worlds: Worlds) -> None:
    """9. In every phase the status can be written as JSON and explains each miner; shard owners stay secret."""
    world = worlds(num_stages=2, target_epochs=1)
    world.join("a", "b", "c", "d")
    phases = set()

    def look() -> bool:
        view = status(world.state)
        assert msgspec.json.decode(msgspec.json.encode(view))["run_id"] == RunId("run")
        assert all(r["sentence"] and r["remedy"] for stage in view["stages"] for r in stage["replicas"])
        assert "assignments" not in str(view) and "secret" not in str(view)
        phases.update(stage["phase"] for stage in view["stages"])
        return view["finished"]

    world.work_until(look)
    assert phases == set(Phase)
