"""What becomes of a pass result: Applied, Ignored(reason) or Rejected(fault).

Law: the first valid result of a piece wins and is credited once; a late or doubled one is Ignored and costs nothing;
one that was never given, or is broken in itself, is Rejected and recorded. A rejected or ignored result changes no
parameters, no credit and no other miner's work.
"""

from __future__ import annotations

import math
import re

from subnet.coordination import routing
from subnet.coordination.state import LOSSES_KEPT, CheckObject, Hop, MicroBatch, Offer, State
from subnet.protocol.ids import Hotkey, ItemId, MicroBatchId, Pass
from subnet.protocol.messages import Failed, PassDone, PassWork, Source, Verdict
from subnet.protocol.reasons import Reason
from subnet.scoring.ledger import work_units

_PASS_ITEM = re.compile(r"[fbl](\d{1,12})\.(\d{1,4})\.(\d{1,6})")


def verdict(item: ItemId, outcome: str, reason: Reason, sentence: str, units: float = 0.0) -> Verdict:
    return Verdict(item=item, outcome=outcome, reason=reason, sentence=sentence, work_units=units)


def unknown_item(state: State, sender: Hotkey, item: ItemId) -> Verdict:
    """A result whose offer is not open: late if such an item may have existed, else never given."""
    match = _PASS_ITEM.fullmatch(item)
    if match is not None and int(match[1]) < state.next_micro_batch and int(match[2]) < len(state.stages):
        return verdict(item, "ignored", Reason.LATE, "this piece was already done or withdrawn")
    if re.fullmatch(r"[urays]\d{1,4}\.\d{1,9}\.\d{1,4}\.[A-Za-z0-9]{1,64}", item):
        return verdict(item, "ignored", Reason.PHASE_OVER, "the merge went on without this piece")
    return reject(state, item, Reason.NEVER_GIVEN, "no such item was ever given out", sender)


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
        _bar(state, batch, offer)
        return reject(state, done.item, problem[0], problem[1], offer.hotkey)
    routing.note_speed(state.miners[offer.hotkey], work.kind, at - offer.offered_at)
    units = _apply(state, batch, offer, work, done)
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
        hop.boundary, hop.forward_epoch = produced, stage.epoch
    else:
        hop.backward_by, hop.gradient, hop.backward_epoch = offer.hotkey, produced, stage.epoch
        stage.contributions[offer.hotkey] = stage.contributions.get(offer.hotkey, 0) + 1
        if work.kind is Pass.LOSS:
            hop.forward_by, hop.forward_epoch, batch.loss = offer.hotkey, stage.epoch, done.loss
    units = _units(state, work.kind, work.stage)
    state.ledger.credit(stage.epoch, offer.hotkey, work.kind, units)
    return units


def _units(state: State, kind: Pass, stage: int) -> float:
    return work_units(kind, stage, [s.flops_per_token for s in state.spec.stages])


def _complete(state: State, batch: MicroBatch, at: float) -> None:
    del state.micro_batches[batch.id]
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
    batch.hops[offer.work.stage].bound = False
    if not any(not state.offers[item].expired for item in batch.offers):
        routing.requeue(state, batch)


def fail(state: State, offer: Offer, failed: Failed) -> tuple[Verdict, list[CheckObject]]:
    """A miner says that it cannot do its pass; where it blames an object, the orchestrator looks at it first."""
    work = offer.work
    assert isinstance(work, PassWork)
    batch = state.micro_batches[work.micro_batch]
    blamed = next((s for s in (work.stage_input, work.gradient) if s is not None and s.key == failed.object_key), None)
    _bar(state, batch, offer)
    answer = verdict(
        failed.item, "applied", failed.reason, f"noted; the piece is offered to others ({failed.sentence})"
    )
    if blamed is None or batch.id not in state.micro_batches:
        state.incident(failed.reason, f"{failed.item}: {failed.sentence}", offer.hotkey)
        return answer, []
    routing.dequeue(state, batch)
    batch.checking = True
    return answer, [CheckObject(blamed)]


def checked(state: State, micro_batch: MicroBatchId, key: str, reason: Reason) -> str:
    """The orchestrator looked at a hop's output: if it is bad, its pass is undone and its maker is at fault."""
    batch = state.micro_batches.get(micro_batch)
    if batch is None or not batch.checking:
        return f"{key} was checked, but nobody waits for it any more"
    batch.checking = False
    said = f"{key} is good: the complaint was false"
    if reason is Reason.OK:
        for hotkey in batch.barred:
            state.miners[hotkey].false_complaints += 1
        state.incident(Reason.FALSE_COMPLAINT, said)
    else:
        for index, hop in enumerate(batch.hops):
            if hop.boundary is not None and hop.boundary.key == key:
                said = _undo(state, hop, index, Pass.FORWARD, reason, key)
                batch.barred = [hop.forward_by] if hop.forward_by else []
            elif hop.gradient is not None and hop.gradient.key == key:
                kind = Pass.LOSS if index == len(batch.hops) - 1 else Pass.BACKWARD
                said = _undo(state, hop, index, kind, reason, key)
                batch.barred = [hop.backward_by] if hop.backward_by else []
    routing.close_offers(state, batch)
    routing.requeue(state, batch)
    return said


def _undo(state: State, hop: Hop, index: int, kind: Pass, reason: Reason, key: str) -> str:
    """Withdraw the credit of a pass whose output is bad; the piece becomes due again."""
    by = hop.forward_by if kind is Pass.FORWARD else hop.backward_by
    epoch = hop.forward_epoch if kind is Pass.FORWARD else hop.backward_epoch
    assert by is not None
    state.ledger.withdraw(epoch, by, kind, _units(state, kind, index))
    stage = state.stages[index]
    if kind is Pass.FORWARD:
        hop.boundary, hop.forward_epoch, hop.bound = None, -1, False
    else:
        hop.gradient, hop.backward_epoch, hop.bound = None, -1, False
        if epoch == stage.epoch and stage.contributions.get(by, 0) > 0:
            stage.contributions[by] -= 1
        if kind is Pass.LOSS:
            hop.forward_epoch = -1
    state.miners[by].faults += 1
    said = f"{key} is bad ({reason.value}): its pass is undone"
    state.incident(reason, said, by)
    return said
