"""What becomes of a pass result: Applied, Ignored(reason) or Rejected(fault).

Law: the first valid result of a piece wins and is credited once; a late or doubled one is Ignored and costs nothing;
one that was never given, or is broken in itself, is Rejected and recorded. A rejected or ignored result changes no
parameters, no credit and no other miner's work.
"""

from __future__ import annotations

import math
import re

from subnet.coordination import dossiers, overdue, poison, quorum, routing
from subnet.coordination.effects import CheckObject, Effect
from subnet.coordination.index import index_of
from subnet.coordination.merge_state import CLOSED_KEPT
from subnet.coordination.state import LOSSES_KEPT, MicroBatch, Offer, State
from subnet.protocol import keys
from subnet.protocol.ids import Hotkey, ItemId, MicroBatchId, Pass
from subnet.protocol.messages import Failed, PassDone, PassWork, Source, Verdict
from subnet.protocol.reasons import Reason
from subnet.scoring.ledger import work_units

CREDITED_KEPT = 4
"""Credited passes remembered per slot of a miner: more than it can have results without an answer."""
_NUMBER = r"(0|[1-9]\d{0,11})"
_PASS_ITEM = re.compile(rf"([fbl]){_NUMBER}\.{_NUMBER}\.{_NUMBER}")
_MERGE_ITEM = re.compile(rf"[urayv]{_NUMBER}\.{_NUMBER}\.{_NUMBER}\.(.+)")


def verdict(item: ItemId, outcome: str, reason: Reason, sentence: str, units: float = 0.0) -> Verdict:
    return Verdict(item=item, outcome=outcome, reason=reason, sentence=sentence, work_units=units)


def unknown_item(state: State, sender: Hotkey, item: ItemId) -> Verdict:
    """A result whose offer is not open: accepted before, late if such an item may have existed, else never given."""
    units = state.miners[sender].credited.get(item)
    if units is not None:
        return verdict(item, "ignored", Reason.DUPLICATE, "accepted before; the credit of then stands", units)
    if _may_have_been(state, item):
        return verdict(item, "ignored", Reason.LATE, "this piece was already done or withdrawn")
    owner = _merge_item_owner(state, item)
    if owner == sender:
        said = "the merge went on: this piece is done, or nobody waits for it any more"
        return verdict(item, "ignored", Reason.PHASE_OVER, said)
    if owner is not None:
        return reject(state, item, Reason.NOT_YOURS, "given to another hotkey", sender)
    return reject(state, item, Reason.NEVER_GIVEN, "no such item was ever given out", sender)


def _may_have_been(state: State, item: ItemId) -> bool:
    """Whether a pass may once have had this id; exactly known while its micro-batch is in flight."""
    match = _PASS_ITEM.fullmatch(item)
    if match is None:
        return False
    micro_batch, stage, attempt = MicroBatchId(int(match[2])), int(match[3]), int(match[4])
    last = len(state.stages) - 1
    if micro_batch >= state.next_micro_batch or stage > last or (match[1] == "l") != (stage == last):
        return False
    batch = state.micro_batches.get(micro_batch)
    return batch is None or attempt < batch.attempts


def _merge_item_owner(state: State, item: ItemId) -> Hotkey | None:
    """Whose merge work may once have had this id."""
    match = _MERGE_ITEM.fullmatch(item)
    if match is None or int(match[1]) >= len(state.stages) or int(match[3]) > state.merge_items:
        return None
    known = Hotkey(match[4]) in state.miners and int(match[2]) <= state.stages[int(match[1])].epoch + CLOSED_KEPT
    return Hotkey(match[4]) if known else None


def reject(state: State, item: ItemId, reason: Reason, sentence: str, hotkey: Hotkey | None) -> Verdict:
    """Refuse a result and record whose fault it is."""
    if hotkey is not None:
        state.miners[hotkey].faults += 1
    state.incident(reason, f"{item}: {sentence}", hotkey)
    return verdict(item, "rejected", reason, sentence)


def accept(state: State, offer: Offer, done: PassDone, at: float) -> Verdict:
    """Judge the result of an open offer; the offer's miner is its sender."""
    work = offer.work
    assert isinstance(work, PassWork)
    batch = state.micro_batches[work.micro_batch]
    problem = _problem(work, done)
    if problem is not None:
        if problem[0] is Reason.NOT_FINITE:
            poison.note_not_finite(state, batch, offer.hotkey, blamed=True)
        _bar(state, batch, offer)
        return reject(state, done.item, problem[0], problem[1], offer.hotkey)
    dossiers.answered(state, offer.hotkey, done, credited=True)
    state.compute_s += min(done.compute_s, at - offer.offered_at)
    routing.note_speed(state, state.miners[offer.hotkey], work.kind, at - offer.offered_at)
    units = _apply(state, batch, offer, work, done)
    if done.loss is not None:
        poison.note_loss(state, batch, offer.hotkey, done.loss)
    routing.close_offers(state, batch)
    routing.dequeue(state, batch)
    batch.barred.clear()
    if routing.due(batch) is None:
        _complete(state, batch, at)
    else:
        routing.enqueue(state, batch)
    return verdict(done.item, "applied", Reason.OK, f"{work.kind.value} credited", units)


def _problem(work: PassWork, done: PassDone) -> tuple[Reason, str] | None:
    if (done.digest is None) != (work.output is None):
        return Reason.MALFORMED, "the digest of the output is missing" if work.output else "a digest without an output"
    if (done.loss is None) == (work.kind is Pass.LOSS):
        return Reason.MALFORMED, "a loss belongs to loss passes, and to them only"
    if done.loss is not None and not (math.isfinite(done.loss) and 0.0 <= done.loss < 1e4):
        return Reason.NOT_FINITE, f"the loss is {done.loss}"
    return None


def _apply(state: State, batch: MicroBatch, offer: Offer, work: PassWork, done: PassDone) -> float:
    """Write the result into the hop, the ledger and B_m; returns the credit."""
    hop, stage = batch.hops[work.stage], state.stages[work.stage]
    produced = None
    if work.output is not None and done.digest is not None:
        produced = Source(key=work.output.key, digest=done.digest, size_bytes=work.output.size_bytes)  # type: ignore[arg-type]
    if work.kind is Pass.FORWARD:
        hop.forward_by, hop.bound = offer.hotkey, True
        index_of(state).keeps_graph(batch, offer.hotkey)
        hop.boundary, hop.forward_epoch = produced, stage.epoch
    else:
        hop.backward_by, hop.gradient, hop.backward_epoch = offer.hotkey, produced, stage.epoch
        routing.unbind(state, batch, work.stage)
        stage.contributions[offer.hotkey] = count = stage.contributions.get(offer.hotkey, 0) + 1
        index = index_of(state)
        filed = index.stages[work.stage]
        filed.undone -= 1
        reached = quorum.is_threshold(state.rules_of(work.stage).merge, count)
        if reached or stage.merge is not None:
            index.touch(filed)
        if work.kind is Pass.LOSS:
            hop.forward_by, hop.forward_epoch, batch.loss = offer.hotkey, stage.epoch, done.loss
        elif hop.forward_by is not None:
            state.ledger.settle(stage.epoch, hop.forward_by, offer.hotkey)
    if work.kind is not Pass.BACKWARD:
        batch.generation = max(batch.generation, stage.generation)
    units = _units(state, work.kind, work.stage)
    state.ledger.credit(stage.epoch, offer.hotkey, work.kind, units)
    credited = state.miners[offer.hotkey].credited
    credited[offer.item] = units
    while len(credited) > CREDITED_KEPT * state.spec.routing.slots_max:
        del credited[next(iter(credited))]
    return units


def _units(state: State, kind: Pass, stage: int) -> float:
    return work_units(kind, stage, [s.flops_per_token for s in state.spec.stages])


def _complete(state: State, batch: MicroBatch, at: float) -> None:
    del state.micro_batches[batch.id]
    index_of(state).closed(batch)
    state.completed += 1
    state.last_completed_at = at
    if state.first_completed_at is None:
        state.first_completed_at = at
    assert batch.loss is not None
    state.recent_losses.append(batch.loss)
    del state.recent_losses[:-LOSSES_KEPT]
    sums = state.epoch_losses.setdefault(batch.hops[-1].backward_epoch, [0.0, 0.0])
    sums[0] += batch.loss
    sums[1] += 1


def _bar(state: State, batch: MicroBatch, offer: Offer) -> None:
    """The replica failed the piece: offer it to another one."""
    routing.withdraw(state, offer.item)
    batch.offers.remove(offer.item)
    if offer.hotkey not in batch.barred:
        batch.barred.append(offer.hotkey)
    assert isinstance(offer.work, PassWork)
    routing.unbind(state, batch, offer.work.stage)
    overdue.offer_again(state, batch)


def misanswered(state: State, offer: Offer, sentence: str) -> Verdict:
    """A result of another kind than the work."""
    assert isinstance(offer.work, PassWork)
    _bar(state, state.micro_batches[offer.work.micro_batch], offer)
    return reject(state, offer.item, Reason.MALFORMED, sentence, offer.hotkey)


def fail(state: State, offer: Offer, failed: Failed) -> tuple[Verdict, list[Effect]]:
    """A miner says that it cannot do its pass; where it blames an object, the orchestrator looks at it first."""
    work = offer.work
    assert isinstance(work, PassWork)
    batch = state.micro_batches[work.micro_batch]
    blamed = next((s for s in (work.stage_input, work.gradient) if s is not None and s.key == failed.object_key), None)
    if failed.reason is Reason.NOT_FINITE and blamed is None:
        poison.note_not_finite(state, batch, offer.hotkey, blamed=False)
    _bar(state, batch, offer)
    said = f"noted; the piece is offered to others ({failed.sentence})"
    answer = verdict(failed.item, "applied", failed.reason, said)
    if blamed is None or batch.id not in state.micro_batches:
        state.incident(failed.reason, f"{failed.item}: {failed.sentence}", offer.hotkey)
        return answer, []
    if batch.accused is not None and batch.accused.key != blamed.key:
        return answer, []  # one object at a time: the other one is looked at when it is blamed again
    batch.accusers.append(offer.hotkey)
    if batch.accused is not None:
        return answer, []
    routing.dequeue(state, batch)
    batch.accused = blamed
    return answer, [CheckObject(blamed)]


def checked(state: State, batch: MicroBatch, key: str, reason: Reason) -> str:
    """The orchestrator looked at a hop's output: if it is bad, its pass is undone and its maker is at fault."""
    if batch.accused is None or batch.accused.key != key:
        return f"{key} was checked, but nobody waits for it any more"
    accusers, batch.accused, batch.accusers = batch.accusers, None, []
    if reason is Reason.OK:
        for hotkey in accusers:
            state.miners[hotkey].false_complaints += 1
            state.incident(Reason.FALSE_COMPLAINT, f"{key} is good: the complaint was false", hotkey)
        overdue.offer_again(state, batch)
        return f"{key} is good: the complaint was false"
    said = f"{key} was checked, but its pass was done anew"
    for index, hop in enumerate(batch.hops):
        if hop.boundary is not None and hop.boundary.key == key:
            said = _undo(state, batch, index, Pass.FORWARD, reason, key)
        elif hop.gradient is not None and hop.gradient.key == key:
            kind = Pass.LOSS if index == len(batch.hops) - 1 else Pass.BACKWARD
            said = _undo(state, batch, index, kind, reason, key)
    overdue.offer_again(state, batch)
    return said


def _undo(state: State, batch: MicroBatch, index: int, kind: Pass, reason: Reason, key: str) -> str:
    """Withdraw the credit of a pass whose output is bad; the piece becomes due again, for others if there are any."""
    hop = batch.hops[index]
    routing.close_offers(state, batch)
    routing.dequeue(state, batch)
    by = hop.forward_by if kind is Pass.FORWARD else hop.backward_by
    epoch = hop.forward_epoch if kind is Pass.FORWARD else hop.backward_epoch
    assert by is not None
    state.ledger.withdraw(epoch, by, kind, _units(state, kind, index))
    attempt = keys.parse(key).item.rpartition(".")[2]
    dossiers.withdrawn(state, by, ItemId(f"{kind.value[0]}{batch.id}.{index}.{attempt}"))
    stage = state.stages[index]
    routing.unbind(state, batch, index)
    if kind is Pass.FORWARD:
        hop.boundary, hop.forward_epoch = None, -1
    else:
        hop.gradient, hop.backward_epoch = None, -1
        filed = index_of(state).stages[index]
        filed.undone += 1
        index_of(state).touch(filed)
        if epoch == stage.epoch and stage.contributions.get(by, 0) > 0:
            stage.contributions[by] -= 1
        if kind is Pass.LOSS:
            hop.forward_epoch = -1
        elif hop.forward_by is not None:
            state.ledger.settle(epoch, hop.forward_by, by, -1)
    state.miners[by].faults += 1
    batch.barred = [by]
    said = f"{key} is bad ({reason.value}): its pass is undone"
    state.incident(reason, said, by)
    return said
