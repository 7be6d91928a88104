"""What must hold in a crowd's run, looked at while it goes on.

Law: looks and never changes anything. After every envelope what is cheap: a pass is credited once, a stage has one
anchor in an epoch, and the digest over all that was said and answered grows (equal seeds, equal digests). Every so
often the whole: `coordination.invariants`, the ledger against what was credited, pay adds up to 1, honest miners are
blamed for nothing, and epochs end while every stage has its replicas. The first broken promise ends the run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container

from subnet.coordination import invariants, settlement
from subnet.coordination.machine import Decision
from subnet.coordination.state import State
from subnet.errors import InvariantViolation
from subnet.protocol.ids import Digest, Hotkey, ItemId
from subnet.protocol.messages import Envelope, ExchangeReply, Joined
from subnet.protocol.run_spec import MergeSpec

TOLERANCE = 1e-6
SAID_AT_ONCE = 8192
"""Words of envelopes and answers that enter the digest together."""


def epoch_takes_at_most_s(merge: MergeSpec) -> float:
    """X: when an epoch must have ended, however its quorum came about. Every step may be begun three times."""
    steps_s = merge.grace_s + merge.upload_deadline_s + merge.reduce_deadline_s + merge.apply_deadline_s
    return 2.0 * merge.relax_after_s + 3.0 * steps_s


class Checks:
    """Of one run with so many stages. `cheats` are the hotkeys that may rightly be blamed."""

    def __init__(self, stages: int, cheats: Container[Hotkey] = frozenset()) -> None:
        self._cheats = cheats
        self._digest = hashlib.blake2b(digest_size=16)
        self._said: list[object] = []
        """Not in the digest yet."""
        self._credited: dict[int, int] = {}
        """Which passes of each micro-batch were credited, as bits."""
        self.passes_credited = 0
        self._units = 0.0
        self._epochs = [-1] * stages
        self._anchors: dict[tuple[int, int], Digest] = {}
        self._moved_at = 0.0
        """When an epoch last ended, or could not."""

    @property
    def digest(self) -> str:
        self._take_in()
        return self._digest.hexdigest()

    def _take_in(self) -> None:
        self._digest.update((repr(self._said)[1:-1] + ", ").encode() if self._said else b"")
        self._said.clear()

    # ---- after every envelope ----------------------------------------------------------------------------------------

    def after(self, state: State, envelope: Envelope, decision: Decision) -> None:
        reply, said = decision.reply, self._said
        if len(said) > SAID_AT_ONCE:
            self._take_in()
        if type(reply) is ExchangeReply:
            said += envelope.at, envelope.sender
            for verdict in reply.verdicts:
                said += verdict.item, verdict.outcome
                if verdict.work_units and verdict.outcome == "applied":
                    self._credit(verdict.item, verdict.work_units)
            for work in reply.work:
                said.append(work.item)
        else:
            said += envelope.at, envelope.sender, type(envelope.message).__name__
            if type(reply) is Joined:
                self._anchor(reply.stage, reply.epoch, reply.parameters.digest)
        for stage in state.stages if decision.effects else ():  # a stage that moves has something to say
            if stage.epoch != self._epochs[stage.stage]:
                self._epochs[stage.stage] = stage.epoch
                self._anchor(stage.stage, stage.epoch, stage.parameters.digest)
                self._moved_at = state.at

    def _credit(self, item: ItemId, units: float) -> None:
        kind, (batch, stage, _) = item[0], item[1:].split(".")
        bits = (3 if kind == "l" else 1 if kind == "f" else 2) << 2 * int(stage)
        before = self._credited.get(int(batch), 0)
        if before & bits:
            raise InvariantViolation(f"{item} was credited though this piece had been credited before")
        self._credited[int(batch)] = before | bits
        self.passes_credited += 1
        self._units += units

    def _anchor(self, stage: int, epoch: int, digest: Digest) -> None:
        if self._anchors.setdefault((stage, epoch), digest) != digest:
            raise InvariantViolation(f"stage {stage} has two anchors for the start of epoch {epoch}")

    def restored(self, before: State, after: State) -> None:
        """The orchestrator came back with what a journal keeps."""
        if before != after:
            raise InvariantViolation("the state is another one after it was encoded and decoded")
        self._moved_at = max(self._moved_at, after.at)

    # ---- every so often ----------------------------------------------------------------------------------------------

    def whole(self, state: State) -> None:
        """Everything. Costs as much as the state is large."""
        for sentence in invariants.broken(state):
            raise InvariantViolation(sentence)
        self._ledger(state)
        self._pay(state)
        self._blame(state)
        self._progress(state)

    def _ledger(self, state: State) -> None:
        credits = [credit for epoch in state.ledger.epochs.values() for credit in epoch.values()]
        passes = sum(credit.forwards + credit.backwards + credit.losses for credit in credits)
        units = math.fsum(credit.work_units for credit in credits)
        if passes != self.passes_credited or abs(units - self._units) > TOLERANCE * max(1.0, units):
            raise InvariantViolation(
                f"the ledger holds {passes} passes worth {units:.3f}; verdicts credited {self.passes_credited} worth "
                f"{self._units:.3f}"
            )

    def _pay(self, state: State) -> None:
        weights = settlement.sheet(state).emission.weights
        if weights and sum(weights.values()) != 1.0:
            raise InvariantViolation(f"weights add up to {sum(weights.values())!r}")

    def _blame(self, state: State) -> None:
        for miner in state.miners.values():
            standing = state.pay.standing.get(miner.hotkey)
            blamed = miner.faults or miner.false_complaints or (standing is not None and standing.failed)
            if blamed and miner.hotkey not in self._cheats:
                said = next((i.sentence for i in reversed(state.incidents) if i.hotkey == miner.hotkey), "")
                raise InvariantViolation(f"{miner.hotkey} is honest and was blamed: {said}")

    def _progress(self, state: State) -> None:
        replicas = [0] * len(state.stages)
        everybody = [0] * len(state.stages)
        for miner in state.miners.values():
            everybody[miner.stage] += 1
            replicas[miner.stage] += miner.live
        if any(2 * live <= known for live, known in zip(replicas, everybody, strict=True)):
            self._moved_at = state.at  # a stage has lost its quorum: nothing is promised
        limit_s = epoch_takes_at_most_s(state.spec.merge)
        if state.at - self._moved_at > limit_s:
            where = "; ".join(f"{s.stage}/{s.epoch} {s.phase.value}: {s.sentence}" for s in state.stages)
            raise InvariantViolation(f"no epoch ended for {limit_s:.0f} s though every stage has its replicas: {where}")
