"""The merged model put to use one stage at a time: validation loss and continued text.

Stages are streamed: only one stage's parameters are in memory at once, so a model larger than the machine can be
judged. What passes between stages goes through the wire's rounding, as in training.

Law: pure functions of their arguments; no gradients. Letters: B batch, T tokens, K boundary width, P flat parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from subnet.model import flat, wire
from subnet.model.spec import shapes_of
from subnet.model.stage import PipelineStage
from subnet.protocol.ids import Stage
from subnet.protocol.run_spec import RunSpec


@torch.no_grad()
def validation_loss(
    spec: RunSpec,
    parameters: Iterable[np.ndarray],
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    device: str = "cpu",
) -> tuple[float, int]:
    """(mean loss in nats per token, tokens counted). `parameters` yields each stage's flat vector, first to last.

    Held between stages: one z_BTK per batch.
    """
    held = [(torch.from_numpy(tokens_BT), torch.from_numpy(targets_BT)) for tokens_BT, targets_BT in batches]
    sent: list[Tensor | None] = [None] * len(held)
    loss_sum, num_tokens = 0.0, 0
    for index, vector_P in enumerate(parameters):
        stage = _stage(spec, Stage(index), vector_P, device)
        for number, (tokens_BT, targets_BT) in enumerate(held):
            if index < spec.num_stages - 1:
                sent[number] = _sent(spec, stage(_on(sent[number], device), tokens_BT.to(device)))
                continue
            loss = stage.loss(_on(sent[number], device), tokens_BT.to(device), targets_BT.to(device))
            loss_sum += float(loss) * targets_BT.numel()
            num_tokens += targets_BT.numel()
    return loss_sum / num_tokens, num_tokens


@torch.no_grad()
def continue_tokens(
    spec: RunSpec,
    parameters: Iterable[np.ndarray],
    prompt: Sequence[int],
    num_tokens: int,
    *,
    temperature: float,
    seed: int,
    device: str = "cpu",
) -> list[int]:
    """The prompt and `num_tokens` drawn after it; temperature 0 takes the likeliest. Sees the last T tokens."""
    if not prompt:
        raise ValueError("a continuation needs at least one token to continue")
    stages = [_stage(spec, Stage(index), vector_P, device) for index, vector_P in enumerate(parameters)]
    random = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens_BT = torch.tensor([tokens[-spec.data.seq_len :]], device=device)
        z_BTK = None
        for stage in stages[:-1]:
            z_BTK = _on(_sent(spec, stage(z_BTK, tokens_BT)), device)
        logits_V = stages[-1](z_BTK, tokens_BT)[0, -1].float().cpu()
        if temperature == 0:
            tokens.append(int(logits_V.argmax()))
        else:
            share_V = torch.softmax(logits_V / temperature, dim=-1)
            tokens.append(int(torch.multinomial(share_V, 1, generator=random)))
    return tokens


def _stage(spec: RunSpec, index: Stage, vector_P: np.ndarray, device: str) -> PipelineStage:
    shapes = shapes_of(spec, index)
    stage = PipelineStage(spec, index, device)
    stage.bind(flat.leaves(flat.to_flat(vector_P, shapes, device), shapes))
    return stage


def _sent(spec: RunSpec, z_BTK: Tensor) -> Tensor:
    """What arrives at the next stage, in host memory."""
    return torch.from_numpy(wire.through(spec, z_BTK.cpu().numpy(), None))


def _on(z_BTK: Tensor | None, device: str) -> Tensor | None:
    return None if z_BTK is None else z_BTK.to(device)
