"""Head and cross-entropy in one step, a slice of rows at a time.

The logits are the largest tensor of a small model: at V = 4,096 they outweigh everything else a stage holds. So they
are never whole: for each slice of rows logits, loss and both gradients are computed while the slice is in cache, and
only the gradients of x and of the head are kept (https://arxiv.org/abs/2410.10989, section 3.2).

Law: equals `F.cross_entropy(F.linear(x, head), targets)` in value and gradients up to summation order; exact for any
finite logits; NaN in gives NaN out. Letters: N tokens, C rows of a slice, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLICE_ROWS = 256


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, head_VD: Tensor, targets_N: Tensor, wants_gradient: bool) -> Tensor:
        rows = min(SLICE_ROWS, len(x_ND))
        losses_N = x_ND.new_empty(len(x_ND))
        logits_CV = x_ND.new_empty(rows, len(head_VD))
        shares_CV = torch.empty_like(logits_CV)
        grad_x_ND, grad_head_VD = torch.empty_like(x_ND), torch.zeros_like(head_VD)
        for start in range(0, len(x_ND), rows):
            part = slice(start, start + rows)
            x_CD, targets_C1 = x_ND[part], targets_N[part, None]
            logits_CV, shares_CV = logits_CV[: len(x_CD)], shares_CV[: len(x_CD)]
            torch.mm(x_CD, head_VD.t(), out=logits_CV)
            torch.softmax(logits_CV, dim=-1, out=shares_CV)
            # log-sum-exp from the largest term alone, whose share is at least 1/V and so never underflows
            normaliser_C = logits_CV.amax(dim=-1) - shares_CV.amax(dim=-1).log()
            losses_N[part] = normaliser_C - logits_CV.gather(-1, targets_C1).squeeze(-1)
            if wants_gradient:
                shares_CV.scatter_add_(-1, targets_C1, shares_CV.new_full((1, 1), -1.0).expand_as(targets_C1))
                torch.mm(shares_CV, head_VD, out=grad_x_ND[part])
                grad_head_VD.addmm_(shares_CV.t(), x_CD)
        ctx.save_for_backward(grad_x_ND.div_(len(x_ND)), grad_head_VD.div_(len(x_ND)))
        return losses_N.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x_ND, grad_head_VD = ctx.saved_tensors
        return grad_x_ND * grad, grad_head_VD * grad, None, None


def linear_cross_entropy(x_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the logits x @ head^T, a scalar."""
    return _LinearCrossEntropy.apply(x_ND, head_VD, targets_N, torch.is_grad_enabled())
