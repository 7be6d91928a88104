"""Work that looks done: the books of passes and steps go on as if something had been computed.

Purpose: what several adversaries share. Law: everything invented here is well-formed, finite and of an honest one's
scale, and the same calls give the same bytes. What is committed and revealed is what is really held, so the lie is in
the numbers alone: a replay finds it, a check of forms does not. Letters: B batch, T tokens, K boundary width, P flat
parameters.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from subnet.model.optimizer import FlatAdamW
from subnet.model.trainer import Trainer
from subnet.protocol.ids import MicroBatchId
from subnet.protocol.run_spec import InnerSpec

FORWARD, LOSS, BACKWARD = range(3)
"""What noise is drawn for: each has its own."""
FIRST_RMS = 1.0
"""Root mean square of an invented z_BTK where there is no input to take it from."""
LAST_RMS = 0.05
"""The same of the loss's gradient, in units of 1 / (B x T); honest ones begin there, on the laptop preset."""
MOVE = 0.1
"""Invented movement of a parameter by one step, in units of the learning rate: half of what AdamW's come to over an
epoch of the laptop preset (0.2 to 0.4)."""


class Pretender(Trainer):
    """A trainer that can enter a pass into its books without computing it. No gradient is behind its steps."""

    def pretend(self, micro_batch: MicroBatchId) -> None:
        """Count a backward, and step after the k-th as honest replicas do."""
        self.forget(micro_batch)
        self.accumulated += 1
        self.pass_version = self.param_version
        if self.accumulated == self._spec.inner.micro_batches_per_step:
            self._inner_step()

    def invent(self, micro_batch: MicroBatchId, purpose: int, rms: float) -> bytes:
        """An encoded z_BTK, or its gradient, of noise."""
        shape = (self._spec.data.micro_batch_size, self._spec.data.seq_len, self._spec.boundary.width)
        drawn = np.random.default_rng((self._spec.seed, self._stage_index, micro_batch, purpose))
        return self._encode(torch.from_numpy(drawn.standard_normal(shape, np.float32) * np.float32(rms)), None)

    def invent_loss_gradient(self, micro_batch: MicroBatchId, purpose: int) -> bytes | None:
        """What the last stage sends back; None where there is no stage before it."""
        if self._stage_index == 0:
            return None
        return self.invent(micro_batch, purpose, LAST_RMS / self._spec.micro_batch_tokens)

    def invent_gradient(self, micro_batch: MicroBatchId, purpose: int, gradient: bytes) -> bytes | None:
        """What a backward sends on, of the scale of what came in. Raises PeerFault as an honest backward."""
        rms = root_mean_square(self._decode(gradient, "gradient"))
        return self.invent(micro_batch, purpose, rms) if self._stage_index else None


class Idler(Pretender):
    """A Pretender whose backwards are all made up."""

    def backward(
        self, micro_batch: MicroBatchId, stage_input: bytes | None, gradient: bytes, version: int | None = None
    ) -> bytes | None:
        made_up = self.invent_gradient(micro_batch, BACKWARD, gradient)
        self.pretend(micro_batch)
        return made_up

    def holds(self, micro_batch: MicroBatchId) -> bool:
        """Without computing it needs no stage input again, and saves the download."""
        return True


class InventedSteps(FlatAdamW):
    """Walks in one direction that it draws for itself, whatever the gradient is."""

    def __init__(self, num_params: int, inner: InnerSpec, device: str) -> None:
        super().__init__(num_params, inner, device)
        self._resets = 0
        self._direction_P: Tensor | None = None

    def reset(self) -> None:
        super().reset()
        self._resets += 1
        self._direction_P = None

    @torch.no_grad()
    def step(self, parameters_P: Tensor, gradient_P: Tensor, lr: float, out_P: Tensor) -> None:
        self.steps += 1
        if self._direction_P is None:
            drawn = torch.Generator().manual_seed(self._resets)
            self._direction_P = torch.randn(len(parameters_P), generator=drawn).to(parameters_P.device)
        torch.add(parameters_P, self._direction_P, alpha=MOVE * lr, out=out_P)


def root_mean_square(z_BTK: Tensor) -> float:
    return float(z_BTK.square().mean().sqrt()) if z_BTK.numel() else 0.0
