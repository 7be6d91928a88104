"""All nondeterminism of the shell in one object: clocks, sleep, random bytes, blocking work.

Purpose: roles take a `Runtime` instead of importing `time` or `random`, so a test or the simulation can run them under
another clock. Invariant: nothing in bands 1 to 3 sees this file; there, time and randomness are plain arguments.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import signal
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")


class Runtime(Protocol):
    """What a role may ask of the world besides its adapters."""

    def now(self) -> float:
        """Seconds since the Unix epoch: for what others read. It jumps when somebody sets the machine's clock."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that nobody sets, for deadlines and waits; only differences mean something."""
        ...

    async def sleep(self, duration_s: float) -> None: ...

    def random_bytes(self, count: int) -> bytes: ...

    async def run_blocking(self, work: Callable[[], T]) -> T:
        """Run `work` off the event loop; blocking work of one role never overlaps with itself."""
        ...


class SystemRuntime:
    """The real world: the wall clock, the system's randomness, one worker thread."""

    def __init__(self) -> None:
        self._executor: Executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="blocking")

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

    async def run_blocking(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def cancel_on_signals() -> None:
    """From now on SIGTERM and Ctrl-C cancel the task that calls this: a program ends by its own clean-up."""
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)


class SlowedRuntime(SystemRuntime):
    """The real world on weaker hardware: blocking work takes `factor` times as long, and the CPU is free meanwhile."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor
        self._worker = asyncio.Lock()

    async def run_blocking(self, work: Callable[[], T]) -> T:
        async with self._worker:  # while it waits, the worker it stands for is busy
            began = self.monotonic()
            outcome = await super().run_blocking(work)
            await self.sleep((self._factor - 1) * (self.monotonic() - began))
            return outcome


class LoopRuntime:
    """Time from the running event loop and randomness from a seed: for tests and simulation under virtual time."""

    def __init__(self, seed: bytes, start: float = 1_700_000_000.0) -> None:
        self._seed, self._start, self._drawn = seed, start, 0

    def now(self) -> float:
        return self._start + asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)

    def random_bytes(self, count: int) -> bytes:
        self._drawn += 1
        return hashlib.shake_256(self._seed + self._drawn.to_bytes(8, "big")).digest(count)

    async def run_blocking(self, work: Callable[[], T]) -> T:
        return work()
