"""AdamW on whole flat vectors, and the learning rate as a pure function.

    m = b1 m + (1 - b1) g ;  v = b2 v + (1 - b2) g²
    θ' = θ - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) - lr * weight_decay * θ
                                                                https://arxiv.org/abs/1711.05101, algorithm 2

Law: a step reads one vector and writes another, so that graphs on the old parameters stay valid. Everything is
element-wise: a layer's parameters move the same however the model is cut. Letters: P flat parameters.
"""

from __future__ import annotations

from math import cos, pi, sqrt

import torch
from torch import Tensor

from subnet.protocol.run_spec import InnerSpec


def learning_rate(inner: InnerSpec, epoch: int, step: int) -> float:
    """LR of the epoch's step number `step`, from 0.

    The position on the schedule is epoch * steps_per_epoch + step: linear warm-up over `warmup_steps`, then a cosine
    to `lr_final` over `decay_steps`. When the optimizer was reset at a later epoch's start, a second linear warm-up
    over `rewarm_steps` is multiplied in.
    """
    position = epoch * inner.steps_per_epoch + step
    if position < inner.warmup_steps:
        rate = inner.lr_peak * (position + 1) / inner.warmup_steps
    else:
        progress = min(1.0, (position - inner.warmup_steps) / inner.decay_steps)
        rate = inner.lr_final + (inner.lr_peak - inner.lr_final) * (1 + cos(pi * progress)) / 2
    if epoch > 0 and inner.reset_each_epoch and step < inner.rewarm_steps:
        rate *= (step + 1) / inner.rewarm_steps
    return rate


class FlatAdamW:
    """The state of one replica's inner optimizer."""

    def __init__(self, num_params: int, inner: InnerSpec, device: str) -> None:
        self._inner = inner
        self._mean_P = torch.zeros(num_params, device=device)
        self._square_P = torch.zeros(num_params, device=device)
        self._scratch_P = torch.empty(num_params, device=device)
        self.steps = 0

    def go_by(self, inner: InnerSpec) -> None:
        """The owner tuned the rules: the next step is taken by these."""
        self._inner = inner

    def reset(self) -> None:
        self._mean_P.zero_()
        self._square_P.zero_()
        self.steps = 0

    def moments(self) -> tuple[Tensor, Tensor]:
        """m and v as they are, not copies."""
        return self._mean_P, self._square_P

    def restore(self, mean_P: Tensor, square_P: Tensor, steps: int) -> None:
        """Go on from moments of before."""
        self._mean_P.copy_(mean_P)
        self._square_P.copy_(square_P)
        self.steps = steps

    @torch.no_grad()
    def step(self, parameters_P: Tensor, gradient_P: Tensor, lr: float, out_P: Tensor) -> None:
        """Write the next parameters to `out_P`, which must not share memory with `parameters_P`."""
        inner = self._inner
        self.steps += 1
        self._mean_P.lerp_(gradient_P, 1 - inner.beta1)
        self._square_P.mul_(inner.beta2).addcmul_(gradient_P, gradient_P, value=1 - inner.beta2)
        torch.sqrt(self._square_P, out=self._scratch_P)
        self._scratch_P.div_(sqrt(1 - inner.beta2**self.steps)).add_(inner.eps)
        torch.mul(parameters_P, 1 - lr * inner.weight_decay, out=out_P)
        out_P.addcdiv_(self._mean_P, self._scratch_P, value=-lr / (1 - inner.beta1**self.steps))
