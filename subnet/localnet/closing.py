"""Closing lines of a local run about goodput and about what it took of the machine.

Law: pure; every figure is one of the report's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from subnet.localnet.lost_work import Fate

SHOWN_MIN = 0.001
"""Causes that took less of the passes started are left to the report."""


def lines(report: Mapping[str, Any]) -> list[str]:
    """A line for each subject that there is something to say about."""
    return [*_goodput(report["goodput"], report["passes"]), *_resources(report)]


def _goodput(goodput: float | None, passes: Mapping[str, int]) -> Iterator[str]:
    if goodput is None:
        return
    started = passes["started"]
    causes = {name: count for name, count in passes.items() if name not in ("started", Fate.MERGED)}
    told = sorted((cause for cause in causes.items() if cause[1] >= SHOWN_MIN * started), key=lambda one: -one[1])
    why = ", ".join(f"{name} {count / started:.1%}" for name, count in told)
    yield (
        f"goodput   {goodput:.1%}: {passes[Fate.MERGED]:,} of {started:,} passes given out are in a merge"
        + (f"; {why}" if why else "")
    )


def _resources(report: Mapping[str, Any]) -> Iterator[str]:
    if report["leaks"] is None:
        return  # too short a run to tell: only the report has its figures
    for role, measures in report["resources"].items():
        yield f"{role:<9} " + ", ".join(f"{measure} {_course(one)}" for measure, one in measures.items())
    for part, one in report["disk"].items():
        why = one["grows_by_design"]
        unit = "" if part.startswith("epochs") else " MB"
        yield f"disk      {part} {_course(one)}{unit}" + (f" ({why})" if why else "")
    for leak in report["leaks"]:
        yield f"leak      {leak}"
    unknown = report["leaks_not_judged"]
    if not report["leaks"]:
        yield "leaks     none: nothing is known to grow beyond its bound"
    if unknown:
        yield f"leaks     not judged, too few or too different samples: {', '.join(unknown)}"


def _course(one: Mapping[str, Any]) -> str:
    slope = one["slope_per_h"]
    return f"{one['first']:g} → {one['last']:g} (median {one['median']:g}" + (
        ")" if slope is None else f", {slope:+g}/h ± {one['slope_error_per_h']:g})"
    )
