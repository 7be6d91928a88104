"""What a verification found, row by row. Law: pure; the first thing that is wrong is said, never how much is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Check(NamedTuple):
    """One row of the answer."""

    name: str
    holds: bool | None
    """None: there was nothing to compare with."""
    sentence: str


def table(checks: Sequence[Check]) -> str:
    """For the terminal: one line per check."""
    words = {True: "OK", False: "FAIL", None: "-"}
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{check.name:<{width}}  {words[check.holds]:<4}  {check.sentence}" for check in checks)
