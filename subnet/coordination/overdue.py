"""Work that does not come back: past its deadline, or its miner is gone. It is offered again, elsewhere if possible.

Law: whoever is slow is not punished, and its result still counts if it comes first. Nothing waits for ever: neither for
a replica that lives but does not work, nor for a piece that nobody can do.
"""

from __future__ import annotations

from subnet.coordination.index import NEVER, index_of
from subnet.coordination.routing import close_offers, dequeue, enqueue, gives_passes, unbind, withdraw
from subnet.coordination.state import MicroBatch, StageState, State
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import PassWork
from subnet.protocol.reasons import Reason

ATTEMPTS_MAX = 60
"""Offers beyond one per piece after which a micro-batch is given up, so that no poisoned item circles for ever."""


def is_due(state: State, now: float) -> bool:
    """Whether `expire` would change anything at `now`."""
    if index_of(state).is_any_late(state, now):
        return True
    return any(_held_up(state, stage, now) is not None for stage in state.stages)


def expire(state: State, at: float) -> list[str]:
    """Offer again what is past its deadline; returns what an operator may want to read."""
    said = []
    for offer in index_of(state).late(state, at):
        assert isinstance(offer.work, PassWork)
        offer.expired = True
        batch = state.micro_batches[offer.work.micro_batch]
        if offer.hotkey not in batch.barred:
            batch.barred.append(offer.hotkey)
        unbind(state, batch, offer.work.stage)
        said.append(f"{offer.item} is late at {offer.hotkey[:8]} ({at - offer.offered_at:.0f} s): offered again")
        requeue(state, batch)
    index = index_of(state)
    if at < index.kept_at:
        return said
    for stage in state.stages:
        while (waiting := _held_up(state, stage, at)) is not None:
            hop = waiting.hops[stage.stage]
            unbind(state, waiting, stage.stage)
            said.append(
                f"the backward of micro-batch {waiting.id} waited {at - waiting.waiting_since:.0f} s for"
                f" {str(hop.forward_by)[:8]}: any replica of stage {stage.stage} may take it"
            )
    waiting_at = [k.kept[0][0] for k, s in zip(index.stages, state.stages, strict=True) if k.kept and s.backward_ready]
    index.kept_at = min(waiting_at, default=NEVER)
    return said


def _held_up(state: State, stage: StageState, now: float) -> MicroBatch | None:
    """A backward whose forward's replica lives but does not ask for work, though another one could do it.

    After a merge the replicas get some time to ask before anything is taken from them.
    """
    begun = now >= stage.phase_since + state.spec.routing.deadline_floor_s
    if not stage.backward_ready or not begun or not gives_passes(stage) or state.num_replicas(stage.stage) < 2:
        return None
    return index_of(state).kept_too_long(state, stage.stage, now)


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
    index_of(state).closed(batch)
    state.abandoned += 1
    state.incident(Reason.NO_WORK, f"micro-batch {batch.id} was given up {why}")


def release(state: State, hotkey: Hotkey) -> None:
    """A miner's session is over: its work is offered again and its graphs are gone; credit stays."""
    miner = state.miners[hotkey]
    for number in index_of(state).graphs_of(hotkey):
        unbind(state, state.micro_batches[number], miner.stage)
    for item in list(miner.offers):
        offer = withdraw(state, item)
        if offer is None or not isinstance(offer.work, PassWork):
            continue
        batch = state.micro_batches[offer.work.micro_batch]
        batch.offers.remove(item)
        offer_again(state, batch)
    miner.free_slots = 0
    index_of(state).file_miner(state, miner)


def offer_again(state: State, batch: MicroBatch) -> None:
    """One offer fell away: the piece is free unless somebody else is at it in time."""
    if all(state.offers[item].expired for item in batch.offers):
        requeue(state, batch)
