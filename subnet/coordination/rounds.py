"""A stage's merge as steps: drain → upload → reduce → apply, then the next epoch (DESIGN 5.9-5.10, 6).

Law: `advance` looks at one stage and takes every step that is due; each step ends when nobody is waited for any more
or its deadline has passed, so no straggler and no dead miner can stall a run. No pseudo-gradient is readable before
the manifest is closed: URLs to uploads are granted with the reduce work only.
"""

from __future__ import annotations

from collections.abc import Sequence

from subnet.coordination import applying, dossiers, phases, poison, quorum, reducing
from subnet.coordination.effects import Effect, Say
from subnet.coordination.index import NEVER, index_of
from subnet.coordination.merge_state import Merge
from subnet.coordination.merge_work import give, item_id, next_number, open_offers, resume_training, withdraw_all
from subnet.coordination.state import StageState, State
from subnet.merging import compression
from subnet.protocol import keys
from subnet.protocol.ids import Phase
from subnet.protocol.messages import ApplyWork, ReduceWork, Target, UploadWork
from subnet.protocol.reasons import Reason


def advance_all(state: State, at: float) -> list[Effect]:
    """Take every step of every stage that is due, until none is: one that moves may let another one move.

    Looked at are stages where something happened, and those that time alone could move.
    """
    effects: list[Effect] = []
    index, moved = index_of(state), True
    if not index.touched and at < index.next_at:
        return effects
    index.touched, index.gate = False, None
    while moved:
        moved = False
        for stage, known in zip(state.stages, index.stages, strict=True):
            if not (moved or known.changed or at >= known.next_at):
                continue
            known.changed, before = False, _position(stage)
            effects += advance(state, stage, at)
            known.next_at = _next_at(state, stage)
            moved = moved or _position(stage) != before
        if moved:
            index.all_changed()
    index.next_at = min(known.next_at for known in index.stages)
    return effects


def _next_at(state: State, stage: StageState) -> float:
    """When time alone could move a stage that nothing happens to."""
    if stage.merge is not None:
        return stage.merge.deadline
    if stage.phase is not Phase.TRAINING:
        return NEVER
    return stage.opened_at + state.rules_of(stage.stage).merge.relax_after_s


def _position(stage: StageState) -> tuple[int, Phase, str, int]:
    merge = stage.merge
    return stage.epoch, stage.phase, merge.step if merge else "", merge.attempt if merge else 0


def is_due(state: State, stage: StageState, now: float) -> bool:
    """Whether time alone would move the stage at `now`; what waits for somebody's answer is not due."""
    merge, known = stage.merge, index_of(state).stages[stage.stage]
    if not known.changed and now < known.next_at:
        return False
    if merge is None:
        return stage.phase is Phase.TRAINING and closing(state, stage, now)[0]
    if now < merge.deadline:
        return False
    match merge.step:
        case "reduce":
            return not merge.checking and bool(open_offers(state, stage, ReduceWork))
        case "apply":
            return not merge.checking and bool(open_offers(state, stage, ApplyWork))
        case _:
            return True


def advance(state: State, stage: StageState, at: float) -> list[Effect]:
    """Take every step of one stage that is due."""
    effects: list[Effect] = []
    if stage.phase is Phase.TRAINING:
        effects += _maybe_close(state, stage, at)
    while stage.merge is not None:
        merge, before = stage.merge, _position(stage)
        match merge.step:
            case "drain":
                effects += _drain(state, stage, merge, at)
            case "upload":
                effects += _upload(state, stage, merge, at)
            case "reduce":
                effects += reducing.step(state, stage, merge, at)
            case "apply":
                effects += applying.step(state, stage, merge, at)
        if _position(stage) == before:
            break
    effects += applying.sync_stragglers(state, stage, at)
    return effects


def closing(state: State, stage: StageState, at: float) -> tuple[bool, str]:
    """Whether training of this stage's epoch closes at `at`, and why."""
    if state.target_epochs and stage.epoch >= state.target_epochs:
        return False, "the run's last epoch is merged; training goes on until the other stages are there"
    slowest = state.oldest_epoch()
    neighbour_closed = any(
        other.epoch > stage.epoch or (other.epoch == stage.epoch and other.merge is not None) for other in state.stages
    )
    replicas = state.replicas(stage.stage)
    counts = [stage.contributions.get(m.hotkey, 0) for m in replicas if m.synced_epoch == stage.epoch]
    # who came after the epoch had begun does not hold up its quorum, unless nobody else is left
    expected = sum(m.joined_at <= stage.opened_at for m in replicas) or len(replicas)
    age_s, rules = at - stage.opened_at, state.rules_of(stage.stage).merge
    return quorum.may_close(rules, counts, expected, age_s, neighbour_closed, slowest, stage.epoch)


def _maybe_close(state: State, stage: StageState, at: float) -> list[Effect]:
    close, sentence = closing(state, stage, at)
    stage.sentence = sentence
    if not close:
        return []
    grace_s = state.rules_of(stage.stage).merge.grace_s
    stage.merge = Merge(closed_at=at, deadline=at + grace_s, next_rules=len(state.versions) - 1)
    return [Say(phases.move(stage, Phase.UPLOADING, at, Reason.MERGE_RUNNING, sentence))]


def _drain(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    """Let work in flight finish, at most for the grace window; then ask for the pseudo-gradients."""
    in_flight = index_of(state).stages[stage.stage].undone
    if in_flight and at < merge.deadline:
        stage.sentence = f"letting {in_flight} micro-batches in flight finish"
        return []
    spec = state.rules_of(stage.stage).merge
    synced = [m for m in state.replicas(stage.stage) if m.synced_epoch == stage.epoch]
    floor = quorum.counts_from(spec, at - stage.opened_at)
    asked = [m for m in synced if stage.contributions.get(m.hotkey, 0) >= floor]
    worked = [m for m in synced if stage.contributions.get(m.hotkey, 0) > 0]
    asked = asked or worked
    if not asked:
        return resume_training(state, stage, at, "no live replica has anything to merge: the epoch goes on")
    merge.excluded = poison.set_aside(state, asked)
    stage.uploaded_at = at
    merge.step, merge.deadline = "upload", at + spec.upload_deadline_s
    effects: list[Effect] = []
    size = compression.encoded_size(spec.upload_values, state.spec.stages[stage.stage].num_params)
    for miner in worked:  # who did too little for the merge (weight 0) uploads too: without a log no work is paid
        count = stage.contributions.pop(miner.hotkey)
        merge.weights[miner.hotkey] = count if miner in asked else 0
        number = next_number(state)
        key = keys.make(state.spec.run_id, stage.epoch, stage.stage, f"{miner.hotkey}.{number}", keys.Kind.UPLOAD)
        work = UploadWork(
            item=item_id("u", stage, number, miner.hotkey),
            stage=stage.stage,
            epoch=stage.epoch,
            output=Target(key=key, size_bytes=size),
            deadline_s=spec.upload_deadline_s,
        )
        effects.append(give(state, stage, miner, work, at))
    dossiers.asked(state, stage, merge)
    return effects


def _upload(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    """Wait for the uploads; then close the manifest."""
    waiting = open_offers(state, stage, UploadWork)
    if waiting and at < merge.deadline:
        stage.sentence = f"{len(merge.uploads)} of {len(merge.weights)} pseudo-gradients are in"
        return []
    withdraw_all(state, stage, UploadWork)
    if not any(upload.weight for upload in merge.uploads.values()):
        return resume_training(state, stage, at, "no pseudo-gradient arrived in time: the epoch goes on")
    count = sum(upload.weight > 0 for upload in merge.uploads.values())
    line = phases.move(stage, Phase.MERGING, at, Reason.MERGE_RUNNING, f"the manifest holds {count} pseudo-gradients")
    merge.step = "reduce"
    return [Say(line)]


def pause_all(state: State, at: float, reason: Reason, sentence: str) -> Sequence[Effect]:
    """Hold every stage that trains; merges in progress run to their end first."""
    return [Say(phases.move(s, Phase.PAUSED, at, reason, sentence)) for s in state.stages if s.phase is Phase.TRAINING]
