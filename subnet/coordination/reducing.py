"""The reduction of a stage's merge: who reduces which shards, and which copy stands (ALGORITHMS 4).

Law: no pseudo-gradient is readable before the manifest is closed; every shard has two owners where there are two
replicas; copies are compared by digest and a difference is settled by the orchestrator's own reduction of that shard.
A reduction nobody answered is handed out again; and none ends while an upload that it reads is looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from subnet.coordination import verdicts
from subnet.coordination.merge_state import Merge
from subnet.coordination.merge_work import give, item_id, next_number, open_offers, resume_training, withdraw_all
from subnet.coordination.state import Effect, RecomputeShard, StageState, State
from subnet.merging import agreement, butterfly, compression, reduction
from subnet.protocol import keys
from subnet.protocol.ids import Hotkey, Values
from subnet.protocol.messages import ApplyWork, ManifestEntry, MergedShard, RangeSource, ReduceWork, Target
from subnet.protocol.reasons import Reason

ASSIGNMENTS_MAX = 3
"""Hand-outs of the same shards, where nobody reduced any, before they count as lost."""


def _manifest(state: State, stage: StageState, merge: Merge) -> tuple[ManifestEntry, ...]:
    history = [norm for epoch in stage.norms for norm in epoch]
    return tuple(
        ManifestEntry(
            hotkey=hotkey,
            weight=float(upload.weight),
            scale=reduction.clip_scale(upload.norm, history, state.rules_of(stage.stage).merge.clip_factor),
            source=upload.source,
            chunk_digests=upload.chunk_digests,
        )
        for hotkey, upload in sorted(merge.uploads.items())
        if hotkey not in merge.excluded and upload.weight > 0
    )


def step(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    """Hand out the shards, wait for the copies, settle what differs; then hand out the result."""
    if not merge.assignments:
        return _assign(state, stage, merge, at)
    if merge.checking:
        stage.sentence = f"the orchestrator looks at {len(merge.checking)} objects that were complained about"
        return []
    waiting = open_offers(state, stage, ReduceWork)
    if waiting and at < merge.deadline:
        stage.sentence = f"{len(merge.reports)} of {len(merge.reports) + len(waiting)} shard owners have reduced"
        return []
    withdraw_all(state, stage, ReduceWork)
    if not merge.reports and merge.assigned < ASSIGNMENTS_MAX:
        merge.assignments, merge.attempt = (), merge.attempt + 1
        return []
    digests = {index: source.digest if source else None for index, source in merge.recomputed.items()}
    settlement = agreement.settle(merge.assignments, merge.reports, digests)
    if settlement.disputed:
        fresh = [index for index in settlement.disputed if index not in merge.recomputing]
        merge.recomputing |= {index: next_number(state) for index in fresh}
        stage.sentence = f"shards {list(settlement.disputed)} are disputed: the orchestrator reduces them itself"
        return _questions(stage, merge, fresh)
    merge.shards = _merged_shards(merge, settlement.winners)
    _name_faulty(state, stage, merge, settlement.faulty)
    stage.reduced_at = at
    merge.step, merge.deadline = "apply", at + state.rules_of(stage.stage).merge.apply_deadline_s
    return []


def unanswered(stage: StageState, merge: Merge) -> list[Effect]:
    """The shards that the orchestrator still has to reduce itself: what a restart makes it ask again."""
    return _questions(stage, merge, [index for index in merge.recomputing if index not in merge.recomputed])


def _questions(stage: StageState, merge: Merge, indices: Collection[int]) -> list[Effect]:
    return [
        RecomputeShard(stage.stage, stage.epoch, merge.recomputing[a.shard.index], merge.manifest, a)
        for a in merge.assignments
        if a.shard.index in indices
    ]


def _name_faulty(state: State, stage: StageState, merge: Merge, faulty: Mapping[Hotkey, tuple[int, ...]]) -> None:
    """Once for each shard, however often the merge is settled."""
    for hotkey, shards in faulty.items():
        named = merge.faulty.setdefault(hotkey, [])
        fresh = sorted(set(shards) - set(named))
        if not fresh:
            continue
        named += fresh
        state.miners[hotkey].faults += 1
        verdicts.standing_of(state, hotkey).wrong_shard_at = state.at
        said = f"shards {fresh} of stage {stage.stage} epoch {stage.epoch} were reduced wrongly"
        state.incident(Reason.WRONG_SHARD, said, hotkey)


def _assign(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    live = {m.hotkey: m for m in state.replicas(stage.stage)}
    owners = sorted(hotkey for hotkey in merge.uploads if hotkey in live and hotkey not in merge.excluded)
    # who was proven to reduce wrongly gets no more of it while there is anybody else
    owners = [h for h in owners if verdicts.forfeits_until(state, h) is None] or owners or sorted(live)
    merge.manifest = _manifest(state, stage, merge)
    if not merge.manifest:
        return resume_training(state, stage, at, "every pseudo-gradient was bad: the epoch goes on")
    if not owners:
        stage.sentence = "waiting for a miner: nobody is there to reduce the shards"
        return []
    count, spec = state.spec.stages[stage.stage].num_params, state.rules_of(stage.stage).merge
    merge.assignments = butterfly.assign(state.secret(), stage.stage, stage.epoch, owners, count, spec.copies)
    merge.deadline, merge.assigned = at + spec.reduce_deadline_s, merge.assigned + 1
    effects: list[Effect] = []
    for hotkey in owners:
        shards = tuple(a.shard for a in merge.assignments if hotkey in a.owners)
        if not shards:
            continue
        number = next_number(state)
        key = keys.make(state.spec.run_id, stage.epoch, stage.stage, f"{hotkey}.{number}", keys.Kind.REDUCED)
        size = compression.encoded_size(Values.FP32, sum(shard.length for shard in shards))
        work = ReduceWork(
            item=item_id("r", stage, number, hotkey),
            stage=stage.stage,
            epoch=stage.epoch,
            manifest=merge.manifest,
            shards=shards,
            output=Target(key=key, size_bytes=size),
            deadline_s=spec.reduce_deadline_s,
        )
        effects.append(give(state, stage, live[hotkey], work, at))
    return effects


def ranges_of(merge: Merge, owner: Hotkey) -> dict[int, RangeSource]:
    """By shard: where in an owner's object its copy lies, and what the owner says of it."""
    own = [a.shard for a in merge.assignments if owner in a.owners]
    total, start, ranges = sum(shard.length for shard in own), 0, {}
    for shard in own:
        offset, size = compression.byte_range(Values.FP32, start, shard.length, total)
        digest = merge.reports[owner][shard.index]
        ranges[shard.index] = RangeSource(key=merge.reduced[owner].key, offset=offset, size_bytes=size, digest=digest)
        start += shard.length
    return ranges


def _merged_shards(merge: Merge, winners: dict[int, Hotkey | None]) -> tuple[MergedShard, ...]:
    """Where the right copy of each shard lies: in an owner's object, in the orchestrator's, or nowhere."""
    copies = {owner: ranges_of(merge, owner) for owner in merge.reports}
    merged = []
    for shard, _ in merge.assignments:
        winner = winners.get(shard.index)
        source = copies[winner][shard.index] if winner is not None else merge.recomputed.get(shard.index)
        merged.append(MergedShard(shard=shard, source=source))
    return tuple(merged)


def restart(state: State, stage: StageState, merge: Merge, hotkey: Hotkey) -> str:
    """An upload turned out to be bad: reduce again without it."""
    merge.excluded.append(hotkey)
    merge.attempt += 1
    merge.assignments, merge.reports, merge.reduced = (), {}, {}
    merge.recomputing, merge.recomputed = {}, {}
    merge.checking, merge.unheeded, merge.assigned = {}, {}, 0
    return _again(state, stage, merge, "a bad pseudo-gradient was excluded: the shards are reduced again")


def discard(state: State, stage: StageState, merge: Merge, hotkey: Hotkey) -> str:
    """An owner's reduced object is of no use: settle its shards from the other copies."""
    merge.attempt += 1
    merge.checking.pop(merge.reduced[hotkey].key, None)
    merge.unheeded.pop(merge.reduced[hotkey].key, None)
    del merge.reports[hotkey], merge.reduced[hotkey]
    return _again(state, stage, merge, "a reduction was discarded: its shards are settled from the other copies")


def _again(state: State, stage: StageState, merge: Merge, sentence: str) -> str:
    withdraw_all(state, stage, ReduceWork)
    withdraw_all(state, stage, ApplyWork)
    merge.step, merge.shards = "reduce", ()
    stage.sentence = sentence
    return f"stage {stage.stage} epoch {stage.epoch}: {sentence}"
