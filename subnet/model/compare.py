"""How far what a miner sent is from what a replay computed: numbers only, no judgement.

Law: both sides are compared as a reader sees them, decoded. int8 values are compared in steps of the quantiser; other
values per token, since one cosine over a whole tensor lets a miner skip 19 % of its tokens (ALGORITHMS 5). A difference
that is no number counts as HUGE: figures travel as JSON, which has no infinity. numpy only.

Letters: N tokens (B x T), K boundary width, P flat parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from subnet.model import wire
from subnet.protocol.ids import Values
from subnet.protocol.run_spec import RunSpec

TINY, HUGE = 1e-30, 1e30


class Deviation(NamedTuple):
    """Of one output."""

    quantiser_steps: float
    cosine_min: float
    cosine_p01: float
    relative_l2: float


NONE = Deviation(0.0, 1.0, 1.0, 0.0)


def outputs(spec: RunSpec, sent: bytes, ours: bytes) -> Deviation:
    """Deviation of an encoded boundary or gradient. Raises PeerFault when `sent` is not one."""
    if sent == ours:
        return NONE
    tokens, width = spec.micro_batch_tokens, spec.boundary.width
    sent_NK, ours_NK = (wire.decode(spec, data).reshape(tokens, width).astype(np.float64) for data in (sent, ours))
    if spec.boundary.values is Values.INT8:
        return Deviation(_steps(sent_NK, ours_NK, spec.boundary.scale_group_tokens), 1.0, 1.0, 0.0)
    cosines_N = _cosines(sent_NK, ours_NK)
    return Deviation(
        0.0, float(cosines_N.min()), float(np.quantile(cosines_N, 0.01)), relative_l2(sent_NK, ours_NK, ours_NK)
    )


def relative_l2(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> float:
    """||a - b|| / ||scale||; 0 when a equals b, HUGE when only the scale vanishes or a value is no number."""
    off = float(np.linalg.norm(a.astype(np.float64) - b))
    size = float(np.linalg.norm(scale.astype(np.float64)))
    if off == 0.0:
        return 0.0
    ratio = off / size if size > 0.0 else HUGE
    return ratio if ratio < HUGE else HUGE


def _steps(sent_NK: np.ndarray, ours_NK: np.ndarray, group: int) -> float:
    """Largest difference in steps of our quantiser, group by group."""
    worst = 0.0
    for start in range(0, len(ours_NK), group):
        ours, sent = ours_NK[start : start + group], sent_NK[start : start + group]
        off = float(np.abs(sent - ours).max(initial=0.0))
        worst = max(worst, off / max(float(np.abs(ours).max(initial=0.0)) / 127, TINY))
    return min(worst, HUGE)


def _cosines(a_NK: np.ndarray, b_NK: np.ndarray) -> np.ndarray:
    """Per token, each side by its own norm, so small gradients count like large ones; two tokens without any value
    agree, one without and one with do not."""
    norms = [np.linalg.norm(one_NK, axis=1, keepdims=True) for one_NK in (a_NK, b_NK)]
    dots_N = (a_NK / np.maximum(norms[0], TINY) * (b_NK / np.maximum(norms[1], TINY))).sum(axis=1)
    both_empty_N = (norms[0][:, 0] < TINY) & (norms[1][:, 0] < TINY)
    return np.where(both_empty_N, 1.0, dots_N)
