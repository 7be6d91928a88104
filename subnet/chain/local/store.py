"""The chain on disk: one SQLite file, one transaction for each block.

Law: what `seal` has written survives SIGKILL; a block is there whole or not at all, and so is the chain's beginning.
Blocks with their extrinsics are kept for ever, here and not in memory (half a kilobyte for an empty one), state only as
far back as `State` keeps it. `versions` gives back exactly what was sealed last.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from subnet.chain.local.ledger.state import Change, Forget
from subnet.errors import ConfigError

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (number INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS versions (key BLOB, block INTEGER, value BLOB, PRIMARY KEY (key, block)) WITHOUT ROWID;
"""


class Block(msgspec.Struct, frozen=True, array_like=True):
    number: int
    hash: str
    """0x-hex, as all hashes here."""
    parent: str
    state_root: str
    extrinsics_root: str
    logs: tuple[str, ...]
    """Digest items."""
    extrinsics: tuple[bytes, ...]


class Facts(NamedTuple):
    """What a chain is born with and never changes."""

    metadata_digest: bytes
    seed: bytes
    genesis: bytes
    """The genesis as JSON."""


class Store:
    """`path` None: in memory, for tests."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=1.0)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise ConfigError("--state", f"{path}: {error}", "is another chain running on it?") from None

    def close(self) -> None:
        self._db.close()

    def facts(self) -> Facts | None:
        """None before `begin`."""
        found = dict(self._db.execute("SELECT name, value FROM facts"))
        return Facts(**{name: found[name] for name in Facts._fields}) if found else None

    def begin(self, facts: Facts) -> None:
        with self._whole():
            self._db.executemany("INSERT INTO facts VALUES (?, ?)", facts._asdict().items())

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """All of the body's statements, or none when it raises or the process is killed. Raises ConfigError when the
        disk is full or gone."""
        try:
            self._db.execute("BEGIN")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise ConfigError("--state", f"{self._path}: {error}", "make room on the disk") from None
            raise

    def seal(self, block: Block, changes: Iterable[Change], forget: Iterable[Forget]) -> None:
        """A block and what it changed; when it raises nothing was written."""
        with self._whole():
            self._db.execute(
                "INSERT INTO blocks VALUES (?, ?, ?)", (block.number, block.hash, msgspec.msgpack.encode(block))
            )
            rows = ((change.key, block.number, change.value) for change in changes)
            self._db.executemany("INSERT OR REPLACE INTO versions VALUES (?, ?, ?)", rows)
            for key, before in forget:
                self._db.execute("DELETE FROM versions WHERE key = ? AND block < ?", (key, before))
                self._db.execute(
                    "DELETE FROM versions WHERE key = ?1 AND block = ?2 AND value IS NULL "
                    "AND NOT EXISTS (SELECT 1 FROM versions WHERE key = ?1 AND block > ?2)",
                    (key, before),
                )

    def versions(self) -> Iterator[tuple[int, bytes, bytes | None]]:
        """All (block, key, value) by block."""
        yield from self._db.execute("SELECT block, key, value FROM versions ORDER BY block")

    def newest(self) -> Block | None:
        return self._block("ORDER BY number DESC LIMIT 1")

    def block(self, number: int) -> Block | None:
        return self._block("WHERE number = ?", number)

    def block_by_hash(self, hash_: str) -> Block | None:
        return self._block("WHERE hash = ?", hash_)

    def _block(self, where: str, *args: int | str) -> Block | None:
        row = self._db.execute(f"SELECT body FROM blocks {where}", args).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=Block)
