"""Where a newcomer goes. Law: pure; returns the stage and the sentence that explains the choice.

The stage with the least throughput for its size gets the newcomer, an empty one before all others (DESIGN 6).
A replica counts 1 until its speed is known; then by its speed relative to the median of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Load(NamedTuple):
    """How well one stage is provisioned."""

    stage: int
    replicas: int
    strength: float
    """Sum of relative speeds of its live replicas."""
    flops_per_token: int


def place(loads: Sequence[Load]) -> tuple[int, str]:
    """The stage with the least strength per FLOP, lowest index first among equals."""
    mean = sum(load.flops_per_token for load in loads) / len(loads)
    best = min(loads, key=lambda load: (load.replicas > 0, load.strength * mean / load.flops_per_token, load.stage))
    have = "no replica" if best.replicas == 0 else f"{best.replicas} replicas, the least for its size"
    return best.stage, f"stage {best.stage} has {have}"
