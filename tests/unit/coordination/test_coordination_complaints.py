"""Pieces that cannot be done: objects that are bad or are called bad, and micro-batches that nobody can finish."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from subnet.coordination.effects import CheckObject
from subnet.coordination.routing import due
from subnet.protocol import messages as m
from subnet.protocol.ids import MicroBatchId, Pass
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

Worlds = Callable[..., "World"]
FIRST = MicroBatchId(0)


def failed(work: m.Work, key: str | None) -> m.Failed:
    return m.Failed(item=work.item, reason=Reason.BAD_DIGEST, sentence="not the bytes I was told", object_key=key)


def test_the_object_is_bad(worlds: Worlds) -> None:
    """1. A reader complains and is right: the pass behind the object is undone, unpaid, and done by somebody else."""
    world = worlds(auto=False)
    world.do_errands()
    world.join(*"abcdef")
    world.work_until(lambda: any(world.players[n].works(Pass.FORWARD) for n in world.of_stage(1)))
    reader = next(n for n in world.of_stage(1) if world.players[n].works(Pass.FORWARD))
    work = world.players[reader].works(Pass.FORWARD)[0]
    batch = world.state.micro_batches[work.micro_batch]
    maker = batch.hops[0].forward_by
    before = world.credit(maker)
    world.exchange(reader, failed(work, work.stage_input.key), free=0)
    assert world.errands == [CheckObject(work.stage_input)]
    assert batch.accused == work.stage_input, "withheld while it is looked at"
    world.bad_objects[work.stage_input.key] = Reason.BAD_DIGEST
    world.do_errands()
    assert due(batch) == (Pass.FORWARD, 0) and batch.hops[0].boundary is None
    assert world.credit(maker) < before and world.miner(maker).faults == 1
    assert world.miner(reader).faults == world.miner(reader).false_complaints == 0
    assert world.state.incidents[-1].hotkey == maker
    for name in world.of_stage(0):
        world.exchange(name, free=4)
    again = [n for n in world.of_stage(0) for w in world.players[n].works(Pass.FORWARD) if w.micro_batch == batch.id]
    assert again and again != [maker]


def test_the_object_is_good(worlds: Worlds) -> None:
    """2. The complaint was false: counted against who complained, not against one that was late with the same piece."""
    world = worlds(num_stages=2, auto=False, in_flight_per_replica=1)
    world.do_errands()
    world.join("first", "late", "accuser")
    first, late, accuser = (world.miner(name) for name in world.players)
    assert (first.stage, late.stage, accuser.stage) == (0, 1, 1)
    world.exchange("first")
    world.do("first")
    world.exchange("late", free=1)
    world.idle(31.0)
    world.exchange("accuser", free=1)
    work = world.players["accuser"].the(Pass.LOSS)
    assert work.micro_batch == world.players["late"].the(Pass.LOSS).micro_batch
    world.exchange("accuser", failed(work, work.stage_input.key), free=0)
    world.do_errands()
    assert (accuser.false_complaints, late.false_complaints, first.faults) == (1, 0, 0)
    assert world.state.incidents[-1].hotkey == "accuser"
    world.exchange("late", free=4)
    assert work.micro_batch in [w.micro_batch for w in world.players["late"].works(Pass.LOSS)], "offered again"


def test_two_complain_about_the_same_object(worlds: Worlds) -> None:
    """3. The orchestrator looks once; a bad gradient undoes the loss pass, forward and backward of it together."""
    world = worlds(auto=False, in_flight_per_replica=1)
    world.do_errands()
    world.join(*"abcdef")
    world.work_until(lambda: any(world.players[n].works(Pass.BACKWARD) for n in world.of_stage(1)))
    reader = next(n for n in world.of_stage(1) if world.players[n].works(Pass.BACKWARD))
    work = world.players[reader].works(Pass.BACKWARD)[0]
    batch = world.state.micro_batches[work.micro_batch]
    maker = batch.hops[2].backward_by
    done = world.stage(2).contributions[maker]
    world.exchange(reader, failed(work, work.gradient.key), free=0)
    asked = list(world.errands)
    assert asked == [CheckObject(work.gradient)]
    world.own(m.ObjectChecked(key=work.stage_input.key, reason=Reason.BAD_DIGEST))
    assert batch.accused == work.gradient, "news of another object is no answer"
    world.bad_objects[work.gradient.key] = Reason.NOT_FINITE
    world.do_errands()
    assert due(batch) == (Pass.LOSS, 2) and world.stage(2).contributions[maker] == done - 1
    world.own(m.ObjectChecked(key=work.gradient.key, reason=Reason.NOT_FINITE))
    assert world.miner(maker).faults == 1, "said twice, counted once"


def test_an_object_that_is_not_an_input_is_not_looked_at(worlds: Worlds) -> None:
    """4. A miner blames some object that its work does not read: noted as its own failure."""
    world = worlds(num_stages=1, auto=False)
    world.do_errands()
    world.join("a", "b")
    world.exchange("a")
    work = world.players["a"].works(Pass.LOSS)[0]
    verdict = world.exchange("a", failed(work, "run/0/0/start/parameters"), free=0).verdicts[0]
    assert world.errands == [] and (verdict.outcome, verdict.reason) == ("applied", Reason.BAD_DIGEST)


def test_a_poisoned_item_does_not_circle_for_ever(worlds: Worlds) -> None:
    """5. A piece that everybody fails is given up after many offers; training goes on without it."""
    world = worlds(num_stages=1, in_flight_per_replica=1)
    world.join("a", "b")
    for _ in range(200):
        for name in "ab":
            works = world.players[name].works(Pass.LOSS)
            world.exchange(name, *(failed(w, None) if w.micro_batch == 0 else world.result(w) for w in works))
        world.wait(1.0)
        if FIRST not in world.state.micro_batches:
            break
    assert world.state.abandoned == 1 and FIRST not in world.state.micro_batches
    assert any("micro-batch 0 was given up after" in incident.sentence for incident in world.state.incidents)
    assert world.state.completed > 0
