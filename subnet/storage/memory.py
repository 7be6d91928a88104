"""Object store, journal and snapshots in memory: for tests and the simulation, with the behaviour of the real ones.

Law: nothing here knows a file, a socket or a clock of its own. The store is also an `ObjectEndpoint`, so its
`memory://` URLs are checked exactly as the file store's are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from subnet.errors import InvariantViolation
from subnet.protocol.keys import ObjectKey, parse
from subnet.storage.base import GENESIS_HEAD, JournalRecord, Snapshot, check_prefix, next_head
from subnet.storage.grants import GrantedStore


class MemoryObjectStore(GrantedStore):
    """Objects in a dict. `now` gives Unix seconds, for the expiry of grants."""

    def __init__(self, now: Callable[[], float], secret: bytes = b"memory object store") -> None:
        super().__init__("memory://store", secret, now)
        self._objects: dict[ObjectKey, bytes] = {}

    async def put(self, key: ObjectKey, data: bytes) -> None:
        parse(key)
        self._objects[key] = bytes(data)

    async def get(self, key: ObjectKey, offset: int = 0, length: int | None = None) -> bytes:
        parse(key)
        data = self._objects[key]
        return data[offset:] if length is None else data[offset : offset + length]

    async def size_bytes(self, key: ObjectKey) -> int | None:
        parse(key)
        data = self._objects.get(key)
        return None if data is None else len(data)

    async def delete_prefix(self, prefix: str) -> int:
        check_prefix(prefix)
        doomed = [key for key in self._objects if key.startswith(prefix)]
        for key in doomed:
            del self._objects[key]
        return len(doomed)


class MemoryJournal:
    """Records in a list. Two journals over one list are two writers, as two processes on one database are."""

    def __init__(self, records: list[JournalRecord] | None = None) -> None:
        self._records = [] if records is None else records
        self._head = self._records[-1].head if self._records else GENESIS_HEAD
        self._count = len(self._records)

    async def append(self, bodies: Sequence[bytes]) -> list[JournalRecord]:
        if self._count != len(self._records):
            raise InvariantViolation(f"journal index {self._count} exists already: another writer is at work")
        new: list[JournalRecord] = []
        head = self._head
        for index, body in enumerate(bodies, self._count):
            head = next_head(head, index, body)
            new.append(JournalRecord(index, head, bytes(body)))
        self._records.extend(new)
        self._head, self._count = head, len(self._records)
        return new

    async def read(self, start: int, limit: int) -> list[JournalRecord]:
        start = max(start, 0)
        return self._records[start : start + max(limit, 0)]

    async def last(self) -> JournalRecord | None:
        return self._records[-1] if self._records else None

    async def close(self) -> None:
        pass


class MemorySnapshots:
    """In a dict. Two over one dict are what two processes see one after the other."""

    def __init__(self, kept: dict[int, Snapshot] | None = None) -> None:
        self._kept = {} if kept is None else kept

    async def newest(self, index: int) -> Snapshot | None:
        found = max((at for at in self._kept if at <= index), default=None)
        return None if found is None else self._kept[found]

    async def put(self, snapshot: Snapshot, keep: int) -> None:
        below = sorted(index for index in self._kept if index < snapshot.index)
        kept = {index: self._kept[index] for index in below[max(0, len(below) - keep + 1) :]}
        self._kept.clear()
        self._kept.update(kept | {snapshot.index: snapshot})
