"""What follows from audits: verdicts, forfeits, credit that does not count (ALGORITHMS 6).

Law: who is to blame follows from what was committed; where nobody is, nobody is blamed. The figures are judged by
`scoring.audit`, several validators' findings are combined by their stake, and the same journal gives the same verdict.
"""

from __future__ import annotations

from subnet.coordination import members
from subnet.coordination.audit_state import Audit, Standing
from subnet.coordination.effects import Effect, Say
from subnet.coordination.state import State
from subnet.protocol.ids import Epoch, Hotkey
from subnet.protocol.reasons import Reason
from subnet.scoring import audit as rules
from subnet.scoring.emission import Void


def standing_of(state: State, hotkey: Hotkey) -> Standing:
    return state.pay.standing.setdefault(hotkey, Standing())


def forfeits_until(state: State, hotkey: Hotkey) -> float | None:
    """Until when a failed audit or a proven wrong shard keeps a hotkey from pay; None when nothing does."""
    standing = state.pay.standing.get(hotkey)
    if standing is None:
        return None
    told = standing.failed_at, standing.wrong_shard_at, standing.withheld_again_at
    times = [t for t in told if t is not None]
    until = max(times, default=-1.0) + state.spec.score.gamma_s if times else None
    return until if until is not None and until > state.at else None


def settle_contested(state: State, audit: Audit) -> list[Effect]:
    """Combine what the validators found, by stake."""
    stake = state.pay.chain.stake if any(state.pay.chain.stake.values()) else {}
    judged: dict[Hotkey, tuple[bool, float]] = {}
    sentences = []
    for hotkey in sorted(audit.findings):
        verdict = judge(state, audit, hotkey)
        if verdict is not None:
            judged[hotkey] = verdict[0], stake.get(hotkey, 1.0 if not stake else 0.0)
            sentences += [] if verdict[0] else [f"{hotkey[:8]}: {verdict[1]}"]
    passed = rules.combine(judged)
    if passed is None:
        unreadable(state, audit, "no validator could replay it")
        return []
    return settle(state, audit, passed, "; ".join(sentences) or "within the tolerances")


def judge(state: State, audit: Audit, validator: Hotkey) -> tuple[bool, str] | None:
    """What one validator's finding means; None when it blames nobody."""
    found = audit.findings[validator]
    if found.figures is not None:
        spec = state.versions[state.pay.dossiers[audit.epoch][audit.hotkey].rules]
        return rules.judge(found.figures, spec.audit.tolerances, spec.boundary.values)
    if found.reason in (Reason.BAD_OBJECT, Reason.BAD_DIGEST, Reason.BAD_SIZE, Reason.NOT_FINITE, Reason.MALFORMED):
        return False, found.sentence
    return None


def settle(state: State, audit: Audit, passed: bool, sentence: str) -> list[Effect]:
    """The verdict stands. Who failed loses every score that still pays, and its session."""
    del state.pay.audits[audit.item]
    standing = standing_of(state, audit.hotkey)
    about = f"stage {audit.stage} epoch {audit.epoch} segment {audit.segment}"
    standing.sentence = f"{about}: {sentence}"
    if passed:
        standing.passed += 1
        return [Say(f"audit of {audit.hotkey[:8]}, {about}: passed ({sentence})")]
    standing.failed, standing.failed_at = standing.failed + 1, state.at
    standing.failure = standing.sentence
    standing.trusted_from = Epoch(audit.epoch + 1)
    state.incident(Reason.AUDIT_FAILED, standing.sentence, audit.hotkey)
    effects: list[Effect] = [Say(f"audit of {audit.hotkey[:8]}, {about}: FAILED ({sentence})")]
    miner = state.miners.get(audit.hotkey)
    if miner is not None and miner.live:
        effects += members.remove(state, miner, Reason.AUDIT_FAILED, f"an audit failed: {sentence}")
    return effects


def not_shown(state: State, audit: Audit, sentence: str) -> None:
    """The epoch's credit does not count, and the miner is a newcomer again; it is not called a cheat.

    The second time within γ it forfeits what a failed audit would: else not to answer would be the cheaper way to fail.
    """
    state.pay.audits.pop(audit.item, None)
    standing = standing_of(state, audit.hotkey)
    standing.not_revealed += 1
    if standing.withheld_at is not None and state.at - standing.withheld_at <= state.spec.score.gamma_s:
        standing.withheld_again_at = state.at
    standing.withheld_at = state.at
    standing.trusted_from = Epoch(audit.epoch + 1)
    standing.sentence = f"stage {audit.stage} epoch {audit.epoch}: {sentence}"
    void(state, audit.epoch, audit.hotkey, Reason.NOT_REVEALED, sentence)
    state.incident(Reason.NOT_REVEALED, standing.sentence, audit.hotkey)


def unreadable(state: State, audit: Audit, sentence: str) -> None:
    """Nobody's fault: the credit counts as if it had not been drawn."""
    state.pay.audits.pop(audit.item, None)
    standing = standing_of(state, audit.hotkey)
    standing.unreadable += 1
    standing.sentence = f"stage {audit.stage} epoch {audit.epoch}: {sentence}"
    state.incident(Reason.UNREADABLE, f"audit of {audit.hotkey[:8]}, {standing.sentence}")


def void(state: State, epoch: Epoch, hotkey: Hotkey, reason: Reason, sentence: str) -> None:
    """An epoch's credit of one hotkey does not count."""
    state.pay.void.setdefault(epoch, {}).setdefault(hotkey, Void(reason, sentence))
