"""The orchestrator's process in bad weather: it may end at every point where it meets the outside or between two steps.

Law: the service is the production one. A process that is dead does nothing more: each of its ways to the outside raises
ProcessCrashed from then on, so nothing is journaled, stored, drawn or told by it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from subnet.chain.base import Chain
from subnet.coordination.effects import Effect
from subnet.coordination.machine import Decision
from subnet.coordination.state import State
from subnet.orchestrator.restoring import Restored
from subnet.orchestrator.service import Service
from subnet.protocol.ids import Hotkey
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import Envelope
from subnet.simulation.outside import PacedRuntime, ProcessCrashed, WatchedJournal
from subnet.storage.base import JournalRecord, Snapshots
from subnet.storage.memory import MemoryObjectStore

SNAPSHOT_EVERY = 50
"""Records: some snapshot lies behind almost every death."""
POINTS = ("clock", "append", "appended", "decide", "effect", "said", "decided", "store", "grant", "random", "sleep")
"""Where a host meets the outside, or is between two steps: before and after the journal has a batch, before and after a
record is decided, before an effect, ..."""


class Host:
    """One life of the orchestrator's process. `ambush` is asked at every point whether it ends there."""

    def __init__(
        self, ambush: Callable[[str], bool], stop: Callable[[], None], store_weather: Callable[[], Awaitable[None]]
    ) -> None:
        self._ambush, self._stop, self.store_weather = ambush, stop, store_weather
        self.dead = False

    def step(self, point: str) -> None:
        if not self.dead and self._ambush(point):
            self._stop()
        if self.dead:
            raise ProcessCrashed


class HostRuntime(PacedRuntime):
    def __init__(self, seed: str, host: Host) -> None:
        super().__init__(seed)
        self._host = host

    def now(self) -> float:
        self._host.step("clock")
        return super().now()

    async def sleep(self, duration_s: float) -> None:
        await super().sleep(duration_s)
        self._host.step("sleep")

    def random_bytes(self, count: int) -> bytes:
        self._host.step("random")
        return super().random_bytes(count)


class HostJournal:
    """Nothing reaches the journal from a process that is dead, and whatever reached it stays."""

    def __init__(self, journal: WatchedJournal, host: Host) -> None:
        self._journal, self._host = journal, host
        self.read, self.last, self.close = journal.read, journal.last, journal.close

    async def append(self, bodies: Sequence[bytes]) -> list[JournalRecord]:
        self._host.step("append")
        records = await self._journal.append(bodies)
        self._host.step("appended")
        return records


class HostStore:
    """The orchestrator's own line to the object store."""

    def __init__(self, store: MemoryObjectStore, host: Host) -> None:
        self._store, self._host = store, host

    async def put(self, key: ObjectKey, data: bytes) -> None:
        await self._step()
        await self._store.put(key, data)

    async def get(self, key: ObjectKey, offset: int = 0, length: int | None = None) -> bytes:
        await self._step()
        return await self._store.get(key, offset, length)

    async def size_bytes(self, key: ObjectKey) -> int | None:
        await self._step()
        return await self._store.size_bytes(key)

    async def delete_prefix(self, prefix: str) -> int:
        await self._step()
        return await self._store.delete_prefix(prefix)

    def grant_put(self, key: ObjectKey, size_bytes: int, expires_at: float) -> str:
        self._host.step("grant")
        return self._store.grant_put(key, size_bytes, expires_at)

    def grant_get(self, key: ObjectKey, expires_at: float) -> str:
        self._host.step("grant")
        return self._store.grant_get(key, expires_at)

    async def _step(self) -> None:
        self._host.step("store")
        await self._host.store_weather()
        self._host.step("store")


class HostService(Service):
    """The production service; `after` looks at the state each time that a record was decided."""

    def __init__(
        self,
        journal: WatchedJournal,
        store: MemoryObjectStore,
        runtime: HostRuntime,
        hotkey: Hotkey,
        restored: Restored | None,
        chain: Chain,
        snapshots: Snapshots,
        host: Host,
        after: Callable[[State, Envelope, Decision | None], None],
    ) -> None:
        super().__init__(
            HostJournal(journal, host),
            HostStore(store, host),
            runtime,
            hotkey,
            restored,
            self._say,
            chain,
            snapshots,
            SNAPSHOT_EVERY,
        )
        self.host, self._after = host, after

    def _say(self, line: str) -> None:
        self.host.step("said")

    def _decide(self, envelope: Envelope) -> Decision | None:
        self.host.step("decide")
        decision = super()._decide(envelope)
        self._after(self.state, envelope, decision)
        self.host.step("decided")
        return decision

    def _perform(self, effect: Effect) -> None:
        self.host.step("effect")
        super()._perform(effect)
