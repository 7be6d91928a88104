"""What holds of every state that the machine leaves behind.

Law: a pure reading; yields one sentence per broken promise and nothing for a sound state. Tests and simulations ask
after every envelope, `verify` may ask after any; the machine itself never does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from subnet.coordination.merge_state import Merge
from subnet.coordination.merge_work import open_offers
from subnet.coordination.routing import due
from subnet.coordination.state import MicroBatch, Offer, StageState, State
from subnet.protocol.ids import MicroBatchId, Pass, Phase
from subnet.protocol.messages import PassWork, ReduceWork

_STEPS = {Phase.UPLOADING: ("drain", "upload"), Phase.MERGING: ("reduce", "apply", "inspect")}


def broken(state: State) -> Iterator[str]:
    """Every promise that `state` breaks."""
    yield from _offers(state)
    queues: dict[MicroBatchId, list[tuple[Pass, int]]] = {}
    for stage in state.stages:
        for kind, queue in ((Pass.FORWARD, stage.forward_ready), (Pass.BACKWARD, stage.backward_ready)):
            for micro_batch in queue:
                queues.setdefault(micro_batch, []).append((kind, stage.stage))
    for batch in state.micro_batches.values():
        yield from _micro_batch(state, batch, queues.get(batch.id, []))
    for stage in state.stages:
        yield from _stage(state, stage)
    rules = [stage.rules for stage in state.stages]
    if state.spec != state.versions[min(rules)] or max(rules) >= len(state.versions):
        yield f"stages go by RunSpecs {rules} of {len(state.versions)}, the run by {state.spec.version}"
    epochs = [stage.epoch for stage in state.stages]
    if max(epochs) - min(epochs) > 1:
        yield f"stages are more than one epoch apart: {epochs}"


def _offers(state: State) -> Iterator[str]:
    """Offers and miners name each other, each once; nobody holds more passes than it may."""
    held = Counter(item for miner in state.miners.values() for item in miner.offers)
    if set(held) != set(state.offers) or any(count > 1 for count in held.values()):
        yield f"offers {set(held) ^ set(state.offers)} are known on one side only, or twice"
        return
    for miner in state.miners.values():
        offers = [state.offers[item] for item in miner.offers]
        passes = sum(isinstance(offer.work, PassWork) for offer in offers)
        if any(offer.hotkey != miner.hotkey for offer in offers):
            yield f"{miner.hotkey} holds an offer of somebody else"
        if offers and not miner.live:
            yield f"{miner.hotkey} is gone and has offers"
        if passes > state.spec.routing.slots_max or miner.free_slots < 0:
            yield f"{miner.hotkey} has {passes} passes and {miner.free_slots} free slots"
    for offer in state.offers.values():
        if isinstance(offer.work, PassWork):
            batch = state.micro_batches.get(offer.work.micro_batch)
            if batch is None or offer.item not in batch.offers:
                yield f"{offer.item} belongs to no micro-batch"


def _micro_batch(state: State, batch: MicroBatch, queues: list[tuple[Pass, int]]) -> Iterator[str]:
    """Somebody has its due piece in time, or it waits in the one right queue, or for a look at an object."""
    piece = due(batch)
    if piece is None:
        yield f"micro-batch {batch.id} is complete and still in flight"
        return
    kind, index = piece
    offers = [state.offers[item] for item in batch.offers]
    for offer in offers:
        yield from _work(batch, offer, kind, index)
    in_time = sum(not offer.expired for offer in offers)
    where = Pass.BACKWARD if kind is Pass.BACKWARD else Pass.FORWARD
    expected = [] if batch.accused is not None or in_time else [(where, index)]
    if queues != expected or in_time > 1:
        yield f"micro-batch {batch.id} waits in {queues} instead of {expected}, {in_time} offers in time"


def _work(batch: MicroBatch, offer: Offer, kind: Pass, index: int) -> Iterator[str]:
    """An open offer is for the due piece and names the accepted inputs."""
    work = offer.work
    if not isinstance(work, PassWork) or (work.kind, work.stage) != (kind, index):
        yield f"{offer.item} is not what micro-batch {batch.id} waits for"
        return
    before = batch.hops[index - 1].boundary if index else None
    after = batch.hops[index + 1].gradient if kind is Pass.BACKWARD else None
    if (work.stage_input, work.gradient) != (before, after):
        yield f"{offer.item} names other inputs than were accepted"
    if (index > 0) == (work.stage_input is None) or (kind is Pass.BACKWARD) == (work.gradient is None):
        yield f"{offer.item} lacks an input"


def _stage(state: State, stage: StageState) -> Iterator[str]:
    """Phase and merge fit; queues, contributions and merges name what exists."""
    merge = stage.merge
    if (merge.step if merge else None) not in _STEPS.get(stage.phase, (None,)):
        yield f"stage {stage.stage} is {stage.phase.value} with a merge in step {merge.step if merge else None}"
    waiting = [*stage.forward_ready, *stage.backward_ready]
    if len(set(waiting)) != len(waiting) or not set(waiting) <= set(state.micro_batches):
        yield f"stage {stage.stage} has {waiting} in its queues"
    if any(count < 0 for count in stage.contributions.values()):
        yield f"stage {stage.stage} counts {stage.contributions}"
    here = {miner.hotkey for miner in state.replicas(stage.stage)}
    if not set(stage.contributions) <= here:
        yield f"stage {stage.stage} counts work of {set(stage.contributions) - here}, who are not there"
    if merge is None:
        return
    if not set(merge.uploads) <= set(merge.weights):
        yield f"the merge of stage {stage.stage} holds pieces that were not asked for"
    yield from _shards(state, stage, merge)
    if not set(merge.applied) <= here:
        yield f"the merge of stage {stage.stage} counts replicas that are not there"


def _shards(state: State, stage: StageState, merge: Merge) -> Iterator[str]:
    """Reductions, in hand or reported, are of shards that their owner was given; no owner has the same shard twice."""
    owners = {shard.index: asked for shard, asked in merge.assignments}
    pieces = [(one.hotkey, index) for one in merge.reduced.values() for index in one.digests]
    if merge.step == "reduce":
        offers = open_offers(state, stage, ReduceWork)
        pieces += [
            (offer.hotkey, shard.index)
            for offer in offers
            if isinstance(offer.work, ReduceWork)
            for shard in offer.work.shards
        ]
        if offers and merge.deadline > min(offer.deadline for offer in offers):
            yield f"the merge of stage {stage.stage} would overlook that a reduction is late"
    if any(hotkey not in owners.get(index, ()) for hotkey, index in pieces):
        yield f"somebody reduces a shard of stage {stage.stage} that was not given to it"
    if len(set(pieces)) != len(pieces):
        yield f"somebody was given the same shard of stage {stage.stage} twice"
    if any(len(asked) != len(set(asked)) for asked in owners.values()):
        yield f"a shard of stage {stage.stage} names an owner twice"
