"""Which records of the journal anyone may read, and the pages they come in.

Law: a record's body is public once no draw depends on it any more: everything before the record of the live secret,
and everything at all while the run is finished. From that record on there are heads only. What was public stays
public: a run that goes on after its end seals what comes from there on. Nothing is held in memory but four numbers
and a head.
"""

from __future__ import annotations

from msgspec import Struct

from subnet.coordination.state import State
from subnet.protocol.ids import Digest
from subnet.protocol.messages import Message, OwnRecord, SecretDrawn
from subnet.protocol.public import PAGE_BYTES_MAX, PAGE_RECORDS_MAX, PublicPage, PublicRecord, opened, sealed
from subnet.storage.base import GENESIS_HEAD, Journal, JournalRecord

_READ_RECORDS = 50
"""Read from the journal at once: records may be large, and a page is bounded in bytes."""


def live_secret(state: State) -> str:
    """The secret that the next draws depend on; empty before the first."""
    return state.secrets[max(state.secrets)] if state.secrets else ""


class Published(Struct, frozen=True):
    """Where a publication has come to."""

    secret: int = 0
    """The record of the live secret; 0 before the first."""
    open_to: int = 0
    """The first record after the latest end of the run."""
    index: int = -1
    """Of the newest record."""
    head: Digest = GENESIS_HEAD


class Publication:
    """Fed with every record in order, after the state has taken it; `at` is where an earlier process had come to."""

    def __init__(self, at: Published | None = None) -> None:
        at = at or Published()
        self._secret, self._open_to, self._index, self._head = at.secret, at.open_to, at.index, at.head

    @property
    def at(self) -> Published:
        return Published(self._secret, self._open_to, self._index, self._head)

    @property
    def sealed_from(self) -> int:
        """The first record whose body is not public."""
        return max(self._secret, self._open_to)

    def note(self, record: JournalRecord, message: Message | OwnRecord, live: str, finished: bool) -> None:
        """`live` is the state's secret after this record, `finished` whether the run is at its end then."""
        self._index, self._head = record.index, record.head
        if isinstance(message, SecretDrawn) and message.secret == live:
            self._secret = record.index
        if finished:
            self._open_to = record.index + 1

    async def page(self, journal: Journal, start: int, limit: int) -> PublicPage:
        """Up to `limit` records from index `start` on, fewer when they are large. Raises Unavailable."""
        # taken before the first wait: what is appended meanwhile, a new secret too, is not in this page
        index, head, sealed_from = self._index, self._head, self.sealed_from
        records: list[PublicRecord] = []
        size_bytes, end = 0, min(index + 1, start + min(limit, PAGE_RECORDS_MAX))
        while start < end:
            some = await journal.read(start, min(_READ_RECORDS, end - start))
            for record in some:
                size_bytes += len(record.body) if record.index < sealed_from else 0
                if size_bytes > PAGE_BYTES_MAX and records:
                    end = start
                    break
                records.append(_public(record, sealed_from))
                start += 1
            if not some:
                break
        return PublicPage(records=tuple(records), sealed_from=sealed_from, head=head, index=index)


def _public(record: JournalRecord, sealed_from: int) -> PublicRecord:
    if record.index < sealed_from:
        return opened(record.index, record.head, record.body)
    return sealed(record.index, record.head)
