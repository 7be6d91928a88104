"""The connections below the HTTP clients: one pool, answers that end in time, bodies that are bounded.

Law: nothing of aiohttp's errors leaves this file. No answer is `Unavailable`; a body larger than was agreed is a
`PeerFault` before it is read. An URL that is none passes through: it is an operator's mistake, or a developer's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import hdrs

from subnet.errors import PeerFault, Unavailable
from subnet.protocol.reasons import Reason

_KEEP_ALIVE_S = 60.0
_CONNECT_TIMEOUT_S = 10.0


class HttpSession:
    """One pool of kept-alive connections, shared by the clients of one role; the last one to close ends it."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._users = 0

    def retain(self) -> None:
        self._users += 1

    async def release(self) -> None:
        self._users -= 1
        if self._users <= 0 and self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE),
                read_bufsize=1 << 18,
            )
        return self._session


@asynccontextmanager
async def answered() -> AsyncIterator[None]:
    """What is done inside is answered, or raises Unavailable."""
    try:
        yield
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        raise
    except (aiohttp.ClientError, OSError) as error:
        raise Unavailable(f"no answer: {error or type(error).__name__}") from None


@asynccontextmanager
async def answer_within(timeout_s: float) -> AsyncIterator[None]:
    """What is done inside is answered within that time, or raises Unavailable."""
    try:
        async with asyncio.timeout(timeout_s), answered():
            yield
    except TimeoutError:
        raise Unavailable(f"no answer within {timeout_s:g} s") from None


async def read_bounded(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """The body, or PeerFault as soon as it is known to be larger than `bytes_max`."""
    length = response.content_length
    if length is not None and length <= bytes_max:
        return await response.read()
    data = bytearray()
    while length is None and len(data) <= bytes_max:
        if not (chunk := await response.content.readany()):
            return bytes(data)
        data += chunk
    response.close()
    raise PeerFault(Reason.OVERSIZED, f"the answer has more than {bytes_max} bytes", without_grant(str(response.url)))


def without_grant(url: str) -> str:
    """Errors are logged and recorded; grants are secrets."""
    return url.partition("?")[0]
