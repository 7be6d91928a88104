"""Work that does not come back: past its deadline, or its miner is gone. It is offered again, elsewhere if possible.

Law: whoever is slow is not punished, and its result still counts if it comes first. Nothing waits for ever: neither for
a replica that lives but does not work, nor for a piece that nobody can do.
"""

from __future__ import annotations

from collections.abc import Iterator

from subnet.coordination.routing import close_offers, deadline_s, dequeue, enqueue, gives_passes, withdraw
from subnet.coordination.state import MicroBatch, StageState, State
from subnet.protocol.ids import Hotkey, Pass
from subnet.protocol.messages import PassWork
from subnet.protocol.reasons import Reason

ATTEMPTS_MAX = 60
"""Offers beyond one per piece after which a micro-batch is given up, so that no poisoned item circles for ever."""


def is_due(state: State, now: float) -> bool:
    """Whether `expire` would change anything at `now`."""
    if any(o.deadline <= now and not o.expired and isinstance(o.work, PassWork) for o in state.offers.values()):
        return True
    return any(True for stage in state.stages for _ in _held_up(state, stage, now))


def expire(state: State, at: float) -> list[str]:
    """Offer again what is past its deadline; returns what an operator may want to read."""
    said = []
    for offer in list(state.offers.values()):
        if not isinstance(offer.work, PassWork) or offer.expired or offer.deadline > at:
            continue
        offer.expired = True
        batch = state.micro_batches[offer.work.micro_batch]
        if offer.hotkey not in batch.barred:
            batch.barred.append(offer.hotkey)
        batch.hops[offer.work.stage].bound = False
        said.append(f"{offer.item} is late at {offer.hotkey[:8]} ({at - offer.offered_at:.0f} s): offered again")
        requeue(state, batch)
    for stage in state.stages:
        for batch in list(_held_up(state, stage, at)):
            hop = batch.hops[stage.stage]
            hop.bound = False
            said.append(
                f"the backward of micro-batch {batch.id} waited {at - batch.waiting_since:.0f} s for"
                f" {str(hop.forward_by)[:8]}: any replica of stage {stage.stage} may take it"
            )
    return said


def _held_up(state: State, stage: StageState, at: float) -> Iterator[MicroBatch]:
    """Backwards whose forward's replica lives but does not ask for work, though another one could do them."""
    floor_s = state.spec.routing.deadline_floor_s
    if not stage.backward_ready or not gives_passes(stage):
        return
    for micro_batch in stage.backward_ready:
        batch = state.micro_batches[micro_batch]
        hop = batch.hops[stage.stage]
        since = max(batch.waiting_since, stage.phase_since)
        if not hop.bound or hop.forward_by is None or at < since + floor_s or len(state.replicas(stage.stage)) < 2:
            continue
        if at >= since + deadline_s(state, state.miners[hop.forward_by], Pass.BACKWARD):
            yield batch


def requeue(state: State, batch: MicroBatch) -> None:
    """Make the due piece available again, or give the micro-batch up after too many offers."""
    if batch.attempts >= ATTEMPTS_MAX + 2 * len(batch.hops) - 1:
        give_up(state, batch, f"after {batch.attempts} offers")
    else:
        enqueue(state, batch)


def give_up(state: State, batch: MicroBatch, why: str) -> None:
    """Nobody works on a micro-batch any more; what was credited stays credited."""
    close_offers(state, batch)
    dequeue(state, batch)
    del state.micro_batches[batch.id]
    state.abandoned += 1
    state.incident(Reason.NO_WORK, f"micro-batch {batch.id} was given up {why}")


def release(state: State, hotkey: Hotkey) -> None:
    """A miner's session is over: its work is offered again and its graphs are gone; credit stays."""
    miner = state.miners[hotkey]
    for batch in state.micro_batches.values():
        hop = batch.hops[miner.stage]
        if hop.forward_by == hotkey:
            hop.bound = False
    for item in list(miner.offers):
        offer = withdraw(state, item)
        if offer is None or not isinstance(offer.work, PassWork):
            continue
        batch = state.micro_batches[offer.work.micro_batch]
        batch.offers.remove(item)
        offer_again(state, batch)
    miner.free_slots = 0


def offer_again(state: State, batch: MicroBatch) -> None:
    """One offer fell away: the piece is free unless somebody else is at it in time."""
    if all(state.offers[item].expired for item in batch.offers):
        requeue(state, batch)
