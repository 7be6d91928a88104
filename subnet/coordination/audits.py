"""Audits from the draw to the verdict (DESIGN 7, ALGORITHMS 5).

    epoch closed everywhere → block from after it → draw → reveal (the miner) → replay (a validator) → verdict
                                                                                     │ failed
                                                                                     └─► every validator → verdict

Law: nobody can know before the draw who is audited; every step has a deadline, so no silent party can stall a run; who
is to blame follows from what was committed, and where nobody is, nobody is blamed. Verdicts are `scoring.audit`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

from subnet.coordination import dossiers, members, routing, verdicts
from subnet.coordination.audit_state import Audit, Dossier
from subnet.coordination.effects import Effect, ReadChain, Say
from subnet.coordination.index import NEVER, index_of
from subnet.coordination.merge_work import give, next_number
from subnet.coordination.state import Offer, State
from subnet.merging import compression
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, Phase, Values
from subnet.protocol.messages import STATE_PARTS, ChainSeen, RevealDone, RevealWork, Source, Target, Verdict
from subnet.protocol.reasons import Reason
from subnet.scoring import audit as rules

REPLAYS_MAX = 3
"""Validators that may stay away from one audit before it is given up without a verdict."""


# ---- closing and drawing ---------------------------------------------------------------------------------------------


def close_epochs(state: State, at: float) -> list[Effect]:
    """Note the epochs that every stage has closed now, and ask for the block that draws their audits."""
    effects: list[Effect] = []
    pay = state.pay
    for epoch in range(len(pay.closed_at), state.oldest_epoch()):
        pay.closed_at[epoch] = at
        if not dossiers.are_kept(state):
            pay.drawn = epoch
    # one question at a time: an answer that came before an earlier one would be lost
    due = pay.drawn + 1
    if due in pay.closed_at and pay.asked < due:
        pay.asked, pay.asked_block = due, pay.chain.highest
        effects.append(ReadChain(Epoch(due), pay.asked_block))
    return effects


def chain_seen(state: State, seen: ChainSeen, at: float) -> list[Effect]:
    """Take over what the chain says; where it closes an epoch, draw that epoch's audits."""
    chain, effects = state.pay.chain, _changes(state, seen)
    chain.block, chain.owner_uid, chain.highest = seen.block, seen.owner_uid, max(seen.block, chain.highest)
    chain.tempo, chain.hyperparameters = seen.tempo, seen.hyperparameters
    chain.uids = {neuron.hotkey: neuron.uid for neuron in seen.neurons}
    chain.stake = {neuron.hotkey: neuron.stake for neuron in seen.neurons}
    chain.permits = [neuron.hotkey for neuron in seen.neurons if neuron.permit]
    is_due = seen.closes == state.pay.drawn + 1 and seen.closes in state.pay.closed_at
    # a block that was known when the epoch closed would let the orchestrator choose whom to audit
    if seen.closes is not None and is_due and seen.block > state.pay.asked_block:
        effects += _draw(state, seen.closes, seen.block_hash, at)
    return effects


def _changes(state: State, seen: ChainSeen) -> list[Effect]:
    """Who lost its uid, and to whom; what the owner changed on the chain. Scores stay with hotkeys, never with uids."""
    chain, now = state.pay.chain, {neuron.uid: neuron.hotkey for neuron in seen.neurons}
    known = set(now.values())
    lost = {h: uid for h, uid in chain.uids.items() if uid in now and h not in known}
    taken = {h: f"uid {uid} is {now[uid]}'s now" for h, uid in lost.items()}
    effects = members.register(state, tuple(now.values()), taken)
    effects += [Say(f"{hotkey[:8]} lost its place: {said}") for hotkey, said in sorted(taken.items())]
    if chain.hyperparameters:  # known before
        new = {"tempo": seen.tempo, **seen.hyperparameters}
        old = {"tempo": chain.tempo, **chain.hyperparameters}
        moved = [f"{name} {old.get(name)} → {new[name]}" for name in sorted(new) if old.get(name) != new[name]]
        effects += [Say(f"on the chain the owner changed {', '.join(moved)}")] if moved else []
    return effects


def _draw(state: State, epoch: Epoch, block_hash: str, at: float) -> list[Effect]:
    state.pay.drawn = epoch
    drawn = []
    dossiers.note_unlogged(state, epoch)
    if epoch <= state.oldest_epoch() - dossiers.KEPT_EPOCHS:
        # the chain was away for so long that states and objects are gone, or soon: nobody's fault, so the work is paid
        said = f"no block came in time to draw the audits of epoch {epoch}: what is in its logs is paid unaudited"
        state.incident(Reason.CHAIN_AWAY, said)
        return [Say(said)]
    for hotkey, dossier in sorted(state.pay.dossiers.get(epoch, {}).items()):
        credit = state.ledger.epochs.get(epoch, {}).get(hotkey)
        if credit is None or credit.work_units <= 0 or verdicts.forfeits_until(state, hotkey) is not None:
            continue  # nothing that could be paid for
        q = rules.probability(
            state.spec.audit.rate, state.spec.audit.settled_epochs, num_unexpired(state, hotkey, epoch)
        )
        if rules.is_drawn(block_hash, state.spec.run_id, dossier.stage, epoch, hotkey, q):
            drawn.append(hotkey)
            _open(state, epoch, hotkey, dossier, block_hash, at)
    return [Say(f"epoch {epoch} is closed by block {state.pay.chain.block}: {len(drawn)} miners are audited")]


def num_unexpired(state: State, hotkey: Hotkey, epoch: int) -> int:
    """n_m: epochs up to `epoch` whose score pays still and that count as trust; the one in question is the first."""
    since = verdicts.standing_of(state, hotkey).trusted_from
    return sum(
        1
        for past, closed_at in state.pay.closed_at.items()
        if since <= past <= epoch
        and state.at - closed_at <= state.spec.score.gamma_s
        and hotkey in state.ledger.epochs.get(past, {})
    )


def _open(state: State, epoch: Epoch, hotkey: Hotkey, dossier: Dossier, block_hash: str, at: float) -> None:
    state.pay.audit_items += 1
    item = ItemId(f"w{dossier.stage}.{epoch}.{state.pay.audit_items}.{hotkey}")
    audit = Audit(
        item=item,
        hotkey=hotkey,
        stage=dossier.stage,
        epoch=epoch,
        segment=0,
        block_hash=block_hash,
        late=epoch + 1 < state.oldest_epoch(),
        opened_at=at,
        deadline=at + state.spec.audit.reveal_deadline_s,
    )
    first, num_segments = dossiers.drawable(dossier)
    if num_segments < 1:
        return  # nothing was uploaded that shows this epoch's work, so none of it counts
    audit.segment = first + rules.segment_of(block_hash, state.spec.run_id, dossier.stage, epoch, hotkey, num_segments)
    state.pay.audits[item] = audit


# ---- the miner's part ------------------------------------------------------------------------------------------------


def advance(state: State, at: float) -> list[Effect]:
    """Take every step that is due."""
    effects: list[Effect] = []
    index = index_of(state)
    index.audits_changed = False
    for audit in list(state.pay.audits.values()):
        if audit.step == "reveal":
            effects += _ask(state, audit, at)
        if audit.step == "replay":
            _find_validator(state, audit, at)
        if at >= audit.deadline:
            effects += _overdue(state, audit, at)
    index.audits_at = min((audit.deadline for audit in state.pay.audits.values()), default=NEVER)
    return effects


def is_due(state: State, now: float) -> bool:
    if now < index_of(state).audits_at and not index_of(state).audits_changed:
        return False
    return any(now >= audit.deadline for audit in state.pay.audits.values())


def _ask(state: State, audit: Audit, at: float) -> list[Effect]:
    """Ask the miner to reveal, as soon as it is there."""
    dossier = state.pay.dossiers[audit.epoch][audit.hotkey]
    miner = state.miners.get(audit.hotkey)
    if miner is None or not (miner.live and miner.ready):
        return []
    for asked in [work for item in miner.offers if isinstance(work := state.offers[item].work, RevealWork)]:
        waited_for = _audit_of(state, asked, audit.hotkey)
        if waited_for is not None and waited_for.step == "reveal":
            return []
        routing.withdraw(state, asked.item)
    stage = state.stages[miner.stage]
    number = next_number(state)
    size = compression.encoded_size(Values.FP32, state.spec.stages[audit.stage].num_params)

    def targets(which: str) -> tuple[Target, ...]:
        names = [f"{audit.hotkey}.{number}.{which}.{part}" for part in STATE_PARTS]
        made = [keys.make(state.spec.run_id, audit.epoch, audit.stage, name, keys.Kind.SNAPSHOT) for name in names]
        return tuple(Target(key=key, size_bytes=size) for key in made)

    begins, ends = dossier.commitments[audit.segment : audit.segment + 2]
    work = RevealWork(
        item=ItemId(f"v{audit.stage}.{audit.epoch}.{number}.{audit.hotkey}"),
        stage=audit.stage,
        epoch=audit.epoch,
        segment=audit.segment,
        start_digest=begins.digest,
        end_digest=ends.digest,
        start=() if audit.segment == 0 and dossier.loaded else targets("start"),
        end=targets("end"),
        deadline_s=max(1.0, audit.deadline - at),
    )
    return [give(state, stage, miner, work, at)]


def revealed(state: State, offer: Offer, done: RevealDone) -> tuple[Verdict, list[Effect]]:
    """The miner has shown its states."""
    routing.withdraw(state, offer.item)
    work = offer.work
    assert isinstance(work, RevealWork)
    audit = _audit_of(state, work, offer.hotkey)
    if audit is None or audit.step != "reveal":
        return _answer(done.item, "ignored", Reason.PHASE_OVER, "nobody waits for these states any more"), []
    dossier = state.pay.dossiers[audit.epoch][audit.hotkey]
    begins, ends = dossier.commitments[audit.segment : audit.segment + 2]
    for commitment, targets, shown in (begins, work.start, done.start), (ends, work.end, done.end):
        if not targets and not shown:
            continue
        numbers = commitment.version, commitment.step, commitment.optimizer_steps
        if len(shown) != len(targets) or rules.state_digest(*numbers, shown) != commitment.digest:
            said = "the revealed state is not the one that was committed"
            return _answer(done.item, "rejected", Reason.BAD_DIGEST, said), verdicts.settle(state, audit, False, said)
    audit.start, audit.end = _sources(work.start, done.start), _sources(work.end, done.end)
    _go_to_replay(state, audit, state.at)
    return _answer(done.item, "applied", Reason.OK, "the states are there; a validator replays the segment"), []


def not_revealed(state: State, offer: Offer, sentence: str) -> tuple[Verdict, list[Effect]]:
    """The miner says that it cannot show them."""
    routing.withdraw(state, offer.item)
    work = offer.work
    assert isinstance(work, RevealWork)
    audit = _audit_of(state, work, offer.hotkey)
    if audit is not None and audit.step == "reveal":
        verdicts.not_shown(state, audit, sentence)
    return _answer(offer.item, "applied", Reason.NOT_REVEALED, f"noted ({sentence})"), []


def _audit_of(state: State, work: RevealWork, hotkey: Hotkey) -> Audit | None:
    found = (a for a in state.pay.audits.values() if a.hotkey == hotkey and a.epoch == work.epoch)
    return next(found, None)


def _sources(targets: tuple[Target, ...], digests: tuple[str, ...]) -> tuple[Source, ...]:
    return tuple(
        Source(key=target.key, digest=Digest(digest), size_bytes=target.size_bytes)
        for target, digest in zip(targets, digests, strict=True)
    )


def _answer(item: ItemId, outcome: str, reason: Reason, sentence: str) -> Verdict:
    return Verdict(item=item, outcome=outcome, reason=reason, sentence=sentence)


# ---- the validators' part --------------------------------------------------------------------------------------------


def validators(state: State) -> list[Hotkey]:
    """Who may audit and evaluate: uids with a permit; without a chain those the run was opened with."""
    return state.pay.chain.permits or list(state.evaluators)


def present(state: State) -> Iterator[Hotkey]:
    """Validators that were heard of lately."""
    silent_s = state.spec.routing.dead_after_s
    allowed = set(validators(state))
    return (h for h, seen in sorted(state.pay.reviewers.items()) if h in allowed and state.at - seen <= silent_s)


def _go_to_replay(state: State, audit: Audit, at: float) -> None:
    audit.step, audit.deadline = "replay", at + state.spec.audit.replay_deadline_s
    _find_validator(state, audit, at)


def _find_validator(state: State, audit: Audit, at: float) -> None:
    if audit.validator is None:
        audit.validator = rules.choose_validator(
            audit.block_hash, state.spec.run_id, audit.stage, audit.epoch, audit.hotkey, audit.attempt, present(state)
        )
        if audit.validator is not None:  # it takes them one after the other
            queue = sum(other.validator == audit.validator for other in state.pay.audits.values())
            audit.deadline = at + queue * state.spec.audit.replay_deadline_s


def _overdue(state: State, audit: Audit, at: float) -> list[Effect]:
    if audit.step == "reveal":
        verdicts.not_shown(state, audit, f"the states were not shown within {state.spec.audit.reveal_deadline_s:g} s")
        return []
    if audit.contested:
        return verdicts.settle_contested(state, audit)
    audit.attempt, audit.validator = audit.attempt + 1, None
    audit.deadline = at + state.spec.audit.replay_deadline_s
    if audit.attempt >= REPLAYS_MAX:
        verdicts.unreadable(state, audit, "no validator replayed it in time")
    else:
        _find_validator(state, audit, at)
    return []


def are_settled(state: State) -> bool:
    """Whether nothing is drawn or open any more: the run may end."""
    closed = state.oldest_epoch()
    paused = all(stage.phase is Phase.PAUSED for stage in state.stages)
    return paused and not state.pay.audits and state.pay.drawn >= closed - 1
