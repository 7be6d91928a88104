"""Who plays what: how fast each miner of a local run is, and which of them cheat.

    --speeds 1,1,2,4                 in turn over all miners, the late joiner included
    --adversary NAME=2,OTHER=1       the last three miners: two of the first kind, then one of the other

Law: pure; the same settings give the same cast. Mistakes are a ConfigError before anything is started. No adversary is
known by name here: the names come from the adversaries themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from subnet.adversaries.names import Name
from subnet.config import LocalnetConfig
from subnet.errors import ConfigError

SPEED_RATIO_MAX = 1000.0


class Part(NamedTuple):
    """What one miner plays."""

    slow_factor: float = 1.0
    """How many times slower than the fastest it computes."""
    adversary: str = ""
    """Empty: it is honest."""

    @property
    def flags(self) -> list[str]:
        """Of its process, beside everybody's."""
        flags = ["--slow-factor", f"{self.slow_factor:g}"] if self.slow_factor > 1 else []
        return flags + (["--adversary", self.adversary] if self.adversary else [])

    def __str__(self) -> str:
        paces = [f"computes {self.slow_factor:g} times slower than the fastest"] if self.slow_factor > 1 else []
        return " and ".join(paces + ([f"cheats: {self.adversary}"] if self.adversary else [])) or "is honest"


def cast(settings: LocalnetConfig) -> list[Part]:
    """By miner number; one more than `miners` when somebody joins late. Raises ConfigError."""
    speeds, cheats = _speeds(settings.speeds), adversaries(settings.adversary)
    honest = settings.miners - len(cheats)
    if honest < 0:
        problem = f"{len(cheats)} adversaries among {settings.miners} miners"
        raise ConfigError("--adversary", problem, f"give at least {len(cheats)} --miners, or lower a COUNT")
    parts = [""] * honest + cheats + [""] * bool(settings.join_after_s)
    fastest = max(speeds)
    return [Part(fastest / speeds[number % len(speeds)], cheat) for number, cheat in enumerate(parts)]


def introductions(parts: Mapping[str, Part]) -> list[str]:
    """A line for every miner that is not like the others."""
    return [f"{name} {part}" for name, part in parts.items() if part != Part()]


def _speeds(text: str) -> list[float]:
    try:
        speeds = [float(part) for part in text.split(",")] if text else [1.0]
    except ValueError:
        speeds = [math.nan]
    if not all(speed > 0 and math.isfinite(speed) for speed in speeds):
        raise ConfigError("--speeds", f"{text!r} is no list of speeds", "write positive numbers such as 1,1,2,4")
    if max(speeds) > SPEED_RATIO_MAX * min(speeds):
        problem = f"{text!r} spans more than {SPEED_RATIO_MAX:g} to 1"
        raise ConfigError("--speeds", problem, "bring the speeds closer together")
    return speeds


def adversaries(text: str) -> list[str]:
    """One name for each cheating miner, in the order given."""
    cheats: list[str] = []
    for part in text.split(",") if text else []:
        name, equals, count = part.strip().partition("=")
        if name not in tuple(Name):
            raise ConfigError("--adversary", f"{name!r} is not known", f"choose one of {', '.join(Name)}")
        if not (equals and re.fullmatch(r"[1-9][0-9]{0,2}", count)):
            raise ConfigError("--adversary", f"{part.strip()!r} has no count", f"write {name}=1, or more than one")
        cheats += [name] * int(count)
    return cheats
