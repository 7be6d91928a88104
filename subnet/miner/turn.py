"""The turn to compute: a lock whose next holder is the most urgent waiter.

Law: one holder at a time, so a miner never runs two torch computations at once; among waiters the lowest urgency
number goes first, then the one that came first. A waiter that is cancelled leaves no trace, even when the turn had
just been passed to it. Knows nothing of work, tensors or threads.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LOADING, MERGE, BACKWARD, FORWARD = range(4)
"""Urgencies, most urgent first: own parameters, merge work, backwards before forwards (DESIGN 5)."""


class Turn:
    """`async with turn.hold(urgency):` around every computation."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = 0

    @asynccontextmanager
    async def hold(self, urgency: int) -> AsyncIterator[None]:
        await self._take(urgency)
        try:
            yield
        finally:
            self._pass_on()

    async def _take(self, urgency: int) -> None:
        if not self._taken:
            self._taken = True
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heapq.heappush(self._waiting, (urgency, self._arrivals, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            granted = heapq.heappop(self._waiting)[2]
            if not granted.done():
                granted.set_result(None)
                return
        self._taken = False
