"""Who takes part: joining, coming back, falling silent (DESIGN 6).

Law: a hotkey keeps its identity, its credit and its stage; a session is one process of it, and a newer one ends the
older. Leaving loses nothing but the local progress of that process.
"""

from __future__ import annotations

from statistics import median

from subnet.coordination import routing
from subnet.coordination.placement import Load, place
from subnet.coordination.state import Effect, Miner, Say, State
from subnet.protocol.ids import Hotkey, Pass, Phase, Stage
from subnet.protocol.messages import Join, Joined, Notice, Refusal, Registered, Reply, RunResumed, Source
from subnet.protocol.reasons import REMEDY, Reason


def notice(reason: Reason, sentence: str) -> Notice:
    return Notice(reason=reason, sentence=sentence, remedy=REMEDY[reason])


def refusal(reason: Reason, sentence: str) -> Refusal:
    return Refusal(notice=notice(reason, sentence))


def join(state: State, hotkey: Hotkey, message: Join, at: float) -> tuple[Reply, list[Effect]]:
    """Place a newcomer, or welcome somebody back."""
    if hotkey not in state.registered:
        return refusal(Reason.NOT_REGISTERED, "this hotkey is not registered on the subnet"), []
    known = state.miners.get(hotkey)
    if known is not None and known.session == message.session and known.live:
        return _joined(state, known, "you are in already"), []
    if known is not None:
        _end_session(state, known)
        stage_index, why = _stage_for_return(state, known)
    else:
        stage_index, why = place(_loads(state))
    stage = state.stages[stage_index]
    miner = Miner(
        hotkey=hotkey,
        stage=Stage(stage_index),
        session=message.session,
        device=message.device,
        joined_at=at,
        last_seen=at,
        live=True,
        synced_epoch=stage.epoch,
        faults=known.faults if known else 0,
        false_complaints=known.false_complaints if known else 0,
    )
    state.miners[hotkey] = miner
    verb = "came back to" if known else "joined"
    return _joined(state, miner, why), [Say(f"miner {hotkey[:8]} {verb} stage {stage_index}: {why}")]


def _end_session(state: State, miner: Miner) -> None:
    """The process is gone, and with it its graphs, its local progress and its applied merge; its uploads stand."""
    routing.release(state, miner.hotkey)
    stage = state.stages[miner.stage]
    stage.contributions.pop(miner.hotkey, None)
    if stage.merge is not None:
        stage.merge.applied.pop(miner.hotkey, None)


def _stage_for_return(state: State, known: Miner) -> tuple[int, str]:
    empty = [s.stage for s in state.stages if not any(m.hotkey != known.hotkey for m in state.replicas(s.stage))]
    if empty and known.stage not in empty:
        return empty[0], f"stage {empty[0]} has no replica; your own has others"
    return known.stage, "your stage of before"


def _loads(state: State) -> list[Load]:
    means = [m.mean_s[Pass.BACKWARD] for m in state.miners.values() if m.live and Pass.BACKWARD in m.mean_s]
    typical = median(means) if means else 1.0
    loads = []
    for stage in state.stages:
        replicas = state.replicas(stage.stage)
        strength = sum(typical / m.mean_s[Pass.BACKWARD] if Pass.BACKWARD in m.mean_s else 1.0 for m in replicas)
        loads.append(Load(stage.stage, len(replicas), strength, state.spec.stages[stage.stage].flops_per_token))
    return loads


def _joined(state: State, miner: Miner, why: str) -> Joined:
    stage, data = state.stages[miner.stage], state.spec.data
    files = (data.tokenizer, *data.train, *data.validation)
    return Joined(
        spec=state.spec,
        stage=stage.stage,
        epoch=stage.epoch,
        parameters=stage.parameters,
        momentum=stage.momentum,
        data=tuple(Source(key=f.key, digest=f.digest, size_bytes=f.size_bytes) for f in files),
        notice=notice(Reason.OK, f"placed in stage {miner.stage}: {why}"),
    )


def refuse_exchange(state: State, hotkey: Hotkey, session: str) -> Refusal | None:
    """Why an exchange cannot be taken; None when it can."""
    miner = state.miners.get(hotkey)
    if miner is None:
        return refusal(Reason.NOT_JOINED, "this hotkey has not joined the run")
    if miner.session != session:
        return refusal(Reason.OLD_SESSION, "another process joined with this hotkey after yours")
    if hotkey not in state.registered:
        return refusal(Reason.NOT_REGISTERED, "this hotkey is no longer registered on the subnet")
    if not miner.live:
        said = miner.removed.sentence if miner.removed else "you were away"
        return refusal(Reason.NOT_JOINED, f"join again: {said}")
    return None


def notice_silence(state: State, at: float) -> list[Effect]:
    """Whoever was not heard of for too long is gone; its work is offered again."""
    limit = state.spec.routing.dead_after_s
    effects: list[Effect] = []
    for miner in state.miners.values():
        if miner.live and at - miner.last_seen > limit:
            effects += remove(state, miner, Reason.SILENT, f"nothing was heard for {at - miner.last_seen:.0f} s")
    return effects


def remove(state: State, miner: Miner, reason: Reason, sentence: str) -> list[Effect]:
    """End a miner's session; identity, credit and stage stay."""
    miner.live, miner.ready = False, False
    miner.removed = notice(reason, sentence)
    _end_session(state, miner)
    return [Say(f"miner {miner.hotkey[:8]} of stage {miner.stage} is gone: {sentence}")]


def register(state: State, message: Registered, at: float) -> list[Effect]:
    """The chain's view of who may take part changed."""
    state.registered = set(message.hotkeys)
    effects: list[Effect] = []
    for miner in state.miners.values():
        if miner.live and miner.hotkey not in state.registered:
            effects += remove(state, miner, Reason.NOT_REGISTERED, "the hotkey left the subnet")
    return effects


def resume(state: State, message: RunResumed, at: float) -> list[Effect]:
    """The orchestrator was away: nobody is blamed for that time, and a larger target lets stages go on."""
    state.target_epochs = message.target_epochs
    for miner in state.miners.values():
        if miner.live:
            miner.last_seen = at
    for offer in state.offers.values():
        offer.deadline = at + offer.work.deadline_s
    for stage in state.stages:
        stage.opened_at = at
        if stage.merge is not None:
            stage.merge.deadline = at + state.spec.merge.upload_deadline_s
        if stage.phase is Phase.PAUSED and (not message.target_epochs or stage.epoch < message.target_epochs):
            stage.phase, stage.phase_since = Phase.TRAINING, at
            stage.reason, stage.sentence = Reason.OK, "the run goes on"
    return [Say("the orchestrator is back: the journal was replayed, miners go on where they were")]
