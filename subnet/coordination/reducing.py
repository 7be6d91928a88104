"""The reduction of a stage's merge: who reduces which shards, and which copy stands (ALGORITHMS 4).

Law: no pseudo-gradient is readable before the manifest is closed; every shard has two owners where there are two
replicas; copies are compared by digest and a difference is settled by the orchestrator's own reduction of that shard.
"""

from __future__ import annotations

from subnet.coordination.merge_work import give, item_id, open_offers, resume_training, withdraw_all
from subnet.coordination.state import Effect, Merge, RecomputeShard, StageState, State
from subnet.merging import agreement, butterfly, compression, reduction
from subnet.protocol import keys
from subnet.protocol.ids import Epoch, Hotkey, Values
from subnet.protocol.messages import ApplyWork, ManifestEntry, MergedShard, RangeSource, ReduceWork, Target
from subnet.protocol.reasons import Reason


def _manifest(state: State, stage: StageState, merge: Merge) -> tuple[ManifestEntry, ...]:
    history = [norm for epoch in stage.norms for norm in epoch]
    return tuple(
        ManifestEntry(
            hotkey=hotkey,
            weight=float(upload.weight),
            scale=reduction.clip_scale(upload.norm, history, state.spec.merge.clip_factor),
            source=upload.source,
            chunk_digests=upload.chunk_digests,
        )
        for hotkey, upload in sorted(merge.uploads.items())
        if hotkey not in merge.excluded
    )


def step(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    """Hand out the shards, wait for the copies, settle what differs; then hand out the result."""
    if not merge.assignments:
        return _assign(state, stage, merge, at)
    waiting = open_offers(state, stage, ReduceWork)
    if waiting and at < merge.deadline:
        stage.sentence = f"{len(merge.reports)} of {len(merge.reports) + len(waiting)} shard owners have reduced"
        return []
    withdraw_all(state, stage, ReduceWork)
    digests = {index: source.digest if source else None for index, source in merge.recomputed.items()}
    settlement = agreement.settle(merge.assignments, merge.reports, digests)
    unsettled = [index for index in settlement.disputed if index not in merge.recomputed]
    if unsettled:
        fresh = [index for index in unsettled if index not in merge.recomputing]
        merge.recomputing += fresh
        stage.sentence = f"shards {unsettled} are disputed: the orchestrator reduces them itself"
        return [
            RecomputeShard(stage.stage, Epoch(stage.epoch), merge.attempt, merge.manifest, assignment)
            for assignment in merge.assignments
            if assignment.shard.index in fresh
        ]
    merge.shards = _merged_shards(merge, settlement.winners)
    for hotkey, shards in settlement.faulty.items():
        state.miners[hotkey].faults += 1
        state.incident(
            Reason.WRONG_SHARD, f"shards {sorted(shards)} of stage {stage.stage} were reduced wrongly", hotkey
        )
    stage.reduced_at = at
    merge.step, merge.deadline = "apply", at + state.spec.merge.apply_deadline_s
    return []


def _assign(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    live = {m.hotkey: m for m in state.replicas(stage.stage)}
    owners = sorted(hotkey for hotkey in merge.uploads if hotkey in live and hotkey not in merge.excluded)
    owners = owners or sorted(live)
    merge.manifest = _manifest(state, stage, merge)
    if not merge.manifest:
        return resume_training(state, stage, at, "every pseudo-gradient was bad: the epoch goes on")
    if not owners:
        stage.sentence = "waiting for a miner: nobody is there to reduce the shards"
        return []
    count, spec = state.spec.stages[stage.stage].num_params, state.spec.merge
    merge.assignments = butterfly.assign(state.secret(), stage.stage, stage.epoch, owners, count, spec.copies)
    merge.deadline = at + spec.reduce_deadline_s
    effects: list[Effect] = []
    for hotkey in owners:
        shards = tuple(a.shard for a in merge.assignments if hotkey in a.owners)
        if not shards:
            continue
        key = keys.make(state.spec.run_id, stage.epoch, stage.stage, f"{hotkey}.{merge.attempt}", keys.Kind.REDUCED)
        size = compression.encoded_size(Values.FP32, sum(shard.length for shard in shards))
        work = ReduceWork(
            item=item_id("r", stage, merge.attempt, hotkey),
            stage=stage.stage,
            epoch=stage.epoch,
            manifest=merge.manifest,
            shards=shards,
            output=Target(key=key, size_bytes=size),
            deadline_s=spec.reduce_deadline_s,
        )
        effects.append(give(state, stage, live[hotkey], work, at))
    return effects


def _merged_shards(merge: Merge, winners: dict[int, Hotkey | None]) -> tuple[MergedShard, ...]:
    """Where the right copy of each shard lies: in an owner's object, in the orchestrator's, or nowhere."""
    merged = []
    for assignment in merge.assignments:
        shard, source = assignment.shard, None
        winner = winners.get(shard.index)
        if winner is not None:
            own = [a.shard for a in merge.assignments if winner in a.owners]
            before = sum(s.length for s in own[: own.index(shard)])
            total = sum(s.length for s in own)
            offset, size = compression.byte_range(Values.FP32, before, shard.length, total)
            digest = merge.reports[winner][shard.index]
            source = RangeSource(key=merge.reduced[winner].key, offset=offset, size_bytes=size, digest=digest)
        elif merge.recomputed.get(shard.index) is not None:
            source = merge.recomputed[shard.index]
        merged.append(MergedShard(shard=shard, source=source))
    return tuple(merged)


def restart(state: State, stage: StageState, merge: Merge, hotkey: Hotkey) -> str:
    """An upload turned out to be bad: reduce again without it."""
    merge.excluded.append(hotkey)
    merge.attempt += 1
    merge.assignments, merge.reports, merge.reduced = (), {}, {}
    merge.recomputing, merge.recomputed = [], {}
    return _again(state, stage, merge, "a bad pseudo-gradient was excluded: the shards are reduced again")


def discard(state: State, stage: StageState, merge: Merge, hotkey: Hotkey) -> str:
    """An owner's reduced object turned out to be bad: settle its shards from the other copies."""
    merge.attempt += 1
    del merge.reports[hotkey], merge.reduced[hotkey]
    return _again(state, stage, merge, "a bad reduction was discarded: its shards are settled from the other copies")


def _again(state: State, stage: StageState, merge: Merge, sentence: str) -> str:
    withdraw_all(state, stage, ReduceWork)
    withdraw_all(state, stage, ApplyWork)
    merge.step, merge.shards = "reduce", ()
    stage.sentence = sentence
    return f"stage {stage.stage} epoch {stage.epoch}: {sentence}"
