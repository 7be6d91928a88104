"""Journal and snapshots in a SQL database through SQLAlchemy Core: SQLite by default, PostgreSQL by the same code.

    journal(index primary key, head, body)
    snapshot(index primary key, head, rules, body)

Law: append-only, hash-chained by `base.next_head`, one writer. The primary key is the lock: a second writer's record
collides with the first's and stops whoever comes later. An append is one transaction, and a caller that is cancelled
cannot tear it. When a commit's fate is unknown, the next append finds out before it writes.

Durability. SQLite runs in WAL mode with synchronous=NORMAL: a commit survives the death of the process at any moment,
without a disk flush for each of some hundred appends a second. A power cut may lose the last commits, never the chain
before them: what is left is a valid, shorter journal, and the receipts miners hold and the anchored head show what is
missing; a snapshot is written after the records in it, so it cannot outlive them. PostgreSQL flushes each commit
(synchronous_commit, its default).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from sqlalchemy import Column, Integer, LargeBinary, MetaData, Select, String, Table, delete, event, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from subnet.errors import ConfigError, InvariantViolation, Unavailable
from subnet.protocol.ids import Digest
from subnet.storage.base import GENESIS_HEAD, JournalRecord, Snapshot, next_head

_TAIL = 100
"""Records whose chain is checked at opening; `base.verify_chain` checks all."""
_BUSY_TIMEOUT_MS = 5_000
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}

_TABLES = MetaData()
_JOURNAL = Table(
    "journal",
    _TABLES,
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("head", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
)
_SNAPSHOT = Table(
    "snapshot",
    _TABLES,
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("head", String(64), nullable=False),
    Column("rules", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
)
_INDEX = _JOURNAL.c.index
_INSERT = insert(_JOURNAL)


class OtherWriter(InvariantViolation):
    """Somebody else has appended to this journal: two orchestrators host one run."""


class SqlJournal:
    """Open it with `SqlJournal.open`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writing = asyncio.Lock()
        self.snapshots = SqlSnapshots(engine, self._writing)
        """Of this journal, in the same database."""
        self._count, self._head = 0, GENESIS_HEAD
        self._uncertain = False

    @classmethod
    async def open(cls, url: str) -> SqlJournal:
        """Open or create the journal at `url`: sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE.

        Raises ConfigError when there is none to be had, InvariantViolation when its last records do not chain.
        """
        journal = cls(_engine(url))
        try:
            async with journal._engine.begin() as connection:
                await connection.run_sync(_TABLES.create_all)
            await journal._check_tail()
        except (SQLAlchemyError, OSError, Unavailable) as error:
            await journal.close()
            raise _config_error(f"cannot open it ({_brief(error)})") from None
        except BaseException:
            await journal.close()
            raise
        return journal

    async def append(self, bodies: Sequence[bytes]) -> list[JournalRecord]:
        if not bodies:
            return []
        return await asyncio.shield(asyncio.ensure_future(self._append(bodies)))

    async def read(self, start: int, limit: int) -> list[JournalRecord]:
        query = select(_INDEX, _JOURNAL.c.head, _JOURNAL.c.body).where(_INDEX >= start).order_by(_INDEX)
        return await self._select(query.limit(max(limit, 0)))

    async def last(self) -> JournalRecord | None:
        records = await self._newest(1)
        return records[0] if records else None

    async def close(self) -> None:
        """Waits for what is being written."""
        async with self._writing:
            await self._engine.dispose()

    async def _append(self, bodies: Sequence[bytes]) -> list[JournalRecord]:
        async with self._writing:
            if self._uncertain:
                await self._find_out()
            head, new = self._head, []
            for index, body in enumerate(bodies, self._count):
                head = next_head(head, index, body)
                new.append(JournalRecord(index, head, bytes(body)))
            try:
                async with self._engine.begin() as connection:
                    await connection.execute(_INSERT, [record._asdict() for record in new])
            except IntegrityError:
                raise OtherWriter(f"journal index {self._count} exists already: another writer is at work") from None
            except (SQLAlchemyError, OSError) as error:
                self._uncertain = True
                raise Unavailable(f"the journal cannot be written ({_brief(error)})") from None
            self._count, self._head = self._count + len(new), head
            return new

    async def _find_out(self) -> None:
        """After a failed append: did it reach the journal all the same?"""
        last = await self.last()
        if (last.index + 1 if last else 0) != self._count:
            raise InvariantViolation("an append that failed is in the journal; start again, which replays it")
        self._uncertain = False

    async def _check_tail(self) -> None:
        tail = (await self._newest(_TAIL + 1))[::-1]
        if not tail:
            return
        before = tail.pop(0) if len(tail) > _TAIL else JournalRecord(-1, GENESIS_HEAD, b"")
        for record in tail:
            expected = next_head(before.head, before.index + 1, record.body)
            if record.index != before.index + 1 or record.head != expected:
                raise InvariantViolation(
                    f"the journal was changed: record {record.index} does not follow from the one before it"
                )
            before = record
        self._count, self._head = before.index + 1, before.head

    async def _newest(self, count: int) -> list[JournalRecord]:
        query = select(_INDEX, _JOURNAL.c.head, _JOURNAL.c.body).order_by(_INDEX.desc())
        return await self._select(query.limit(count))

    async def _select(self, query: Select[Any]) -> list[JournalRecord]:
        try:
            async with self._engine.connect() as connection:
                rows = (await connection.execute(query)).all()
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable(f"the journal cannot be read ({_brief(error)})") from None
        return [JournalRecord(index, Digest(head), bytes(body)) for index, head, body in rows]


class SqlSnapshots:
    """Beside the journal that `writing` belongs to: appends and snapshots take turns, SQLite has one writer."""

    def __init__(self, engine: AsyncEngine, writing: asyncio.Lock) -> None:
        self._engine, self._writing = engine, writing

    async def newest(self, index: int) -> Snapshot | None:
        query = select(_SNAPSHOT).where(_SNAPSHOT.c.index <= index).order_by(_SNAPSHOT.c.index.desc()).limit(1)
        try:
            async with self._engine.connect() as connection:
                row = (await connection.execute(query)).first()
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable(f"snapshots cannot be read ({_brief(error)})") from None
        if row is None:
            return None
        at, head, rules, body = row
        return Snapshot(at, Digest(head), Digest(rules), bytes(body))

    async def put(self, snapshot: Snapshot, keep: int) -> None:
        at = _SNAPSHOT.c.index
        try:
            async with self._writing, self._engine.begin() as connection:
                await connection.execute(delete(_SNAPSHOT).where(at >= snapshot.index))
                await connection.execute(insert(_SNAPSHOT), snapshot._asdict())
                kept = (await connection.execute(select(at).order_by(at.desc()).limit(max(keep, 1)))).scalars().all()
                await connection.execute(delete(_SNAPSHOT).where(at < min(kept)))
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable(f"the snapshot cannot be written ({_brief(error)})") from None


def _engine(url: str) -> AsyncEngine:
    try:
        parsed = make_url(url)
        parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
        engine = create_async_engine(parsed)
    except (ArgumentError, ImportError) as error:
        raise _config_error(f"cannot use it ({_brief(error)})") from None
    if parsed.get_backend_name() == "sqlite":
        _probe_sqlite(parsed.database or ":memory:")
        event.listen(engine.sync_engine, "connect", _tune_sqlite)
    return engine


def _probe_sqlite(path: str) -> None:
    """Fail here, in one sentence: a failure inside aiosqlite's thread may outlive the event loop and print itself."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.Error as error:
        raise _config_error(f"cannot open {path} ({error})") from None


def _tune_sqlite(connection: DBAPIConnection, record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _config_error(problem: str) -> ConfigError:
    remedy = "name a database that can be written: sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
    return ConfigError("--journal-url", problem, remedy)


def _brief(error: Exception) -> str:
    """The driver's own sentence: SQLAlchemy adds the statement and its parameters, which are no operator's matter."""
    cause = error.orig if isinstance(error, DatabaseError) and error.orig is not None else error
    return str(cause).splitlines()[0][:200] if str(cause) else type(cause).__name__
