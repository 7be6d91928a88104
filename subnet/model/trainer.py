"""One replica's training of one stage: passes, inner steps, and its part in a merge.

Synchronous, without I/O, clock or randomness of its own: the same calls in the same order give the same bytes.

Law of versions: every vector of local parameters has a number, `param_version`; an inner step, a merge and a load each
write the next one. A backward runs on its forward's parameters. The present version and the one before are alive; a
graph on an older one is dropped when the next is written, and its micro-batch is recomputed from its stage input.

Law of states: between two inner steps (nothing accumulated) `training_state` is everything that decides what later
passes compute. That is what miners commit and what `model.replay` goes on from on another machine.
At most `graphs_max` graphs are kept. When all places are taken a forward runs without a graph and is computed again
for its backward: gradients mostly return in order, so dropping older ones would lose more.

Law of faults: a pass that fails changes nothing but its own kept graph; no NaN or infinity reaches accumulator,
parameters or wire. `PeerFault.evidence` names the bad object: "stage_input", "gradient", or "own" for this stage's.
Letters: B batch, T tokens, K boundary width, P flat parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from subnet.data.sampling import Batches
from subnet.errors import PeerFault
from subnet.model import flat, wire
from subnet.model import spec as layout
from subnet.model.optimizer import FlatAdamW, learning_rate
from subnet.model.outer import Anchor, MergedRange, Outer, Upload
from subnet.model.split import check_spec
from subnet.model.stage import PipelineStage
from subnet.model.training_state import Kept, TrainingState
from subnet.protocol.ids import Epoch, MicroBatchId, Stage
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec

GRAPHS_MAX = 6
"""A graph of three layers at d=128 and 1,024 tokens holds 27 MB."""


class Trainer:
    """Call `load` first."""

    def __init__(
        self, spec: RunSpec, stage: Stage, device: str, batches: Batches, *, graphs_max: int = GRAPHS_MAX
    ) -> None:
        check_spec(spec)
        self._spec, self._stage_index, self._device, self._batches = spec, stage, device, batches
        self._shapes = layout.shapes_of(spec, stage)
        self._stage = PipelineStage(spec, stage, device)
        self.num_params = layout.num_params(self._shapes)
        self.param_version = 0
        self.pass_version = 0
        """The version that the latest successful pass ran on."""
        self._parameters_P = torch.zeros(self.num_params, device=device)
        self._older_P = torch.zeros(self.num_params, device=device)
        self._gradient_P = torch.zeros(self.num_params, device=device)
        self._gradient_views = flat.views(self._gradient_P, self._shapes)
        self._optimizer = FlatAdamW(self.num_params, spec.inner, device)
        self._leaves = self._older_leaves = flat.leaves(self._parameters_P, self._shapes)
        self._kept: dict[int, Kept] = {}
        self._graphs_max = graphs_max
        self.accumulated = 0
        """Micro-batches whose gradient waits for the next inner step."""
        self._step = 0
        self._uploaded_P: np.ndarray | None = None
        self._outer: Outer | None = None

    # ---- the epoch ---------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> Epoch:
        """The epoch of the anchor."""
        return self._anchor.epoch

    def go_by(self, spec: RunSpec) -> None:
        """The owner tuned the rules: from here on these hold. Shapes and bytes are the same in all versions."""
        self._spec = spec
        self._optimizer.go_by(spec.inner)
        if self._outer is not None:
            self._outer.go_by(spec.merge)

    def load(self, epoch: Epoch, parameters_P: np.ndarray, momentum_P: np.ndarray) -> None:
        """Start from a stage's epoch-start parameters; everything local is dropped."""
        self._outer = Outer(self._spec.merge, epoch, parameters_P, momentum_P)
        self._kept.clear()
        self.accumulated, self._step, self._uploaded_P = 0, 0, None
        self._optimizer.reset()
        self._begin_at(torch.from_numpy(self._anchor.theta_P))

    def close_epoch(self) -> Upload:
        """End the epoch's training: step what is accumulated, remember where we stand, return the pseudo-gradient."""
        self.step_now()
        local_P = flat.to_numpy(self._parameters_P)
        upload = self._anchor.upload(local_P)
        self._uploaded_P = local_P
        return upload

    def apply_merge(self, shards: Sequence[MergedRange], counted: bool = True) -> Anchor:
        """Take the outer step; what was trained since the upload is carried over to the new anchor.

        A replica that did not upload, or whose upload does not count, starts the next epoch at the anchor: nothing it
        trained is in the merge, and added to the others' progress it would be counted twice.
        """
        encoded = self._anchor.apply(shards)
        if not counted:
            self._uploaded_P = None
        self._go_over_to(torch.from_numpy(self._anchor.theta_P).to(self._device))
        return encoded

    def _go_over_to(self, theta_P: Tensor) -> None:
        if self._uploaded_P is None:
            self.accumulated = 0
            self._optimizer.reset()
            self._kept.clear()
            self._begin_at(theta_P)
        else:
            local_P, uploaded_P = self._parameters_P, torch.from_numpy(self._uploaded_P).to(self._device)
            self._write_version(lambda out_P: torch.sub(local_P, uploaded_P, out=out_P).add_(theta_P))
        self._step, self._uploaded_P = 0, None
        if self._spec.inner.reset_each_epoch:
            self._optimizer.reset()

    def _begin_at(self, theta_P: Tensor) -> None:
        """Both living versions are the anchor: everybody who knows it knows this state."""
        self._write_version(lambda out_P: out_P.copy_(theta_P))
        self._older_P.copy_(theta_P)

    # ---- states ------------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Inner steps since the epoch's start."""
        return self._step

    def training_state(self) -> TrainingState:
        """A copy of the state; only between two inner steps."""
        assert not self.accumulated, "a state has no accumulated gradient"
        moments = self._optimizer.moments()
        parts = tuple(flat.to_numpy(vector_P) for vector_P in (self._parameters_P, self._older_P, *moments))
        return TrainingState(self.param_version, self._step, self._optimizer.steps, parts)

    def restore(self, state: TrainingState) -> None:
        """Go on from a state at the same anchor: both living versions and the optimizer are as they were."""
        local_P, older_P, mean_P, square_P = (torch.from_numpy(part).to(self._device) for part in state.parts)
        self._begin_at(older_P)
        self._write_version(lambda out_P: out_P.copy_(local_P))
        self.accumulated, self._step, self.param_version = 0, state.step, state.version
        self._optimizer.restore(mean_P, square_P, state.optimizer_steps)

    def step_now(self) -> None:
        """Step what is accumulated, as `close_epoch` does."""
        if self.accumulated:
            self._inner_step()

    def local_parameters(self) -> np.ndarray:
        """A copy of the parameters as they are now, float32 [P]."""
        return flat.to_numpy(self._parameters_P)

    # ---- passes ------------------------------------------------------------------------------------------------------

    def forward(self, micro_batch: MicroBatchId, stage_input: bytes | None) -> bytes:
        """The encoded boundary for the next stage; the graph is kept for the backward."""
        self.forget(micro_batch)
        has_place = len(self._kept) < self._graphs_max
        with torch.set_grad_enabled(has_place):
            kept = self._run(micro_batch, stage_input)
        data = self._encode(kept.output, None)
        if has_place:
            self._kept[micro_batch] = kept
        self.pass_version = kept.version
        return data

    def loss(self, micro_batch: MicroBatchId, stage_input: bytes | None) -> tuple[float, bytes | None]:
        """The last stage's pass: the loss in nats, and the gradient for the stage before (None if there is none)."""
        kept = self._run(micro_batch, stage_input)
        loss = float(kept.output.detach())
        if not np.isfinite(loss):
            raise _own_fault(f"the loss of micro-batch {micro_batch} is {loss}")
        return loss, self._finish(micro_batch, kept, None)

    def backward(
        self, micro_batch: MicroBatchId, stage_input: bytes | None, gradient: bytes, version: int | None = None
    ) -> bytes | None:
        """Backward of a micro-batch; returns the gradient for the stage before (None at stage 0).

        Without a kept graph (taken over, no place for it, its version no longer alive) the forward is recomputed first,
        under the present version. A replay names the version that the miner's graph was on.
        """
        gradient_BTK = self._decode(gradient, "gradient")
        kept = self._kept.pop(micro_batch, None)
        if kept is None or version not in (None, kept.version):
            kept = self._run(micro_batch, stage_input, version)
        return self._finish(micro_batch, kept, gradient_BTK)

    def holds(self, micro_batch: MicroBatchId) -> bool:
        """Whether the backward of this micro-batch can do without its stage input."""
        return micro_batch in self._kept

    def forget(self, micro_batch: MicroBatchId) -> None:
        """Nobody waits for this micro-batch's backward any more."""
        self._kept.pop(micro_batch, None)

    # ---- inside ------------------------------------------------------------------------------------------------------

    @property
    def _anchor(self) -> Outer:
        assert self._outer is not None, "load comes first"
        return self._outer

    def _run(self, micro_batch: int, stage_input: bytes | None, version: int | None = None) -> Kept:
        """The stage's forward under the present version, or under the one before where that is asked for."""
        if version == self.param_version - 1:
            self._stage.bind(self._older_leaves)
            try:
                return self._run_bound(micro_batch, stage_input, version, self._older_leaves)
            finally:
                self._stage.bind(self._leaves)
        if version not in (None, self.param_version):
            raise PeerFault(Reason.MALFORMED, f"version {version} is not alive at version {self.param_version}", "own")
        return self._run_bound(micro_batch, stage_input, self.param_version, self._leaves)

    def _run_bound(
        self, micro_batch: int, stage_input: bytes | None, version: int, leaves: tuple[nn.Parameter, ...]
    ) -> Kept:
        tokens_BT, targets_BT = (torch.from_numpy(part).to(self._device) for part in self._batches.batch(micro_batch))
        input_BTK = None
        if self._stage_index:
            input_BTK = self._decode(stage_input, "stage_input").requires_grad_()
        if self._stage_index == self._spec.num_stages - 1:
            output = self._stage.loss(input_BTK, tokens_BT, targets_BT)
        else:
            output = self._stage(input_BTK, tokens_BT)
        return Kept(version, leaves, input_BTK, output)

    def _finish(self, micro_batch: int, kept: Kept, gradient_BTK: Tensor | None) -> bytes | None:
        """Backward through a graph, encode what goes on, accumulate, and step after the k-th micro-batch."""
        inputs = kept.leaves if kept.stage_input is None else (kept.stage_input, *kept.leaves)
        gradients = list(torch.autograd.grad(kept.output, inputs, gradient_BTK))
        data = None
        if kept.stage_input is not None:
            data = self._encode(gradients.pop(0), wire.rounding_seed(self._spec, micro_batch, self._stage_index))
        norm = flat.norm(gradients)
        if not np.isfinite(norm):
            raise _own_fault(f"the parameter gradient of micro-batch {micro_batch} has norm {norm}")
        if self.accumulated:
            torch._foreach_add_(self._gradient_views, gradients)
        else:
            torch._foreach_copy_(self._gradient_views, gradients)
        self.accumulated += 1
        self.pass_version = kept.version
        if self.accumulated == self._spec.inner.micro_batches_per_step:
            self._inner_step()
        return data

    def _inner_step(self) -> None:
        """Mean gradient, clipped by the stage's norm, through AdamW into a new version."""
        inner = self._spec.inner
        self._gradient_P.div_(self.accumulated)
        self.accumulated = 0
        if not np.isfinite(norm := float(self._gradient_P.norm())):
            raise _own_fault(f"the stage's gradient has norm {norm}; it was dropped")
        if norm > inner.clip_norm:
            self._gradient_P.mul_(inner.clip_norm / norm)
        rate = learning_rate(inner, self.epoch, self._step)
        self._write_version(partial(self._optimizer.step, self._parameters_P, self._gradient_P, rate))
        self._step += 1

    @torch.no_grad()
    def _write_version(self, write: Callable[[Tensor], object]) -> None:
        """The next version takes the place of the one before the present, whose graphs go first."""
        self._kept = {item: kept for item, kept in self._kept.items() if kept.version == self.param_version}
        write(self._older_P)
        self._parameters_P, self._older_P = self._older_P, self._parameters_P
        self.param_version += 1
        self._older_leaves = self._leaves
        self._leaves = flat.leaves(self._parameters_P, self._shapes)
        self._stage.bind(self._leaves)

    def _decode(self, data: bytes | None, name: str) -> Tensor:
        if data is None:
            raise PeerFault(Reason.BAD_OBJECT, f"this pass needs a {name}", name)
        try:
            return torch.from_numpy(wire.decode(self._spec, data)).to(self._device)
        except PeerFault as fault:
            raise PeerFault(fault.code, fault.sentence, name) from fault

    def _encode(self, z_BTK: Tensor, seed: int | None) -> bytes:
        try:
            return wire.encode(self._spec, z_BTK.detach().cpu().numpy(), seed)
        except PeerFault as fault:
            raise PeerFault(fault.code, fault.sentence, "own") from fault


def _own_fault(sentence: str) -> PeerFault:
    return PeerFault(Reason.NOT_FINITE, sentence, "own")
