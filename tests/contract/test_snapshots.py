"""One suite for every place that snapshots are kept in: memory, SQLite in a file, PostgreSQL where there is one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import text

from subnet.errors import Unavailable
from subnet.protocol.ids import Digest
from subnet.storage.base import Journal, Snapshot, Snapshots
from subnet.storage.memory import MemoryJournal, MemorySnapshots
from subnet.storage.sql import SqlJournal


class Place(NamedTuple):
    """A journal and its snapshots, as one process sees them."""

    journal: Journal
    snapshots: Snapshots


Opening = Callable[[], Awaitable[Place]]


@pytest.fixture
async def place(journal_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opening]:
    """Opens it again and again, as by one process after another."""
    kept: dict[int, Snapshot] = {}
    opened: list[SqlJournal] = []

    async def open_one() -> Place:
        if journal_kind == "memory":
            return Place(MemoryJournal(), MemorySnapshots(kept))
        sqlite = f"sqlite:///{tmp_path}/journal.db"
        journal = await SqlJournal.open(sqlite if journal_kind == "sqlite" else request.getfixturevalue("postgres_url"))
        opened.append(journal)
        return Place(journal, journal.snapshots)

    yield open_one
    if journal_kind == "postgres":
        async with opened[0]._engine.begin() as connection:
            await connection.execute(text("DROP TABLE IF EXISTS journal, snapshot"))
    for journal in opened:
        await journal.close()


def at(index: int, body: bytes = b"state") -> Snapshot:
    return Snapshot(index, Digest(f"{index:064d}"), Digest("a" * 64), body)


async def test_there_are_none_at_first(place: Opening) -> None:
    """1. The first minutes of a run, and a journal that an older version began."""
    _, snapshots = await place()
    assert await snapshots.newest(10**9) is None


async def test_the_newest_at_or_below(place: Opening) -> None:
    """2. A process reads what the one before it has put, byte by byte; a journal that is shorter than the newest
    snapshot gets the one before."""
    _, snapshots = await place()
    body = bytes(range(256)) * 5_000
    for one in (at(10), at(20, body)):
        await snapshots.put(one, keep=2)
    _, again = await place()
    assert await again.newest(25) == await again.newest(20) == at(20, body)
    assert await again.newest(19) == await again.newest(10) == at(10)
    assert await again.newest(9) is None


async def test_only_a_few_are_kept(place: Opening) -> None:
    """3. Weeks pass: the database does not fill up with them."""
    _, snapshots = await place()
    for index in range(0, 50, 10):
        await snapshots.put(at(index), keep=2)
    assert await snapshots.newest(40) == at(40) and await snapshots.newest(39) == at(30)
    assert await snapshots.newest(29) is None
    await snapshots.put(at(50), keep=1)
    assert await snapshots.newest(49) is None and await snapshots.newest(50) == at(50)


async def test_one_more_at_the_same_record(place: Opening) -> None:
    """4. Stopped, started and stopped again with nothing between: the later one stands."""
    _, snapshots = await place()
    await snapshots.put(at(7, b"old"), keep=2)
    await snapshots.put(at(7, b"new"), keep=2)
    assert await snapshots.newest(7) == at(7, b"new")
    assert await snapshots.newest(6) is None


async def test_a_shorter_journal(place: Opening) -> None:
    """5. The operator went back to a copy of the journal: snapshots of records it lacks do not push out new ones."""
    _, snapshots = await place()
    for index in (500, 600, 30):
        await snapshots.put(at(index), keep=2)
    assert await snapshots.newest(10**9) == at(30)


async def test_beside_appends(place: Opening) -> None:
    """6. Snapshots of a megabyte are written while miners keep the journal busy: nobody gets in anybody's way."""
    journal, snapshots = await place()

    async def append() -> None:
        for number in range(30):
            await journal.append([b"%d" % number])

    async def put() -> None:
        for number in range(5):
            await snapshots.put(at(number, b"x" * 1_000_000), keep=2)

    await asyncio.gather(append(), put())
    assert len(await journal.read(0, 100)) == 30 and await snapshots.newest(99) == at(4, b"x" * 1_000_000)


async def test_the_database_is_away(tmp_path: Path) -> None:
    """7. It can neither be read nor written: Unavailable, and what was there is there afterwards."""
    journal = await SqlJournal.open(f"sqlite:///{tmp_path}/j.db")
    await journal.snapshots.put(at(1), keep=2)
    behind = sqlite3.connect(tmp_path / "j.db")
    behind.execute("ALTER TABLE snapshot RENAME TO away")
    with pytest.raises(Unavailable):
        await journal.snapshots.newest(1)
    with pytest.raises(Unavailable):
        await journal.snapshots.put(at(2), keep=2)
    behind.execute("ALTER TABLE away RENAME TO snapshot")
    assert await journal.snapshots.newest(9) == at(1)
    behind.close()
    await journal.close()
