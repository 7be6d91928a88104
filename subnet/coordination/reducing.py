"""The reduction of a stage's merge: which copy of each shard stands, and when all that can be had is there.

Law: no pseudo-gradient is readable before the manifest is closed; every shard has two owners where there are two
replicas, and others where they fall away (`owners`); copies are compared by digest and a difference is settled by the
orchestrator's own reduction of that shard. What was reduced stands, and none ends while an upload that it reads is
looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from subnet.coordination import owners, routing, verdicts
from subnet.coordination.effects import Effect, RecomputeShard
from subnet.coordination.merge_state import Merge, Reduced
from subnet.coordination.merge_work import next_number, open_offers, resume_training, withdraw_all
from subnet.coordination.state import StageState, State
from subnet.merging import agreement, butterfly, compression, reduction
from subnet.protocol.draw import draw_bytes
from subnet.protocol.ids import Hotkey, ItemId, Values
from subnet.protocol.messages import ApplyWork, ManifestEntry, MergedShard, RangeSource, ReduceWork, Shard
from subnet.protocol.reasons import Reason


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
    if at >= merge.deadline:
        for late in [offer for offer in waiting if offer.deadline <= at]:
            routing.withdraw(state, late.item)
            waiting.remove(late)
    effects: list[Effect] = []
    if not waiting or len(waiting) + len(merge.reduced) < merge.handed:
        effects, missing = owners.hand_on(state, stage, merge, waiting, at)
        waiting = open_offers(state, stage, ReduceWork)
        if missing and not waiting:
            stage.sentence = f"waiting for a miner: nobody is there to reduce {missing} shards"
            return effects
    if waiting:
        merge.handed = len(waiting) + len(merge.reduced)
        merge.deadline = min(offer.deadline for offer in waiting)
        stage.sentence = f"{len(merge.reduced)} of {merge.handed} reductions are in"
        stage.sentence += f"; {len(merge.handed_on)} shards got other owners" if merge.handed_on else ""
        return effects
    return effects + _settle(state, stage, merge, at)


def _settle(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    """All the copies are there that will come."""
    reports = merge.reports
    digests = {index: source.digest if source else None for index, source in merge.recomputed.items()}
    settlement = agreement.settle(merge.assignments, reports, digests)
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


def _secret(state: State, merge: Merge) -> bytes:
    """A merge that was taken up again draws anew: its owners of before may be known."""
    return draw_bytes(state.secret(), "taken up again", merge.redone) if merge.redone else state.secret()


def _assign(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    merge.manifest = _manifest(state, stage, merge)
    if not merge.manifest:
        return resume_training(state, stage, at, "every pseudo-gradient was bad: the epoch goes on")
    able = next((rank for rank in owners.able(state, stage, merge) if rank), None)
    if able is None:
        stage.sentence = "waiting for a miner: nobody is there to reduce the shards"
        return []
    count, rules = state.spec.stages[stage.stage].num_params, state.rules_of(stage.stage).merge
    merge.assignments = butterfly.assign(_secret(state, merge), stage.stage, stage.epoch, able, count, rules.copies)
    shares: dict[Hotkey, list[Shard]] = {}
    for shard, asked in merge.assignments:
        for hotkey in asked:
            shares.setdefault(hotkey, []).append(shard)
    merge.deadline, merge.handed = at + rules.reduce_deadline_s, len(shares)
    return owners.give_shares(state, stage, merge, shares, at)


def ranges_of(merge: Merge, one: Reduced) -> dict[int, RangeSource]:
    """By shard: where in a reduced object it lies, and what the object's maker says of it."""
    lengths = {a.shard.index: a.shard.length for a in merge.assignments}
    total, start, ranges = sum(lengths[index] for index in one.digests), 0, {}
    for index, digest in one.digests.items():
        offset, size = compression.byte_range(Values.FP32, start, lengths[index], total)
        ranges[index] = RangeSource(key=one.source.key, offset=offset, size_bytes=size, digest=digest)
        start += lengths[index]
    return ranges


def _merged_shards(merge: Merge, winners: dict[int, Hotkey | None]) -> tuple[MergedShard, ...]:
    """Where the right copy of each shard lies: in an owner's object, in the orchestrator's, or nowhere."""
    copies = {
        (one.hotkey, index): source for one in merge.reduced.values() for index, source in ranges_of(merge, one).items()
    }
    merged = []
    for shard, _ in merge.assignments:
        winner = winners.get(shard.index)
        source = copies[winner, shard.index] if winner is not None else merge.recomputed.get(shard.index)
        merged.append(MergedShard(shard=shard, source=source))
    return tuple(merged)


def restart(state: State, stage: StageState, merge: Merge, hotkey: Hotkey) -> str:
    """An upload turned out to be bad: reduce again without it."""
    merge.excluded.append(hotkey)
    merge.attempt += 1
    merge.assignments, merge.reduced, merge.handed, merge.handed_on = (), {}, 0, {}
    merge.recomputing, merge.recomputed = {}, {}
    # another upload that is looked at must not slip in because this one was found first
    kept = {upload.source.key for name, upload in merge.uploads.items() if name not in merge.excluded}
    merge.checking = {key: accusers for key, accusers in merge.checking.items() if key in kept}
    merge.unheeded = {}
    return _again(state, stage, merge, "a bad pseudo-gradient was excluded: the shards are reduced again")


def discard(state: State, stage: StageState, merge: Merge, item: ItemId) -> str:
    """A reduced object is of no use: its shards are settled from the other copies, or others reduce them."""
    merge.attempt += 1
    key = merge.reduced.pop(item).source.key
    merge.checking.pop(key, None)
    merge.unheeded.pop(key, None)
    return _again(state, stage, merge, "a reduction was discarded: its shards are settled from the other copies")


def _again(state: State, stage: StageState, merge: Merge, sentence: str) -> str:
    withdraw_all(state, stage, ReduceWork)
    withdraw_all(state, stage, ApplyWork)
    merge.step, merge.shards = "reduce", ()
    stage.sentence = sentence
    return f"stage {stage.stage} epoch {stage.epoch}: {sentence}"
