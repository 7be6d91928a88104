"""The outer step of a stage's merge: every replica applies it, one publishes the result, the epoch turns.

Law: replicas that agree bit for bit go on; one that differs, or came too late, loads the published parameters instead.
The epoch does not turn before its successor's parameters lie in the store and were looked at, so a joiner always finds
them. Who stores other bytes than it spoke of is asked no more while there is anybody else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from subnet.coordination import dossiers, overdue, phases, reducing, routing, tuning, verdicts
from subnet.coordination import members as membership
from subnet.coordination.effects import CheckObject, Deliver, DropEpoch, Effect, Say
from subnet.coordination.index import index_of
from subnet.coordination.merge_state import CLOSED_KEPT, ClosedMerge, Merge, MergeRecord
from subnet.coordination.merge_work import give, item_id, merge_work_of, next_number, open_offers, withdraw_all
from subnet.coordination.state import Miner, StageState, State
from subnet.merging import agreement, compression
from subnet.protocol import keys
from subnet.protocol.draw import choose
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, Phase, Values
from subnet.protocol.messages import ApplyWork, Source, SyncWork, Target, Work
from subnet.protocol.reasons import Reason

NORM_EPOCHS = 5
MISPRINTS_MAX = 3
"""Bad publications of one merge after which a replica's session ends."""

Anchor = tuple[Digest, Digest]
"""Digests of a stage's parameters and momentum: equal on all honest replicas."""


def step(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    """Every replica takes the outer step; one publishes the result, and the epoch turns when it is there."""
    if merge.checking:
        stage.sentence = f"the orchestrator looks at {len(merge.checking)} objects"
        return []
    holders = [m for m in state.replicas(stage.stage) if m.synced_epoch == stage.epoch and m.ready]
    unreadable = _unreadable(merge, {m.hotkey for m in holders})
    if unreadable is not None:
        return [Say(reducing.discard(state, stage, merge, unreadable))]
    unable = {hotkey for one in merge.reduced.values() for hotkey in merge.unheeded.get(one.source.key, ())}
    removed = _dismiss_misprinters(state, stage, merge)
    if removed:
        return removed
    members = [m for m in holders if m.hotkey not in unable]
    if not members:
        stage.sentence = "waiting for a miner: nobody is there to apply the merge"
        return []
    effects: list[Effect] = []
    published = _published(merge, unable)
    if published is None:
        effects += _hand_out(state, stage, merge, members, unable, at)
    else:
        unseen = [source for source in published if source.key not in merge.seen]
        merge.checking |= {source.key: [] for source in unseen}
        if unseen:
            stage.sentence = "the orchestrator looks at the parameters that were published"
            return [CheckObject(source) for source in unseen]
    waiting = {offer.hotkey for offer in open_offers(state, stage, ApplyWork)}
    # who came after training had closed does not hold the others up: it loads the result instead
    needed = {h for h in waiting if published is None or state.miners[h].joined_at <= merge.closed_at}
    if published is not None and (not needed or at >= merge.deadline):
        return effects + _turn_epoch(state, stage, merge, published, at)
    if at >= merge.deadline:
        withdraw_all(state, stage, ApplyWork)
        merge.attempt += 1
        merge.deadline = at + state.rules_of(stage.stage).merge.apply_deadline_s
    stage.sentence = f"{len(merge.applied)} of {len(members)} replicas have applied the merge"
    return effects


def _unreadable(merge: Merge, holders: set[Hotkey]) -> ItemId | None:
    """A reduced object that most of those who must read it cannot use, good as it may look."""
    for item, one in merge.reduced.items():
        accusers = holders.intersection(merge.unheeded.get(one.source.key, ()))
        if 2 * len(accusers) > len(holders):
            return item
    return None


def _dismiss_misprinters(state: State, stage: StageState, merge: Merge) -> list[Effect]:
    """Who published bad objects again and again loses its session: the stage must not hang on it."""
    for hotkey, times in merge.misprinted.items():
        miner = state.miners[hotkey]
        if times == MISPRINTS_MAX and miner.live and miner.stage == stage.stage:
            merge.misprinted[hotkey] += 1  # once
            said = f"what it published of epoch {stage.epoch} was bad {times} times"
            return membership.remove(state, miner, Reason.WRONG_ANCHOR, said)
    return []


def _hand_out(
    state: State, stage: StageState, merge: Merge, members: list[Miner], unable: set[Hotkey], at: float
) -> list[Effect]:
    """One replica at a time is asked to publish what most have reached; all others only apply."""
    effects: list[Effect] = []
    offers = open_offers(state, stage, ApplyWork)
    waiting, winner = {offer.hotkey for offer in offers}, _winner(merge, unable)
    able = sorted(
        m.hotkey for m in members if m.hotkey not in waiting and merge.applied.get(m.hotkey, winner) == winner
    )
    if any(m.hotkey not in merge.misprinted for m in members):
        able = [hotkey for hotkey in able if hotkey not in merge.misprinted]
    if able and not any(_publishes(offer.work) for offer in offers):
        publisher = choose(state.secret(), able, "publisher", stage.stage, stage.epoch, merge.attempt)
        merge.attempt += 1
        merge.deadline = at + state.rules_of(stage.stage).merge.apply_deadline_s
        effects.append(_give_apply(state, stage, merge, state.miners[publisher], at, publish=True))
        waiting.add(publisher)
    for miner in members:
        if miner.hotkey not in waiting and miner.hotkey not in merge.applied:
            effects.append(_give_apply(state, stage, merge, miner, at, publish=False))
    return effects


def _publishes(work: Work) -> bool:
    return isinstance(work, ApplyWork) and work.publish_parameters is not None


def _winner(merge: Merge, unable: Collection[Hotkey]) -> Anchor | None:
    """The anchor that most replicas reached, of those that can read the shards and published nothing bad; among equals,
    one that was published."""
    heard = {h: anchor for h, anchor in merge.applied.items() if h not in merge.misprinted and h not in unable}
    counts = Counter((heard or merge.applied).values())
    published = {_digests(pair) for pair in merge.published.values()}
    return max(counts, key=lambda anchor: (counts[anchor], anchor in published, anchor), default=None)


def _digests(published: tuple[Source, Source]) -> Anchor:
    return published[0].digest, published[1].digest


def _published(merge: Merge, unable: Collection[Hotkey]) -> tuple[Source, Source] | None:
    """The winner's objects, if they are in the store."""
    winner = _winner(merge, unable)
    return next((pair for pair in merge.published.values() if _digests(pair) == winner), None)


def _give_apply(state: State, stage: StageState, merge: Merge, miner: Miner, at: float, publish: bool) -> Deliver:
    size = compression.encoded_size(Values.FP32, state.spec.stages[stage.stage].num_params)
    number = next_number(state)
    upload = merge.uploads.get(miner.hotkey)
    counted = upload is not None and upload.weight > 0 and miner.hotkey not in merge.excluded
    if not counted:
        dossiers.restarted(state, miner.hotkey)
    run, epoch, name = state.spec.run_id, stage.epoch + 1, f"{miner.hotkey}.{number}"

    def target(kind: keys.Kind) -> Target | None:
        return Target(key=keys.make(run, epoch, stage.stage, name, kind), size_bytes=size) if publish else None

    work = ApplyWork(
        item=item_id("a", stage, number, miner.hotkey),
        stage=stage.stage,
        epoch=stage.epoch,
        shards=merge.shards,
        counted=counted,
        publish_parameters=target(keys.Kind.PARAMETERS),
        publish_momentum=target(keys.Kind.MOMENTUM),
        deadline_s=state.rules_of(stage.stage).merge.apply_deadline_s,
        spec=state.versions[merge.next_rules] if merge.next_rules != stage.rules else None,
    )
    return give(state, stage, miner, work, at)


def _turn_epoch(
    state: State, stage: StageState, merge: Merge, published: tuple[Source, Source], at: float
) -> list[Effect]:
    """The merge is done: the stage's next epoch begins."""
    withdraw_all(state, stage, ApplyWork)
    for hotkey, anchor in merge.applied.items():
        miner = state.miners[hotkey]
        if anchor == _digests(published):
            miner.synced_epoch = stage.epoch + 1
        else:
            miner.faults += 1
            state.incident(Reason.WRONG_ANCHOR, f"stage {stage.stage}: parameters differ after the merge", hotkey)
    for hotkey in list(stage.contributions):
        if hotkey not in merge.uploads:
            del stage.contributions[hotkey]  # it did not upload: it starts the next epoch at the anchor
    for hotkey in merge.weights:
        miner = state.miners[hotkey]
        if hotkey not in merge.uploads:
            said = f"stage {stage.stage} merged epoch {stage.epoch} without this miner's upload"
            verdicts.void(state, stage.epoch, hotkey, Reason.SKIPPED_MERGE, said)
            state.incident(Reason.SKIPPED_MERGE, said, hotkey)
    record = _record(stage, merge, at)
    stage.merges.append(record)
    state.passes_merged += record.batch * passes_each(state, stage)
    stage.closed = [*stage.closed, closed(state, stage, merge)][-CLOSED_KEPT:]
    stage.norms = (stage.norms + [[u.norm for h, u in merge.uploads.items() if h not in merge.excluded]])[-NORM_EPOCHS:]
    stage.parameters, stage.momentum = published
    sentence = (
        f"merged {record.replicas} replicas, {record.batch} micro-batches, {record.shards} shards"
        f" ({record.agreed} agreed, {record.single} single, {record.lost} lost, {record.disputed} disputed)"
        + (f", {record.handed_on} of them handed on" if record.handed_on else "")
    )
    return begin_next(state, stage, merge, at, sentence)


def passes_each(state: State, stage: StageState) -> int:
    """Of a micro-batch: at the last stage one pass is its forward and backward."""
    return 1 if stage.stage == len(state.stages) - 1 else 2


def closed(state: State, stage: StageState, merge: Merge) -> ClosedMerge:
    """What it takes to do the merge once more."""
    return ClosedMerge(
        epoch=stage.epoch,
        generation=state.poison.generation + 1,
        before=stage.generation,
        parameters=stage.parameters,
        momentum=stage.momentum,
        norms=stage.norms,
        uploads=merge.uploads,
        excluded=merge.excluded,
        attempt=merge.attempt,
        redone=merge.redone,
    )


def begin_next(state: State, stage: StageState, merge: Merge, at: float, sentence: str) -> list[Effect]:
    """The stage's parameters are those of its next epoch: it begins."""
    stage.merge = None
    state.poison.generation += 1
    stage.generation = state.poison.generation
    line = phases.move(stage, Phase.TRAINING, at, Reason.OK, sentence)
    stage.epoch = Epoch(stage.epoch + 1)
    stage.opened_at = at
    index_of(state).file_stage(state, stage.stage)
    effects: list[Effect] = [Say(line), *tuning.take_over(state, stage, merge.next_rules)]
    oldest = state.oldest_epoch()
    if oldest == stage.epoch and oldest > dossiers.KEPT_EPOCHS:
        dropped = Epoch(oldest - dossiers.KEPT_EPOCHS - 1)
        for batch in [b for b in state.micro_batches.values() if b.epoch <= dropped]:
            overdue.give_up(state, batch, f"with the objects of epoch {dropped}")
        effects.append(DropEpoch(dropped))
        for audit in [a for a in state.pay.audits.values() if a.epoch <= dropped]:
            said = "it was not settled before the epoch's objects went"
            withheld = audit.step == "reveal" and (at >= audit.deadline or not audit.late)
            (verdicts.not_shown if withheld else verdicts.unreadable)(state, audit, said)
        dossiers.drop_old(state)
    return effects


def _record(stage: StageState, merge: Merge, at: float) -> MergeRecord:
    digests = {index: source.digest if source else None for index, source in merge.recomputed.items()}
    reports = merge.reports
    settlement = agreement.settle(merge.assignments, reports, digests)
    return MergeRecord(
        epoch=stage.epoch,
        replicas=len(merge.manifest),
        batch=round(sum(entry.weight for entry in merge.manifest)),
        shards=len(merge.assignments),
        agreed=len(settlement.agreed),
        single=len(settlement.single),
        lost=len(settlement.lost),
        disputed=len(merge.recomputing),
        faulty={hotkey: sorted(shards) for hotkey, shards in merge.faulty.items()},
        disagreements=agreement.disagreements(merge.assignments, reports),
        closed_at=merge.closed_at,
        uploaded_at=stage.uploaded_at,
        reduced_at=stage.reduced_at,
        done_at=at,
        handed_on=len(merge.handed_on),
    )


def sync_stragglers(state: State, stage: StageState, at: float) -> list[Effect]:
    """Replicas whose parameters are not those of the running epoch load them from the store.

    While others apply a merge, its result is waited for; where nobody else is left, the stragglers must apply it.
    """
    effects: list[Effect] = []
    replicas = state.replicas(stage.stage)
    applying = stage.merge is not None and stage.merge.step == "apply"
    if applying and any(miner.synced_epoch == stage.epoch for miner in replicas):
        return effects
    for miner in replicas:
        if miner.synced_epoch == stage.epoch:
            continue
        given = merge_work_of(state, miner)
        if any(work.epoch == stage.epoch for work in given):
            continue
        for work in given:
            routing.withdraw(state, work.item)
        sync = SyncWork(
            item=item_id("y", stage, next_number(state), miner.hotkey),
            stage=stage.stage,
            epoch=stage.epoch,
            parameters=stage.parameters,
            momentum=stage.momentum,
            deadline_s=state.rules_of(stage.stage).merge.apply_deadline_s,
            spec=state.rules_of(stage.stage) if len(state.versions) > 1 else None,
        )
        stage.contributions.pop(miner.hotkey, None)
        effects.append(give(state, stage, miner, sync, at))
    return effects
