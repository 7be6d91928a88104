"""SWARM routing: which piece of work goes to whom (DESIGN 5, ALGORITHMS 2).

Law: work is pulled by free slots; backward before forward; among waiting items and equally free replicas the draw is
random and anyone can recompute it; a backward goes to the replica that did the forward while that one lives, then to
any. Work in flight is bounded, so the slowest stage sets the pace. Nothing here credits anybody.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection

from subnet.coordination import dossiers
from subnet.coordination.buckets import Buckets
from subnet.coordination.effects import Deliver
from subnet.coordination.index import index_of
from subnet.coordination.state import Hop, MicroBatch, Miner, Offer, StageState, State
from subnet.protocol import keys
from subnet.protocol.draw import draw_below
from subnet.protocol.ids import Epoch, Hotkey, ItemId, MicroBatchId, Pass, Phase, Stage
from subnet.protocol.messages import PassWork, Target
from subnet.protocol.reasons import Reason

EMA_ALPHA = 0.1


def due(batch: MicroBatch) -> tuple[Pass, int] | None:
    """The piece a micro-batch waits for: (pass, stage); None when it is complete."""
    last = len(batch.hops) - 1
    for stage, hop in enumerate(batch.hops):
        if hop.forward_epoch < 0:
            return (Pass.LOSS if stage == last else Pass.FORWARD), stage
    for stage in range(last, -1, -1):
        if batch.hops[stage].backward_epoch < 0:
            return Pass.BACKWARD, stage
    return None


def enqueue(state: State, batch: MicroBatch) -> None:
    """Put the due piece where free replicas find it."""
    piece = due(batch)
    if piece is None or batch.accused is not None:
        return
    stage, is_backward, index = state.stages[piece[1]], piece[0] is Pass.BACKWARD, index_of(state)
    if batch.id in index.queued:
        return
    insort(stage.backward_ready if is_backward else stage.forward_ready, batch.id)
    hop = batch.hops[piece[1]]
    batch.waiting_since = batch.waits_until = state.at
    if is_backward and hop.bound and hop.forward_by is not None:
        batch.waits_until += deadline_s(state, state.miners[hop.forward_by], Pass.BACKWARD)
    index.queued[batch.id] = piece[1], is_backward
    index.file_batch(state, batch)


def dequeue(state: State, batch: MicroBatch) -> None:
    """Take a micro-batch out of its queue."""
    place = index_of(state).unqueue(state, batch.id)
    if place is not None:
        stage = state.stages[place[0]]
        queue = stage.backward_ready if place[1] else stage.forward_ready
        del queue[bisect_left(queue, batch.id)]


def unbind(state: State, batch: MicroBatch, stage: int) -> None:
    """The graph of a backward that is due is gone, or is waited for no longer: any replica may do it."""
    hop, index = batch.hops[stage], index_of(state)
    hop.bound = False
    index.lost_graph(batch, hop.forward_by)
    index.file_batch(state, batch)


def withdraw(state: State, item: ItemId) -> Offer | None:
    """Forget an offer; its miner is told to drop it at its next exchange."""
    offer = state.offers.pop(item, None)
    if offer is not None:
        miner = state.miners[offer.hotkey]
        if item in miner.offers:
            miner.offers.remove(item)
        index = index_of(state)
        index.withdrew(offer)
        index.file_miner(state, miner)
    return offer


def close_offers(state: State, batch: MicroBatch) -> None:
    """The due piece was done or changed: none of its offers is waited for any more."""
    for item in batch.offers:
        withdraw(state, item)
    batch.offers.clear()


def gives_passes(stage: StageState) -> bool:
    """Whether a stage hands out passes now: while it trains, and while it lets work in flight finish."""
    if stage.phase is Phase.TRAINING:
        return True
    return stage.phase is Phase.UPLOADING and stage.merge is not None and stage.merge.step == "drain"


def dispatch(state: State, at: float) -> list[Deliver]:
    """Give waiting pieces to free replicas; returns whose exchange to answer."""
    served: dict[Hotkey, None] = {}
    for stage, ready in zip(state.stages, index_of(state).stages, strict=True):
        if not ready.free.count_of:
            continue
        if (ready.unbound or ready.called) and gives_passes(stage):
            _serve_backwards(state, stage, at, served)
        if stage.forward_ready and ready.roomy.count_of and gives_passes(stage):
            _serve_forwards(state, stage, at, served)
    _open_micro_batches(state, at, served)
    return [Deliver(hotkey) for hotkey in served]


def _serve_backwards(state: State, stage: StageState, at: float, served: dict[Hotkey, None]) -> None:
    """A bound backward goes to its forward's own replica, any other one to whoever did not fail it."""
    ready, refused = index_of(state).stages[stage.stage], set[MicroBatchId]()
    while ready.free.count_of and (ready.unbound or ready.called):
        bound = sorted(number for hotkey in ready.called for number in ready.waiting_for[hotkey])
        open_to_all = [number for number in ready.unbound if number not in refused] if refused else ready.unbound
        count = len(bound) + len(open_to_all)
        if not count:
            return
        pick = _draw_item(state, stage, Pass.BACKWARD, count)
        batch = state.micro_batches[bound[pick] if pick < len(bound) else open_to_all[pick - len(bound)]]
        holder = batch.hops[stage.stage].forward_by
        if pick < len(bound) and holder is not None:
            _give_waiting(state, batch, Pass.BACKWARD, state.miners[holder], at, served)
        elif (miner := _choose(state, batch, ready.free)) is not None:
            _give_waiting(state, batch, Pass.BACKWARD, miner, at, served)
        else:
            refused.add(batch.id)


def _serve_forwards(state: State, stage: StageState, at: float, served: dict[Hotkey, None]) -> None:
    """Forwards, or at the last stage losses, go to whoever has room: the last free slot is kept for a backward, so that
    forwards cannot dam up the way back."""
    ready, refused = index_of(state).stages[stage.stage], set[MicroBatchId]()
    kind = Pass.LOSS if stage.stage == len(state.stages) - 1 else Pass.FORWARD
    while ready.roomy.count_of and stage.forward_ready:
        waiting = [n for n in stage.forward_ready if n not in refused] if refused else stage.forward_ready
        if not waiting:
            return
        batch = state.micro_batches[waiting[_draw_item(state, stage, kind, len(waiting))]]
        miner = _choose(state, batch, ready.roomy)
        if miner is None:
            refused.add(batch.id)
        else:
            _give_waiting(state, batch, kind, miner, at, served)


def _draw_item(state: State, stage: StageState, kind: Pass, count: int) -> int:
    """Which of `count` waiting items is next; the number of passes given out so far makes each draw another one."""
    return draw_below(state.secret(), count, "item", stage.stage, kind, state.passes_started) if count > 1 else 0


def _choose(state: State, batch: MicroBatch, free: Buckets) -> Miner | None:
    """Drawn among the replicas with the fewest items in hand, so shares follow throughput.

    Replicas that failed the piece get it again only when no other one lives. None: nobody who may do it is free.
    """
    barred: Collection[Hotkey] = batch.barred
    if barred:
        piece = due(batch)
        assert piece is not None
        live = index_of(state).stages[piece[1]].live
        if len(barred) >= len(live) and all(hotkey in barred for hotkey in live):
            barred = ()
    freest = free.fewest(barred)
    if not freest:
        return None
    pick = draw_below(state.secret(), len(freest), "replica", batch.id, batch.attempts) if len(freest) > 1 else 0
    return state.miners[freest[pick]]


def _give_waiting(
    state: State, batch: MicroBatch, kind: Pass, miner: Miner, at: float, served: dict[Hotkey, None]
) -> None:
    dequeue(state, batch)
    offer_pass(state, batch, kind, miner, at)
    served[miner.hotkey] = None


def offer_pass(state: State, batch: MicroBatch, kind: Pass, miner: Miner, at: float) -> None:
    """Give the due piece of a micro-batch to a replica."""
    stage = state.stages[miner.stage]
    index = stage.stage
    item = ItemId(f"{kind.value[0]}{batch.id}.{index}.{batch.attempts}")
    hop, last = batch.hops[index], len(batch.hops) - 1
    name = f"mb{batch.id}.{batch.attempts}"
    output = None
    if kind is Pass.FORWARD:
        output = _target(state, batch.epoch, index, name, keys.Kind.BOUNDARY)
    elif index > 0:
        output = _target(state, batch.epoch, index, name, keys.Kind.GRADIENT)
    allowed_s = deadline_s(state, miner, kind)
    work = PassWork(
        item=item,
        kind=kind,
        micro_batch=batch.id,
        stage=index,
        epoch=stage.epoch,
        stage_input=None if index == 0 else batch.hops[index - 1].boundary,
        gradient=batch.hops[index + 1].gradient if kind is Pass.BACKWARD and index < last else None,
        output=output,
        deadline_s=allowed_s,
    )
    assert kind is not Pass.FORWARD or hop.forward_epoch < 0
    batch.attempts += 1
    batch.offers.append(item)
    offer = Offer(item=item, hotkey=miner.hotkey, work=work, offered_at=at, deadline=at + allowed_s)
    state.offers[item] = offer
    state.passes_started += 1
    dossiers.gave(state, miner.hotkey, work)
    miner.offers.append(item)
    miner.free_slots -= 1
    filed = index_of(state)
    filed.gave(offer)
    filed.file_miner(state, miner)


def _target(state: State, epoch: int, stage: Stage, name: str, kind: keys.Kind) -> Target:
    key = keys.make(state.spec.run_id, epoch, stage, name, kind)
    return Target(key=key, size_bytes=state.spec.boundary_size_bytes)


def deadline_s(state: State, miner: Miner, kind: Pass) -> float:
    """min(c x own mean, c' x the stage's median), so slowing down earns no slack; never below the floor."""
    routing = state.spec.routing
    typical_s = index_of(state).stages[miner.stage].median_s(kind)
    if typical_s is None:
        return routing.deadline_first_s
    by_stage = routing.deadline_stage_factor * typical_s
    own = routing.deadline_own_factor * miner.mean_s[kind] if kind in miner.mean_s else by_stage
    return max(routing.deadline_floor_s, min(own, by_stage))


def note_speed(state: State, miner: Miner, kind: Pass, took_s: float) -> None:
    """Exponential mean of the time from offer to result."""
    old = miner.mean_s.get(kind)
    miner.mean_s[kind] = took_s if old is None else old + EMA_ALPHA * (took_s - old)
    index_of(state).note_speed(miner, kind, old)


def in_flight_max(state: State) -> int:
    """Micro-batches that may be in flight: the least provisioned stage sets the pace."""
    weakest = min(len(stage.live) for stage in index_of(state).stages)
    return weakest * state.spec.routing.in_flight_per_replica * len(state.stages)


def _gate(state: State) -> tuple[Reason, str] | None:
    """What phases and replicas say."""
    merging = None
    for stage in state.stages:
        if stage.phase is Phase.PAUSED:
            return stage.reason, f"stage {stage.stage} is paused: {stage.sentence}"
        if not state.num_replicas(stage.stage):
            return Reason.STAGE_EMPTY, f"stage {stage.stage} has no live miner"
        if stage.phase is not Phase.TRAINING:
            merging = merging or stage
    if merging is None:
        return None
    return Reason.MERGE_RUNNING, f"stage {merging.stage} is {merging.phase.value}: {merging.sentence}"


def opening_refused(state: State) -> tuple[Reason, str] | None:
    """Why no micro-batch may be opened now; None when one may."""
    index = index_of(state)
    if index.gate is None:
        index.gate = _gate(state), min(len(known.live) for known in index.stages)
    closed, weakest = index.gate
    if closed is not None:
        return closed
    if state.spec.routing.flush and state.group_opened >= state.spec.inner.micro_batches_per_step:
        return Reason.PIPELINE_FULL, "the group of one optimizer step is open; the next one follows when it is back"
    if len(state.micro_batches) >= weakest * state.spec.routing.in_flight_per_replica * len(state.stages):
        return Reason.PIPELINE_FULL, f"{len(state.micro_batches)} micro-batches are in flight, the most allowed now"
    return None


def _open_micro_batches(state: State, at: float, served: dict[Hotkey, None]) -> None:
    first = state.stages[0]
    if state.spec.routing.flush and not state.micro_batches:
        if state.group_opened >= state.spec.inner.micro_batches_per_step:
            state.group_opened = 0
    roomy, kind = index_of(state).stages[0].roomy, Pass.LOSS if len(state.stages) == 1 else Pass.FORWARD
    while roomy.count_of and opening_refused(state) is None:
        batch = MicroBatch(
            id=MicroBatchId(state.next_micro_batch),
            epoch=Epoch(first.epoch),
            opened_at=at,
            hops=[Hop() for _ in state.stages],
        )
        miner = _choose(state, batch, roomy)
        assert miner is not None, "nobody is barred from a new micro-batch"
        state.next_micro_batch += 1
        state.group_opened += 1
        state.micro_batches[batch.id] = batch
        index_of(state).opened(batch)
        offer_pass(state, batch, kind, miner, at)
        served[miner.hotkey] = None
