"""Replays a segment of a miner's training and measures how far its outputs and its end are from ours (ALGORITHMS 5).

    begin   the committed state (or the anchor, freshly loaded), at version v
    passes  in the miner's own order, ignored and dropped ones too; a backward on the version its graph was on
    merge   applied where the log says, onto the anchor everybody knows
    end     the next committed state, and for an epoch's last one the uploaded pseudo-gradient

Law: synchronous, without I/O or clock; the same arithmetic as the miner's, because it is the miner's Trainer. A state
is never taken on trust: whoever calls has checked every part against the commitment's digest. Letters: P flat
parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from subnet.data.sampling import Batches
from subnet.errors import PeerFault
from subnet.model import compare
from subnet.model.outer import Outer
from subnet.model.trainer import Trainer
from subnet.model.training_state import TrainingState
from subnet.protocol.ids import Epoch, ItemId, MicroBatchId, Pass, Stage
from subnet.protocol.messages import AuditFigures
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec


class ReplayPass(NamedTuple):
    """One pass of the segment, with the bytes of everything it read and wrote."""

    item: ItemId
    kind: Pass
    micro_batch: MicroBatchId
    version: int
    stage_input: bytes | None
    gradient: bytes | None
    output: bytes | None
    """What the miner stored; None: nothing to compare."""
    loss: float | None


class Segment(NamedTuple):
    """What lies between two commitments."""

    epoch: Epoch
    anchor_P: np.ndarray
    """The stage's parameters at the epoch's start."""
    start: TrainingState | None
    """None: the anchor, freshly loaded."""
    start_version: int
    applies_after: int | None
    """Passes before the merge that led to the anchor was applied; None: it was before the segment, or never."""
    passes: Sequence[ReplayPass]
    end_step: int
    end: TrainingState
    upload_P: np.ndarray | None
    """Pseudo-gradient as sent, decoded; only the last segment ends in it."""


class Replay(Trainer):
    """A Trainer that can go on from a committed state."""

    def __init__(
        self, spec: RunSpec, stage: Stage, device: str, batches: Batches, spec_before: RunSpec | None = None
    ) -> None:
        """`spec_before`: the rules of the epoch before, where the owner tuned them since."""
        super().__init__(spec_before or spec, stage, device, batches)
        self._rules = spec

    def measure(self, segment: Segment) -> AuditFigures:
        """Replay a segment. Raises PeerFault when the log cannot be what was computed, or an input is no tensor."""
        self._begin(segment)
        # what the segment's own steps moved, without the way to the merged anchor: else one that ends at the merge
        # would be measured against nothing
        start_P, moved_P = self.local_parameters(), np.float32(0.0)
        worst, item, most, loss_off, count = compare.NONE, ItemId(""), 0.0, 0.0, 0
        for position, one in enumerate(segment.passes):
            if position == segment.applies_after:
                moved_P, start_P = self.local_parameters() - start_P, self._apply(segment.epoch)
            output, loss = self._repeat(one)
            if one.output is not None and output is not None:
                off = compare.outputs(self._spec, one.output, output)
                worst = _worse(worst, off)
                count += 1
                if (badness := _badness(off)) > most:
                    most, item = badness, one.item
            if one.loss is not None and loss is not None:
                loss_off = max(loss_off, abs(one.loss - loss))
                count += 1
        if segment.applies_after == len(segment.passes):
            moved_P, start_P = self.local_parameters() - start_P, self._apply(segment.epoch)
        return AuditFigures(
            outputs=count,
            quantiser_steps=worst.quantiser_steps,
            cosine_min=worst.cosine_min,
            cosine_p01=worst.cosine_p01,
            relative_l2=worst.relative_l2,
            loss=loss_off,
            state=self._end(segment, start_P - moved_P),
            worst_item=item,
        )

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _begin(self, segment: Segment) -> None:
        state, anchor_P = segment.start, segment.anchor_P
        if state is None:
            self.load(segment.epoch, anchor_P, np.zeros_like(anchor_P))
            self.param_version = segment.start_version
            return
        # what comes before the merge was still done in the epoch before, at its learning rate
        epoch = Epoch(segment.epoch - (segment.applies_after is not None))
        self._outer = Outer(self._spec.merge, epoch, anchor_P, np.zeros_like(anchor_P))
        self.restore(state)
        self._uploaded_P = None if segment.applies_after is None else state.parts[0]

    def _apply(self, epoch: Epoch) -> np.ndarray:
        """Go over to the anchor as the miner did, and to the epoch's rules; returns where that leads."""
        self.go_by(self._rules)
        self._outer = Outer(self._spec.merge, epoch, self._anchor.theta_P, self._anchor.v_P)
        self._go_over_to(torch.from_numpy(self._anchor.theta_P).to(self._device))
        return self.local_parameters()

    def _repeat(self, one: ReplayPass) -> tuple[bytes | None, float | None]:
        if one.kind is not Pass.BACKWARD and one.version != self.param_version:
            said = f"{one.item} is logged on version {one.version}, the replay is at {self.param_version}"
            raise PeerFault(Reason.MALFORMED, said, one.item)
        match one.kind:
            case Pass.FORWARD:
                return self.forward(one.micro_batch, one.stage_input), None
            case Pass.LOSS:
                loss, gradient = self.loss(one.micro_batch, one.stage_input)
                return gradient, loss
            case Pass.BACKWARD:
                assert one.gradient is not None
                return self.backward(one.micro_batch, one.stage_input, one.gradient, one.version), None

    def _end(self, segment: Segment, start_P: np.ndarray) -> float:
        """How far the miner's end is from ours, relative to how far we moved; all parts count, the worst one decides.

        An inner step moves every parameter by about the learning rate; measured against the whole movement, rounding
        differences between machines are small and a step left out is not.
        """
        if self.step + 1 == segment.end_step:
            self.step_now()  # the end is an upload, which steps what is accumulated
        if self.accumulated or self.step != segment.end_step:
            said = f"the log ends at inner step {self.step} and {self.accumulated} gradients, not at a commitment"
            raise PeerFault(Reason.MALFORMED, said, "log")
        ours_P = self.local_parameters()
        ours = self.training_state()
        parameters = compare.relative_l2(segment.end.parts[0], ours.parts[0], ours_P - start_P)
        older = compare.relative_l2(segment.end.parts[1], ours.parts[1], ours_P - start_P)
        moments = [compare.relative_l2(segment.end.parts[i], ours.parts[i], ours.parts[i]) for i in (2, 3)]
        return max(parameters, older, self._upload_off(segment), *moments)

    def _upload_off(self, segment: Segment) -> float:
        """The upload must be the committed end, rounded: the same arithmetic on the same values, so the same bytes."""
        if segment.upload_P is None:
            return 0.0
        shown_P = self._anchor.sent(segment.end.parts[0])
        return compare.relative_l2(segment.upload_P, shown_P, shown_P)


def _badness(off: compare.Deviation) -> float:
    return max(off.quantiser_steps, 1.0 - off.cosine_min, off.relative_l2)


def _worse(a: compare.Deviation, b: compare.Deviation) -> compare.Deviation:
    return compare.Deviation(
        max(a.quantiser_steps, b.quantiser_steps),
        min(a.cosine_min, b.cosine_min),
        min(a.cosine_p01, b.cosine_p01),
        max(a.relative_l2, b.relative_l2),
    )
