"""Objects as files below one folder, served by the orchestrator under signed URLs.

    <root>/<run>/<epoch>/<stage>/<item>.<kind>

Law: only a key that `protocol.keys` parsed becomes a path, and its alphabet holds neither `..` nor a leading dot, so
nothing outside the root can be named. An object is written beside its place and renamed into it: readers see the old
bytes or the new ones. Small objects are read and written on the event loop (a page-cache copy is quicker than a trip
to a thread), large ones off it. Nothing is cached. A killed process loses nothing; after a power cut an object may be
missing or empty, which its digest shows, and the run treats it as any lost object.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from subnet.errors import ConfigError, Unavailable
from subnet.protocol.keys import Kind, ObjectKey, parse
from subnet.storage.base import check_prefix
from subnet.storage.grants import GrantedStore

T = TypeVar("T")
ON_LOOP_BYTES_MAX = 1 << 18
"""Up to here a file is handled on the event loop: measured, that is quicker than a thread and blocks < 0.5 ms."""
_THREADS = 2
_PARTIAL = ".partial"


class FileObjectStore(GrantedStore):
    """`base_url` is where `ControlServer` serves this store, `secret` keys the grants, `now` gives Unix seconds.

    Raises ConfigError when `root` cannot be written.
    """

    def __init__(self, root: Path, base_url: str, secret: bytes, now: Callable[[], float]) -> None:
        super().__init__(base_url, secret, now)
        self._root = os.fspath(root)
        self._partial = os.path.join(self._root, _PARTIAL)
        self._written = 0
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="objects")
        _make_writable(self._root, self._partial)

    async def put(self, key: ObjectKey, data: bytes) -> None:
        path = self._path(key)
        self._written += 1
        partial = os.path.join(self._partial, f"{os.getpid()}-{self._written}")
        if len(data) <= ON_LOOP_BYTES_MAX:
            _write(path, partial, data)
        else:
            await self._off_loop(lambda: _write(path, partial, data))

    async def get(self, key: ObjectKey, offset: int = 0, length: int | None = None) -> bytes:
        path = self._path(key)
        file = _open(path, key)
        count = _count(file, offset, length)
        if count <= ON_LOOP_BYTES_MAX:
            return _read(file, offset, count)
        os.close(file)  # a thread opens it again: a call cancelled in the queue must not leak it
        return await self._off_loop(lambda: _read(_open(path, key), offset, count))

    async def size_bytes(self, key: ObjectKey) -> int | None:
        try:
            return os.stat(self._path(key)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    async def delete_prefix(self, prefix: str) -> int:
        depth = check_prefix(prefix)
        path = os.path.join(self._root, *prefix.split("/")[:depth])
        if depth == 4:  # one item: a file for each kind
            return sum([_remove(f"{path}.{kind.value}") for kind in Kind])
        return await self._off_loop(lambda: _remove_tree(path))

    def close(self) -> None:
        """End the threads; objects under way are finished."""
        self._executor.shutdown()

    def _path(self, key: ObjectKey) -> str:
        parse(key)
        folders_and_item, _, kind = key.rpartition("/")
        return f"{self._root}/{folders_and_item}.{kind}"

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _make_writable(root: str, partial: str) -> None:
    try:
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        probe = os.path.join(partial, "probe")
        with open(probe, "wb"):
            pass
        os.remove(probe)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError("--run-dir", f"{root} cannot be written ({reason})", "name a writable folder") from None


def _write(path: str, partial: str, data: bytes) -> None:
    try:
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            written = os.write(file, data)
            while written < len(data):
                written += os.write(file, memoryview(data)[written:])
        finally:
            os.close(file)
        try:
            os.replace(partial, path)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.replace(partial, path)
    except OSError as error:
        _remove(partial)
        raise Unavailable(f"cannot write {path}: {error.strerror or error}") from None


def _open(path: str, key: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        raise KeyError(key) from None
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror or error}") from None


def _count(file: int, offset: int, length: int | None) -> int:
    rest = max(0, os.fstat(file).st_size - offset)
    return rest if length is None else max(0, min(length, rest))


def _read(file: int, offset: int, count: int) -> bytes:
    """Reads and closes."""
    try:
        data = os.pread(file, count, offset)
        while len(data) < count and (more := os.pread(file, count - len(data), offset + len(data))):
            data += more
        return data
    except OSError as error:
        raise Unavailable(f"cannot read an object: {error.strerror or error}") from None
    finally:
        os.close(file)


def _remove(path: str) -> int:
    try:
        os.remove(path)
        return 1
    except OSError:
        return 0


def _remove_tree(path: str) -> int:
    count = sum(len(files) for _, _, files in os.walk(path))
    shutil.rmtree(path, ignore_errors=True)
    return count
