"""Who takes part: joining, coming back, falling silent (DESIGN 6).

Law: a hotkey keeps its identity, its credit and its stage; a session is one process of it, and a newer one ends the
older. Leaving loses nothing but the local progress of that process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from subnet.coordination import dossiers, overdue, provision, resumption
from subnet.coordination.effects import Effect, Say
from subnet.coordination.index import index_of
from subnet.coordination.placement import place
from subnet.coordination.state import Miner, StageState, State
from subnet.protocol.ids import Hotkey, Stage
from subnet.protocol.messages import Join, Joined, Notice, Refusal, Reply, Source
from subnet.protocol.reasons import REMEDY, Reason

LEFT = "this hotkey has no uid on the subnet any more"


def notice(reason: Reason, sentence: str) -> Notice:
    return Notice(reason=reason, sentence=sentence, remedy=REMEDY[reason])


def is_known(state: State, hotkey: Hotkey) -> bool:
    """Whether anything that a hotkey says can matter: strangers do not get into the journal."""
    return hotkey in state.registered or hotkey in state.miners or hotkey in state.evaluators


def refusal(reason: Reason, sentence: str) -> Refusal:
    return Refusal(notice=notice(reason, sentence))


def join(state: State, hotkey: Hotkey, message: Join, at: float) -> tuple[Reply, list[Effect]]:
    """Place a newcomer, or welcome somebody back."""
    if hotkey not in state.registered:
        return _unregistered(state, hotkey), []
    barred = _barred(state, hotkey)
    if barred is not None:
        return refusal(Reason.AUDIT_FAILED, barred), []
    known = state.miners.get(hotkey)
    if known is not None and known.session == message.session and known.live:
        known.last_seen = at
        return _joined(state, known, "you are in already", resumption.again(state, known, message.resumes)), []
    if known is not None:
        _end_session(state, known)
        stage_index, why = _stage_for_return(state, known)
    else:
        stage_index, why = place(provision.loads(state))
    stage = state.stages[stage_index]
    state.joins += 1
    miner = Miner(
        hotkey=hotkey,
        number=state.joins,
        stage=Stage(stage_index),
        session=message.session,
        device=message.device,
        joined_at=at,
        last_seen=at,
        live=True,
        synced_epoch=-1 if known is not None and _holds_what_was_undone(known, stage) else stage.epoch,
        credited=known.credited if known else {},
        faults=known.faults if known else 0,
        false_complaints=known.false_complaints if known else 0,
    )
    state.miners[hotkey] = miner
    index_of(state).arrived(state, miner)
    stage.empty_since = None
    dossiers.restarted(state, hotkey)
    verb = "came back to" if known else "joined"
    resumed = resumption.take_up(state, hotkey, message.resumes)
    return _joined(state, miner, why, resumed), [Say(f"miner {hotkey[:8]} {verb} stage {stage_index}: {why}")]


def _unregistered(state: State, hotkey: Hotkey) -> Refusal:
    """A stranger, or one that lost its uid."""
    known = state.miners.get(hotkey)
    if known is None:
        return refusal(Reason.NOT_REGISTERED, "this hotkey is not registered on the subnet")
    lost = known.removed is not None and known.removed.reason is Reason.DEREGISTERED
    return refusal(Reason.DEREGISTERED, known.removed.sentence if lost and known.removed else LEFT)


def _barred(state: State, hotkey: Hotkey) -> str | None:
    """Why a hotkey may not take part for now: a failed audit keeps it out for as long as it costs its scores."""
    standing = state.pay.standing.get(hotkey)
    if standing is None or standing.failed_at is None:
        return None
    left_s = standing.failed_at + state.spec.score.gamma_s - state.at
    return f"an audit failed: {standing.failure}; out for {left_s:.0f} s more" if left_s > 0 else None


def _end_session(state: State, miner: Miner) -> None:
    """The process is gone, and with it its graphs, its local progress and its applied merge; its uploads stand."""
    overdue.release(state, miner.hotkey)
    index_of(state).left(state, miner)
    dossiers.restarted(state, miner.hotkey)
    stage = state.stages[miner.stage]
    stage.contributions.pop(miner.hotkey, None)
    if stage.merge is not None:
        stage.merge.applied.pop(miner.hotkey, None)


def _stage_for_return(state: State, known: Miner) -> tuple[int, str]:
    empty = [s.stage for s in state.stages if not any(m.hotkey != known.hotkey for m in state.replicas(s.stage))]
    if empty and known.stage not in empty:
        return empty[0], f"stage {empty[0]} has no replica; your own has others"
    if known.removed is not None and known.removed.reason is Reason.MOVED:
        return known.stage, f"moved here: {known.removed.sentence}"
    return known.stage, "your stage of before"


def _holds_what_was_undone(known: Miner, stage: StageState) -> bool:
    """Who comes back may hold what a roll-back took back, or what nobody could load, under the very same epoch."""
    if known.stage == stage.stage and known.synced_epoch == -1:
        return True
    return stage.merge is not None and (stage.merge.redone > 0 or known.hotkey in stage.merge.misprinted)


def _joined(state: State, miner: Miner, why: str, resumed: bool) -> Joined:
    stage, data = state.stages[miner.stage], state.spec.data
    files = (data.tokenizer, *data.train, *data.validation)
    return Joined(
        spec=state.rules_of(stage.stage),
        stage=stage.stage,
        epoch=stage.epoch,
        parameters=stage.parameters,
        momentum=stage.momentum,
        data=tuple(Source(key=f.key, digest=f.digest, size_bytes=f.size_bytes) for f in files),
        notice=notice(Reason.OK, f"placed in stage {miner.stage}: {why}"),
        resumed=resumed,
    )


def refuse_exchange(state: State, hotkey: Hotkey, session: str) -> Refusal | None:
    """Why an exchange cannot be taken; None when it can."""
    miner = state.miners.get(hotkey)
    if miner is None:
        return refusal(Reason.NOT_JOINED, "this hotkey has not joined the run")
    if miner.session != session:
        return refusal(Reason.OLD_SESSION, "another process joined with this hotkey after yours")
    if hotkey not in state.registered:
        return _unregistered(state, hotkey)
    if not miner.live:
        said = miner.removed.sentence if miner.removed else "you were away"
        return refusal(Reason.NOT_JOINED, f"join again: {said}")
    return None


def notice_silence(state: State, at: float) -> list[Effect]:
    """Whoever was not heard of for too long is gone; its work is offered again."""
    limit = state.spec.routing.dead_after_s
    effects: list[Effect] = []
    while (miner := index_of(state).silent_longest(state)) is not None and at - miner.last_seen > limit:
        effects += remove(state, miner, Reason.SILENT, f"nothing was heard for {at - miner.last_seen:.0f} s")
    return effects


def remove(state: State, miner: Miner, reason: Reason, sentence: str) -> list[Effect]:
    """End a miner's session; identity, credit and stage stay."""
    miner.live, miner.ready = False, False
    miner.removed = notice(reason, sentence)
    _end_session(state, miner)
    return [Say(f"miner {miner.hotkey[:8]} of stage {miner.stage} is gone: {sentence}")]


def register(state: State, hotkeys: Sequence[Hotkey], left: Mapping[Hotkey, str] | None = None) -> list[Effect]:
    """The chain's view of who may take part; `left` says in words why somebody may not any more."""
    state.registered = set(hotkeys)
    effects: list[Effect] = []
    for miner in state.miners.values():
        if miner.live and miner.hotkey not in state.registered:
            effects += remove(state, miner, Reason.DEREGISTERED, (left or {}).get(miner.hotkey, LEFT))
    return effects
