"""A miner's process died, and the next one goes on from the last state that it had committed on its disk (DESIGN 6).

Law: what counts again is what the journal holds as credited and the log names, never what the miner claims; no pass is
counted that was not given to this hotkey since its last upload or load. Where anything does not fit, the miner starts
at the epoch's parameters, which is never wrong. Deciding twice about the same Join comes to the same.
"""

from __future__ import annotations

from subnet.coordination import dossiers
from subnet.coordination.audit_state import Dossier
from subnet.coordination.state import Miner, StageState, State
from subnet.protocol.ids import Hotkey, Pass
from subnet.protocol.messages import Resumes
from subnet.scoring.audit import check_log, match_log


def again(state: State, miner: Miner, found: Resumes | None) -> bool:
    """The answer to a Join that is sent once more: what it was told before, unless the stage went on, or it did."""
    return found is not None and not miner.mean_s and take_up(state, miner.hotkey, found)


def take_up(state: State, hotkey: Hotkey, found: Resumes | None) -> bool:
    """Whether a miner that has just joined may go on from what it found; then its progress up to there counts."""
    stage = state.stage_of(hotkey)
    stage.contributions.pop(hotkey, None)
    if found is None or not dossiers.are_kept(state) or _problem(state, stage, hotkey, found) is not None:
        return False
    logged = {one.item for one in found.log}
    count = 0
    for dossier in _of_late(state, stage, hotkey):
        for item in logged & dossier.given.keys():
            given = dossier.given[item]
            given.forgotten = False
            count += given.credited and given.work.kind is not Pass.FORWARD
    if count:
        stage.contributions[hotkey] = count
    if not found.loaded:
        state.pay.fresh.discard(hotkey)
    return True


def _problem(state: State, stage: StageState, hotkey: Hotkey, found: Resumes) -> str | None:
    """Why it cannot be gone on from; None when it can."""
    place = state.spec.run_id, stage.stage, stage.epoch, stage.parameters.digest
    if (found.run_id, found.stage, found.epoch, found.anchor) != place:
        return "it belongs to other parameters than the stage's epoch began with"
    if stage.merge is not None and stage.merge.step != "drain":
        return "the stage merges already"
    now = state.pay.dossiers.get(stage.epoch, {}).get(hotkey)
    if now is not None and now.asked:
        return "the process before was asked to upload in this epoch"
    inner, audit = state.spec.inner, state.spec.audit
    said = check_log(
        found.log,
        found.commitments,
        found.applied_at or 0,
        inner.micro_batches_per_step,
        audit.segment_steps,
        loaded=found.loaded,
        merged=found.applied_at is not None,
        reset_each_epoch=inner.reset_each_epoch,
    )
    if said is not None:
        return said
    if found.commitments[-1].position != len(found.log):
        return "the log goes on after the last committed state"
    before = state.pay.dossiers.get(stage.epoch - 1, {}).get(hotkey)
    if not found.loaded and (before is None or not dossiers.goes_on(before, found.commitments[0])):
        return "the log does not begin where the upload before ended"
    logged = {one.item for dossier in _of_late(state, stage, hotkey) for one in dossier.log}
    if any(one.item in logged for one in found.log):
        return "it names passes that an upload has already"
    given = {item: one for dossier in _of_late(state, stage, hotkey) for item, one in dossier.given.items()}
    if any(given[one.item].excused for one in found.log if one.item in given):
        return "a roll-back took back what it goes on from"
    return match_log(found.log, given, ())


def _of_late(state: State, stage: StageState, hotkey: Hotkey) -> list[Dossier]:
    """Where a log of the running epoch has its passes from."""
    epochs = (state.pay.dossiers.get(epoch, {}) for epoch in (stage.epoch - 1, stage.epoch))
    return [epoch[hotkey] for epoch in epochs if hotkey in epoch and epoch[hotkey].stage == stage.stage]
