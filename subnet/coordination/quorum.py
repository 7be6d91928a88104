"""When a stage's training closes. Law: pure functions that return the decision and the sentence that explains it.

A stage closes when a share q of its live replicas did B_min micro-batches (ALGORITHMS 3). Three things keep it from
waiting for ever: q and B_min relax once the epoch is older than `relax_after_s`; a stage follows its neighbours once
one of them has closed the same epoch and three quarters of B_min are done, so the pipeline pauses once and not once
per stage; and no stage runs more than one epoch ahead of another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from subnet.protocol.run_spec import MergeSpec

FOLLOW_SHARE = 0.75


class Thresholds(NamedTuple):
    """What is asked for at one moment."""

    num_microbatches: int
    """Micro-batches a replica must have done to count."""
    replicas: int
    """Replicas that must count."""


def thresholds(merge: MergeSpec, live: int, age_s: float, neighbour_closed: bool) -> Thresholds:
    """B_min and the quorum after relaxation; never below one micro-batch and one replica."""
    relaxed = min(1.0, max(0.0, age_s / merge.relax_after_s - 1.0))
    share = (1.0 - relaxed) * (FOLLOW_SHARE if neighbour_closed else 1.0)
    return Thresholds(
        num_microbatches=max(1, math.ceil(merge.num_microbatches_min * share)),
        replicas=max(1, math.ceil(merge.quorum * live * (1.0 - relaxed))),
    )


def is_threshold(merge: MergeSpec, count: int) -> bool:
    """Whether the replica whose B_m has just become `count` is one more that counts, while nothing is relaxed."""
    return any(count == thresholds(merge, 1, 0.0, closed).num_microbatches for closed in (False, True))


def counts_from(merge: MergeSpec, age_s: float) -> int:
    """Micro-batches from which a replica counts in a merge that is called; relaxes with B_min."""
    relaxed = min(1.0, max(0.0, age_s / merge.relax_after_s - 1.0))
    return max(1, math.ceil(merge.num_microbatches_min * (1.0 - relaxed) * merge.counted_share))


def may_close(
    merge: MergeSpec,
    counts: Sequence[int],
    expected: int,
    age_s: float,
    neighbour_closed: bool,
    slowest_epoch: int,
    epoch: int,
) -> tuple[bool, str]:
    """Whether training of `epoch` closes now.

    `counts` are B_m of the replicas that hold the epoch's parameters; `expected` is how many replicas the quorum is a
    share of: newcomers help to reach it, but do not raise it.
    """
    if epoch > slowest_epoch:
        return False, f"waiting for a stage that is still in epoch {slowest_epoch}"
    if not counts:
        return False, "waiting for a miner: the stage has no live replica"
    asked = thresholds(merge, expected, age_s, neighbour_closed)
    reached = sum(1 for count in counts if count >= asked.num_microbatches)
    figures = f"{reached} of {len(counts)} replicas did {asked.num_microbatches} micro-batches, {asked.replicas} needed"
    if reached < asked.replicas:
        return False, figures
    if age_s > merge.relax_after_s:
        return True, f"{figures} (relaxed with age)"
    return True, f"{figures} (a neighbour closed)" if neighbour_closed else figures
