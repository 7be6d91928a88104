"""A miner's machine in bad weather: its lines, its clock, its processor, its disk and its process can be disturbed.

Law: the weather is in what surrounds the miner, never in the miner. Whatever it does to the outside passes here, so a
frozen process does nothing, and one that crashed does nothing more. Which fault there is and when it strikes is
`faults`' matter.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import Any, Protocol, TypeVar

from subnet.miner.receipts import ReceiptBook
from subnet.miner.snapshots import MemorySnapshots
from subnet.protocol.ids import Digest, Epoch, Hotkey
from subnet.protocol.messages import Message, Reply
from subnet.simulation.modelled import ModelledTrainer
from subnet.simulation.outside import PacedRuntime, ProcessCrashed
from subnet.transport.base import ControlClient, ObjectClient

T = TypeVar("T")


class LineFault(Protocol):
    """What is wrong with a machine's lines; `go` is the line as it is without it."""

    async def call(self, go: Callable[[], Any]) -> Reply: ...

    async def get(self, go: Callable[[], Any]) -> bytes: ...

    async def put(self, data: bytes, go: Callable[[bytes], Any]) -> None: ...


class Machine:
    """One hotkey's machine: what is wrong with it now, and what its disk holds."""

    def __init__(self, name: str, compute_s: float, trainer: type[ModelledTrainer] = ModelledTrainer) -> None:
        self.name, self.hotkey, self.compute_s, self.trainer = name, Hotkey(name), compute_s, trainer
        self.lines: list[LineFault] = []
        self.running = asyncio.Event()
        """Unset: the process is frozen."""
        self.running.set()
        self.crashes = False
        """At the next thing it does to the outside."""
        self.slowness = 1.0
        self.clock_off_s, self.clock_rate, self.clock_from = 0.0, 1.0, 0.0
        self.disk_is_full, self.disk_refused = False, 0
        self.receipts = BytesIO()
        self.snapshots = _Snapshots(self)

    async def step(self) -> None:
        """Where the process meets the outside."""
        if not self.running.is_set():
            await self.running.wait()
        if self.crashes:
            self.crashes = False
            raise ProcessCrashed

    def check_disk(self) -> None:
        if self.disk_is_full:
            self.disk_refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{self.name}'s disk")

    def book(self, folder: Path) -> ReceiptBook:
        return ReceiptBook(folder / "receipts", _Disk(self))


class _Disk(RawIOBase):
    """The receipts' file on a machine's disk."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def write(self, data: Any) -> int:
        self._machine.check_disk()
        return self._machine.receipts.write(data)


class _Snapshots(MemorySnapshots):
    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def keep(self, epoch: Epoch, digest: str, parts: tuple[bytes, ...]) -> None:
        self._machine.check_disk()
        super().keep(epoch, digest, parts)


class MachineRuntime(PacedRuntime):
    """The clock and the processor of one machine, for one life of its process."""

    def __init__(self, seed: str, machine: Machine) -> None:
        super().__init__(seed, machine.compute_s)
        self._machine = machine

    def now(self) -> float:
        true, machine = super().now(), self._machine
        return true + machine.clock_off_s + (machine.clock_rate - 1.0) * (true - machine.clock_from)

    async def sleep(self, duration_s: float) -> None:
        await super().sleep(duration_s)
        await self._machine.step()

    async def run_blocking(self, work: Callable[[], T]) -> T:
        self.compute_s = self._machine.compute_s * self._machine.slowness
        await self._machine.step()
        done = await super().run_blocking(work)
        await self._machine.step()
        return done


class MachineControl:
    """A machine's line to the orchestrator."""

    def __init__(self, machine: Machine, line: ControlClient) -> None:
        self._machine, self._line = machine, line

    async def call(self, message: Message, spec_digest: Digest | None, timeout_s: float) -> Reply:
        async def plain() -> Reply:
            return await self._line.call(message, spec_digest, timeout_s)

        await self._machine.step()
        go: Callable[[], Any] = plain
        for fault in self._machine.lines:
            go = _behind(fault.call, go)
        reply: Reply = await go()
        await self._machine.step()
        return reply

    async def close(self) -> None:
        await self._line.close()


class MachineObjects:
    """A machine's line to the object store."""

    def __init__(self, machine: Machine, line: ObjectClient) -> None:
        self._machine, self._line = machine, line

    async def get(self, url: str, offset: int, size_bytes: int, timeout_s: float) -> bytes:
        async def plain() -> bytes:
            return await self._line.get(url, offset, size_bytes, timeout_s)

        await self._machine.step()
        go: Callable[[], Any] = plain
        for fault in self._machine.lines:
            go = _behind(fault.get, go)
        data: bytes = await go()
        await self._machine.step()
        return data

    async def put(self, url: str, data: bytes, timeout_s: float) -> None:
        async def plain(sent: bytes) -> None:
            await self._line.put(url, sent, timeout_s)

        await self._machine.step()
        go: Callable[[bytes], Any] = plain
        for fault in self._machine.lines:
            go = _before(fault, go)
        await go(data)
        await self._machine.step()

    async def close(self) -> None:
        await self._line.close()


def _behind(way: Callable[[Callable[[], Any]], Any], go: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: way(go)


def _before(fault: LineFault, go: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    return lambda data: fault.put(data, go)
