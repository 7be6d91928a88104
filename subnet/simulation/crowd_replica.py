"""What a modelled miner trains: `miner.replica.Replica` over `model.trainer.Trainer`, with the numbers left out.

Law: versions, inner steps, kept graphs and epochs move exactly as in those two; the work log is the production one
(`miner.worklog`), so an upload is accepted only if this model is right. Parameters are one digest.
"""

from __future__ import annotations

import numpy as np

from subnet.miner.snapshots import Snapshots
from subnet.miner.worklog import Told, WorkLog
from subnet.model.training_state import TrainingState
from subnet.protocol.ids import Digest, Epoch, MicroBatchId, Pass, Stage
from subnet.protocol.messages import STATE_PARTS, ApplyWork, PassWork
from subnet.protocol.run_spec import RunSpec
from subnet.simulation.crowd_digests import Digests

GRAPHS_MAX = 6
"""As `model.trainer` has it."""


class WrongEpoch(Exception):
    """The work is for another epoch than the replica is in."""


class Replica:
    """One stage's parameters on one miner. `number` makes its states its own. Call `load` first."""

    def __init__(self, spec: RunSpec, stage: Stage, snapshots: Snapshots, digests: Digests, number: int) -> None:
        self.spec, self.stage, self.epoch = spec, stage, Epoch(-1)
        self._digests, self._number = digests, number
        self._worklog = WorkLog(snapshots, spec.audit.segment_steps) if spec.audit.rate else None
        self._k = spec.inner.micro_batches_per_step
        self._version = self._step = self._optimizer_steps = self._accumulated = 0
        self._graphs: dict[MicroBatchId, int] = {}
        """Which version each kept graph is on."""
        self._uploaded = False
        self._anchor = Digest("")
        self._merged: Digest | None = None

    def has_graph(self, work: PassWork) -> bool:
        return work.kind is Pass.BACKWARD and work.micro_batch in self._graphs

    def fits(self, epoch: Epoch) -> bool:
        """Whether a stage in `epoch` can go on with this replica."""
        return epoch == self.epoch or (self._merged is not None and epoch == self.epoch - 1)

    def forget(self, micro_batch: MicroBatchId) -> None:
        self._graphs.pop(micro_batch, None)

    def run_pass(self, work: PassWork) -> int:
        """One pass; the parameter version that it ran on."""
        before = version = self._version
        if work.kind is Pass.FORWARD:
            self._graphs.pop(work.micro_batch, None)
            if len(self._graphs) < GRAPHS_MAX:
                self._graphs[work.micro_batch] = version
        else:
            version = self._graphs.pop(work.micro_batch, version)
            self._accumulated += 1
            if self._accumulated == self._k:
                self._inner_step()
        if self._worklog is not None and self._worklog.ran(work.item, version, self._version != before):
            self._worklog.commit(self.epoch, self._state())
        return version

    def close_epoch(self, epoch: Epoch) -> Told:
        """The pseudo-gradient up to now, and the log that goes with it."""
        self._check_epoch(epoch)
        self._merged = None
        if self._accumulated:
            self._inner_step()
        self._uploaded = True
        if self._worklog is None:
            return Told((), (), None, True)
        self._worklog.uploaded(epoch, self._state())
        return self._worklog.told()

    def apply_merge(self, work: ApplyWork) -> Digest:
        """The outer step; where it is done already, its result once more."""
        if self._merged is not None and work.epoch == self.epoch - 1:
            return self._merged
        self._check_epoch(work.epoch)
        self._merged = self._anchor = self._digests.merged(self._anchor, work.shards)
        carries_over = self._uploaded and work.counted
        if not carries_over:
            self._accumulated = self._optimizer_steps = 0
            self._graphs.clear()
        self._next_version()
        self._step, self._uploaded, self.epoch = 0, False, Epoch(work.epoch + 1)
        if self.spec.inner.reset_each_epoch:
            self._optimizer_steps = 0
        if self._worklog is not None:
            if carries_over and self._worklog.has_uploaded:
                self._worklog.applied()
            else:
                self._worklog.began(self._state())
        return self._merged

    def load(self, epoch: Epoch, parameters: Digest) -> None:
        """Start from an epoch's parameters; everything local is dropped."""
        self._accumulated = self._step = self._optimizer_steps = 0
        self._graphs.clear()
        self._next_version()
        self._uploaded, self._anchor, self._merged, self.epoch = False, parameters, None, epoch
        if self._worklog is not None:
            self._worklog.began(self._state())

    def _check_epoch(self, epoch: Epoch) -> None:
        if epoch != self.epoch:
            raise WrongEpoch(f"this miner trains epoch {self.epoch}; the work is for {epoch}")

    def _inner_step(self) -> None:
        self._accumulated = 0
        self._next_version()
        self._step += 1
        self._optimizer_steps += 1

    def _next_version(self) -> None:
        """Graphs on the version before the present one go."""
        if self._graphs:
            self._graphs = {batch: version for batch, version in self._graphs.items() if version == self._version}
        self._version += 1

    def _state(self) -> TrainingState:
        part_P = np.array([self._number, self._version], dtype=np.float32)
        return TrainingState(self._version, self._step, self._optimizer_steps, (part_P,) * len(STATE_PARTS))
