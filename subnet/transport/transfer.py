"""Moving objects: by granted URL, with digest and size checked, tried again until the deadline.

Law: bytes that come out of here have the digest their source names. What is wrong with an object is a PeerFault whose
`evidence` is the object's key (a refused grant too, though it says nothing about the object: see ABOUT_THE_GRANT). The
outside being away is waited out, and a deadline that passes meanwhile is Expired, which is nobody's fault.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from subnet.errors import PeerFault, Unavailable
from subnet.protocol.ids import Digest
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import Source, Target
from subnet.protocol.reasons import Reason
from subnet.runtime import Runtime
from subnet.transport.backoff import backoff_s
from subnet.transport.base import ObjectClient

T = TypeVar("T")

CHUNK_BYTES = 8 * 2**20
"""Larger objects are fetched in pieces of this size: servers bound a read, and a lost connection costs little."""
BASE_TIMEOUT_S = 20.0
SLOWEST_BYTES_PER_S = 100_000.0
"""A transfer below this rate is taken for stuck and tried again."""
ABOUT_THE_GRANT = frozenset({Reason.STALE, Reason.NOT_ALLOWED, Reason.UNSIGNED})
"""Refusals of a URL, which say nothing about the object behind it."""


class Expired(Unavailable):
    """The deadline passed before the outside answered: nobody waits for this any more."""


def timeout_s(size_bytes: int) -> float:
    """How long one transfer may take."""
    return BASE_TIMEOUT_S + size_bytes / SLOWEST_BYTES_PER_S


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


class Transfer:
    """Checked reads and writes over an ObjectClient. `deadline` is on the runtime's monotonic clock."""

    def __init__(self, objects: ObjectClient, runtime: Runtime) -> None:
        self._objects, self._runtime = objects, runtime

    async def fetch(self, source: Source, deadline: float) -> bytes:
        """The whole object. Raises PeerFault naming its key, or Expired."""
        if source.size_bytes <= CHUNK_BYTES:
            data = await self._range(source, 0, source.size_bytes, deadline)
        else:
            data = b"".join([await self._range(source, *piece, deadline) for piece in _pieces(source.size_bytes)])
        digest = await self._digest(data)
        if digest != source.digest:
            sentence = f"{source.key} has digest {digest[:12]}, not {source.digest[:12]}"
            raise PeerFault(Reason.BAD_DIGEST, sentence, source.key)
        return data

    async def store(self, target: Target, data: bytes) -> None:
        """Write the slot, however late: a finished result still counts if it comes first.

        Raises PeerFault when the grant does not allow it, as it does not once it has expired.
        """
        limit_s = timeout_s(len(data))
        with _named(target.key):
            await self.patiently(target.key, math.inf, lambda: self._objects.put(target.url, data, limit_s))

    async def fetch_file(self, source: Source, path: Path, deadline: float) -> None:
        """Make `path` hold the object; a file that already does is kept. Raises PeerFault or Expired."""
        if await self._runtime.run_blocking(lambda: _holds(path, source)):
            return
        incomplete = path.with_name(path.name + ".partial")
        await self._runtime.run_blocking(partial(_begin, incomplete))
        for offset, size in _pieces(source.size_bytes):
            piece = await self._range(source, offset, size, deadline)
            await self._runtime.run_blocking(partial(_append, incomplete, piece))
        if not await self._runtime.run_blocking(partial(_holds, incomplete, source)):
            raise PeerFault(Reason.BAD_DIGEST, f"{source.key} is not the file the RunSpec names", source.key)
        await self._runtime.run_blocking(partial(incomplete.replace, path))

    async def _range(self, source: Source, offset: int, size: int, deadline: float) -> bytes:
        return await self.patiently(source.key, deadline, lambda: self._get(source, offset, size))

    async def _get(self, source: Source, offset: int, size: int) -> bytes:
        with _named(source.key):
            data = await self._objects.get(source.url, offset, size, timeout_s(size))
        if len(data) != size:
            raise PeerFault(Reason.BAD_SIZE, f"{source.key} gave {len(data)} bytes of {size}", source.key)
        return data

    async def patiently(self, what: str, deadline: float, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` gives, tried again while the outside is away. Raises PeerFault as it is, or Expired."""
        tries = 0
        while True:
            left_s = deadline - self._runtime.monotonic()
            if left_s <= 0:
                raise Expired(f"the deadline of {what} passed")
            try:
                async with asyncio.timeout(None if math.isinf(left_s) else left_s) as limit:
                    return await attempt()
            except TimeoutError:
                if limit.expired():
                    raise Expired(f"the deadline of {what} passed") from None
                tries += 1
            except Unavailable:
                tries += 1
            await self._runtime.sleep(min(backoff_s(tries, self._runtime.random_bytes(2)), max(left_s, 0.01)))

    async def _digest(self, data: bytes) -> Digest:
        if len(data) <= CHUNK_BYTES:
            return digest_of(data)
        return await self._runtime.run_blocking(lambda: digest_of(data))


@contextmanager
def _named(key: ObjectKey) -> Iterator[None]:
    """A fault of the store gets the object's key as its evidence."""
    try:
        yield
    except PeerFault as fault:
        raise PeerFault(fault.code, fault.sentence, key) from fault


def _pieces(size_bytes: int) -> list[tuple[int, int]]:
    """(offset, size) of each piece."""
    return [(start, min(CHUNK_BYTES, size_bytes - start)) for start in range(0, size_bytes, CHUNK_BYTES)]


def _holds(path: Path, source: Source) -> bool:
    """Whether the file is the object, whole."""
    if not path.is_file() or path.stat().st_size != source.size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == source.digest


def _begin(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def _append(path: Path, piece: bytes) -> None:
    with path.open("ab") as file:
        file.write(piece)
