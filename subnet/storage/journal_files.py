"""The journal as a file on this machine: JSON lines as `verify` saves them, or an orchestrator's own SQLite file.

    {"index": 0, "head": "<hex>", "body": {...}}        one record a line; the body is null where it was sealed

Law: reading changes nothing and believes nothing: both readers give pages as the public API does (a `JournalReader`),
for somebody else to verify. A body stands in its line byte for byte as it was hashed.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Raw

from subnet.errors import ConfigError, PeerFault
from subnet.protocol.public import PAGE_RECORDS_MAX, PublicPage, PublicRecord
from subnet.protocol.reasons import Reason
from subnet.storage.base import GENESIS_HEAD

_REMEDY = "name a journal that was saved, or an orchestrator's journal.sqlite"
_SQLITE = b"SQLite format 3\x00"
_SELECT = 'SELECT "index", head, body FROM journal'
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(PublicRecord).decode


class LinesJournal:
    """A file of JSON lines, read from its beginning on. Raises ConfigError when it does not begin as one."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("rb")
        self._next = self._count = 0
        self._head = str(GENESIS_HEAD)
        self._sealed_from: int | None = None
        for line in self._file:
            # a line that is no record is told of when it is read; the first one says whether this is a journal at all
            with suppress(PeerFault):
                record = _record(line, self._count)
                self._head = record.head
                if record.body is None and self._sealed_from is None:
                    self._sealed_from = self._count
            self._count += 1
        if self._head == GENESIS_HEAD:
            self._file.close()
            raise ConfigError("--journal", f"{path} holds no record", _REMEDY)
        self._file.seek(0)

    async def read(self, start: int, limit: int, timeout_s: float) -> PublicPage:
        """Raises PeerFault for a line that is no record."""
        if start < self._next:
            self._file.seek(0)
            self._next = 0
        end, records = min(start + min(limit, PAGE_RECORDS_MAX), self._count), []
        while self._next < end:
            line, number = self._file.readline(), self._next
            self._next += 1
            if number >= start:
                records.append(_record(line, number))
        sealed_from = self._count if self._sealed_from is None else self._sealed_from
        return PublicPage(records=tuple(records), sealed_from=sealed_from, head=self._head, index=self._count - 1)

    async def close(self) -> None:
        self._file.close()


class SqliteJournal:
    """The table that `sql.SqlJournal` writes, bodies and all, also while it is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._connection = _read_only(path)
        except sqlite3.Error as error:
            raise ConfigError("--journal", f"{path}: {error}", _REMEDY) from None
        if not self._select(f'{_SELECT} ORDER BY "index" LIMIT 1'):
            self._connection.close()
            raise ConfigError("--journal", f"{path} holds no record", _REMEDY)

    async def read(self, start: int, limit: int, timeout_s: float) -> PublicPage:
        (newest,) = self._select(f'{_SELECT} ORDER BY "index" DESC LIMIT 1')
        query = f'{_SELECT} WHERE "index" BETWEEN ? AND ? ORDER BY "index" LIMIT ?'
        records = self._select(query, start, newest.index, min(limit, PAGE_RECORDS_MAX))
        return PublicPage(records=tuple(records), sealed_from=newest.index + 1, head=newest.head, index=newest.index)

    async def close(self) -> None:
        self._connection.close()

    def _select(self, query: str, *values: int) -> list[PublicRecord]:
        try:
            rows = self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise ConfigError("--journal", f"{self._path}: {error}", _REMEDY) from None
        # whatever somebody wrote into a column becomes bytes: the wrong ones, then
        return [
            PublicRecord(index=index, head=str(head), raw=Raw(body if isinstance(body, bytes) else str(body).encode()))
            for index, head, body in rows
        ]


def open_journal(name: str) -> LinesJournal | SqliteJournal:
    """The journal in a file, by its path or as sqlite:///PATH. Raises ConfigError."""
    path = Path(name.removeprefix("sqlite:///")).expanduser()
    try:
        with path.open("rb") as file:
            is_sqlite = file.read(len(_SQLITE)) == _SQLITE
        return SqliteJournal(path) if is_sqlite else LinesJournal(path)
    except OSError as error:
        raise ConfigError("--journal", f"{path}: {error.strerror}", _REMEDY) from None


def as_line(record: PublicRecord) -> bytes:
    """As it stands in a saved journal."""
    return _encode(record) + b"\n"


def _record(line: bytes, number: int) -> PublicRecord:
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise PeerFault(Reason.MALFORMED, f"journal record {number}: line {number + 1} is no record: {error}") from None


def _read_only(path: Path) -> sqlite3.Connection:
    # an orchestrator that runs has a -wal file beside it; without one nobody writes, and SQLite need not make its own
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)
