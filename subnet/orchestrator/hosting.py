"""An orchestrator beside the work of the process that hosts it: started, watched, started again, and ended after it.

Law: what the operator must mend (exit code 2) ends both with the orchestrator's own line; any other death is followed
by another start, after a pause that grows up to a minute. The work is told where the orchestrator is once it listens,
and ends before it, so its last word is heard. How a process is started and stopped is passed in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import msgspec
from loguru import logger
from msgspec import Struct

from subnet.errors import SubnetError
from subnet.runtime import Runtime
from subnet.transport.backoff import backoff_s

LOOK_EVERY_S = 0.25
PAUSE_MAX_S = 60.0
SETTLED_S = 60.0
"""An orchestrator that ran for so long is started again at once, however often it died before."""
OPERATOR_MUST_ACT = 2
LEAN = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_ARENA_MAX": "2"}
"""Environment of its process, on glibc: a tensor on its way is given back to the system at once and leaves no hole."""


class Ended(SubnetError):
    """The orchestrator cannot run as it was asked to; this is its own line."""


class Child(Protocol):
    """A process as `localnet.processes` starts it."""

    @property
    def pid(self) -> int: ...

    @property
    def exit_code(self) -> int | None: ...

    def last_line(self) -> str: ...


class Address(Struct, frozen=True):
    """What an orchestrator that listens has written into its run folder."""

    url: str
    """For this machine."""
    public: tuple[str, ...]
    """As others know it."""
    pid: int


Work = Callable[[Address], Coroutine[Any, Any, None]]
C = TypeVar("C", bound=Child)


class Hosting(Generic[C]):
    """`file` is where the orchestrator says that it listens."""

    def __init__(
        self,
        start: Callable[[], Awaitable[C]],
        stop: Callable[[C], Awaitable[None]],
        file: Path,
        runtime: Runtime,
    ) -> None:
        self._start, self._stop, self._file, self._runtime = start, stop, file, runtime
        self._child: C | None = None
        self._deaths = 0
        self._started_at = 0.0

    async def beside(self, work: Work) -> None:
        """Until cancelled: a work that is done leaves the orchestrator up. Raises Ended, and what the work raises."""
        tasks: list[asyncio.Task[Any]] = []
        try:
            address = await self._listening()
            tasks = [asyncio.create_task(work(address), name="work"), asyncio.create_task(self._keep(), name="keep")]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            logger.info("done; the orchestrator goes on until it is stopped (Ctrl-C)")
            await tasks[1]
        finally:
            try:
                for task in tasks:
                    task.cancel()
                    await asyncio.wait([task])
            finally:  # a second Ctrl-C ends the wait for the work's last word, and nothing else
                for task in tasks:
                    task.cancel()
                if self._child is not None:
                    await self._stop(self._child)

    async def _listening(self) -> Address:
        """Start one, and start again while it dies; its address once it listens."""
        while True:
            self._started_at = self._runtime.now()
            self._child = child = await self._start()
            logger.info("the orchestrator starts as process {}", child.pid)
            while child.exit_code is None:
                if (address := self._announced(child)) is not None:
                    logger.info("the orchestrator listens at {}", " and ".join(address.public))
                    return address
                await self._runtime.sleep(LOOK_EVERY_S)
            await self._died(child)

    async def _keep(self) -> NoReturn:
        """Start it again whenever it dies."""
        while True:
            assert self._child is not None
            while self._child.exit_code is None:
                await self._runtime.sleep(LOOK_EVERY_S)
            await self._died(self._child)
            await self._listening()

    async def _died(self, child: C) -> None:
        """Wait a while. Raises Ended when another start would not help."""
        said = child.last_line()
        if self._announced(child) is not None:
            self._file.unlink()
        if child.exit_code == OPERATOR_MUST_ACT:
            raise Ended(said)
        settled = self._runtime.now() - self._started_at >= SETTLED_S
        self._deaths = 1 if settled else self._deaths + 1
        pause_s = backoff_s(self._deaths, self._runtime.random_bytes(2), PAUSE_MAX_S)
        logger.error(
            "the orchestrator ended by itself with code {} ({}); again in {:.1f} s", child.exit_code, said, pause_s
        )
        await self._runtime.sleep(pause_s)

    def _announced(self, child: C) -> Address | None:
        """What this very process has written: the folder may hold what an earlier one left, or another one's."""
        try:
            address = msgspec.json.decode(self._file.read_bytes(), type=Address)
        except (OSError, msgspec.MsgspecError):
            return None
        return address if address.pid == child.pid else None
