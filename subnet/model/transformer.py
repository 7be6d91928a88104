"""One transformer block, Llama-style: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Law: a block maps x_BTD to x_BTD and knows neither its stage nor its neighbours. Projections that
read the same input are one matrix each (qkv, gate_up): fewer and larger multiplications.

Letters: B batch, T tokens, D model width, H query heads, G key and value heads, h head width, F feed-forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from subnet.model.modules import Linear, RMSNorm
from subnet.model.spec import head_dim
from subnet.protocol.run_spec import ModelSpec


def rotary_table(model: ModelSpec, seq_len: int, device: str) -> Tensor:
    """turns_T1h: cosines in the first half of the last dimension, sines in the second."""
    half = head_dim(model) // 2
    frequency_h = model.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle_Th = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequency_h)
    return torch.cat((angle_Th.cos(), angle_Th.sin()), dim=-1).float().unsqueeze(1).to(device)


def rotate(x_BTHh: Tensor, turns_T1h: Tensor) -> Tensor:
    """Turns the pair (i, i + h/2) of each head by its position's angle: the convention of `transformers`' Llama."""
    cos, sin = turns_T1h.chunk(2, dim=-1)
    left, right = x_BTHh.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, model: ModelSpec, turns_T1h: Tensor) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = model.num_heads, model.num_kv_heads, head_dim(model)
        self.turns_T1h = turns_T1h
        self.attention_norm = RMSNorm(model)
        self.qkv = Linear(model.d_model, (model.num_heads + 2 * model.num_kv_heads) * self.head_dim)
        self.out = Linear(model.num_heads * self.head_dim, model.d_model)
        self.mlp_norm = RMSNorm(model)
        self.gate_up = Linear(model.d_model, 2 * model.d_ff)
        self.down = Linear(model.d_ff, model.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self._attention(self.attention_norm(x_BTD))
        return x_BTD + self._feed_forward(self.mlp_norm(x_BTD))

    def _attention(self, x_BTD: Tensor) -> Tensor:
        batch, tokens, _ = x_BTD.shape
        H, G = self.num_heads, self.num_kv_heads
        heads_BTXh = self.qkv(x_BTD).view(batch, tokens, H + 2 * G, self.head_dim)
        turned_BTXh = rotate(heads_BTXh[:, :, : H + G], self.turns_T1h[:tokens])
        mixed_BHTh = F.scaled_dot_product_attention(
            turned_BTXh[:, :, :H].transpose(1, 2),
            turned_BTXh[:, :, H:].transpose(1, 2),
            heads_BTXh[:, :, H + G :].transpose(1, 2),
            is_causal=True,
            enable_gqa=G != H,
        )
        return self.out(mixed_BHTh.transpose(1, 2).reshape(batch, tokens, H * self.head_dim))

    def _feed_forward(self, x_BTD: Tensor) -> Tensor:
        return _GatedDown.apply(self.gate_up(x_BTD), self.down.weight)


class _GatedDown(torch.autograd.Function):
    """(silu(gate) * up) @ down^T, which keeps its input alone and computes the gated values again for the backward.

    A graph waits for its gradient while other micro-batches pass; without this it would hold twice as much in the
    feed-forward, the widest part of a block. With s = silu(gate):   with d the gradient of the product: d_up = d s and
    d_gate = d up silu'(gate).
    """

    @staticmethod
    def forward(ctx: Any, gate_up_BTX: Tensor, down_DF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_BTX, down_DF)
        gate_BTF, up_BTF = gate_up_BTX.chunk(2, dim=-1)
        return F.linear(F.silu(gate_BTF).mul_(up_BTF), down_DF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, Tensor]:
        gate_up_BTX, down_DF = ctx.saved_tensors
        gate_BTF, up_BTF = gate_up_BTX.chunk(2, dim=-1)
        silu_BTF = F.silu(gate_BTF)
        grad_gated_BTF = grad_BTD @ down_DF
        grad_down_DF = grad_BTD.flatten(0, -2).t() @ (silu_BTF * up_BTF).flatten(0, -2)
        grad_gate_up_BTX = torch.empty_like(gate_up_BTX)
        grad_gate_BTF, grad_up_BTF = grad_gate_up_BTX.chunk(2, dim=-1)
        torch.mul(grad_gated_BTF, silu_BTF, out=grad_up_BTF)
        torch.ops.aten.silu_backward(grad_gated_BTF.mul_(up_BTF), gate_BTF, grad_input=grad_gate_BTF)
        return grad_gate_up_BTX, grad_down_DF
