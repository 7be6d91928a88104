"""What this miner trains: one stage's parameters in a Trainer, and the epoch they belong to.

Law: synchronous and without I/O; called by one party at a time, off the event loop, but for the two methods that say
otherwise. What is wrong with an input is a PeerFault whose `evidence` is its key; own results that are not finite are
a PeerFault without evidence. A call that raises has changed neither parameters nor epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from subnet.errors import InvariantViolation, PeerFault
from subnet.merging.compression import decode
from subnet.miner.snapshots import Found, Snapshots
from subnet.miner.worklog import Told, WorkLog
from subnet.model.outer import Anchor, Upload
from subnet.model.trainer import Trainer
from subnet.model.training_state import TrainingState
from subnet.protocol.ids import Digest, Epoch, MicroBatchId, Pass, Stage, Values
from subnet.protocol.messages import PassWork, Resumes, Source
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.transport.transfer import digest_of


class Computed(NamedTuple):
    """Outcome of one pass."""

    output: bytes | None
    digest: Digest | None
    loss: float | None
    param_version: int


class Replica:
    """A Trainer with a place in the run: what it computes fits the work it is given."""

    def __init__(self, spec: RunSpec, stage: Stage, trainer: Trainer, snapshots: Snapshots) -> None:
        self.spec, self.spec_digest, self.stage = spec, spec.digest(), stage
        self.snapshots = snapshots
        self._worklog = WorkLog(snapshots, spec.audit.segment_steps) if spec.audit.rate else None
        self.epoch = Epoch(-1)
        """The epoch whose start parameters training goes on from; -1 before the first `load`."""
        self._trainer = trainer
        self._merged: Anchor | None = None
        """The anchor that training goes on from, if it came by a merge here: a second offer publishes it again."""
        self._digest_before = self.spec_digest
        """Of the rules before that merge."""
        self._start, self._start_before = Digest(""), Digest("")
        """Of the parameters that its epoch, and the one before that merge, began with."""
        self._unwanted: list[MicroBatchId] = []

    def has_graph(self, work: PassWork) -> bool:
        """Whether a backward needs no stage input. May be called at any time; only a call in the turn is binding."""
        return work.kind is Pass.BACKWARD and self._trainer.holds(work.micro_batch)

    def fits(self, epoch: Epoch, spec_digest: Digest, start: Digest) -> bool:
        """Whether a stage in `epoch` can go on with this replica: it is there, or has applied that epoch's merge.

        `start`: of the parameters that the epoch began with; after a roll-back these are others.
        """
        if epoch == self.epoch:
            return (spec_digest, start) == (self.spec_digest, self._start)
        ahead = self._merged is not None and epoch == self.epoch - 1
        return ahead and (spec_digest, start) == (self._digest_before, self._start_before)

    def forget_later(self, micro_batch: MicroBatchId) -> None:
        """Nobody waits for this backward: drop its graph before the next computation. May be called at any time."""
        self._unwanted.append(micro_batch)

    def run_pass(self, work: PassWork, stage_input: bytes | None, gradient: bytes | None) -> Computed:
        """One pass through the stage."""
        self._forget_unwanted()
        before = self._trainer.param_version
        try:
            loss, output = self._run(work, stage_input, gradient)
        except PeerFault as fault:
            # the trainer says which input was bad, by name; readers need its key
            inputs = {"stage_input": work.stage_input, "gradient": work.gradient}
            source = inputs.get(fault.evidence)
            raise PeerFault(fault.code, fault.sentence, source.key if source else "") from fault
        if self._worklog is not None:
            stepped = self._trainer.param_version != before
            if self._worklog.ran(work.item, self._trainer.pass_version, stepped):
                self._worklog.commit(self.epoch, self._trainer.training_state())
                self.snapshots.note(self._progress(self._worklog.told()))
        if loss is not None and not math.isfinite(loss):
            raise PeerFault(Reason.NOT_FINITE, f"the loss of micro-batch {work.micro_batch} is {loss}")
        if (output is None) != (work.output is None):
            raise InvariantViolation(f"{work.item}: work and trainer disagree on whether there is an output")
        digest = None if output is None else digest_of(output)
        return Computed(output, digest, loss, self._trainer.pass_version)

    def _run(
        self, work: PassWork, stage_input: bytes | None, gradient: bytes | None
    ) -> tuple[float | None, bytes | None]:
        match work.kind:
            case Pass.FORWARD:
                return None, self._trainer.forward(work.micro_batch, stage_input)
            case Pass.LOSS:
                return self._trainer.loss(work.micro_batch, stage_input)
            case Pass.BACKWARD:
                assert gradient is not None, "checked when the work was taken"
                return None, self._trainer.backward(work.micro_batch, stage_input, gradient)

    def close_epoch(self, epoch: Epoch) -> Upload:
        """The pseudo-gradient up to now. Called again for the same epoch (a second round), it holds what came since."""
        self._forget_unwanted()
        self._check_epoch(epoch)
        self._merged = None  # the stage has turned since: nobody asks for it any more
        upload = self._trainer.close_epoch()
        if self._worklog is not None:
            self._worklog.uploaded(epoch, self._trainer.training_state())
        return upload

    def told(self) -> Told:
        """The work log up to the latest upload; empty when the run has no audits."""
        return Told((), (), None, True) if self._worklog is None else self._worklog.told()

    def apply_merge(
        self,
        epoch: Epoch,
        merged: Sequence[tuple[int, int, np.ndarray | None]],
        counted: bool = True,
        spec: RunSpec | None = None,
    ) -> Anchor:
        """The outer step that ends `epoch`; where it is done already, its result once more. `spec`: the next rules."""
        self._forget_unwanted()
        if self._merged is not None and epoch == self.epoch - 1:
            return self._merged
        self._check_epoch(epoch)
        self._merged = self._trainer.apply_merge(merged, counted)
        self._start, self._start_before = self._merged.parameters_digest, self._start
        self.snapshots.note(None)
        self.epoch, self._digest_before = Epoch(epoch + 1), self.spec_digest
        self._go_by(spec)
        if self._worklog is not None:
            if self._worklog.has_uploaded and counted:
                self._worklog.applied()
            else:
                self._worklog.began(self._trainer.training_state())
        return self._merged

    def load(
        self,
        epoch: Epoch,
        anchor: tuple[Source, Source],
        encoded: tuple[bytes, bytes],
        spec: RunSpec | None = None,
    ) -> None:
        """Start from an epoch's parameters and momentum, by that epoch's rules."""
        count = self.spec.stages[self.stage].num_params
        vectors = []
        for source, data in zip(anchor, encoded, strict=True):
            try:
                vectors.append(decode(data, Values.FP32, count))
            except PeerFault as fault:
                raise PeerFault(fault.code, fault.sentence, source.key) from fault
        self._go_by(spec)
        self._trainer.load(epoch, *vectors)
        if self._worklog is not None:
            self._worklog.began(self._trainer.training_state())
        self.snapshots.note(None)
        self._unwanted.clear()
        self.epoch, self._merged, self._start = epoch, None, anchor[0].digest

    def resume(self, found: Found) -> None:
        """Go on from where an earlier process stood in this epoch, whose parameters are loaded."""
        assert self._worklog is not None, "nothing is committed without audits"
        count, last = self.spec.stages[self.stage].num_params, found.progress.commitments[-1]
        vectors = tuple(decode(part, Values.FP32, count) for part in found.parts)
        self._trainer.restore(TrainingState(last.version, last.step, last.optimizer_steps, vectors))
        self._worklog.resumed(found.progress)
        self.snapshots.note(found.progress)

    def _progress(self, told: Told) -> Resumes:
        return Resumes(
            run_id=self.spec.run_id,
            stage=self.stage,
            epoch=self.epoch,
            anchor=self._start,
            log=told.log,
            commitments=told.commitments,
            applied_at=told.applied_at,
            loaded=told.loaded,
        )

    def _go_by(self, spec: RunSpec | None) -> None:
        if spec is not None and (digest := spec.digest()) != self.spec_digest:
            self.spec, self.spec_digest = spec, digest
            self._trainer.go_by(spec)

    def _check_epoch(self, epoch: Epoch) -> None:
        if epoch != self.epoch:
            raise PeerFault(Reason.WRONG_ANCHOR, f"this miner trains epoch {self.epoch}; the work is for {epoch}")

    def _forget_unwanted(self) -> None:
        while self._unwanted:
            self._trainer.forget(self._unwanted.pop())
