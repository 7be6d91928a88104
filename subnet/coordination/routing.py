"""SWARM routing: which piece of work goes to whom (DESIGN 5, ALGORITHMS 2).

Law: work is pulled by free slots; backward before forward; among waiting items and equally free replicas the draw is
random and anyone can recompute it; a backward goes to the replica that did the forward while that one lives, then to
any. Work in flight is bounded, so the slowest stage sets the pace. Nothing here credits anybody.
"""

from __future__ import annotations

from statistics import median

from subnet.coordination import dossiers
from subnet.coordination.state import Deliver, Hop, MicroBatch, Miner, Offer, StageState, State
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
    stage = state.stages[piece[1]]
    queue = stage.backward_ready if piece[0] is Pass.BACKWARD else stage.forward_ready
    if batch.id not in queue:
        queue.append(batch.id)
        batch.waiting_since = state.at


def dequeue(state: State, batch: MicroBatch) -> None:
    """Take a micro-batch out of every queue."""
    for stage in state.stages:
        for queue in (stage.forward_ready, stage.backward_ready):
            if batch.id in queue:
                queue.remove(batch.id)


def withdraw(state: State, item: ItemId) -> Offer | None:
    """Forget an offer; its miner is told to drop it at its next exchange."""
    offer = state.offers.pop(item, None)
    if offer is not None:
        miner = state.miners[offer.hotkey]
        if item in miner.offers:
            miner.offers.remove(item)
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


def eligible(stage: StageState, miner: Miner) -> bool:
    """Whether a replica may be given passes of its stage now."""
    return miner.live and miner.synced_epoch == stage.epoch and miner.free_slots >= 1 and gives_passes(stage)


def dispatch(state: State, at: float) -> list[Deliver]:
    """Give waiting pieces to free replicas; returns whose exchange to answer."""
    served: dict[Hotkey, None] = {}
    for stage in state.stages:
        if stage.backward_ready or stage.forward_ready:
            _serve_stage(state, stage, at, served)
    _open_micro_batches(state, at, served)
    return [Deliver(hotkey) for hotkey in served]


def _serve_stage(state: State, stage: StageState, at: float, served: dict[Hotkey, None]) -> None:
    free = [m for m in state.replicas(stage.stage) if eligible(stage, m)]
    for kind, queue in ((Pass.BACKWARD, stage.backward_ready), (Pass.FORWARD, stage.forward_ready)):
        waiting = sorted(queue)
        while waiting and free:
            pick = draw_below(
                state.secret(), len(waiting), "item", stage.stage, kind, waiting[0], len(waiting), len(free)
            )
            batch = state.micro_batches[waiting.pop(pick)]
            candidates = _candidates(state, batch, stage.stage, kind, free)
            if not candidates:
                continue
            miner = _choose(state, batch, candidates)
            piece = due(batch)
            assert piece is not None
            offer_pass(state, batch, piece[0], miner, at)
            queue.remove(batch.id)
            served[miner.hotkey] = None
            free = [m for m in free if m.free_slots > 0]


def _candidates(state: State, batch: MicroBatch, stage: int, kind: Pass, free: list[Miner]) -> list[Miner]:
    """Free replicas that may do the piece: the forward's own for a bound backward, else all that did not fail it.

    The last free slot of a stage that also runs backwards is kept for one, so forwards cannot dam up the way back.
    Replicas that failed the piece get it again only when no other one lives.
    """
    hop = batch.hops[stage]
    if kind is Pass.BACKWARD:
        if hop.bound and hop.forward_by not in batch.barred:
            return [m for m in free if m.hotkey == hop.forward_by]
        willing = free
    else:
        is_last = stage == len(batch.hops) - 1
        willing = [m for m in free if is_last or m.free_slots > 1 or not m.offers]
    if all(m.hotkey in batch.barred for m in state.replicas(stage)):
        return willing
    return [m for m in willing if m.hotkey not in batch.barred]


def _choose(state: State, batch: MicroBatch, candidates: list[Miner]) -> Miner:
    """Drawn among the replicas with the fewest items in hand, so shares follow throughput."""
    fewest = min(len(m.offers) for m in candidates)
    freest = sorted((m for m in candidates if len(m.offers) == fewest), key=lambda m: m.hotkey)
    return freest[draw_below(state.secret(), len(freest), "replica", batch.id, batch.attempts)]


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
    state.offers[item] = Offer(item=item, hotkey=miner.hotkey, work=work, offered_at=at, deadline=at + allowed_s)
    state.passes_started += 1
    dossiers.gave(state, miner.hotkey, work)
    miner.offers.append(item)
    miner.free_slots -= 1


def _target(state: State, epoch: int, stage: Stage, name: str, kind: keys.Kind) -> Target:
    key = keys.make(state.spec.run_id, epoch, stage, name, kind)
    return Target(key=key, size_bytes=state.spec.boundary_size_bytes)


def deadline_s(state: State, miner: Miner, kind: Pass) -> float:
    """min(c x own mean, c' x the stage's median), so slowing down earns no slack; never below the floor."""
    routing = state.spec.routing
    known = [m.mean_s[kind] for m in state.replicas(miner.stage) if kind in m.mean_s]
    if not known:
        return routing.deadline_first_s
    by_stage = routing.deadline_stage_factor * median(known)
    own = routing.deadline_own_factor * miner.mean_s[kind] if kind in miner.mean_s else by_stage
    return max(routing.deadline_floor_s, min(own, by_stage))


def note_speed(miner: Miner, kind: Pass, took_s: float) -> None:
    """Exponential mean of the time from offer to result."""
    old = miner.mean_s.get(kind)
    miner.mean_s[kind] = took_s if old is None else old + EMA_ALPHA * (took_s - old)


def in_flight_max(state: State) -> int:
    """Micro-batches that may be in flight: the least provisioned stage sets the pace."""
    weakest = min(len(state.replicas(stage.stage)) for stage in state.stages)
    return weakest * state.spec.routing.in_flight_per_replica * len(state.stages)


def opening_refused(state: State) -> tuple[Reason, str] | None:
    """Why no micro-batch may be opened now; None when one may."""
    for stage in state.stages:
        if stage.phase is Phase.PAUSED:
            return stage.reason, f"stage {stage.stage} is paused: {stage.sentence}"
        if not state.replicas(stage.stage):
            return Reason.STAGE_EMPTY, f"stage {stage.stage} has no live miner"
    for stage in state.stages:
        if stage.phase is not Phase.TRAINING:
            return Reason.MERGE_RUNNING, f"stage {stage.stage} is {stage.phase.value}: {stage.sentence}"
    if state.spec.routing.flush and state.group_opened >= state.spec.inner.micro_batches_per_step:
        return Reason.PIPELINE_FULL, "the group of one optimizer step is open; the next one follows when it is back"
    if len(state.micro_batches) >= in_flight_max(state):
        return Reason.PIPELINE_FULL, f"{len(state.micro_batches)} micro-batches are in flight, the most allowed now"
    return None


def _open_micro_batches(state: State, at: float, served: dict[Hotkey, None]) -> None:
    first = state.stages[0]
    if state.spec.routing.flush and not state.micro_batches:
        if state.group_opened >= state.spec.inner.micro_batches_per_step:
            state.group_opened = 0
    while opening_refused(state) is None:
        free = [m for m in state.replicas(0) if eligible(first, m)]
        batch = MicroBatch(
            id=MicroBatchId(state.next_micro_batch),
            epoch=Epoch(first.epoch),
            opened_at=at,
            hops=[Hop() for _ in state.stages],
        )
        candidates = _candidates(state, batch, 0, Pass.FORWARD, free)
        if not candidates:
            return
        miner = _choose(state, batch, candidates)
        state.next_micro_batch += 1
        state.group_opened += 1
        state.micro_batches[batch.id] = batch
        offer_pass(state, batch, Pass.LOSS if len(state.stages) == 1 else Pass.FORWARD, miner, at)
        served[miner.hotkey] = None
