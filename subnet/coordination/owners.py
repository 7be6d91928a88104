"""Who reduces shards in a stage's merge, and who takes them over from owners that fall away (ALGORITHMS 4).

    a shard has                                  it gets
    -------------------------------------------  -------------------------------------------------------------------
    nobody that reduced it or still may          `copies` new owners, whatever the time: else it would be lost
    fewer than `copies`, but at least one        owners that have nothing to reduce, for its check, but only while it
                                                 costs little: in the first half of the reduction's time, or when
                                                 orphaned shards make the merge wait anyway

A second copy is worth a piece of work because an unchecked shard is the one place where a liar goes unseen, and whoever
could knock out its partner would have it; it is not worth holding a stage up for the rest of a deadline. So late in a
reduction a single copy stands.

Law: new owners are drawn, verifiably: uploaders first, then whoever holds the epoch's parameters; never one with a
proven wrong shard while there is another; never one that was asked for this shard before while there is another; least
work first. Each piece of work has the reduction's whole deadline. A hand-out that a living owner leaves unanswered
counts; after ASSIGNMENTS_MAX of them the shard is lost, so no merge stalls for ever, and the last one goes to
everybody. A death does not count: there are only so many. With nobody left a merge waits for a miner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from subnet.coordination import verdicts
from subnet.coordination.effects import Effect, Say
from subnet.coordination.merge_state import Merge
from subnet.coordination.merge_work import give, item_id, next_number
from subnet.coordination.state import Offer, StageState, State
from subnet.merging import compression
from subnet.merging.butterfly import Assignment, Orphan, heirs
from subnet.protocol import keys
from subnet.protocol.ids import Hotkey, Values
from subnet.protocol.messages import ReduceWork, Shard, Target

ASSIGNMENTS_MAX = 3
"""Hand-outs of one shard, the first included, that living owners leave unanswered before it counts as lost."""


def able(state: State, stage: StageState, merge: Merge) -> tuple[list[Hotkey], list[Hotkey], list[Hotkey]]:
    """Who may reduce, by rank: uploaders; others with the epoch's parameters; who was proven to reduce wrongly."""
    ranks: tuple[list[Hotkey], list[Hotkey], list[Hotkey]] = [], [], []
    for miner in state.replicas(stage.stage):
        uploaded = miner.hotkey in merge.uploads and miner.hotkey not in merge.excluded
        if uploaded or miner.synced_epoch == stage.epoch:
            trusted = verdicts.forfeits_until(state, miner.hotkey) is None
            ranks[(0 if uploaded else 1) if trusted else 2].append(miner.hotkey)
    return ranks


def give_shares(
    state: State, stage: StageState, merge: Merge, shares: Mapping[Hotkey, Sequence[Shard]], at: float
) -> list[Effect]:
    """One piece of reduce work for everybody who has a share, with a key of its own."""
    effects: list[Effect] = []
    deadline_s = state.rules_of(stage.stage).merge.reduce_deadline_s
    for hotkey, shards in sorted(shares.items()):
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
            shards=tuple(shards),
            output=Target(key=key, size_bytes=size),
            deadline_s=deadline_s,
        )
        effects.append(give(state, stage, state.miners[hotkey], work, at))
    return effects


def hand_on(
    state: State, stage: StageState, merge: Merge, waiting: Sequence[Offer], at: float
) -> tuple[list[Effect], int]:
    """Give shards that lack owners to others; also how many there are that nobody can take for now."""
    orphaned, unchecked = _lacking(merge, waiting)
    here = {miner.hotkey for miner in state.replicas(stage.stage)}
    vain = {a.shard.index: merge.handed_on.get(a.shard.index, 0) + 1 for a in orphaned if here.intersection(a.owners)}
    orphaned = [a for a in orphaned if vain.get(a.shard.index, 0) < ASSIGNMENTS_MAX]
    rules = state.rules_of(stage.stage).merge
    busy = _busy(waiting)
    uploaders, others, wrong = able(state, stage, merge)
    ranked = [uploaders, others] if uploaders or others else [wrong]
    loads = {hotkey: (rank, busy.get(hotkey, 0)) for rank, group in enumerate(ranked) for hotkey in group}
    if orphaned and not loads:
        return [], len(orphaned)
    everybody = {index for index, times in vain.items() if times == ASSIGNMENTS_MAX - 1}
    orphans = [
        Orphan(
            a.shard,
            () if a.shard.index in everybody or set(loads) <= set(a.owners) else a.owners,
            len(loads) if a.shard.index in everybody else rules.copies,
        )
        for a in orphaned
    ]
    purpose = state.secret(), stage.stage, stage.epoch
    found = heirs(*purpose, merge.attempt, orphans, loads)
    if orphaned or at - stage.phase_since <= rules.reduce_deadline_s / 2:
        given = _values(orphaned, found)
        idle = {hotkey: (0, given.get(hotkey, 0)) for hotkey in uploaders if hotkey not in busy}
        short = [Orphan(a.shard, a.owners, rules.copies - copies) for a, copies in unchecked]
        found |= heirs(*purpose, merge.attempt, [one for one in short if one.wanted > 0], idle)
    effects: list[Effect] = []
    if orphaned:
        merge.handed_on |= {i: vain.get(i, merge.handed_on.get(i, 0)) for i in (a.shard.index for a in orphaned)}
        effects.append(Say(_sentence(stage, orphaned, here, found)))
    return effects + _extend(state, stage, merge, found, at), 0


def _lacking(merge: Merge, waiting: Sequence[Offer]) -> tuple[list[Assignment], list[tuple[Assignment, int]]]:
    """Shards that nobody reduced or still may; and the others, with how many did or may. What the orchestrator was
    asked to reduce itself lacks nobody."""
    copies = dict.fromkeys((a.shard.index for a in merge.assignments if a.shard.index not in merge.recomputing), 0)
    for index in (index for one in merge.reduced.values() for index in one.digests):
        copies[index] = copies.get(index, 0) + 1
    for work in (offer.work for offer in waiting):
        for shard in work.shards if isinstance(work, ReduceWork) else ():
            copies[shard.index] = copies.get(shard.index, 0) + 1
    counted = [(a, copies[a.shard.index]) for a in merge.assignments if a.shard.index not in merge.recomputing]
    return [a for a, count in counted if not count], [(a, count) for a, count in counted if count]


def _busy(waiting: Sequence[Offer]) -> dict[Hotkey, int]:
    """Values that each has in hand to reduce."""
    busy: dict[Hotkey, int] = {}
    for offer in waiting:
        values = sum(shard.length for shard in offer.work.shards) if isinstance(offer.work, ReduceWork) else 0
        busy[offer.hotkey] = busy.get(offer.hotkey, 0) + values
    return busy


def _values(assignments: Sequence[Assignment], found: Mapping[int, Sequence[Hotkey]]) -> dict[Hotkey, int]:
    """Values that each new owner gets to reduce."""
    given: dict[Hotkey, int] = {}
    for shard, _ in assignments:
        for hotkey in found.get(shard.index, ()):
            given[hotkey] = given.get(hotkey, 0) + shard.length
    return given


def _extend(
    state: State, stage: StageState, merge: Merge, found: Mapping[int, Sequence[Hotkey]], at: float
) -> list[Effect]:
    """The new owners join the list of those who were ever asked, and get their work."""
    shares: dict[Hotkey, list[Shard]] = {}
    extended = []
    for shard, asked in merge.assignments:
        heirs_of = found.get(shard.index, ())
        for hotkey in heirs_of:
            shares.setdefault(hotkey, []).append(shard)
        extended.append(Assignment(shard, (*asked, *(hotkey for hotkey in heirs_of if hotkey not in asked))))
    if shares:
        merge.assignments, merge.attempt = tuple(extended), merge.attempt + 1
    return give_shares(state, stage, merge, shares, at)


def _sentence(
    stage: StageState, orphaned: Sequence[Assignment], here: set[Hotkey], found: Mapping[int, Sequence[Hotkey]]
) -> str:
    asked = {hotkey for a in orphaned for hotkey in a.owners}
    heirs_of = {hotkey for a in orphaned for hotkey in found[a.shard.index]}
    return (
        f"stage {stage.stage} epoch {stage.epoch}: {len(orphaned)} shards have no owner left"
        f" ({len(asked - here)} gone, {len(asked & here)} too late or failed): {len(heirs_of)} replicas reduce them now"
    )
