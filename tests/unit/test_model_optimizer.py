"""The inner optimizer on flat vectors, and the learning rate that needs no state."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch

from subnet.model import flat
from subnet.model.optimizer import FlatAdamW, learning_rate
from subnet.protocol.run_spec import InnerSpec

INNER = InnerSpec(
    micro_batches_per_step=2,
    lr_peak=1.0,
    lr_final=0.1,
    warmup_steps=4,
    rewarm_steps=2,
    decay_steps=16,
    steps_per_epoch=10,
    reset_each_epoch=True,
    weight_decay=0.1,
)


def test_the_learning_rate_by_table() -> None:
    """1. Warm-up to the peak, cosine through its middle to the end, then flat; a re-warm-up halves its first."""
    table = {
        (0, 0): 0.25, (0, 3): 1.0, (0, 4): 1.0,
        (1, 2): 0.55,  # position 12: half of the cosine
        (1, 0): 0.5 * (0.1 + 0.9 * (1 + math.cos(math.pi * 6 / 16)) / 2),
        (1, 1): 0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 16)) / 2,
        (2, 2): 0.1, (2, 0): 0.05, (50, 9): 0.1,
    }
    for (epoch, step), rate in table.items():
        assert learning_rate(INNER, epoch, step) == pytest.approx(rate), (epoch, step)


def test_without_a_reset_there_is_no_second_warm_up() -> None:
    """2. The optimizer's state is carried over: an epoch's start is a step like any other."""
    carried = msgspec.structs.replace(INNER, reset_each_epoch=False)
    assert learning_rate(carried, 2, 0) == pytest.approx(0.1)


def test_an_epoch_longer_than_planned_goes_on_along_the_schedule() -> None:
    """3. A fast epoch does 14 steps instead of 10: the rate keeps falling, it does not jump back."""
    rates = [learning_rate(INNER, 0, step) for step in range(25)]
    assert all(now >= after for now, after in zip(rates[4:], rates[5:], strict=False))


def test_flat_adamw_equals_torchs() -> None:
    """4. Twenty steps beside torch.optim.AdamW: equal to float32 rounding, and no step touches its input."""
    random = torch.Generator().manual_seed(0)
    ours_P = torch.randn(1_000, generator=random)
    theirs_P = torch.nn.Parameter(ours_P.clone())
    reference = torch.optim.AdamW([theirs_P], betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    optimizer = FlatAdamW(1_000, INNER, "cpu")
    for number in range(20):
        gradient_P = torch.randn(1_000, generator=random) * 10.0 ** (number % 5 - 3)
        rate = 0.01 * (number + 1)
        before_P, next_P = ours_P.clone(), torch.full_like(ours_P, float("nan"))
        optimizer.step(ours_P, gradient_P, rate, next_P)
        assert torch.equal(ours_P, before_P)
        ours_P = next_P
        reference.param_groups[0]["lr"], theirs_P.grad = rate, gradient_P
        reference.step()
    assert torch.allclose(ours_P, theirs_P, rtol=1e-5, atol=1e-6)


def test_a_reset_optimizer_is_a_new_one() -> None:
    """5. At an epoch's start nothing of the old state is left, so there is nothing to forge or transfer."""
    start_P, gradient_P = torch.ones(8), torch.arange(8.0)
    used, fresh = FlatAdamW(8, INNER, "cpu"), FlatAdamW(8, INNER, "cpu")
    results = [torch.empty(8), torch.empty(8)]
    used.step(start_P, -gradient_P, 0.1, results[0])
    used.reset()
    for optimizer, out_P in zip((used, fresh), results, strict=True):
        optimizer.step(start_P, gradient_P, 0.1, out_P)
    assert torch.equal(*results) and used.steps == 1


def test_the_norm_sees_every_tensor_and_every_nan() -> None:
    """6. One NaN among many tensors, or a norm that overflows, is not finite."""
    parts = [torch.full((3,), 2.0), torch.full((2, 2), 1.0)]
    assert flat.norm(parts) == pytest.approx(4.0)
    assert not math.isfinite(flat.norm([*parts, torch.tensor([float("nan")])]))
    assert not math.isfinite(flat.norm([torch.full((4,), 3e38)]))
