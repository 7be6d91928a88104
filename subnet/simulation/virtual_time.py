"""An event loop whose clock jumps to the next timer: hours pass in seconds, and equal programs take equal steps.

Law: nothing outside is listened to: no sockets, no threads, no signals, so nothing but the program decides what happens
next. A program that waits for what can never come is stopped at once with InvariantViolation instead of hanging.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from subnet.errors import InvariantViolation

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at second 0."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Nothing(self._skip))

    def time(self) -> float:
        return self._now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        # on a grid of microseconds: asyncio fires what is a nanosecond away, and here no time would pass until then
        tick = math.ceil(when * 1e6) / 1e6
        if tick <= self._now < when:
            tick = self._now + 1e-6
        return super().call_at(round(tick, 6), callback, *args, context=context)

    def _skip(self, duration_s: float) -> None:
        self._now = round(self._now + duration_s, 6)


class _Nothing(selectors.BaseSelector):
    """Hears nothing; to wait is to let the time pass."""

    def __init__(self, skip: Any) -> None:
        self._skip = skip
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._keys[fileobj] = key = selectors.SelectorKey(fileobj, -1, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[fileobj]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise InvariantViolation("everybody waits and no timer runs: nothing can happen any more")
        if timeout > 0:
            self._skip(timeout)
        return []


def run(program: Coroutine[Any, Any, T]) -> T:
    """The program's result; tasks that it leaves behind are cancelled."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(program)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left) if left else asyncio.sleep(0))
        asyncio.set_event_loop(None)
        loop.close()
