"""The living definition: what the swarm computes, as one loop in one process.

All stages are trained one after the other on the same micro-batch, one replica each, with torch's own AdamW and
gradient clip and plain arithmetic for the merge. Everything a swarm adds (processes, wire objects, versions, flat
optimizer, butterfly) must change nothing but the order of sums: tests compare loss by loss, `make bench` compares speed
and validation loss.

Law: obvious before clever. It shares the model's definition and the data with the swarm, none of its machinery.
Letters: B batch, T tokens, K boundary width, P flat parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from subnet.data.sampling import Batches
from subnet.merging import compression
from subnet.model import flat, wire
from subnet.model.evaluate import validation_loss
from subnet.model.initial import initial_parameters
from subnet.model.optimizer import learning_rate
from subnet.model.spec import shapes_of
from subnet.model.stage import PipelineStage
from subnet.protocol.ids import Stage, Values
from subnet.protocol.run_spec import InnerSpec, RunSpec


class ReferenceRun(NamedTuple):
    """What a run of the reference leaves."""

    losses: list[float]
    """Nats, one per micro-batch, in the order given."""
    parameters: list[np.ndarray]
    """Each stage's flat vector at the end."""
    tokens: int
    duration_s: float
    """Of the loop alone: nothing that is built once."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.duration_s if self.duration_s else float("inf")

    def validation_loss(self, spec: RunSpec, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        """Mean loss in nats over held-out batches."""
        return validation_loss(spec, self.parameters, batches)[0]


class ReferenceStage:
    """One stage with its optimizer and its anchor."""

    def __init__(self, spec: RunSpec, index: Stage) -> None:
        self.spec = spec
        shapes = shapes_of(spec, index)
        self.parameters_P = flat.to_flat(initial_parameters(spec, index), shapes, "cpu")
        self.leaves = flat.leaves(self.parameters_P, shapes)
        self.module = PipelineStage(spec, index, "cpu")
        self.module.bind(self.leaves)
        self.optimizer = adamw(self.leaves, spec.inner)
        self.anchor_P = self.parameters_P.clone()
        self.v_P = torch.zeros_like(self.parameters_P)
        self.norms: list[float] = []

    def inner_step(self, accumulated: int, rate: float) -> None:
        """The mean of the accumulated micro-batches' gradients, clipped by this stage's norm, and one step."""
        for leaf in self.leaves:
            assert leaf.grad is not None
            leaf.grad /= accumulated
        torch.nn.utils.clip_grad_norm_(self.leaves, self.spec.inner.clip_norm)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    @torch.no_grad()
    def merge(self, epoch: int) -> None:
        """The outer step of ALGORITHMS 3 with one replica: g is its own pseudo-gradient, rounded as for upload."""
        merge = self.spec.merge
        delta_P = self.anchor_P - self.parameters_P
        sent = compression.encode(merge.upload_values, delta_P.numpy())
        g_P = torch.from_numpy(compression.decode(sent, merge.upload_values, len(delta_P)))
        norm = float(g_P.norm())
        limit = merge.clip_factor * median(self.norms[-5:]) if self.norms else norm
        self.norms.append(norm)
        if limit > 0:
            g_P *= min(1.0, limit / norm)
        warm = min(1.0, epoch / merge.momentum_warmup_epochs) if merge.momentum_warmup_epochs else 1.0
        mu = merge.outer_momentum_first + (merge.outer_momentum - merge.outer_momentum_first) * warm
        self.v_P = mu * self.v_P + g_P
        self.anchor_P = self.anchor_P - merge.outer_lr * (g_P + mu * self.v_P)
        self.parameters_P.copy_(self.anchor_P)
        if self.spec.inner.reset_each_epoch:
            self.optimizer = adamw(self.leaves, self.spec.inner)


def train_reference(
    spec: RunSpec,
    batches: Batches,
    micro_batches: Sequence[int],
    *,
    now: Callable[[], float],
    epoch_ends: Collection[int] = (),
    compressed: bool = True,
) -> ReferenceRun:
    """Train on `micro_batches` in this order, with an inner step after every k of them.

    `epoch_ends` holds how many micro-batches are done when all stages merge; empty means one epoch without a merge.
    `compressed` False sends boundaries and pseudo-gradients in fp32 whatever the RunSpec says; the width stays K.
    """
    spec = spec if compressed else uncompressed(spec)
    stages = [ReferenceStage(spec, Stage(index)) for index in range(spec.num_stages)]
    losses: list[float] = []
    epoch = step = accumulated = 0
    began = now()
    for done, micro_batch in enumerate(micro_batches, start=1):
        loss = forward(spec, stages, batches, micro_batch)
        loss.backward()
        losses.append(loss.item())
        accumulated += 1
        epoch_over = done in epoch_ends
        if accumulated == spec.inner.micro_batches_per_step or epoch_over:
            for stage in stages:
                stage.inner_step(accumulated, learning_rate(spec.inner, epoch, step))
            accumulated, step = 0, step + 1
        if epoch_over:
            for stage in stages:
                stage.merge(epoch)
            epoch, step = epoch + 1, 0
    duration_s = now() - began
    parameters = [flat.to_numpy(stage.parameters_P) for stage in stages]
    return ReferenceRun(losses, parameters, len(losses) * spec.micro_batch_tokens, duration_s)


def forward(spec: RunSpec, stages: Sequence[ReferenceStage], batches: Batches, micro_batch: int) -> Tensor:
    """The loss of one micro-batch, with the graph through all stages."""
    tokens_BT, targets_BT = (torch.from_numpy(part) for part in batches.batch(micro_batch))
    z_BTK = None
    for index, stage in enumerate(stages[:-1]):
        z_BTK = stage.module(z_BTK, tokens_BT)
        if spec.boundary.values is not Values.FP32:
            z_BTK = _Link.apply(z_BTK, spec, wire.rounding_seed(spec, micro_batch, index + 1))
    return stages[-1].module.loss(z_BTK, tokens_BT, targets_BT)


def adamw(leaves: Sequence[torch.nn.Parameter], inner: InnerSpec) -> torch.optim.AdamW:
    betas = (inner.beta1, inner.beta2)
    return torch.optim.AdamW(leaves, betas=betas, eps=inner.eps, weight_decay=inner.weight_decay, fused=True)


def uncompressed(spec: RunSpec) -> RunSpec:
    """The same run with fp32 on every wire."""
    boundary = msgspec.structs.replace(spec.boundary, values=Values.FP32)
    size_bytes = wire.boundary_size_bytes(boundary, spec.data.micro_batch_size, spec.data.seq_len)
    merge = msgspec.structs.replace(spec.merge, upload_values=Values.FP32)
    return msgspec.structs.replace(spec, boundary=boundary, boundary_size_bytes=size_bytes, merge=merge)


class _Link(torch.autograd.Function):
    """A link between stages: what arrives is what the wire holds, in both directions; no gradient of the rounding."""

    @staticmethod
    def forward(ctx: Any, z_BTK: Tensor, spec: RunSpec, seed: int) -> Tensor:
        ctx.spec, ctx.seed = spec, seed
        return torch.from_numpy(wire.through(spec, z_BTK.numpy(), None))

    @staticmethod
    def backward(ctx: Any, gradient_BTK: Tensor) -> tuple[Tensor, None, None]:
        return torch.from_numpy(wire.through(ctx.spec, gradient_BTK.numpy(), ctx.seed)), None, None
