"""Audits over restarts of the orchestrator, and in any order at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import pytest

from subnet.coordination import machine
from subnet.coordination.effects import DrawSecret
from subnet.coordination.notices import finished
from subnet.coordination.settlement import sheet
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, Phase
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import Court

Courts = Callable[..., "Court"]
BAD = m.AuditFigures(outputs=1, state=9.0)


def test_a_restart_asks_for_the_block_again(courts: Courts) -> None:
    """1. The orchestrator's process ended before the chain had answered: the epoch is drawn all the same, once."""
    court = courts("a")
    court.to_epoch(1)
    court.world.own(m.RunResumed(target_epochs=0))
    assert court.world.blocks == [0, 0]
    court.world.own(m.RunResumed(target_epochs=0))
    assert court.world.blocks == [0, 0, 0]
    court.see(closes=0)
    assert court.audited() == ["a"]
    court.world.own(m.RunResumed(target_epochs=0))
    assert court.world.blocks == [0, 0, 0] and court.audited() == ["a"]


def test_a_restart_draws_from_a_fresh_secret(courts: Courts) -> None:
    """2. The last secret may be public by now: no work is given before a new one is there."""
    court = courts("a", "b")
    court.to_epoch(1)
    world = court.world
    world.auto = False
    world.own(m.RunResumed(target_epochs=0))
    assert world.errands == [DrawSecret(1)] and world.state.secrets == {}
    opened = world.state.next_micro_batch
    for name in "abab":
        world.do(name)
    assert not world.players["a"].held and not world.players["b"].held
    assert world.state.next_micro_batch == opened
    world.errands.clear()  # this process ends too, before the secret is journaled
    world.own(m.RunResumed(target_epochs=0))
    assert world.errands == [DrawSecret(1)]
    world.own(m.SecretDrawn(epoch=0, secret="f" * 64))
    assert world.state.secrets == {}, "an answer to an older question"
    world.do_errands()
    assert world.state.secrets and not world.errands
    world.exchange("b", free=4)
    assert world.state.next_micro_batch > opened


@pytest.mark.parametrize("step", ["reveal", "replay"])
def test_nobody_is_blamed_for_the_time_away(courts: Courts, step: str) -> None:
    """3. An hour passes between two records: neither the miner nor the validator has missed its deadline."""
    court = courts("a")
    court.to_epoch(1)
    court.draw(0, {"a": 1})
    court.review("v", free=0)
    if step == "replay":
        court.reveal("a")
    court.world.at += 3600.0
    court.world.own(m.RunResumed(target_epochs=0))
    assert court.audit("a").step == step and court.audit("a").attempt == 0
    court.world.wait(5.0)
    assert court.audited() == ["a"]
    court.show_all()
    court.review("v", court.found(court.given("v")[0].item))
    assert court.standing("a").passed == 1


def test_a_contested_audit_stands(courts: Courts) -> None:
    """4. One finding is in when the process ends; the replayed state asks the others for the rest."""
    court = courts("a", segment_steps=99)
    court.to_epoch(1)
    stakes = {"v1": 1.0, "v2": 2.0}
    court.see(stakes=stakes)
    for name in stakes:
        court.review(name, free=0)
    court.see(closes=0, stakes=stakes)
    court.show_all()
    first = str(court.audit("a").validator)
    (second,) = set(stakes) - {first}
    court.review(first, court.found(court.audit("a").item, BAD))
    court.world.own(m.RunResumed(target_epochs=0))
    (work,) = court.given(second)
    court.review(second, court.found(work.item, BAD))
    assert court.standing("a").failed == 1


# ---- anything in any order -------------------------------------------------------------------------------------------


def tick_changes(court: Court, at: float) -> bool:
    """Whether a tick would change more than the clock and the sentences that follow it."""
    before, copy = court.world.copy(), court.world.copy()
    machine.handle(copy, m.Envelope(sender=Hotkey("orchestrator"), at=at, message=m.Tick()))
    for state in (before, copy):
        state.at = 0.0
        for stage in state.stages:
            stage.sentence = ""
    return copy != before


def act(court: Court, byte: int, seen: list[m.AuditWork]) -> None:
    """One thing that may happen to audits, drawn."""
    world, names = court.world, sorted(court.world.players)
    name, validator = names[byte % len(names)], ("v1", "v2", "v3")[byte % 3]
    stakes = {"v1": 1.0, "v2": 2.0, "v3": 4.0}
    match byte >> 5:
        case 0:
            court.see(court.state.pay.drawn + 1, byte, stakes)
        case 1:
            for work in court.reveals(name):
                lie = {"start": ("0" * 64,) * 4} if byte % 7 == 0 and work.start else {}
                world.do(name, work, **lie)
        case 2 | 3:
            reply = court.review(validator)
            seen += reply.audits if isinstance(reply, m.Reviewed) else ()
        case 4:
            for work in seen[-2:]:
                figures = (None, m.AuditFigures(outputs=1), BAD)[byte % 5 % 3]
                reason = (Reason.UNREADABLE, Reason.OK, Reason.BAD_OBJECT)[byte % 3]
                court.review(validator, court.found(work.item, figures, reason))
        case 5:
            session = f"s{byte}{len(world.journal)}"
            if isinstance(world.send(Hotkey(name), m.Join(session=session, device="cpu", software="t")), m.Joined):
                world.join(name, session=session)
        case 6:
            world.own(m.RunResumed(target_epochs=3))
        case _:
            world.wait(float(byte % 16))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens(courts: Courts, seed: int) -> None:
    """5. Draws, lies, restarts, silence and findings of all kinds in any order: what is due changes something, the
    state is the fold of its journal (conftest), weights are always exactly one, and once everybody is honest the run
    ends with every audit settled."""
    court = courts("a", "b", "c", num_microbatches_min=2, relax_after_s=20.0, gamma_s=90.0, target_epochs=3)
    world, seen = court.world, list[m.AuditWork]()
    drawn = b"".join(hashlib.sha256(f"{seed} {n}".encode()).digest() for n in range(5))
    for number, byte in enumerate(drawn):
        for name in sorted(world.players):
            if byte >> number % 3 & 1:
                world.do(name)
        act(court, byte, seen)
        for ahead in (0.0, 11.0, 21.0):
            if machine.is_due(world.state, world.at + ahead):
                assert tick_changes(court, world.at + ahead), (number, ahead)
        assert sum(sheet(court.state).emission.weights.values()) == 1.0
        world.wait(1.0)
    world.players.clear()
    world.idle(95.0)
    for name in ("d", "e"):
        world.join(name, session="last")
    while not finished(court.state):
        world.idle(1.0)
        world.work_until(lambda: all(stage.phase is Phase.PAUSED for stage in court.state.stages), limit_s=2_000.0)
        court.see(court.state.pay.drawn + 1)
        court.show_all()
        court.review("v", *(court.found(work.item) for work in court.given("v")))
    assert not court.state.pay.audits and court.state.pay.drawn == 2


def test_every_prefix_of_a_journal_gives_its_weights(courts: Courts) -> None:
    """6. Anyone with the first n records computes what the orchestrator would have at that moment."""
    court = courts("a", "b", segment_steps=99)
    live = []
    court.world.watch = lambda envelope, reply: live.append(sheet(court.state).emission)
    court.to_epoch(1)
    court.see(closes=0)
    court.show_all()
    works = court.given("v")
    court.review("v", court.found(works[0].item, BAD), court.found(works[1].item))
    assert len(set(map(str, live))) > 2
    journal = [msgspec.json.decode(entry, type=m.Envelope) for entry in court.world.journal]
    state = machine.open_run(journal[0])
    told = []
    for envelope in journal[1:]:
        machine.handle(state, envelope)
        told.append(sheet(state).emission)
    assert told[-len(live) :] == live
