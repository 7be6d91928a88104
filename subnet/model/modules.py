"""The parts of a model that hold parameters: projection, norm, embedding.

Law: shells. A parameter is a placeholder of the right shape without memory until `stage.PipelineStage.bind` puts a view
of a flat vector in its place; nothing is initialised here (`model.initial`). torch's own modules would do with
device="meta", but their initialisation there imports torch's compiler: 3 s and 120 MB in every miner process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from subnet.protocol.run_spec import ModelSpec


def placeholder(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(()).expand(shape))


class Linear(nn.Module):
    """x @ weight^T, no bias."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.weight = placeholder(out_width, in_width)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Embedding(nn.Module):
    """One row per token."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.weight = placeholder(model.vocab_size, model.d_model)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return F.embedding(tokens_BT, self.weight)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight, https://arxiv.org/abs/1910.07467."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.weight = placeholder(model.d_model)
        self.eps = model.norm_eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        return _RMSNorm.apply(x_BTD, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """On CPU torch composes the norm of six operations; their gradient costs twice this one and keeps two tensors more.

    With n = x / r, r = sqrt(mean(x²) + eps):   dx = (g w - n mean(g w n)) / r,   dw = Σ g n
    """

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        length_BT1 = torch.linalg.vector_norm(x_BTD, dim=-1, keepdim=True)
        scale_BT1 = length_BT1.square_().div_(x_BTD.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_BTD, weight_D, scale_BT1)
        return (x_BTD * scale_BT1).mul_(weight_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, Tensor, None]:
        x_BTD, weight_D, scale_BT1 = ctx.saved_tensors
        normed_BTD = x_BTD * scale_BT1
        shared_BTD = grad_BTD * normed_BTD
        minus_mean_BT1 = (shared_BTD @ weight_D).unsqueeze(-1).div_(-x_BTD.shape[-1])
        grad_x_BTD = (grad_BTD * weight_D).addcmul_(normed_BTD, minus_mean_BT1).mul_(scale_BT1)
        return grad_x_BTD, shared_BTD.flatten(0, -2).sum(0), None
