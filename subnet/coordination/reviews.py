"""A validator's exchange: findings in, audits out (DESIGN 5.11).

Law: an audit is given to one drawn validator at a time and repeated until that one holds it, so a lost reply loses
nothing; only where that one found a fault is everybody asked. What a validator says counts only if it may
validate and was asked.
"""

from __future__ import annotations

from subnet.coordination import audits, members, verdicts
from subnet.coordination.audit_state import Audit, WeightsReport
from subnet.coordination.effects import Effect
from subnet.coordination.state import Evaluation, State
from subnet.protocol.ids import Epoch, Hotkey
from subnet.protocol.messages import (
    AuditDone,
    AuditPass,
    AuditWork,
    Evaluated,
    EvaluateWork,
    Noted,
    Reply,
    Review,
    Reviewed,
    Source,
    WeightsSet,
)
from subnet.protocol.reasons import Reason


def review(state: State, sender: Hotkey, message: Review, at: float) -> tuple[Reply, list[Effect]]:
    if sender not in audits.validators(state):
        return members.refusal(Reason.NO_PERMIT, "only uids with a validator permit may audit"), []
    state.pay.reviewers[sender] = at
    effects: list[Effect] = []
    for found in message.found:
        effects += _found(state, sender, found, at)
    effects += audits.advance(state, at)
    held = set(message.holding)
    waiting = [audit for audit in state.pay.audits.values() if _is_for(audit, sender) and audit.item not in held]
    given = waiting[: message.free]
    files = (state.spec.data.tokenizer, *state.spec.data.train, *state.spec.data.validation)
    said = f"{len(given)} audits for you, {len(state.pay.audits)} open" if given else "no audit for you now"
    return Reviewed(
        audits=tuple(work_of(state, audit) for audit in given),
        evaluate=_evaluation(state, sender),
        data=tuple(Source(key=f.key, digest=f.digest, size_bytes=f.size_bytes) for f in files)
        if message.with_data
        else (),
        notice=members.notice(Reason.OK if given else Reason.NO_WORK, said),
        finished=audits.are_settled(state),
    ), effects


def weights_set(state: State, sender: Hotkey, message: WeightsSet, at: float) -> Reply:
    """Noted as it was said: whoever verifies the journal compares it with the weights that follow from the records."""
    chain = state.pay.chain
    is_owner = sender in chain.uids and chain.uids[sender] == chain.owner_uid  # whom the chain asks for no permit
    if not is_owner and sender not in audits.validators(state):
        return members.refusal(Reason.NO_PERMIT, "only uids with a validator permit set weights")
    state.pay.weights[sender] = WeightsReport(at, message.index, message.weights, message.block, message.sentence)
    return Noted(notice=members.notice(Reason.OK, f"{len(message.weights)} weights noted"))


def evaluated(state: State, sender: Hotkey, message: Evaluated, at: float) -> Reply:
    if sender not in state.evaluators and sender not in audits.validators(state):
        return members.refusal(Reason.NOT_ALLOWED, "validation losses come from the run's validators only")
    known = {evaluation.epoch for evaluation in state.evaluations}
    if message.epoch in known or message.epoch > state.oldest_epoch():
        return members.refusal(Reason.NOT_ALLOWED, f"epoch {message.epoch} is measured already, or not there yet")
    current = [stage.parameters.digest for stage in state.stages if stage.epoch == message.epoch]
    if state.poison.count and len(current) == len(state.stages) and tuple(current) != message.parameters:
        return members.refusal(Reason.NOT_ALLOWED, f"epoch {message.epoch} starts with other parameters since")
    state.evaluations.append(
        Evaluation(epoch=Epoch(message.epoch), loss=message.loss, num_tokens=message.num_tokens, at=at)
    )
    return Noted(notice=members.notice(Reason.OK, f"validation loss of epoch {message.epoch} noted"))


def _is_for(audit: Audit, validator: Hotkey) -> bool:
    if audit.step != "replay" or validator in audit.findings or validator == audit.hotkey:
        return False
    return audit.contested or audit.validator == validator


def _found(state: State, sender: Hotkey, found: AuditDone, at: float) -> list[Effect]:
    audit = state.pay.audits.get(found.item)
    if audit is None or not _is_for(audit, sender):
        return []  # late, doubled or never asked: nothing follows from it
    audit.findings[sender] = found
    state.pay.replay_s += min(found.compute_s, state.spec.audit.replay_deadline_s)
    if found.figures is not None:
        state.pay.replayed_passes += len(work_of(state, audit).passes)
    verdict = verdicts.judge(state, audit, sender)
    others = [h for h in audits.present(state) if h not in audit.findings and h != audit.hotkey]
    if audit.contested:
        return [] if others else verdicts.settle_contested(state, audit)
    if verdict is None:
        audit.attempt, audit.validator = audit.attempt + 1, None
        del audit.findings[sender]  # it may be asked again
        if audit.attempt >= audits.REPLAYS_MAX:
            verdicts.unreadable(state, audit, found.sentence)
        return []
    if verdict[0] or not others:
        return verdicts.settle(state, audit, *verdict)
    audit.contested, audit.deadline = True, at + state.spec.audit.replay_deadline_s
    return []


def _evaluation(state: State, sender: Hotkey) -> EvaluateWork | None:
    """The newest model that all stages agree on, for the first validator in line, if nobody has measured it yet."""
    epochs = {stage.epoch for stage in state.stages}
    epoch = min(epochs)
    if len(epochs) != 1 or epoch == 0 or any(done.epoch >= epoch for done in state.evaluations):
        return None
    if next(iter(audits.present(state)), None) != sender:
        return None
    return EvaluateWork(epoch=epoch, parameters=tuple(stage.parameters for stage in state.stages))


def work_of(state: State, audit: Audit) -> AuditWork:
    """Everything a replay needs, in the miner's own order."""
    dossier = state.pay.dossiers[audit.epoch][audit.hotkey]
    before = state.pay.dossiers.get(audit.epoch - 1, {}).get(audit.hotkey)
    known = dossier.given if before is None else {**before.given, **dossier.given}
    begins, ends = dossier.commitments[audit.segment : audit.segment + 2]
    passes = []
    for logged in dossier.log[begins.position : ends.position]:
        given = known[logged.item]
        target, output = given.work.output, None
        if target is not None and given.output is not None:
            output = Source(key=target.key, digest=given.output, size_bytes=target.size_bytes)
        passes.append(AuditPass(work=given.work, version=logged.version, output=output, loss=given.loss))
    is_last = audit.segment == len(dossier.commitments) - 2
    return AuditWork(
        item=audit.item,
        hotkey=audit.hotkey,
        stage=audit.stage,
        epoch=audit.epoch,
        segment=audit.segment,
        begins=begins,
        ends=ends,
        anchor=dossier.anchor,
        loaded=audit.segment == 0 and dossier.loaded,
        applies_after=_applies_after(audit.segment, dossier.applied_at, [c.position for c in dossier.commitments]),
        start=audit.start,
        end=audit.end,
        upload=dossier.upload if is_last else None,
        passes=tuple(passes),
        deadline_s=state.spec.audit.replay_deadline_s,
        spec=state.versions[dossier.rules] if len(state.versions) > 1 else None,
        spec_before=state.versions[before.rules] if before is not None and before.rules != dossier.rules else None,
    )


def _applies_after(segment: int, applied_at: int | None, positions: list[int]) -> int | None:
    """Passes of the segment before the merge was applied; None when that was in another one.

    A commitment at the very place was made before it: after the merge there is none without another pass.
    """
    if applied_at is None:
        return None
    last_before = max(i for i, position in enumerate(positions[:-1]) if position <= applied_at)
    return applied_at - positions[segment] if last_before == segment else None
