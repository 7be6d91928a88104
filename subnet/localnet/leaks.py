"""Does anything grow that should not? Slopes of what was measured, and the judgement (issue 5: the soak).

    y = a_process + slope * t         least squares over the second half of the run, one intercept for each process;
                                      over all of it where processes are killed too often for halves to mean anything

Law: pure. A process that was killed and started again is another process with its own intercept, so the sawtooth of
restarts is no slope and hides none; what a young process takes while it warms up is left out. Noise is no leak: samples
are averaged over blocks of BLOCK_S, and a slope counts for what is sure of it, two standard errors less.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

BLOCK_S = 30.0
WARM_UP_S = 90.0
"""Of a process: it loads libraries and parameters, and its allocator finds its size."""
JUDGED_FROM_S = 480.0
"""A shorter run is measured, but not judged."""
BLOCKS_MIN = 4
"""Degrees of freedom below which a slope is not known."""
SURE = 2.0


class Point(NamedTuple):
    """One measurement of one process, or of one part of the run's folder."""

    source: str
    """Tells a process from the one before it."""
    age_s: float
    at_s: float
    value: float


class Slope(NamedTuple):
    """Growth per hour, and its standard error."""

    per_h: float
    error_per_h: float

    @property
    def sure_per_h(self) -> float:
        """What is left of a growth when two standard errors are taken off."""
        return max(0.0, self.per_h - SURE * self.error_per_h)


class Course(NamedTuple):
    """What the report says of one measure; `slope` None: not known."""

    first: float
    median: float
    last: float
    slope: Slope | None


class Leak(NamedTuple):
    """A measure that grows by more than its bound."""

    role: str
    measure: str
    slope: Slope
    bound_per_h: float

    def __str__(self) -> str:
        return (
            f"{self.role}: {self.measure} grow by {self.slope.per_h:,.1f} an hour "
            f"(± {self.slope.error_per_h:,.1f}), allowed {self.bound_per_h:,.1f}"
        )


def course(points: Sequence[Point], warm_up_s: float = WARM_UP_S) -> Course | None:
    """First, median and last of the grown-up processes' points, and their slope over the later half; None without any.

    Where no process lived long enough, the young ones stand for them, without a slope.
    """
    if not points:
        return None
    grown = [point for point in points if point.age_s >= warm_up_s]
    ordered = sorted(grown or points, key=lambda point: point.at_s)
    values = [point.value for point in ordered]
    return Course(values[0], median(values), values[-1], slope(later_half(ordered), warm_up_s) if grown else None)


def later_half(points: Sequence[Point]) -> list[Point]:
    """Of the time that they span; all of them where no process lived for so long: each of those began anew."""
    begin, end = min(point.at_s for point in points), max(point.at_s for point in points)
    if max(point.age_s for point in points) < (end - begin) / 2:
        return list(points)
    return [point for point in points if point.at_s >= (begin + end) / 2]


def slope(points: Sequence[Point], warm_up_s: float = WARM_UP_S) -> Slope | None:
    """Pooled over all processes; None when there are too few blocks to know it."""
    blocks: defaultdict[tuple[str, int], list[Point]] = defaultdict(list)
    for point in points:
        if point.age_s >= warm_up_s:
            blocks[point.source, int(point.at_s // BLOCK_S)].append(point)
    means: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for (source, _), block in blocks.items():
        means[source].append((fmean(point.at_s for point in block), fmean(point.value for point in block)))
    free = sum(len(line) for line in means.values()) - len(means) - 1
    if free < BLOCKS_MIN:
        return None
    centred = [pair for line in means.values() for pair in _centred(line)]
    spread = math.fsum(t * t for t, _ in centred)
    if spread == 0.0:
        return None
    rate = math.fsum(t * y for t, y in centred) / spread
    rest = math.fsum((y - rate * t) ** 2 for t, y in centred)
    return Slope(rate * 3600.0, math.sqrt(rest / free / spread) * 3600.0)


def _centred(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    t_mean, y_mean = fmean(t for t, _ in line), fmean(y for _, y in line)
    return [(t - t_mean, y - y_mean) for t, y in line]


def is_known(found: Course, bound_per_h: float) -> bool:
    """Whether a growth by the bound would have been seen."""
    return found.slope is not None and SURE * found.slope.error_per_h <= bound_per_h


def leak(role: str, measure: str, found: Course | None, bound_per_h: float) -> Leak | None:
    """Whether a measure surely grows faster than it may."""
    if found is None or found.slope is None or found.slope.sure_per_h <= bound_per_h:
        return None
    return Leak(role, measure, found.slope, bound_per_h)
