"""Virtual time for a crowd: one heap of things to come, and randomness by name.

Law: an event is (time, number, action, arguments); equal times happen in the order in which they were planned, so a
run is a function of its seed. Nothing here waits, and nothing knows what the actions mean. A stream of draws belongs to
one name: what one part of the simulation draws never moves another part's draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, TypeVar

import numpy as np

from subnet.protocol.draw import draw_bytes

T = TypeVar("T")
Action = Callable[..., None]
START = 1_700_000_000.0
"""Unix time at which every run begins, as `runtime.LoopRuntime` has it."""
BLOCK = 1024
"""Draws made at once."""


class Events:
    """The clock and what is planned."""

    __slots__ = ("_heap", "_number", "happened", "now")

    def __init__(self, now: float = START) -> None:
        self.now = now
        self.happened = 0
        self._heap: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._number = 0

    def at(self, when: float, action: Action, *arguments: Any) -> None:
        self._number += 1
        heappush(self._heap, (when, self._number, action, arguments))

    def after(self, delay_s: float, action: Action, *arguments: Any) -> None:
        self._number += 1
        heappush(self._heap, (self.now + delay_s, self._number, action, arguments))

    def run(self, until: float, at_most: int) -> bool:
        """Let happen what is due up to `until`, at most so many events; whether nothing more is due."""
        heap = self._heap
        for _ in range(at_most):
            if not heap or heap[0][0] > until:
                self.now = max(self.now, until)
                return True
            self.now, _, action, arguments = heappop(heap)
            self.happened += 1
            action(*arguments)
        return False


class Stream:
    """The draws of one name under one seed."""

    __slots__ = ("_normals", "_rng", "_uniforms")

    def __init__(self, seed: int, name: str) -> None:
        secret = draw_bytes(seed.to_bytes(8, "big"), "crowd", name)
        self._rng = np.random.default_rng(np.frombuffer(secret, dtype=np.uint32))
        self._normals: list[float] = []
        self._uniforms: list[float] = []

    def factor(self, sigma: float) -> float:
        """Log-normal around 1."""
        if not self._normals:
            self._normals = self._rng.standard_normal(BLOCK).tolist()
        return math.exp(sigma * self._normals.pop())

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._uniforms:
            self._uniforms = self._rng.random(BLOCK).tolist()
        return self._uniforms.pop()

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def choose(self, options: Sequence[T]) -> T:
        return options[int(self.unit() * len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """So many different ones, in the order of `options`."""
        picked = self._rng.permutation(len(options))[:count]
        return [options[int(i)] for i in sorted(picked)]

    def jitter(self) -> bytes:
        """What `transport.backoff` asks for."""
        return int(self.unit() * 65_536).to_bytes(2, "big")

    def secret(self) -> str:
        """64 hex digits."""
        return str(self._rng.bytes(32).hex())
