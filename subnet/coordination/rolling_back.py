"""A poisoned merge is taken back: parameters of before, the merge once more without the offenders (DESIGN 7).

    loss explodes ─► every stage that merged epoch e goes back to it ─► the orchestrator looks at the uploads ─► named:
                     work in flight is given up, credit stays           every replica loads the base meanwhile
        offenders named      those contributions are left out, the others are reduced and applied once more
        nobody can be named  the merges are dropped: epoch e + 1 starts where e did, nobody is blamed
        third time           dropped, and the run pauses for its operator

Epoch numbers go back to e and forward again; everything that must not repeat has a number of its own (items, keys,
draws, attempts). What was closed or drawn stays so: `pay.closed_at` only grows.

Law: pay of everybody but the offenders is untouched: passes whose log the roll-back made worthless are excused, and
who skipped a merge that was taken back has skipped nothing. A merge whose result nobody can apply is treated alike,
with nothing to go back from.
"""

from __future__ import annotations

from collections.abc import Mapping

from subnet.coordination import applying, dossiers, inspecting, overdue, phases, poison, routing, verdicts
from subnet.coordination.effects import Effect, Say
from subnet.coordination.index import rebuild
from subnet.coordination.merge_state import CLOSED_KEPT, ClosedMerge, Merge
from subnet.coordination.merge_work import merge_work_of, open_offers, resume_training
from subnet.coordination.poison_state import ROLL_BACKS_KEPT, RollBack
from subnet.coordination.state import StageState, State
from subnet.protocol.ids import Epoch, Hotkey, Phase
from subnet.protocol.messages import SyncWork
from subnet.protocol.reasons import Reason

ROLL_BACKS_MAX = 3
"""Of one epoch, or in a row with nobody to name, before the run waits for its operator."""


def advance(state: State, at: float) -> list[Effect]:
    """Take a merge back when it has to be, and go on with one that is."""
    found = state.poison
    if not state.secrets:
        return []  # nothing can be drawn yet: the orchestrator has just started
    if found.rolling is not None:
        return _go_on(state, found.rolling, at)
    effects: list[Effect] = []
    if found.overflowing >= 0:
        stage, found.overflowing = state.stages[found.overflowing], -1
        if poison.overflows(state, stage):
            effects = _look_at_merge(state, stage, at)
    elif found.suspected:
        finding = poison.find(state)
        if finding is not None:
            effects = _roll_back(state, finding.since, finding.sentence, at)
    if found.rolling is not None:
        rebuild(state)
    return effects


# ---- going back ------------------------------------------------------------------------------------------------------


def _roll_back(state: State, since: int, sentence: str, at: float) -> list[Effect]:
    """Every stage that has merged since goes back to its first merge of these; one that only trained begins anew."""
    undone = {stage.stage: poison.undone_of(stage, since) for stage in state.stages}
    epoch = min(found[0].epoch for found in undone.values() if found)
    rolling = state.poison.rolling = RollBack(at=at, epoch=epoch, sentence=sentence)
    effects: list[Effect] = [Say(f"epoch {epoch} is rolled back: {sentence}")]
    _give_up_in_flight(state, epoch)
    for stage in state.stages:
        if undone[stage.stage]:
            rolling.stages.append(stage.stage)
            effects += _take_up_again(state, stage, undone[stage.stage][0], at)
        elif stage.merge is None or stage.merge.step in ("drain", "upload"):
            if stage.merge is not None:
                effects += resume_training(state, stage, at, "a roll-back: the epoch begins anew")
            dossiers.excuse(state, stage, stage.epoch, running=True)
            stage.opened_at = at
            _unsettle(state, stage)
    for heard in state.poison.heard:
        for hotkey, count in heard.blamed.items() if heard.last >= since else ():
            state.miners[hotkey].faults -= count
    state.poison.heard = [heard for heard in state.poison.heard if heard.first < since]
    for heard in state.poison.heard:  # losses of before stay to compare with; what was suffered since is dealt with
        heard.through, heard.not_finite, heard.blamed = {}, {}, {}
    state.poison.good = min(state.poison.good, since - 1)
    for later in [e for e in state.epoch_losses if e > state.stages[-1].epoch]:
        del state.epoch_losses[later]
    state.recent_losses.clear()
    oldest = state.oldest_epoch()
    state.evaluations = [done for done in state.evaluations if done.epoch <= oldest]
    state.incident(Reason.POISONED, f"epoch {epoch} is rolled back: {sentence}")
    return effects


def _give_up_in_flight(state: State, epoch: Epoch) -> None:
    """Their activations come from what is taken back. One incident speaks for all of them."""
    incidents, count = list(state.incidents), state.incident_count
    for batch in list(state.micro_batches.values()):
        overdue.give_up(state, batch, f"with the merge of epoch {epoch}")
    state.incidents, state.incident_count = incidents, count


def _unsettle(state: State, stage: StageState) -> None:
    """Nothing that its replicas trained locally counts: each of them loads the stage's parameters."""
    stage.contributions.clear()
    for miner in state.replicas(stage.stage):
        for work in merge_work_of(state, miner):
            routing.withdraw(state, work.item)
    for miner in state.miners.values():  # the absent too: they may come back with it
        if miner.stage == stage.stage:
            miner.synced_epoch = -1


def _take_up_again(state: State, stage: StageState, closed: ClosedMerge, at: float) -> list[Effect]:
    epoch = closed.epoch
    _unsettle(state, stage)
    dossiers.excuse(state, stage, epoch)
    for record in stage.merges:
        if record.epoch >= epoch and not record.undone:
            record.undone = True
            state.passes_merged -= record.batch * applying.passes_each(state, stage)
    for later in [e for e in state.pay.void if e > epoch]:
        state.pay.void[later] = {
            hotkey: void
            for hotkey, void in state.pay.void[later].items()
            if void.reason is not Reason.SKIPPED_MERGE or state.miners[hotkey].stage != stage.stage
        }
    stage.closed = [c for c in stage.closed if c.epoch < epoch]
    line = phases.move(stage, Phase.MERGING, at, Reason.MERGE_RUNNING, f"the merge of epoch {epoch} is taken up again")
    stage.epoch, stage.generation = epoch, closed.before
    stage.parameters, stage.momentum, stage.norms = closed.parameters, closed.momentum, closed.norms
    stage.uploaded_at = at
    stage.merge = Merge(
        closed_at=at,
        deadline=at,
        next_rules=stage.rules,
        step="reduce",
        attempt=closed.attempt + 1,
        weights={hotkey: upload.weight for hotkey, upload in closed.uploads.items()},
        uploads=dict(closed.uploads),
        excluded=list(closed.excluded),
        redone=closed.redone + 1,
    )
    return [Say(line), *inspecting.inspect(state, stage, stage.merge, at)]


def _look_at_merge(state: State, stage: StageState, at: float) -> list[Effect]:
    """The result of a merge in progress is not finite: look for who made it so."""
    assert stage.merge is not None
    merge = stage.merge
    said = f"{len(merge.overflowed)} replicas of stage {stage.stage} cannot apply the merge: its result is not finite"
    state.poison.rolling = RollBack(at=at, epoch=stage.epoch, sentence=said, stages=[stage.stage])
    _unsettle(state, stage)
    dossiers.excuse(state, stage, stage.epoch)
    merge.attempt, merge.redone = merge.attempt + 1, merge.redone + 1
    merge.applied, merge.published, merge.overflowed = {}, {}, []
    state.incident(Reason.POISONED, said)
    return [Say(f"epoch {stage.epoch}: {said}"), *inspecting.inspect(state, stage, merge, at)]


# ---- going forward again ---------------------------------------------------------------------------------------------


def _go_on(state: State, rolling: RollBack, at: float) -> list[Effect]:
    """When every upload was looked at and the replicas hold the base again, or had time to: decide."""
    waiting = False
    for stage in (state.stages[index] for index in rolling.stages):
        merge = stage.merge
        assert merge is not None and merge.inspection is not None, "nothing else moves a merge that is inspected"
        if merge.inspection.contributions is None:
            waiting = True
            if at >= merge.deadline:
                inspecting.put_off(state, stage, merge, at)
        elif at < merge.deadline:
            unsynced = any(miner.synced_epoch != stage.epoch for miner in state.replicas(stage.stage))
            waiting = waiting or unsynced or bool(open_offers(state, stage, SyncWork))
    if waiting:
        # a stage that is ready waits for the others without a tick of its own
        for stage in (state.stages[index] for index in rolling.stages):
            if stage.merge is not None and at >= stage.merge.deadline:
                inspecting.put_off(state, stage, stage.merge, at)
        return []
    return _settle(state, rolling, at)


def _settle(state: State, rolling: RollBack, at: float) -> list[Effect]:
    found = state.poison
    named = {index: inspecting.offenders(state, state.stages[index]) for index in rolling.stages}
    pauses = _fruitless(state, rolling, any(named.values())) + 1 >= ROLL_BACKS_MAX
    effects: list[Effect] = []
    for index in rolling.stages:
        stage = state.stages[index]
        merge = stage.merge
        assert merge is not None
        for hotkey, why in named[index].items():
            _blame(state, stage, hotkey, why)
        left = [hotkey for hotkey in inspecting.counted(merge) if hotkey not in named[index]]
        if pauses or not any(named.values()) or not left:
            effects += _drop(state, stage, merge, at)
        else:
            effects += _reduce_again(stage, merge, named[index], at)
        rolling.offenders |= named[index]
    if pauses:
        rolling.outcome = f"rolled back {ROLL_BACKS_MAX} times: the merges are dropped, the run waits for its operator"
    elif rolling.offenders:
        rolling.outcome = f"merged again without {len(rolling.offenders)} uploads"
    else:
        rolling.outcome = "nobody could be named: the merges are dropped, training goes on from before"
    found.rolling, found.count = None, found.count + 1
    found.roll_backs = [*found.roll_backs, rolling][-ROLL_BACKS_KEPT:]
    effects.append(Say(f"roll-back of epoch {rolling.epoch}: {rolling.outcome}"))
    rebuild(state)
    return effects + (_pause(state, rolling, at) if pauses else [])


def _fruitless(state: State, rolling: RollBack, named: bool) -> int:
    """Roll-backs before this one that did not help: of the same epoch, or of one shortly before, by nobody's doing."""
    return sum(
        one.epoch == rolling.epoch
        or (not named and not one.offenders and abs(rolling.epoch - one.epoch) < ROLL_BACKS_MAX)
        for one in state.poison.roll_backs
        if one.at >= state.poison.counted_from
    )


def _blame(state: State, stage: StageState, hotkey: Hotkey, why: str) -> None:
    said = f"stage {stage.stage} epoch {stage.epoch} was spoilt: {why}"
    state.miners[hotkey].faults += 1
    state.poison.named_at[hotkey] = state.at
    verdicts.void(state, stage.epoch, hotkey, Reason.POISONED, said)
    state.incident(Reason.POISONED, said, hotkey)


def _reduce_again(stage: StageState, merge: Merge, named: Mapping[Hotkey, str], at: float) -> list[Effect]:
    stage.merge = Merge(
        closed_at=merge.closed_at,
        deadline=at,
        next_rules=merge.next_rules,
        step="reduce",
        attempt=merge.attempt + 1,
        weights=merge.weights,
        uploads=merge.uploads,
        excluded=sorted({*merge.excluded, *named}),
        faulty=merge.faulty,
        redone=merge.redone,
    )
    stage.sentence = f"epoch {stage.epoch} is merged again without {len(named)} of {len(merge.uploads)} uploads"
    return [Say(f"stage {stage.stage}: {stage.sentence}")]


def _drop(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    """The next epoch starts where this one did."""
    _unsettle(state, stage)
    said = f"the merge of epoch {stage.epoch} is dropped: the next epoch starts from the same parameters"
    stage.closed = [*stage.closed, applying.closed(state, stage, merge)][-CLOSED_KEPT:]
    return applying.begin_next(state, stage, merge, at, said)


def _pause(state: State, rolling: RollBack, at: float) -> list[Effect]:
    said = (
        f"rolled back {ROLL_BACKS_MAX} times, last in epoch {rolling.epoch} ({rolling.sentence}): see the incidents,"
        " tune lr_peak, outer_lr or explosion_nats with --config, and start the orchestrator again"
    )
    training = [stage for stage in state.stages if stage.phase is Phase.TRAINING]
    return [Say(phases.move(stage, Phase.PAUSED, at, Reason.PAUSED, said)) for stage in training]
