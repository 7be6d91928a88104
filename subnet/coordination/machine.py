"""The run as a pure machine: `handle(state, envelope) -> Decision`, and the run state is the fold of the journal.

Law: `handle` changes `state` in place and nothing else; no I/O, no clock, no randomness but what the envelope brings.
So a restart is a replay, a race is a unit test, and anyone who holds the journal can recompute every decision. The
shell journals the envelope first, calls `handle`, performs the effects, replies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from subnet.coordination import (
    audits,
    dossiers,
    members,
    merge_results,
    overdue,
    own_records,
    passes,
    rebalancing,
    reviews,
    rolling_back,
    rounds,
    routing,
)
from subnet.coordination.effects import DrawSecret, Effect, Say
from subnet.coordination.index import index_of
from subnet.coordination.notices import finished, notice_for
from subnet.coordination.state import StageState, State
from subnet.errors import InvariantViolation
from subnet.protocol.ids import Epoch, Hotkey, Phase, Stage
from subnet.protocol.messages import (
    Envelope,
    Evaluated,
    Exchange,
    ExchangeReply,
    Failed,
    Join,
    PassDone,
    PassWork,
    Refusal,
    Reply,
    Result,
    RevealDone,
    RevealWork,
    Review,
    RunOpened,
    Tick,
    Verdict,
    WeightsSet,
)
from subnet.protocol.reasons import Reason

_HEARD = members.notice(Reason.OK, "heard")


class Decision(msgspec.Struct, frozen=True):
    """What follows from one envelope."""

    reply: Reply | None
    """To the sender; None for the orchestrator's own records."""
    effects: tuple[Effect, ...]


def open_run(envelope: Envelope) -> State:
    """The state after the journal's first record, which must be a RunOpened."""
    opened = envelope.message
    if not isinstance(opened, RunOpened):
        raise InvariantViolation(f"a journal begins with run-opened, not with {type(opened).__name__}")
    stages = [
        StageState(
            stage=Stage(index),
            epoch=Epoch(0),
            phase=Phase.TRAINING,
            phase_since=envelope.at,
            opened_at=envelope.at,
            parameters=start.parameters,
            momentum=start.momentum,
            sentence="the run has begun",
        )
        for index, start in enumerate(opened.starts)
    ]
    if opened.spec.version != 1:
        raise InvariantViolation(f"a run begins with RunSpec 1, not with {opened.spec.version}")
    if len(stages) != opened.spec.num_stages:
        raise InvariantViolation(f"{len(stages)} starts for {opened.spec.num_stages} stages")
    return State(
        spec=opened.spec,
        versions=[opened.spec],
        digests=[opened.spec.digest()],
        evaluators=opened.evaluators,
        target_epochs=opened.target_epochs,
        opened_at=envelope.at,
        at=envelope.at,
        stages=stages,
    )


def replay(envelopes: Iterable[Envelope]) -> State:
    """Fold a journal. Raises InvariantViolation when it is empty."""
    state: State | None = None
    for envelope in envelopes:
        if state is None:
            state = open_run(envelope)
        else:
            handle(state, envelope)
    if state is None:
        raise InvariantViolation("the journal is empty")
    return state


def handle(state: State, envelope: Envelope) -> Decision:
    """Decide what one envelope means; every record of a journal after the first comes through here."""
    if envelope.at < state.at:
        raise InvariantViolation(f"time runs backwards in the journal: {envelope.at} after {state.at}")
    state.at = at = envelope.at
    index = index_of(state)
    if not isinstance(envelope.message, Exchange | Tick):
        index.all_changed()
    reply, effects = _dispatch_message(state, envelope)
    effects += _go_on(state, at)
    if isinstance(envelope.message, Exchange) and isinstance(reply, ExchangeReply):
        reply = exchange_reply(state, envelope.sender, envelope.message, reply.verdicts)
    return Decision(reply, tuple(effects))


def _dispatch_message(state: State, envelope: Envelope) -> tuple[Reply | None, list[Effect]]:
    message, sender, at = envelope.message, envelope.sender, envelope.at
    match message:
        case Exchange():
            return _exchange(state, sender, message, at)
        case Join():
            return members.join(state, sender, message, at)
        case Evaluated():
            return reviews.evaluated(state, sender, message, at), []
        case WeightsSet():
            return reviews.weights_set(state, sender, message, at), []
        case Review():
            return reviews.review(state, sender, message, at)
        case _:
            return None, own_records.note(state, message, at)


def _go_on(state: State, at: float) -> list[Effect]:
    """Everything that follows from the state itself: deadlines, silence, merges, new work."""
    index = index_of(state)
    effects: list[Effect] = [Say(line) for line in overdue.expire(state, at)]
    if not finished(state):
        effects += members.notice_silence(state, at)
    effects += rebalancing.fill_empty(state, at)
    effects += rolling_back.advance(state, at)
    index = index_of(state)  # a roll-back makes it anew
    if state.secrets:
        effects += rounds.advance_all(state, at)
        effects += rebalancing.strengthen(state, at)
    # a new secret when every stage has closed an epoch: no draw of a closed epoch depends on it, so that can be public
    oldest = state.oldest_epoch()
    if state.secret_asked < oldest:
        state.secret_asked, state.secret_due = oldest, True
        effects.append(DrawSecret(Epoch(oldest)))
    if oldest > len(state.pay.closed_at) or state.pay.asked <= state.pay.drawn:
        effects += audits.close_epochs(state, at)
    if index.audits_changed or at >= index.audits_at:
        effects += audits.advance(state, at)
    if not state.secrets:
        return effects
    if state.target_epochs and all(
        stage.epoch >= state.target_epochs and stage.phase is Phase.TRAINING for stage in state.stages
    ):
        said = f"all {state.target_epochs} epochs are merged"
        effects += rounds.pause_all(state, at, Reason.TARGET_REACHED, said)
        index.all_changed()
    effects += routing.dispatch(state, at)
    return effects


# ---- exchange --------------------------------------------------------------------------------------------------------


def _exchange(state: State, sender: Hotkey, message: Exchange, at: float) -> tuple[Reply, list[Effect]]:
    refusal = members.refuse_exchange(state, sender, message.session)
    if refusal is not None:
        return refusal, []
    miner, index = state.miners[sender], index_of(state)
    if not miner.ready:
        index.touch(index.stages[miner.stage])
        index.audits_changed = True
    miner.last_seen, miner.ready = at, True
    rebalancing.watch(state, at)
    effects: list[Effect] = []
    verdicts = []
    for result in message.results:
        if not isinstance(result, PassDone):
            index.touch(index.stages[miner.stage])
            index.audits_changed = True
        verdict, more = _result(state, sender, result, at)
        key = f"{verdict.outcome}/{verdict.reason.value}"
        state.outcomes[key] = state.outcomes.get(key, 0) + 1
        verdicts.append(verdict)
        effects += more
    given = [item for item in miner.offers if isinstance(state.offers[item].work, PassWork)]
    unseen = len(set(given) - set(message.holding))
    # what a miner was given and has not answered counts, whatever it says about its slots
    miner.free_slots = max(0, min(message.free_slots - unseen, state.spec.routing.slots_max - len(given)))
    index.file_miner(state, miner)
    # the work follows from what `_go_on` decides next: `handle` completes this reply
    return ExchangeReply(verdicts=tuple(verdicts), work=(), drop=(), notice=_HEARD), effects


def _result(state: State, sender: Hotkey, result: Result, at: float) -> tuple[Verdict, list[Effect]]:
    offer = state.offers.get(result.item)
    if offer is None:
        if isinstance(result, PassDone):
            dossiers.answered(state, sender, result, credited=False)
        return passes.unknown_item(state, sender, result.item), []
    if offer.hotkey != sender:
        return passes.reject(state, result.item, Reason.NOT_YOURS, "given to another hotkey", sender), []
    is_pass = isinstance(offer.work, PassWork)
    if isinstance(offer.work, RevealWork):
        if isinstance(result, RevealDone):
            return audits.revealed(state, offer, result)
        return audits.not_revealed(state, offer, result.sentence if isinstance(result, Failed) else "another result")
    if isinstance(result, Failed):
        return (passes.fail if is_pass else merge_results.fail)(state, offer, result)
    if is_pass and isinstance(result, PassDone):
        return passes.accept(state, offer, result, at), []
    if is_pass or isinstance(result, PassDone | RevealDone):
        said = f"a {type(result).__name__} does not answer a {type(offer.work).__name__}"
        return (passes.misanswered if is_pass else merge_results.misanswered)(state, offer, said), []
    return merge_results.accept(state, offer, result)


def exchange_reply(state: State, hotkey: Hotkey, message: Exchange, verdicts: tuple[Verdict, ...]) -> ExchangeReply:
    """What to answer an exchange now; a pure reading, so an exchange held open is answered later from here too.

    Work that the miner does not hold yet is in every reply until it does: a lost reply loses nothing.
    """
    if state.miners[hotkey].session != message.session:
        said = members.notice(Reason.OLD_SESSION, "another process joined with this hotkey after yours")
        return ExchangeReply(verdicts=verdicts, work=(), drop=message.holding, notice=said)
    given, holding = state.miners[hotkey].offers, set(message.holding)
    work = tuple(state.offers[item].work for item in given if item not in holding)
    drop = tuple(item for item in message.holding if item not in given)
    return ExchangeReply(
        verdicts=verdicts, work=work, drop=drop, notice=notice_for(state, hotkey), finished=finished(state)
    )


# ---- time ----------------------------------------------------------------------------------------------------------


def is_due(state: State, now: float) -> bool:
    """Whether a Tick at `now` would change anything: only such ticks are journaled."""
    if overdue.is_due(state, now) or audits.is_due(state, now):
        return True
    silent = math.inf if finished(state) else state.spec.routing.dead_after_s
    quietest = index_of(state).silent_longest(state)
    if quietest is not None and now - quietest.last_seen > silent:
        return True
    if rebalancing.starving(state, now) is not None:
        return True
    return bool(state.secrets) and any(rounds.is_due(state, stage, now) for stage in state.stages)


__all__ = ["Decision", "Refusal", "exchange_reply", "handle", "is_due", "open_run", "replay"]
