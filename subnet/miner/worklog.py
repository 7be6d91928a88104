"""What a miner writes down about its own training, so that a validator can replay it (DESIGN 7).

    load ──passes──► commitment ──passes──► ... ──► upload = commitment ──passes──► merge applied ──passes──► ...

Law: an entry for every pass in the order of computing, counted or not; a commitment every s inner steps, at every load
and at every upload. The log of an epoch begins at the upload (or load) before, so one follows from the other without a
gap. The states themselves go to `Snapshots`; here are their digests only. Synchronous; no clock.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from subnet.merging import compression
from subnet.miner.snapshots import Snapshots
from subnet.model.training_state import TrainingState
from subnet.protocol.ids import Epoch, ItemId, Values
from subnet.protocol.messages import Commitment, Logged, Resumes
from subnet.scoring.audit import state_digest
from subnet.transport.transfer import digest_of


class Told(NamedTuple):
    """What goes with an upload."""

    log: tuple[Logged, ...]
    commitments: tuple[Commitment, ...]
    applied_at: int | None
    loaded: bool


class WorkLog:
    """Of one replica, from one load on. `segment_steps` is s."""

    def __init__(self, snapshots: Snapshots, segment_steps: int) -> None:
        self._snapshots, self._segment_steps = snapshots, segment_steps
        self._log: list[Logged] = []
        self._commitments: list[Commitment] = []
        self._uploaded = -1
        """Which commitment is the latest upload's; -1: none since the epoch began."""
        self._steps = 0
        """Inner steps since the latest commitment."""
        self._applied_at: int | None = None
        self._loaded = True

    def told(self) -> Told:
        return Told(tuple(self._log), tuple(self._commitments), self._applied_at, self._loaded)

    def began(self, state: TrainingState) -> None:
        """Parameters were loaded: everybody knows this state, so it is not kept."""
        self._log, self._commitments, self._uploaded = [], [], -1
        self._applied_at, self._loaded = None, True
        self._commitments.append(self._commitment(state, encoded(state)))

    def resumed(self, found: Resumes) -> None:
        """Go on from what an earlier process wrote down up to its last committed state."""
        self._log, self._commitments, self._uploaded = list(found.log), list(found.commitments), -1
        self._applied_at, self._loaded, self._steps = found.applied_at, found.loaded, 0

    def ran(self, item: ItemId, version: int, stepped: bool) -> bool:
        """Note a pass; whether the inner step it led to makes a commitment due (`scoring.audit.course`)."""
        self._log.append(Logged(item, version))
        self._steps += stepped
        return self._steps == self._segment_steps

    def commit(self, epoch: Epoch, state: TrainingState) -> None:
        """The state after an inner step."""
        parts = encoded(state)
        commitment = self._commitment(state, parts)
        self._snapshots.keep(epoch, commitment.digest, parts)
        self._commitments.append(commitment)

    def uploaded(self, epoch: Epoch, state: TrainingState) -> None:
        """The epoch's training is closed; called again for the same epoch it closes what came since."""
        last = self._commitments[-1]
        if (last.position, last.version) != (len(self._log), state.version):
            self.commit(epoch, state)
        self._uploaded = len(self._commitments) - 1

    def applied(self) -> None:
        """The merge is applied: the next epoch's log begins at the upload."""
        cut = self._commitments[self._uploaded].position
        later = self._commitments[self._uploaded :]
        self._commitments = [msgspec.structs.replace(one, position=one.position - cut) for one in later]
        self._log = self._log[cut:]
        self._uploaded = -1
        self._applied_at, self._loaded = len(self._log), False

    @property
    def has_uploaded(self) -> bool:
        """Since the epoch began."""
        return self._uploaded >= 0

    def _commitment(self, state: TrainingState, parts: tuple[bytes, ...]) -> Commitment:
        self._steps = 0
        digests = [digest_of(part) for part in parts]
        digest = state_digest(state.version, state.step, state.optimizer_steps, digests)
        return Commitment(len(self._log), state.version, state.step, state.optimizer_steps, digest)


def encoded(state: TrainingState) -> tuple[bytes, ...]:
    """The parts as objects."""
    return tuple(compression.encode(Values.FP32, part) for part in state.parts)
