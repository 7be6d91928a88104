"""The outer step of a stage's merge: every replica applies it, one publishes the result, the epoch turns.

Law: replicas that agree bit for bit go on; one that differs, or came too late, loads the published parameters instead.
The epoch does not turn before its successor's parameters lie in the store, so a joiner always finds them.
"""

from __future__ import annotations

from collections import Counter

from subnet.coordination import phases
from subnet.coordination.merge_work import give, is_merge_work, item_id, open_offers, withdraw_all
from subnet.coordination.state import Deliver, DropEpoch, Effect, Merge, MergeRecord, Miner, Say, StageState, State
from subnet.merging import agreement, compression
from subnet.protocol import keys
from subnet.protocol.draw import choose
from subnet.protocol.ids import Digest, Epoch, Phase, Values
from subnet.protocol.messages import ApplyWork, Source, SyncWork, Target, Work
from subnet.protocol.reasons import Reason

RETAINED_EPOCHS = 3
"""Epochs whose objects are kept behind the oldest running one."""
NORM_EPOCHS = 5


def step(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    """Every replica takes the outer step; one publishes the result, and the epoch turns when it is there."""
    members = [m for m in state.replicas(stage.stage) if m.synced_epoch == stage.epoch and m.ready]
    if not members:
        stage.sentence = "waiting for a miner: nobody is there to apply the merge"
        return []
    effects: list[Effect] = []
    waiting = {offer.hotkey for offer in open_offers(state, stage, ApplyWork)}
    published = {hotkey: pair for hotkey, pair in merge.published.items() if pair[0].digest == _winner(merge)}
    publishing = {o.hotkey for o in open_offers(state, stage, ApplyWork) if _publishes(o.work)}
    if not published and not publishing:
        pool = [m for m in members if m.hotkey not in merge.published and m.hotkey not in waiting]
        if pool:
            publisher = choose(
                state.secret(), sorted(m.hotkey for m in pool), "publisher", stage.stage, stage.epoch, merge.attempt
            )
            merge.attempt += 1
            merge.deadline = at + state.spec.merge.apply_deadline_s
            effects.append(_give_apply(state, stage, merge, state.miners[publisher], at, publish=True))
            waiting.add(publisher)
    for miner in members:
        if miner.hotkey not in waiting and miner.hotkey not in merge.applied:
            effects.append(_give_apply(state, stage, merge, miner, at, publish=False))
            waiting.add(miner.hotkey)
    if waiting and at < merge.deadline:
        stage.sentence = f"{len(merge.applied)} of {len(members)} replicas have applied the merge"
        return effects
    if published:
        return effects + _turn_epoch(state, stage, merge, next(iter(published.values())), at)
    if waiting:
        withdraw_all(state, stage, ApplyWork)
        merge.attempt += 1
        merge.deadline = at + state.spec.merge.apply_deadline_s
    elif merge.published:
        merge.published.clear()
        merge.applied.clear()
    return effects


def _publishes(work: Work) -> bool:
    return isinstance(work, ApplyWork) and work.publish_parameters is not None


def _winner(merge: Merge) -> Digest | None:
    """The parameters' digest that most replicas reached; among equals, one that was published."""
    counts = Counter(parameters for parameters, _ in merge.applied.values())
    published = {pair[0].digest for pair in merge.published.values()}
    return max(counts, key=lambda digest: (counts[digest], digest in published, digest), default=None)


def _give_apply(state: State, stage: StageState, merge: Merge, miner: Miner, at: float, publish: bool) -> Deliver:
    size = compression.encoded_size(Values.FP32, state.spec.stages[stage.stage].num_params)
    run, epoch, name = state.spec.run_id, stage.epoch + 1, f"{miner.hotkey}.{merge.attempt}"

    def target(kind: keys.Kind) -> Target | None:
        return Target(key=keys.make(run, epoch, stage.stage, name, kind), size_bytes=size) if publish else None

    work = ApplyWork(
        item=item_id("a", stage, merge.attempt, miner.hotkey),
        stage=stage.stage,
        epoch=stage.epoch,
        shards=merge.shards,
        publish_parameters=target(keys.Kind.PARAMETERS),
        publish_momentum=target(keys.Kind.MOMENTUM),
        deadline_s=state.spec.merge.apply_deadline_s,
    )
    return give(state, stage, miner, work, at)


def _turn_epoch(
    state: State, stage: StageState, merge: Merge, published: tuple[Source, Source], at: float
) -> list[Effect]:
    """The merge is done: the stage's next epoch begins."""
    withdraw_all(state, stage, ApplyWork)
    for hotkey, (parameters, _) in merge.applied.items():
        miner = state.miners[hotkey]
        if parameters == published[0].digest:
            miner.synced_epoch = stage.epoch + 1
        else:
            miner.faults += 1
            state.incident(Reason.WRONG_ANCHOR, f"stage {stage.stage}: parameters differ after the merge", hotkey)
    record = _record(stage, merge, at)
    stage.merges.append(record)
    stage.norms = (stage.norms + [[u.norm for h, u in merge.uploads.items() if h not in merge.excluded]])[-NORM_EPOCHS:]
    stage.parameters, stage.momentum, stage.merge = *published, None
    sentence = (
        f"merged {record.replicas} replicas, {record.batch} micro-batches, {record.shards} shards"
        f" ({record.agreed} agreed, {record.single} single, {record.lost} lost, {record.disputed} disputed)"
    )
    line = phases.move(stage, Phase.TRAINING, at, Reason.OK, sentence)
    stage.epoch = Epoch(stage.epoch + 1)
    stage.opened_at = at
    effects: list[Effect] = [Say(line)]
    oldest = min(other.epoch for other in state.stages)
    if oldest == stage.epoch and oldest > RETAINED_EPOCHS:
        effects.append(DropEpoch(Epoch(oldest - RETAINED_EPOCHS - 1)))
    return effects


def _record(stage: StageState, merge: Merge, at: float) -> MergeRecord:
    digests = {index: source.digest if source else None for index, source in merge.recomputed.items()}
    settlement = agreement.settle(merge.assignments, merge.reports, digests)
    return MergeRecord(
        epoch=stage.epoch,
        replicas=len(merge.manifest),
        batch=round(sum(entry.weight for entry in merge.manifest)),
        shards=len(merge.assignments),
        agreed=len(settlement.agreed),
        single=len(settlement.single),
        lost=len(settlement.lost),
        disputed=len(merge.recomputing),
        faulty={hotkey: sorted(shards) for hotkey, shards in settlement.faulty.items()},
        disagreements=agreement.disagreements(merge.assignments, merge.reports),
        closed_at=merge.closed_at,
        uploaded_at=stage.uploaded_at,
        reduced_at=stage.reduced_at,
        done_at=at,
    )


def sync_stragglers(state: State, stage: StageState, at: float) -> list[Effect]:
    """Replicas whose parameters are not those of the running epoch load them from the store."""
    effects: list[Effect] = []
    if stage.merge is not None and stage.merge.step == "apply":
        return effects
    for miner in state.replicas(stage.stage):
        if miner.synced_epoch == stage.epoch or any(is_merge_work(state.offers[item].work) for item in miner.offers):
            continue
        work = SyncWork(
            item=item_id("y", stage, miner.faults % 10_000, miner.hotkey),
            stage=stage.stage,
            epoch=stage.epoch,
            parameters=stage.parameters,
            momentum=stage.momentum,
            deadline_s=state.spec.merge.apply_deadline_s,
        )
        stage.contributions.pop(miner.hotkey, None)
        effects.append(give(state, stage, miner, work, at))
    return effects
