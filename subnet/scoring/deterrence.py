"""What audits are worth: how often, how surely, and what a cheat stands to lose (ALGORITHMS 5 and 6).

Law: pure arithmetic for choosing and reporting rates; no verdict and no payment depends on it.
"""

from __future__ import annotations

import math


def detection(fraction: float, items: int) -> float:
    """Probability that `items` compared outputs hold a cheated one: 1 - (1 - f)^k. 59 items find f = 5 % at 95 %."""
    return float(1.0 - (1.0 - fraction) ** items)


def expected_audits(num_validators: int, num_miners: int, gamma_s: float, interval_s: float) -> float:
    """E[K], audits of one miner while a score lives, when each validator audits one miner per interval."""
    return gamma_s * num_validators / (num_miners * interval_s)


def unaudited(num_validators: int, num_miners: int, gamma_s: float, interval_s: float) -> float:
    """P(K = 0), the probability that a score lives and dies without one audit: (1 - V/M)^(gamma / T_s)."""
    return float((1.0 - num_validators / num_miners) ** (gamma_s / interval_s))


def expected_loss(audited: float, detected: float, num_unexpired: float, reward: float, fixed: float = 0.0) -> float:
    """What cheating in one epoch costs on average: q d (n R / 2 + F).

    It deters when it is at least what the cheat saves. Half of n R: a score of age a has already paid a / gamma of it.
    """
    return audited * detected * (num_unexpired * reward / 2 + fixed)


def cosine_after_zeroing(fraction: float) -> float:
    """Cosine of a tensor with itself after a fraction of its energy was zeroed: sqrt(1 - f).

    0.9 for 19 %: one cosine over the whole tensor lets a miner skip a fifth of its tokens, so ours are per token.
    """
    return math.sqrt(1.0 - fraction)
