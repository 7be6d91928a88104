"""The owner tunes the rules while the run goes on (DESIGN 6).

Law: a new RunSpec holds for a stage from its next epoch on, whose merge before names it to every replica; an epoch is
trained, merged and audited by one RunSpec. Routing, audits and pay, which are no single stage's, go by the newest one
that every stage has taken over. Work that was opened under an older digest stays valid.
"""

from __future__ import annotations

from subnet.coordination.effects import Effect, Say
from subnet.coordination.state import StageState, State
from subnet.errors import InvariantViolation
from subnet.protocol import tuning
from subnet.protocol.messages import Tuned


def retune(state: State, message: Tuned) -> list[Effect]:
    """Keep a new version for the stages to take over. Raises InvariantViolation for what no owner may change."""
    spec, newest = message.spec, state.versions[-1]
    if spec.version != newest.version + 1 or not tuning.is_tuned_from(state.versions[0], spec):
        raise InvariantViolation(f"RunSpec {spec.version} is no tuning of this run's RunSpec {newest.version}")
    changes = ", ".join(tuning.differences(newest, spec)) or "nothing"
    state.versions.append(spec)
    state.digests.append(spec.digest())
    return [Say(f"the owner tuned {changes}: RunSpec {spec.version} holds from each stage's next epoch on")]


def take_over(state: State, stage: StageState, version: int) -> list[Effect]:
    """A stage's next epoch begins, by the rules that were settled when the one before closed."""
    if version == stage.rules:
        return []
    stage.rules = version
    effects: list[Effect] = [Say(f"stage {stage.stage} goes by RunSpec {version + 1} from epoch {stage.epoch} on")]
    common = min(other.rules for other in state.stages)
    if common + 1 > state.spec.version:
        state.spec = state.versions[common]
        effects.append(Say(f"every stage goes by RunSpec {common + 1}: it holds for routing, audits and pay too"))
    return effects
