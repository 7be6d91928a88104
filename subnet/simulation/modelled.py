"""Training whose arithmetic is a toy and whose protocol is the real one: a Trainer that thousands of worlds can afford.

Law: what a pass gives is a function of input, micro-batch and parameters alone, in numpy, on wire bytes like anybody
else's; versions, kept graphs, inner steps, merges and states follow the Trainer's own rules, whose methods do the
bookkeeping here too. So merges add up bit by bit, logs match commitments, and a replay (`ModelledReplay`) finds a
pass that was not computed. What it learns means nothing.

Letters: N values of a boundary, P flat parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subnet.data.sampling import Batches
from subnet.errors import PeerFault
from subnet.model import wire
from subnet.model.outer import Anchor, MergedRange, Outer, Upload
from subnet.model.replay import Replay
from subnet.model.trainer import GRAPHS_MAX, Trainer
from subnet.model.training_state import TrainingState
from subnet.protocol.ids import Epoch, MicroBatchId, Stage
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec

RATE = np.float32(0.05)
DECAY = np.float32(0.9)


@dataclass(slots=True)
class Forward:
    """A forward whose backward has not come yet."""

    version: int
    theta_P: np.ndarray
    x_N: np.ndarray


class ModelledTrainer(Trainer):
    """Stands wherever a Trainer does. The base's constructor is left out: it would build the real stage."""

    def __init__(
        self, spec: RunSpec, stage: Stage, device: str, batches: Batches, *, graphs_max: int = GRAPHS_MAX
    ) -> None:
        self._spec, self._stage_index, self._device, self._batches = spec, stage, device, batches
        self.num_params = spec.stages[stage].num_params
        self.param_version = self.pass_version = 0
        self._local_P = np.zeros(self.num_params, np.float32)
        self._before_P = np.zeros(self.num_params, np.float32)
        self._sum_P = np.zeros(self.num_params, np.float32)
        self._mean_P = np.zeros(self.num_params, np.float32)
        self._square_P = np.zeros(self.num_params, np.float32)
        self._optimizer_steps = 0
        self._waves_P = np.arange(self.num_params, dtype=np.float32)
        self._kept: dict[int, Forward] = {}  # type: ignore[assignment]
        self._graphs_max = graphs_max
        self.accumulated = self._step = 0
        self._uploaded_P: np.ndarray | None = None
        self._outer: Outer | None = None

    # ---- the epoch ---------------------------------------------------------------------------------------------------

    def go_by(self, spec: RunSpec) -> None:
        self._spec = spec
        if self._outer is not None:
            self._outer.go_by(spec.merge)

    def load(self, epoch: Epoch, parameters_P: np.ndarray, momentum_P: np.ndarray) -> None:
        self._outer = Outer(self._spec.merge, epoch, parameters_P, momentum_P)
        self._kept.clear()
        self.accumulated, self._step, self._uploaded_P = 0, 0, None
        self._reset()
        self._begin_at_vector(self._outer.theta_P)

    def close_epoch(self) -> Upload:
        self.step_now()
        upload = self._anchor.upload(self._local_P)
        self._uploaded_P = self._local_P
        return upload

    def apply_merge(self, shards: Sequence[MergedRange], counted: bool = True) -> Anchor:
        encoded = self._anchor.apply(shards)
        if not counted:
            self._uploaded_P = None
        self._go_over_to_vector(self._anchor.theta_P)
        return encoded

    def _go_over_to_vector(self, theta_P: np.ndarray) -> None:
        if self._uploaded_P is None:
            self.accumulated = 0
            self._reset()
            self._kept.clear()
            self._begin_at_vector(theta_P)
        else:
            self._write(self._local_P - self._uploaded_P + theta_P)
        self._step, self._uploaded_P = 0, None
        if self._spec.inner.reset_each_epoch:
            self._reset()

    def _begin_at_vector(self, theta_P: np.ndarray) -> None:
        self._write(theta_P)
        self._before_P = theta_P

    def _reset(self) -> None:
        self._mean_P = np.zeros(self.num_params, np.float32)
        self._square_P = np.zeros(self.num_params, np.float32)
        self._optimizer_steps = 0

    # ---- states ------------------------------------------------------------------------------------------------------

    def training_state(self) -> TrainingState:
        assert not self.accumulated, "a state has no accumulated gradient"
        parts = self._local_P, self._before_P, self._mean_P, self._square_P
        return TrainingState(self.param_version, self._step, self._optimizer_steps, parts)

    def restore(self, state: TrainingState) -> None:
        self._local_P, self._before_P, self._mean_P, self._square_P = state.parts
        self.param_version, self._step, self._optimizer_steps = state.version, state.step, state.optimizer_steps
        self.accumulated = 0

    def local_parameters(self) -> np.ndarray:
        return self._local_P.copy()

    @property
    def is_loaded(self) -> bool:
        return self._outer is not None

    @property
    def anchor_P(self) -> np.ndarray:
        """The stage's parameters that training went on from."""
        return self._anchor.theta_P

    # ---- passes ------------------------------------------------------------------------------------------------------

    def forward(self, micro_batch: MicroBatchId, stage_input: bytes | None) -> bytes:
        self.forget(micro_batch)
        kept = self._forward(micro_batch, stage_input)
        data = self._sent(np.tanh(kept.x_N + kept.theta_P[: len(kept.x_N)]))
        if len(self._kept) < self._graphs_max:
            self._kept[micro_batch] = kept
        self.pass_version = kept.version
        return data

    def loss(self, micro_batch: MicroBatchId, stage_input: bytes | None) -> tuple[float, bytes | None]:
        kept = self._forward(micro_batch, stage_input)
        loss = 1.0 + float(np.square(np.tanh(kept.x_N + kept.theta_P[: len(kept.x_N)])).mean())
        return loss, self._back(micro_batch, kept, kept.x_N)

    def backward(
        self, micro_batch: MicroBatchId, stage_input: bytes | None, gradient: bytes, version: int | None = None
    ) -> bytes | None:
        g_N = self._received(gradient, "gradient")
        kept = self._kept.pop(micro_batch, None)
        if kept is None or version not in (None, kept.version):
            kept = self._forward(micro_batch, stage_input, version)
        return self._back(micro_batch, kept, g_N)

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _forward(self, micro_batch: int, stage_input: bytes | None, version: int | None = None) -> Forward:
        theta_P, at = self._local_P, self.param_version
        if version == self.param_version - 1:
            theta_P, at = self._before_P, version
        elif version not in (None, at):
            raise PeerFault(Reason.MALFORMED, f"version {version} is not alive at version {at}", "own")
        if self._stage_index:
            return Forward(at, theta_P, self._received(stage_input, "stage_input"))
        count = self._spec.micro_batch_tokens * self._spec.boundary.width
        return Forward(at, theta_P, np.sin(self._waves_P[:count] * np.float32(0.7) + np.float32(micro_batch)))

    def _back(self, micro_batch: int, kept: Forward, g_N: np.ndarray) -> bytes | None:
        data = None
        if self._stage_index:
            seed = wire.rounding_seed(self._spec, micro_batch, self._stage_index)
            data = self._sent(np.tanh(g_N - np.float32(0.1) * kept.x_N), seed)
        phase = np.float32(micro_batch) + kept.x_N.sum(dtype=np.float32) + g_N.sum(dtype=np.float32)
        self._sum_P = self._sum_P * bool(self.accumulated) + np.sin(self._waves_P + phase) + kept.theta_P
        self.accumulated += 1
        self.pass_version = kept.version
        if self.accumulated == self._spec.inner.micro_batches_per_step:
            self._inner_step()
        return data

    def _inner_step(self) -> None:
        gradient_P = self._sum_P / np.float32(self.accumulated)
        self.accumulated = 0
        self._mean_P = DECAY * self._mean_P + (1 - DECAY) * gradient_P
        self._square_P = DECAY * self._square_P + (1 - DECAY) * np.square(gradient_P)
        self._optimizer_steps += 1
        self._write(self._local_P - RATE * self._mean_P / (np.sqrt(self._square_P) + np.float32(1e-3)))
        self._step += 1

    def _write(self, vector_P: np.ndarray) -> None:
        """The next version takes the place of the one before the present, whose graphs go first."""
        self._kept = {item: kept for item, kept in self._kept.items() if kept.version == self.param_version}
        self._before_P, self._local_P = self._local_P, vector_P
        self.param_version += 1

    def _received(self, data: bytes | None, name: str) -> np.ndarray:
        if data is None:
            raise PeerFault(Reason.BAD_OBJECT, f"this pass needs a {name}", name)
        try:
            return wire.decode(self._spec, data).reshape(-1)
        except PeerFault as fault:
            raise PeerFault(fault.code, fault.sentence, name) from fault

    def _sent(self, z_N: np.ndarray, seed: int | None = None) -> bytes:
        data = self._spec.data
        return wire.encode(self._spec, z_N.reshape(data.micro_batch_size, data.seq_len, -1), seed)


class ModelledReplay(ModelledTrainer, Replay):
    """What an auditor replays modelled training with: `Replay.measure` over this arithmetic."""

    def __init__(
        self, spec: RunSpec, stage: Stage, device: str, batches: Batches, spec_before: RunSpec | None = None
    ) -> None:
        super().__init__(spec_before or spec, stage, device, batches)
        self._rules = spec

    def _apply(self, epoch: Epoch) -> np.ndarray:
        self.go_by(self._rules)
        self._outer = Outer(self._spec.merge, epoch, self._anchor.theta_P, self._anchor.v_P)
        self._go_over_to_vector(self._anchor.theta_P)
        return self.local_parameters()


class ModelledCheat(ModelledTrainer):
    """Takes pay and trains nothing: its outputs have the right shape, its parameters move by what it makes up."""

    def _forward(self, micro_batch: int, stage_input: bytes | None, version: int | None = None) -> Forward:
        count = self._spec.micro_batch_tokens * self._spec.boundary.width
        return Forward(self.param_version, self._local_P, np.full(count, 0.1, np.float32))

    def _inner_step(self) -> None:
        self.accumulated = 0
        self._write(self._local_P + np.float32(1e-3) * np.sin(self._waves_P))  # invented, and looks like progress
        self._optimizer_steps += 1
        self._step += 1
