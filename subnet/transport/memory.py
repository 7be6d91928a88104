"""Transport without sockets: the same seams inside one process, real time or virtual.

Law: what a role sees is what it sees over HTTP. A caller that gives up or is cancelled does not stop the handler: the
request had arrived. Signatures and framing have no meaning here, so `sender` is what the client was built with.
"""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qsl

import msgspec

from subnet.errors import PeerFault, Unavailable
from subnet.protocol.ids import Digest, Hotkey, RunId
from subnet.protocol.messages import Message, Refused, Reply, Request
from subnet.protocol.public import PublicPage
from subnet.protocol.reasons import Reason
from subnet.transport.base import ControlHandler, ObjectEndpoint

_OBJECTS_PATH = "/objects/"


class MemoryControlClient:
    """One hotkey's line to a handler in this process."""

    def __init__(self, handler: ControlHandler, hotkey: Hotkey, run_id: RunId) -> None:
        self._handler, self._hotkey, self._run_id = handler, hotkey, run_id
        self._under_way: set[asyncio.Task[Reply]] = set()
        self._closed = False

    async def call(self, message: Message, spec_digest: Digest | None, timeout_s: float) -> Reply:
        if self._closed:
            raise Unavailable("the control client is closed")
        request = Request(run_id=self._run_id, spec_digest=spec_digest, message=message)
        task = asyncio.create_task(self._answer(request))
        self._under_way.add(task)
        task.add_done_callback(self._done)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(task)
        except TimeoutError:
            raise Unavailable(f"no answer within {timeout_s:g} s") from None

    def _done(self, task: asyncio.Task[Reply]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that gave up does not fetch it

    async def _answer(self, request: Request) -> Reply:
        try:
            return await self._handler.handle(self._hotkey, request)
        except PeerFault as fault:
            refused = Refused(reason=Reason(fault.code), claimed=self._hotkey, sentence=fault.sentence[:300])
            return await self._handler.refuse(refused)

    async def close(self) -> None:
        """Requests under way end by themselves, as they do on a server whose client went away."""
        self._closed = True


class MemoryJournalReader:
    """The public journal of a handler in this process."""

    def __init__(self, handler: ControlHandler) -> None:
        self._handler = handler

    async def read(self, start: int, limit: int, timeout_s: float) -> PublicPage:
        try:
            async with asyncio.timeout(timeout_s):
                return msgspec.json.decode(await self._handler.journal(start, limit), type=PublicPage)
        except TimeoutError:
            raise Unavailable(f"no answer within {timeout_s:g} s") from None

    async def close(self) -> None:
        pass


class MemoryObjectClient:
    """Reads and writes through an endpoint in this process, by the URLs its store granted."""

    def __init__(self, endpoint: ObjectEndpoint) -> None:
        self._endpoint = endpoint

    async def get(self, url: str, offset: int, size_bytes: int, timeout_s: float) -> bytes:
        key, query = _key_and_query(url)
        try:
            data = await self._endpoint.read(key, query, offset, size_bytes)
        except KeyError:
            raise PeerFault(Reason.BAD_OBJECT, f"there is no object {key}", key) from None
        if len(data) != size_bytes:
            raise PeerFault(Reason.BAD_SIZE, f"{key} ends after {offset + len(data)} bytes", key)
        return data

    async def put(self, url: str, data: bytes, timeout_s: float) -> None:
        key, query = _key_and_query(url)
        if len(data) != (size := self._endpoint.write_size_bytes(key, query)):
            raise PeerFault(Reason.BAD_SIZE, f"{key} is granted for {size} bytes, not {len(data)}", key)
        await self._endpoint.write(key, query, data)

    async def close(self) -> None:
        pass


def _key_and_query(url: str) -> tuple[str, dict[str, str]]:
    path, _, query = url.partition("?")
    return path.partition(_OBJECTS_PATH)[2], dict(parse_qsl(query))
