"""What stands in for the outside when the whole subnet runs in one process: time, the door, the disk.

Law: nothing here decides; requests cross as the wire's JSON, so what would not survive a socket does not survive here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from subnet.errors import PeerFault, Unavailable
from subnet.miner.line import Ending
from subnet.miner.receipts import RECEIPTS_FILE, credited, load_receipts
from subnet.model.trainer import Trainer
from subnet.orchestrator.service import Service
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, ItemId
from subnet.protocol.reasons import Reason
from subnet.runtime import LoopRuntime
from subnet.storage.base import JournalRecord
from subnet.storage.memory import MemoryJournal

T = TypeVar("T")
_encode = msgspec.json.encode
_decode_request = msgspec.json.Decoder(m.Request).decode
_reply_decoder: msgspec.json.Decoder[m.Reply] = msgspec.json.Decoder(m.Reply)


class ProcessCrashed(Exception):
    """A process of the world ends here, in the middle of what it does."""


async def until_crash(process: Awaitable[T]) -> T | None:
    """What a process comes to; None when it crashed. Any other end is the program's own and passes through."""
    try:
        return await process
    except ProcessCrashed:
        return None
    except BaseExceptionGroup as failures:
        others = failures.split(ProcessCrashed)[1]
        if others is not None:
            raise
        return None


class PacedRuntime(LoopRuntime):
    """Blocking work takes loop time, and one participant's never overlaps with itself."""

    def __init__(self, seed: str, compute_s: float = 0.0) -> None:
        super().__init__(seed.encode())
        self.compute_s = compute_s
        self._worker = asyncio.Lock()

    async def run_blocking(self, work: Callable[[], T]) -> T:
        async with self._worker:
            await asyncio.sleep(self.compute_s)
            return work()


class Door:
    """Where miners knock, whichever orchestrator is behind it now: a `ControlHandler`."""

    def __init__(self) -> None:
        self.service: Service | None = None

    def _open(self) -> Service:
        if self.service is None:
            raise Unavailable("no orchestrator listens")
        return self.service

    async def handle(self, sender: Hotkey, request: m.Request) -> m.Reply:
        service = self._open()
        try:
            request = _decode_request(_encode(request))
        except msgspec.ValidationError as error:
            raise PeerFault(Reason.MALFORMED, str(error)) from None
        try:
            reply = _encode(await service.handle(sender, request))
        except ProcessCrashed:
            raise Unavailable("the orchestrator went away") from None
        if self.service is not service:
            raise Unavailable("the orchestrator went away")
        return _reply_decoder.decode(reply)

    async def refuse(self, refused: m.Refused) -> m.Reply:
        return await self._open().refuse(refused)

    async def journal(self, start: int, limit: int) -> bytes:
        return await self._open().journal(start, limit)

    def status(self) -> bytes:
        return self._open().status()


class WatchedJournal(MemoryJournal):
    """Tells when it has grown: the state is its fold, so nothing else changes it."""

    def __init__(self, records: list[JournalRecord], grown: asyncio.Event) -> None:
        super().__init__(records)
        self._grown = grown

    async def append(self, bodies: Sequence[bytes]) -> list[JournalRecord]:
        new = await super().append(bodies)
        self._grown.set()
        return new


class Participant:
    """One hotkey's machine: its folder outlives the miner's process, which `task` is."""

    def __init__(self, hotkey: Hotkey, folder: Path) -> None:
        self.hotkey, self.folder = hotkey, folder
        self.starts = 0
        self.task: asyncio.Task[Ending | None] | None = None
        """None is what a crash leaves."""
        self.trainer: Trainer | None = None
        """Of the process that runs now, or ran last."""

    @property
    def credited(self) -> dict[ItemId, float]:
        """Work units by item, as the miner's own receipts say."""
        return credited(load_receipts(self.folder / RECEIPTS_FILE))
