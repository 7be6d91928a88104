"""What nobody may lose, whatever the weather: checked after every record of the journal, on the live state.

Law: a pure reading of state, record and decision beside a book of its own; it decides nothing and never helps. What is
broken is raised as PromiseBroken with the promise's name, at the record that broke it. `explained` names the hotkeys
that a fault excuses for something (bytes were corrupted on their own lines); nobody else may be blamed for anything.

Some promises are kept over the whole run (each pass credited once, one digest per epoch's start), so the book has an
entry for each pass and each epoch's start; what is asked of the state itself is small: what is in flight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import msgspec

from subnet.coordination.invariants import broken
from subnet.coordination.machine import Decision
from subnet.coordination.settlement import sheet
from subnet.coordination.state import State
from subnet.errors import SubnetError
from subnet.miner.receipts import ReceiptLine, credited
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Hotkey, ItemId
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import Envelope, ExchangeReply, ObjectChecked, Refusal, Verdict
from subnet.protocol.reasons import Reason

_encode = msgspec.msgpack.Encoder().encode

Piece = tuple[str, str, str]
"""(pass, micro-batch, stage) of an item."""
TOLERANCE = 1e-6


class PromiseBroken(SubnetError):
    """Which promise, and how."""

    def __init__(self, promise: str, sentence: str) -> None:
        super().__init__(f"{promise}: {sentence}")
        self.promise, self.sentence = promise, sentence


class Promises:
    """Of one run. `holds` says whether the store has an object."""

    def __init__(self, holds: Callable[[ObjectKey], bool]) -> None:
        self._holds = holds
        self.seen = 0
        """Records."""
        self.explained: set[Hotkey] = set()
        self.on_credit: Callable[[], None] = lambda: None
        """Called whenever a pass was credited."""
        self.told: dict[str, int] = {}
        """How often miners were told what: 'applied/ok', 'refused/not-joined', 'removed/silent'."""
        self._gone: set[tuple[Hotkey, float]] = set()
        self._pieces: dict[Piece, tuple[Hotkey, float]] = {}
        self.items: dict[ItemId, float] = {}
        """Units of every credited item, withdrawn ones included."""
        self._totals: dict[Hotkey, float] = {}
        self._starts: dict[tuple[int, int], tuple[Digest, Digest]] = {}

    # ---- after each record -------------------------------------------------------------------------------------------

    def after(self, state: State, envelope: Envelope, decision: Decision | None) -> None:
        """The record was decided; `state` is what it left behind."""
        self.seen += 1
        for sentence in broken(state):
            raise PromiseBroken("the state contradicts itself", sentence)
        reply = decision.reply if decision is not None else None
        if isinstance(reply, ExchangeReply):
            for verdict in reply.verdicts:
                self._judged(envelope.sender, verdict)
            self._settled(state, envelope.sender)
        elif isinstance(reply, Refusal):
            self._tell("refused", reply.notice.reason)
        elif isinstance(envelope.message, ObjectChecked) and envelope.message.reason is not Reason.OK:
            self._withdrawn(state, envelope.message)
        self._anchors(state)
        for key in _referenced(state):
            if not self._holds(key):
                raise PromiseBroken("every object referenced exists", f"{key} is not in the store")
        for hotkey, miner in state.miners.items():
            if (miner.faults or miner.false_complaints) and hotkey not in self.explained:
                said = state.incidents[-1].sentence if state.incidents else ""
                raise PromiseBroken("nobody honest is blamed", f"{hotkey}: {said}")
            if miner.removed is not None and (hotkey, miner.joined_at) not in self._gone:
                self._gone.add((hotkey, miner.joined_at))
                self._tell("removed", miner.removed.reason)

    def _tell(self, what: str, reason: Reason) -> None:
        said = f"{what}/{reason.value}"
        self.told[said] = self.told.get(said, 0) + 1

    def _judged(self, sender: Hotkey, verdict: Verdict) -> None:
        self._tell(verdict.outcome, verdict.reason)
        if verdict.outcome == "rejected" and sender not in self.explained:
            raise PromiseBroken("nobody honest is blamed", f"{sender}: {verdict.item}: {verdict.sentence}")
        if verdict.outcome != "applied" or verdict.work_units <= 0:
            return
        micro_batch, stage, _ = verdict.item[1:].split(".")
        piece = verdict.item[0], micro_batch, stage
        if piece in self._pieces:
            raise PromiseBroken("each pass is credited at most once", f"{verdict.item}, and {self._pieces[piece][0]}")
        self._pieces[piece] = sender, verdict.work_units
        self.items[verdict.item] = verdict.work_units
        self._totals[sender] = self._totals.get(sender, 0.0) + verdict.work_units
        self.on_credit()

    def _settled(self, state: State, hotkey: Hotkey) -> None:
        ledger, told = state.ledger.total(hotkey), self._totals.get(hotkey, 0.0)
        if not math.isclose(ledger, told, abs_tol=TOLERANCE):
            said = f"{hotkey} was told of {told:g} work units, the ledger has {ledger:g}"
            raise PromiseBroken("every accepted pass is credited exactly once", said)

    def _withdrawn(self, state: State, checked: ObjectChecked) -> None:
        """Passes whose output turned out to be bad are due again."""
        parsed = keys.parse(ObjectKey(checked.key))
        if parsed.kind not in (keys.Kind.BOUNDARY, keys.Kind.GRADIENT):
            return
        micro_batch, stage = parsed.item[2:].partition(".")[0], str(parsed.stage)
        batch = state.micro_batches.get(int(micro_batch))  # type: ignore[call-overload]
        if batch is None:
            return
        hop = batch.hops[parsed.stage]
        for kind, epoch in ("f", hop.forward_epoch), ("b", hop.backward_epoch), ("l", hop.backward_epoch):
            entry = self._pieces.get((kind, micro_batch, stage))
            if epoch < 0 and entry is not None:
                del self._pieces[kind, micro_batch, stage]
                self._totals[entry[0]] -= entry[1]
                self._settled(state, entry[0])

    def _anchors(self, state: State) -> None:
        for stage in state.stages:
            place, digests = (stage.stage, stage.epoch), (stage.parameters.digest, stage.momentum.digest)
            known = self._starts.get(place)
            if known == digests:
                continue
            if known is not None:
                said = f"stage {stage.stage} epoch {stage.epoch} starts at {digests[0][:8]} and {known[0][:8]}"
                raise PromiseBroken("one digest per stage at each epoch's start", said)
            self._starts[place] = digests
            self.emission(state)

    def emission(self, state: State) -> None:
        """Weights sum to 1 as soon as there is anything to pay."""
        paid = sheet(state)
        total = math.fsum(paid.emission.weights.values())
        worth = any(paid.emission.scores.values())
        if (paid.emission.weights or worth) and not math.isclose(total, 1.0, abs_tol=TOLERANCE):
            raise PromiseBroken("emission sums to 1", f"it sums to {total}")

    # ---- at the end, and between two lives of the orchestrator -------------------------------------------------------

    def receipts(self, state: State, hotkey: Hotkey, lines: list[ReceiptLine], complete: bool) -> None:
        """A miner's own receipts beside the ledger. `complete`: it lived through, and its disk took everything."""
        told = credited(lines)
        for item, units in told.items():
            if not math.isclose(self.items.get(item, 0.0), units, abs_tol=TOLERANCE):
                raise PromiseBroken("every accepted pass is credited exactly once", f"{hotkey} has a receipt of {item}")
        total, ledger = math.fsum(told.values()), state.ledger.total(hotkey)
        if complete and total < ledger - TOLERANCE:
            said = f"{hotkey} has receipts of {total:g} work units, the ledger has {ledger:g}"
            raise PromiseBroken("nothing credited is lost", said)

    def start_of(self, stage: int, epoch: int) -> Digest | None:
        """Of a stage's parameters at an epoch's start, as far as that was reached."""
        found = self._starts.get((stage, epoch))
        return None if found is None else found[0]


def equal(live: State, replayed: State) -> None:
    """Raises PromiseBroken unless two states are the same bytes, whatever the order inside their sets."""
    sets = live.registered == replayed.registered and live.pay.fresh == replayed.pay.fresh
    one, other = _without_sets(live), _without_sets(replayed)
    if not sets or _encode(one) != _encode(other):
        parts = [n for n in State.__struct_fields__ if _encode(getattr(one, n)) != _encode(getattr(other, n))]
        raise PromiseBroken("replay == live", f"they differ in {', '.join(parts) or 'a set'}")


def _without_sets(state: State) -> State:
    pay = msgspec.structs.replace(state.pay, fresh=set())
    return msgspec.structs.replace(state, registered=set(), pay=pay)


def _referenced(state: State) -> Iterator[ObjectKey]:
    """Objects that somebody may still have to read."""
    for stage in state.stages:
        yield stage.parameters.key
        yield stage.momentum.key
        if stage.merge is not None:
            yield from (upload.source.key for upload in stage.merge.uploads.values())
            yield from (one.source.key for one in stage.merge.reduced.values())
            yield from (part.source.key for part in stage.merge.shards if part.source is not None)
    for batch in state.micro_batches.values():
        for hop in batch.hops:
            if hop.boundary is not None:
                yield hop.boundary.key
            if hop.gradient is not None:
                yield hop.gradient.key
