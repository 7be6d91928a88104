"""The arithmetic of a merge (ALGORITHMS 3), the same bits on every machine and for every cut into shards.

    c_m = fp32(w_m * s_m)                         product in fp64, rounded once
    acc = +0;  acc = fp32(acc + fp32(c_m * Δ_m))  for m in manifest order
    g   = fp32(acc / fp32(Σ w_m))                 Σ in fp64, in manifest order, rounded once

    v'  = fp32(fp32(μ * v) + g)
    θ'  = fp32(θ - fp32(η * fp32(fp32(μ * v') + g)))          η, μ rounded to fp32 first

Each fp32(...) is one IEEE 754 rounding to nearest-even. Every operation is a numpy ufunc call of its own on arrays of
float32: numpy never fuses a multiply with the add that follows it, and an element-wise result depends on its own
element only. `np.sum` over miners is not used: it adds pairwise, so its order depends on shapes. Divergent bits can
only come from a process that flushes subnormals (a library built with -ffast-math); then the agreement shows it.

Law: pure; deterministic; a sub-range of the result is the result of the sub-range. A lost shard changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np

from subnet.protocol.run_spec import MergeSpec

_SCALE_MIN = 2.0**-126


def weights(counts: Sequence[int], minimum: int) -> tuple[float, ...]:
    """w_m = B_m where B_m >= B_min, else 0."""
    return tuple(float(count) if count >= minimum else 0.0 for count in counts)


def effective_batch(counts: Sequence[int], minimum: int) -> float:
    """B_eff = Σ w_m, in micro-batches. [12, 9, 10, 0] with a minimum of 10: 22."""
    return sum(weights(counts, minimum))


def clip_scale(norm: float, history: Sequence[float], factor: float) -> float:
    """What a pseudo-gradient of this norm is multiplied by: in (0, 1], an exact float32.

    `history` holds the norms of the stage's replicas in its last five epochs, clipped or not, in any order. With no
    history, or one of zeros, there is nothing to compare with and the scale is 1.
    """
    if not (math.isfinite(norm) and norm >= 0 and factor > 0):
        raise ValueError(f"norm {norm} and factor {factor} must be finite and not negative")
    limit = factor * median(history) if history else 0.0
    if limit <= 0 or norm <= limit:
        return 1.0
    return max(_SCALE_MIN, float(np.float32(limit / norm)))


def reduce_shard(parts: Iterable[np.ndarray], weights: Sequence[float], scales: Sequence[float]) -> np.ndarray:
    """g = Σ w_m s_m Δ_m / Σ w_m over float32 arrays of one length, in the order given. `parts` may be a generator."""
    total = 0.0
    for weight in weights:  # not sum(): from Python 3.12 on it compensates, so its last bit depends on the version
        total += weight
    if not (total > 0 and all(weight >= 0 for weight in weights) and len(weights) == len(scales)):
        raise ValueError("a reduction needs weights that are not negative, one of them positive, and a scale for each")
    acc: np.ndarray | None = None
    product: np.ndarray | None = None
    for part, weight, scale in zip(parts, weights, scales, strict=True):
        if part.dtype != np.float32:
            raise ValueError(f"parts are float32, not {part.dtype}")
        if acc is None or product is None:
            acc, product = np.zeros(part.shape, np.float32), np.empty(part.shape, np.float32)
        np.multiply(part, np.float32(weight * scale), out=product)
        np.add(acc, product, out=acc)
    assert acc is not None  # total > 0, so there was a part
    np.divide(acc, np.float32(total), out=acc)
    return acc


def outer_momentum(merge: MergeSpec, epoch: int) -> float:
    """μ of the merge that ends `epoch`: linear from the first value to the final one, then constant."""
    if epoch >= merge.momentum_warmup_epochs:
        return merge.outer_momentum
    share = epoch / merge.momentum_warmup_epochs
    return merge.outer_momentum_first + (merge.outer_momentum - merge.outer_momentum_first) * share


def outer_step(theta: np.ndarray, v: np.ndarray, g: np.ndarray, lr: float, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """(θ', v') of outer Nesterov on float32 arrays of one length; the arguments stay as they are."""
    if not (theta.dtype == v.dtype == g.dtype == np.float32 and theta.shape == v.shape == g.shape):
        raise ValueError("parameters, momentum and g are float32 of one length")
    lr_32, mu_32 = np.float32(lr), np.float32(mu)
    v_next = np.multiply(v, mu_32)
    np.add(v_next, g, out=v_next)
    step = np.multiply(v_next, mu_32)
    np.add(step, g, out=step)
    np.multiply(step, lr_32, out=step)
    return np.subtract(theta, step, out=step), v_next


def outer_step_shards(
    theta_P: np.ndarray,
    v_P: np.ndarray,
    shards: Iterable[tuple[int, int, np.ndarray | None]],
    lr: float,
    mu: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The outer step shard by shard, (start, length, g). A lost shard (g is None) leaves θ and v as they are there."""
    theta_next_P, v_next_P = theta_P.copy(), v_P.copy()
    for start, length, g in shards:
        if g is not None:
            part = slice(start, start + length)
            theta_next_P[part], v_next_P[part] = outer_step(theta_P[part], v_P[part], g, lr, mu)
    return theta_next_P, v_next_P
