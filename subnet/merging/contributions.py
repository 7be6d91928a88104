"""Which contribution to a merge spoilt it: figures of every upload, and the rule that names offenders.

    n_i    L2 norm of upload i, as it lies in the store
    c_i    cosine of upload i with the sum of the others' unit vectors: directions are compared, so that no length can
           turn the others' mean around

    not readable, not finite      named: its bytes say so
    n_i is not what was claimed   named, where all of it was read: the clip went by the claim
    n_i x clip >> the others'     named, among three or more
    c_i clearly negative          named, among three or more, where the others agree far better with each other

Law: pure; asked only about merges after which the loss exploded. The last two rules compare, so they name fewer than
half or nobody: where no majority stands out there is none to believe. Honest replicas differ in work done (norms up to
the ratio of their steps) and in data (cosines around zero late in a run), and the limits leave room for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason

CLAIM_SHARE = 0.05
"""|true norm - claimed norm| / claimed norm that rounding cannot explain."""
NORM_FACTOR = 10.0
COSINE_MAX = -0.2
"""Above this no direction is held against anybody ..."""
COSINE_GAP = 0.3
"""... nor below it, unless the median is so much higher."""


class Figure(NamedTuple):
    """What one upload looks like beside the others."""

    norm: float
    cosine: float | None
    """None: nothing to compare, because it or all others are zero."""


class Contribution(NamedTuple):
    """One upload: what was found, and what its maker had said."""

    reason: Reason
    """OK, or what is wrong with its bytes; UNREADABLE is nobody's fault."""
    norm: float
    cosine: float | None
    claimed: float
    scale: float
    """Clip factor, by the claimed norm."""


class Gram:
    """Inner products of all uploads, summed piece by piece: N vectors never lie in memory at once."""

    def __init__(self, count: int) -> None:
        self._products_NN = np.zeros((count, count))

    def add(self, parts: Sequence[np.ndarray]) -> None:
        """The same range of every upload, float32."""
        x_NS = np.stack(parts).astype(np.float64)
        self._products_NN += x_NS @ x_NS.T

    def figures(self) -> list[Figure]:
        """Norm and leave-one-out cosine of each upload, over what was added."""
        norm_N = np.sqrt(np.diagonal(self._products_NN))
        live_N = norm_N > 0
        unit_N = np.where(live_N, norm_N, 1.0)
        cosine_NN = np.where(np.outer(live_N, live_N), self._products_NN / unit_N[:, None] / unit_N[None, :], 0.0)
        row_N, total = cosine_NN.sum(axis=1), cosine_NN.sum()
        figures = []
        for index, norm in enumerate(norm_N):
            own = cosine_NN[index, index]
            dot, others = row_N[index] - own, total - 2 * row_N[index] + own
            compared = bool(live_N[index]) and int(live_N.sum()) > 1
            cosine = float(np.clip(dot / np.sqrt(others), -1, 1)) if others > 1e-12 else 0.0
            figures.append(Figure(float(norm), cosine if compared else None))
        return figures


def offenders(found: Mapping[Hotkey, Contribution], whole: bool) -> dict[Hotkey, str]:
    """Who spoilt the merge, and by what. `whole`: every value was read, so that norms can be held against claims."""
    named: dict[Hotkey, str] = {}
    for hotkey, one in found.items():
        if one.reason not in (Reason.OK, Reason.UNREADABLE):
            named[hotkey] = f"its upload is bad ({one.reason.value})"
        elif whole and one.reason is Reason.OK and abs(one.norm - one.claimed) > CLAIM_SHARE * one.claimed:
            named[hotkey] = f"its upload has norm {one.norm:.4g}, {one.claimed:.4g} was claimed"
    left = {h: one for h, one in found.items() if h not in named and one.reason is Reason.OK}
    apart = _too_long(left) | _against_all(left)
    return named | (apart if 2 * len(apart) < len(left) else {})


def _too_long(found: Mapping[Hotkey, Contribution]) -> dict[Hotkey, str]:
    if len(found) < 3:
        return {}
    lengths = {hotkey: one.norm * one.scale for hotkey, one in found.items()}
    typical = median(lengths.values())
    return {
        hotkey: f"its upload has norm {length:.4g} after the clip, the median is {typical:.4g}"
        for hotkey, length in lengths.items()
        if length > NORM_FACTOR * typical
    }


def _against_all(found: Mapping[Hotkey, Contribution]) -> dict[Hotkey, str]:
    cosines = {hotkey: one.cosine for hotkey, one in found.items() if one.cosine is not None}
    if len(cosines) < 3:
        return {}
    typical = median(cosines.values())
    return {
        hotkey: f"its upload points against all others (cosine {cosine:.2f}, the median is {typical:.2f})"
        for hotkey, cosine in cosines.items()
        if cosine <= COSINE_MAX and typical - cosine >= COSINE_GAP
    }
