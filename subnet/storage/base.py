"""Seams of the data and record planes: the object store, the journal and the snapshots of what it leads to.

Law: objects live at slot-addressed keys (`protocol.keys`); miners never hold store credentials, they get URLs that
allow one method on one key, of one exact size, for a short time. The journal is append-only and hash-chained; whoever
holds its head can tell whether any earlier record was changed. A snapshot is a short cut and nothing more: whoever
lacks one folds the journal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from subnet.protocol.ids import Digest
from subnet.protocol.keys import ObjectKey, parse


class ObjectStore(Protocol):
    """Tensors as objects. Raises Unavailable when the store is away."""

    async def put(self, key: ObjectKey, data: bytes) -> None:
        """Write the object whole; readers see the old bytes or the new ones, never a part."""
        ...

    async def get(self, key: ObjectKey, offset: int = 0, length: int | None = None) -> bytes:
        """Read a range. Raises KeyError when there is no such object; a range past the end comes back short."""
        ...

    async def size_bytes(self, key: ObjectKey) -> int | None:
        """None when there is no such object."""
        ...

    async def delete_prefix(self, prefix: str) -> int:
        """Delete every object whose key begins with `prefix`, which ends with a slash; returns how many."""
        ...

    def grant_put(self, key: ObjectKey, size_bytes: int, expires_at: float) -> str:
        """A URL that allows writing exactly `size_bytes` to `key` until `expires_at` (Unix seconds)."""
        ...

    def grant_get(self, key: ObjectKey, expires_at: float) -> str:
        """A URL that allows reading `key`, or any range of it, until `expires_at`."""
        ...


_REST_OF_KEY = ("0/0/x/data", "0/x/data", "x/data", "data")


def check_prefix(prefix: str) -> int:
    """How many parts of a key `prefix` holds, 1 to 4. Raises ValueError for what no key begins with."""
    depth = prefix.count("/")
    if not prefix.endswith("/") or not 1 <= depth <= len(_REST_OF_KEY):
        raise ValueError(f"not a prefix of object keys: {prefix[:200]!r}")
    parse(prefix + _REST_OF_KEY[depth - 1])
    return depth


GENESIS_HEAD = Digest("0" * 64)
"""Head of the empty journal."""


def next_head(head: Digest, index: int, body: bytes) -> Digest:
    """head_i = SHA-256(head_{i-1} as hex, newline, i in decimal, newline, body_i)."""
    return Digest(hashlib.sha256(f"{head}\n{index}\n".encode() + body).hexdigest())


class JournalRecord(NamedTuple):
    index: int
    """From 0, without gaps."""
    head: Digest
    """Head of the chain after this record."""
    body: bytes


class Journal(Protocol):
    """The append-only record of everything that happened. Raises Unavailable when it cannot be reached."""

    async def append(self, bodies: Sequence[bytes]) -> list[JournalRecord]:
        """Append all or none; they are durable when this returns. One writer at a time, or InvariantViolation."""
        ...

    async def read(self, start: int, limit: int) -> list[JournalRecord]:
        """Up to `limit` records from index `start` on."""
        ...

    async def last(self) -> JournalRecord | None:
        """The newest record; None when empty."""
        ...

    async def close(self) -> None: ...


class Snapshot(NamedTuple):
    """What the journal up to and including one record leads to, by certain rules."""

    index: int
    """Of the last record that is in it."""
    head: Digest
    """After that record: it binds the run and everything before."""
    rules: Digest
    """Of the code that made it: other code may fold the same journal to something else."""
    body: bytes


class Snapshots(Protocol):
    """The newest few snapshots of one journal. Raises Unavailable when they cannot be reached."""

    async def newest(self, index: int) -> Snapshot | None:
        """The newest one at or below `index`."""
        ...

    async def put(self, snapshot: Snapshot, keep: int) -> None:
        """Add it as the newest one and keep `keep` in all: that or nothing. One at its index or above is dropped: it is
        of records that the journal does not hold any more."""
        ...


_VERIFY_PAGE = 1000


async def verify_chain(journal: Journal) -> int | None:
    """Index of the first record that is missing or does not chain; None when the whole journal holds.

    A tail cut off cannot be seen from inside: compare the last head with one kept elsewhere (receipts, the chain).
    """
    head, index = GENESIS_HEAD, 0
    while page := await journal.read(index, _VERIFY_PAGE):
        for record in page:
            head = next_head(head, index, record.body)
            if record.index != index or record.head != head:
                return index
            index += 1
    return None
