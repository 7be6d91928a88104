"""From many honest audits to worst figures, margins and tolerances: numbers only.

    margin       tolerance ÷ worst honest figure; for cosines both measured from 1
    recommended  worst honest figure x the safety factor, rounded up to one digit, no less than its floor; quantiser
                 steps: the next quarter above the worst, since a value that rounds the other way costs one whatever
                 the hardware

Law: pure; what was not compared (cosines of int8 values, say) has no figure and no margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from msgspec import Struct

from subnet.protocol.ids import Values
from subnet.protocol.messages import AuditFigures
from subnet.protocol.run_spec import Tolerances

FLOORS = {
    "quantiser_steps": 1.25,
    "cosine_min": 1e-4,
    "cosine_p01": 1e-5,
    "relative_l2": 1e-3,
    "loss": 1e-4,
    "state": 1e-3,
}
"""Least tolerances, cosines measured from 1: below them nothing is gained by being strict."""
FIGURES = tuple(FLOORS)
_COSINES = ("cosine_min", "cosine_p01")


class Audit(NamedTuple):
    """One honest segment, replayed in one way."""

    values: Values
    """Of the boundary."""
    miner: str
    """Name of the setting it was trained at ..."""
    auditor: str
    """... and of the one it was replayed at."""
    place: str
    """Of the stage: first, middle, last."""
    span: str
    """From what to what the segment goes."""
    figures: AuditFigures | None
    """None: the replay refused the segment."""
    accusation: str
    """The sentence that condemns; empty: it passed."""


class Row(Struct, frozen=True, kw_only=True):
    """Audits that have something in common."""

    group: tuple[str, ...]
    segments: int
    bit_equal: int
    """Audits in which every figure was perfect."""
    worst: dict[str, float]
    """By figure, from 0 as perfect."""
    margin: float | None
    """The least of all figures; None: nothing was off."""
    accused: int


def off(figures: AuditFigures, name: str) -> float:
    """A figure, measured so that 0 is perfect and more is worse."""
    value: float = getattr(figures, name)
    return 1.0 - value if name in _COSINES else value


def compared(values: Values) -> tuple[str, ...]:
    """Figures that are judged for boundaries of these values."""
    skipped = (*_COSINES, "relative_l2") if values is Values.INT8 else ("quantiser_steps",)
    return tuple(name for name in FIGURES if name not in skipped)


def worst(audits: Iterable[Audit]) -> dict[str, float]:
    """By figure, over all that were compared."""
    found: dict[str, float] = {}
    for audit in audits:
        for name in compared(audit.values) if audit.figures else ():
            assert audit.figures is not None
            found[name] = max(found.get(name, 0.0), off(audit.figures, name))
    return found


def rows(audits: Iterable[Audit], tolerances: Tolerances, *keys: str) -> list[Row]:
    """One row for every combination of these fields, in order of first appearance."""
    groups: dict[tuple[str, ...], list[Audit]] = {}
    for audit in audits:
        groups.setdefault(tuple(str(getattr(audit, key)) for key in keys), []).append(audit)
    return [_row(group, members, tolerances) for group, members in groups.items()]


def _row(group: tuple[str, ...], audits: Sequence[Audit], tolerances: Tolerances) -> Row:
    figures = worst(audits)
    margins = [_allowed(tolerances, name) / figure for name, figure in figures.items() if figure > 0.0]
    return Row(
        group=group,
        segments=len(audits),
        bit_equal=sum(a.figures is not None and not any(off(a.figures, name) for name in FIGURES) for a in audits),
        worst=figures,
        margin=min(margins, default=None),
        accused=sum(bool(audit.accusation) for audit in audits),
    )


def _allowed(tolerances: Tolerances, name: str) -> float:
    value: float = getattr(tolerances, name)
    return 1.0 - value if name in _COSINES else value


def recommended(audits: Sequence[Audit], safety: float) -> Tolerances:
    """What these audits would have passed with room to spare."""
    found = {}
    for name, figure in ({name: 0.0 for name in FIGURES} | worst(audits)).items():
        if name == "quantiser_steps":
            found[name] = max(FLOORS[name], math.ceil(4 * figure + 1e-9) / 4)
        else:
            bound = _rounded_up(max(FLOORS[name], figure * safety))
            found[name] = round(1.0 - bound, 12) if name in _COSINES else bound
    return Tolerances(**found)


def _rounded_up(x: float) -> float:
    """To one digit."""
    if not math.isfinite(x):
        return x
    exponent = math.floor(math.log10(x))
    return float(f"{math.ceil(round(x / 10.0**exponent, 9))}e{exponent}")


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def joined(found: Iterable[Row], same: Callable[[Row], tuple[object, ...]]) -> list[Row]:
    """Neighbouring rows of which the same is said as one; what differs in their groups is listed."""
    blocks = [list(members) for _, members in groupby(found, key=same)]
    return [
        Row(
            group=tuple(", ".join(dict.fromkeys(names)) for names in zip(*(row.group for row in block), strict=True)),
            segments=sum(row.segments for row in block),
            bit_equal=sum(row.bit_equal for row in block),
            worst={name: max(row.worst.get(name, 0.0) for row in block) for row in block for name in row.worst},
            margin=min((row.margin for row in block if row.margin is not None), default=None),
            accused=sum(row.accused for row in block),
        )
        for block in blocks
    ]
