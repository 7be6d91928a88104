"""One suite for every journal: memory, SQLite in a file, PostgreSQL where there is one (`conftest`)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from subnet.errors import ConfigError, InvariantViolation, Unavailable
from subnet.storage.base import GENESIS_HEAD, Journal, JournalRecord, next_head, verify_chain
from subnet.storage.memory import MemoryJournal
from subnet.storage.sql import SqlJournal


class Shelf(NamedTuple):
    """A place for one journal: opened again and again, as by one process after another."""

    open: Callable[[], Awaitable[Journal]]
    change: Callable[[str], Awaitable[None]]
    """Runs SQL behind the journal's back; '' for memory, whose records are in `memory`."""
    memory: list[JournalRecord]


@pytest.fixture
async def shelf(journal_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shelf]:
    opened: list[Journal] = []
    records: list[JournalRecord] = []

    async def open_memory() -> Journal:
        return MemoryJournal(records)

    async def nothing(statement: str) -> None:
        return None

    if journal_kind == "memory":
        yield Shelf(open_memory, nothing, records)
        return
    url = f"sqlite:///{tmp_path}/journal.db" if journal_kind == "sqlite" else request.getfixturevalue("postgres_url")
    driver = {"sqlite": "sqlite+aiosqlite", "postgres": "postgresql+asyncpg"}[journal_kind]
    engine = create_async_engine(make_url(url).set(drivername=driver))

    async def open_sql() -> Journal:
        opened.append(await SqlJournal.open(url))
        return opened[-1]

    async def change(statement: str) -> None:
        async with engine.begin() as connection:
            await connection.execute(text(statement))

    yield Shelf(open_sql, change, records)
    for journal in opened:
        await journal.close()
    if journal_kind == "postgres":
        await change("DROP TABLE IF EXISTS journal, snapshot")
    await engine.dispose()


async def rewrite(shelf: Shelf, index: int, statement: str, new: JournalRecord | None) -> None:
    """Somebody with access to the disk changes or removes one record."""
    if shelf.memory:
        shelf.memory[index : index + 1] = [] if new is None else [new]
    else:
        await shelf.change(statement)


# ---- what every journal does -----------------------------------------------------------------------------------------


async def test_a_journal_begins_empty(shelf: Shelf) -> None:
    """1. The first minute of a run: nothing is there, nothing is wrong."""
    journal = await shelf.open()
    assert await journal.last() is None
    assert await journal.read(0, 10) == []
    assert await journal.append([]) == []
    assert await verify_chain(journal) is None


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(batches=st.lists(st.lists(st.binary(max_size=40), max_size=5), max_size=5), data=st.data())
async def test_what_was_appended_is_read_and_chains(shelf: Shelf, batches: list[list[bytes]], data: Any) -> None:
    """2. Any bytes in any batches: indices without gaps, heads as published, pages that fit together."""
    journal = await shelf.open()
    before = await journal.last()
    head, first = (before.head, before.index + 1) if before else (GENESIS_HEAD, 0)
    expected = []
    for body in [body for batch in batches for body in batch]:
        head = next_head(head, first + len(expected), body)
        expected.append(JournalRecord(first + len(expected), head, body))
    appended = [record for batch in batches for record in await journal.append(batch)]
    assert appended == expected
    assert await journal.last() == (expected[-1] if expected else before)
    start, limit = data.draw(st.integers(0, 30)), data.draw(st.integers(0, 30))
    assert await journal.read(first + start, limit) == expected[start : start + limit]
    assert await verify_chain(journal) is None
    await journal.close()


async def test_the_next_process_goes_on(shelf: Shelf) -> None:
    """3. Stop, start, append: the chain continues where it ended."""
    journal = await shelf.open()
    await journal.append([b"opened", b"\x00\xff"])
    await journal.close()
    again = await shelf.open()
    (record,) = await again.append([b"resumed"])
    assert record.index == 2
    assert [r.body for r in await again.read(0, 10)] == [b"opened", b"\x00\xff", b"resumed"]
    assert await verify_chain(again) is None


async def test_a_second_writer_is_stopped(shelf: Shelf) -> None:
    """4. Two orchestrators on one run directory: whoever comes second crashes, the journal stays whole."""
    first, second = await shelf.open(), await shelf.open()
    await first.append([b"a", b"b"])
    with pytest.raises(InvariantViolation, match="another writer"):
        await second.append([b"x"])
    await first.append([b"c"])
    assert [r.body for r in await first.read(0, 10)] == [b"a", b"b", b"c"]
    assert await verify_chain(first) is None


async def test_appends_at_once_keep_their_batches_together(shelf: Shelf) -> None:
    """5. Twenty requests arrive in the same moment; each batch is one stretch of the journal."""
    journal = await shelf.open()
    batches = [[b"%d-%d" % (n, k) for k in range(3)] for n in range(20)]
    done = await asyncio.gather(*(journal.append(batch) for batch in batches))
    for batch, records in zip(batches, done, strict=True):
        assert [r.body for r in records] == batch
        assert records[2].index == records[0].index + 2
    assert await verify_chain(journal) is None


async def test_a_cancelled_append_tears_nothing(shelf: Shelf) -> None:
    """6. Ctrl-C in the middle of an append: it is in the journal whole or not at all, and appending goes on."""
    journal = await shelf.open()
    for ticks in range(8):
        task = asyncio.ensure_future(journal.append([b"p", b"q"]))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await journal.append([b"last"])
    bodies = [r.body for r in await journal.read(0, 100)]
    assert bodies[-1] == b"last"
    assert bodies[:-1] == [b"p", b"q"] * (len(bodies) // 2)
    assert await verify_chain(journal) is None


# ---- tampering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 3, 1_500])
async def test_a_changed_record_is_found(shelf: Shelf, index: int) -> None:
    """7. Somebody edits one record on disk: `verify_chain` names the first index that no longer follows."""
    journal = await shelf.open()
    await journal.append([b"record %d" % n for n in range(1_501)])
    assert await verify_chain(journal) is None
    old = (await journal.read(index, 1))[0]
    statement = f"""UPDATE journal SET body = (SELECT body FROM journal WHERE "index" = 2) WHERE "index" = {index}"""
    await rewrite(shelf, index, statement, old._replace(body=b"forged"))
    assert await verify_chain(journal) == index


async def test_a_removed_record_is_found(shelf: Shelf) -> None:
    """8. A record that was inconvenient is deleted."""
    journal = await shelf.open()
    await journal.append([b"a", b"b", b"c"])
    await rewrite(shelf, 1, 'DELETE FROM journal WHERE "index" = 1', None)
    assert await verify_chain(journal) == 1


async def test_a_renumbered_record_is_found(shelf: Shelf) -> None:
    """9. The newest record is moved to a later index, its head left as it was."""
    journal = await shelf.open()
    *_, last = await journal.append([b"a", b"b", b"c"])
    await rewrite(shelf, 2, 'UPDATE journal SET "index" = 7 WHERE "index" = 2', last._replace(index=7))
    assert await verify_chain(journal) == 2


async def test_cancelled_in_the_commit(request: pytest.FixtureRequest, tmp_path: Path, sql_kind: str) -> None:
    """10. Ctrl-C in the one moment when the database commits: the record stands, and the next one follows it."""
    url = f"sqlite:///{tmp_path}/j.db" if sql_kind == "sqlite" else request.getfixturevalue("postgres_url")
    journal = await SqlJournal.open(url)
    task = asyncio.ensure_future(journal.append([b"a"]))
    event.listen(journal._engine.sync_engine, "commit", lambda connection: task.cancel())
    with pytest.raises(asyncio.CancelledError):
        await task
    (record,) = await journal.append([b"b"])
    assert record.index == 1
    assert await verify_chain(journal) is None
    await journal.close()
    if sql_kind == "postgres":
        await (await _bare(url)).close()


@pytest.mark.parametrize("changed", [0, 120, 150, 299])
async def test_opening_checks_the_tail(
    request: pytest.FixtureRequest, tmp_path: Path, sql_kind: str, changed: int
) -> None:
    """11. A journal whose newest records were edited is not continued; older ones are `verify_chain`'s matter."""
    url = f"sqlite:///{tmp_path}/j.db" if sql_kind == "sqlite" else request.getfixturevalue("postgres_url")
    journal = await SqlJournal.open(url)
    await journal.append([b"%d" % n for n in range(300)])
    engine = journal._engine
    async with engine.begin() as connection:
        await connection.execute(
            text(f"""UPDATE journal SET head = '{"0" * 64}' WHERE "index" = {changed}"""),
        )
    await journal.close()
    try:
        if changed >= 200:
            with pytest.raises(InvariantViolation, match="was changed"):
                await SqlJournal.open(url)
        else:
            again = await SqlJournal.open(url)
            assert await verify_chain(again) == changed
            await again.close()
    finally:
        if sql_kind == "postgres":
            await (await _bare(url)).close()


async def _bare(url: str) -> SqlJournal:
    """An empty journal at a database that was used."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE journal"))
    await engine.dispose()
    return await SqlJournal.open(url)


# ---- the outside fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["sqlite:////proc/none/journal.db", "nonsense", "oracle://host/x", "postgresql://nobody@127.0.0.1:1/none", ""],
)
async def test_no_database_is_one_sentence(url: str) -> None:
    """12. A mistyped URL, a missing driver, an unwritable folder, no server: field and remedy, no traceback."""
    with pytest.raises(ConfigError) as error:
        await SqlJournal.open(url)
    assert error.value.field == "--journal-url"
    assert "\n" not in str(error.value)


async def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    """13. The path of a text file."""
    (tmp_path / "notes.txt").write_text("this is not a database" * 100)
    with pytest.raises(ConfigError, match="not a database.*name a database"):
        await SqlJournal.open(f"sqlite:///{tmp_path}/notes.txt")


@pytest.mark.parametrize("committed", [False, True])
async def test_an_append_that_failed_is_looked_into(tmp_path: Path, committed: bool) -> None:
    """14. The database went away in a commit. Back again, the next append first finds out what became of it: not
    there, so go on; there after all, so stop, because a replay must come first."""
    journal = await SqlJournal.open(f"sqlite:///{tmp_path}/j.db")
    (first,) = await journal.append([b"a"])
    behind = sqlite3.connect(tmp_path / "j.db")
    behind.execute("ALTER TABLE journal RENAME TO away")
    with pytest.raises(Unavailable):
        await journal.append([b"b"])
    with pytest.raises(Unavailable):
        await journal.read(0, 1)
    behind.execute("ALTER TABLE away RENAME TO journal")
    if committed:
        behind.execute("INSERT INTO journal VALUES (1, ?, ?)", (next_head(first.head, 1, b"b"), b"b"))
        behind.commit()
        with pytest.raises(InvariantViolation, match="replay"):
            await journal.append([b"c"])
    else:
        await journal.append([b"c"])
        assert [r.body for r in await journal.read(0, 9)] == [b"a", b"c"]
        assert await verify_chain(journal) is None
    behind.close()
    await journal.close()
