"""The orchestrator's process started again over a replayed journal.

Law: a restart costs nobody anything: sessions, offers and merges stand, every deadline begins anew, and whatever the
shell was asked for without an answer in the journal is asked again.
"""

from __future__ import annotations

from subnet.coordination import inspecting, merge_results, phases, reducing
from subnet.coordination.effects import CheckObject, Effect, Say
from subnet.coordination.index import rebuild
from subnet.coordination.state import State
from subnet.protocol.ids import Phase
from subnet.protocol.messages import RunResumed
from subnet.protocol.reasons import Reason


def resume(state: State, message: RunResumed, at: float) -> list[Effect]:
    """The orchestrator was away: nobody is blamed for that time, and a larger target lets stages go on."""
    said = "the orchestrator is back: the journal was replayed, miners go on where they were"
    effects: list[Effect] = [Say(said)]
    # draws wait for a fresh secret: the last one may be public by now
    state.secret_asked, state.secrets = -1, {}
    state.pay.asked = state.pay.drawn
    for audit in state.pay.audits.values():
        audit.deadline = at + state.spec.audit.replay_deadline_s
    state.target_epochs = message.target_epochs
    state.poison.counted_from = at
    for miner in state.miners.values():
        if miner.live:
            miner.last_seen = at
    for offer in state.offers.values():
        offer.deadline = at + offer.work.deadline_s
    for stage in state.stages:
        stage.opened_at = at
        stage.empty_since = None
        if stage.merge is not None:
            stage.merge.deadline = at + state.rules_of(stage.stage).merge.upload_deadline_s
            effects += merge_results.open_checks(stage.merge) + reducing.unanswered(stage, stage.merge)
            effects += inspecting.unanswered(stage, stage.merge)
        if stage.phase is Phase.PAUSED and (not message.target_epochs or stage.epoch < message.target_epochs):
            effects.append(Say(phases.move(stage, Phase.TRAINING, at, Reason.OK, "the run goes on")))
    rebuild(state)
    effects += [CheckObject(b.accused) for b in state.micro_batches.values() if b.accused is not None]
    return effects
