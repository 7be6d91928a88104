"""Blocks in memory: when the next one is due, and hashes that nobody can know before.

Law: time and randomness come in from outside; with a clock blocks follow it, without one they are made by hand. A hash
depends on the seed and the block's number alone, so nothing has to be kept of blocks that passed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from subnet.chain.base import Block


class Blocks:
    def __init__(self, random_bytes: Callable[[int], bytes], now: Callable[[], float] | None, block_s: float) -> None:
        if block_s <= 0:
            raise ValueError(f"block_s is {block_s}: blocks take time")
        self._seed, self._now, self._started = random_bytes(32), now, now() if now else 0.0
        self._block_s = block_s
        self.listeners: set[Callable[[], None]] = set()
        """Called after blocks were made by hand."""

    @property
    def has_clock(self) -> bool:
        return self._now is not None

    def due(self) -> int:
        """The newest block's number by the clock."""
        return 0 if self._now is None else max(0, int((self._now() - self._started) / self._block_s))

    def until_s(self, number: int) -> float:
        """Seconds until block `number` by the clock; 0 when its time has come."""
        if self._now is None:
            raise ValueError("these blocks have no clock: they are made by hand")
        return max(0.0, self._started + number * self._block_s - self._now())

    def block(self, number: int) -> Block:
        return Block(number, hashlib.sha256(self._seed + number.to_bytes(8, "big")).hexdigest())
