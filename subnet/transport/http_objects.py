"""Object transfers of `http_server`: GET with ranges and PUT of an exact size, for a store behind `ObjectEndpoint`.

Law: the grant is checked before one byte of a body is read; bytes in flight are bounded over all transfers, and one
transfer in time, so neither a slow nor a greedy peer can make the process grow.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp import hdrs, web

from subnet.errors import PeerFault, Unavailable
from subnet.protocol.reasons import Reason
from subnet.transport.base import ObjectEndpoint
from subnet.transport.limits import ByteBudget, Limits

_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})?")
_PREFIX = "/objects/"
_OCTETS = {hdrs.CONTENT_TYPE: "application/octet-stream"}


class ObjectRoutes:
    """The two methods on /objects/<key>. PeerFault and Unavailable are the server's to answer."""

    def __init__(self, endpoint: ObjectEndpoint, limits: Limits) -> None:
        self._endpoint, self._limits = endpoint, limits
        self._budget = ByteBudget(limits.objects_in_flight_bytes_max)
        self.routes: dict[str, Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]] = {
            "GET": self._get,
            "PUT": self._put,
        }

    async def _get(self, request: web.BaseRequest, query: str) -> web.StreamResponse:
        offset, length = _byte_range(request.headers.get(hdrs.RANGE))
        limit = self._limits.read_bytes_max
        if length is not None and length > limit:
            raise PeerFault(Reason.OVERSIZED, f"at most {limit} bytes are served at once; ask for smaller ranges")
        want = limit + 1 if length is None else length
        with self._in_flight(want):
            try:
                data = await self._endpoint.read(_key(request), _parameters(query), offset or 0, want)
            except KeyError:
                return web.Response(status=404)
            if len(data) > limit:
                raise PeerFault(Reason.OVERSIZED, f"the object has more than {limit} bytes; ask for ranges")
            if offset is None:
                response = web.Response(body=data, headers=_OCTETS)
            elif not data:
                response = web.Response(status=416)
            else:
                span = f"bytes {offset}-{offset + len(data) - 1}/*"
                response = web.Response(body=data, status=206, headers={**_OCTETS, hdrs.CONTENT_RANGE: span})
            try:
                async with asyncio.timeout(self._limits.transfer_timeout_s):  # counted until it has left
                    await response.prepare(request)
                    await response.write_eof()
            except TimeoutError:
                raise ConnectionError("the reader is too slow") from None
            return response

    async def _put(self, request: web.BaseRequest, query: str) -> web.StreamResponse:
        key, parameters, length = _key(request), _parameters(query), request.content_length
        size = self._endpoint.write_size_bytes(key, parameters)
        if length != size:
            raise PeerFault(Reason.BAD_SIZE, f"{key} is granted for {size} bytes; Content-Length says {length}", key)
        with self._in_flight(size):
            try:
                async with asyncio.timeout(self._limits.transfer_timeout_s):
                    data = await request.content.readexactly(size) if size else b""
            except TimeoutError:
                raise PeerFault(Reason.BAD_SIZE, f"{size} bytes for {key} did not arrive in time", key) from None
            except (asyncio.IncompleteReadError, web.RequestPayloadError):
                raise PeerFault(Reason.BAD_SIZE, f"the body for {key} broke off before {size} bytes", key) from None
            await self._endpoint.write(key, parameters, data)
        return web.Response()

    @contextmanager
    def _in_flight(self, size_bytes: int) -> Iterator[None]:
        if not self._budget.take(size_bytes):
            raise Unavailable("too many objects are on their way; come again")
        try:
            yield
        finally:
            self._budget.release(size_bytes)


def _key(request: web.BaseRequest) -> str:
    return request.raw_path.partition("?")[0].removeprefix(_PREFIX)


def _parameters(query: str) -> dict[str, str]:
    """Granted URLs need no decoding: an escaped character is not in their alphabet and fails the signature."""
    return dict(part.partition("=")[::2] for part in query.split("&"))


def _byte_range(header: str | None) -> tuple[int | None, int | None]:
    """(offset, length) of one plain range; (None, None) for none, and for forms that a server may ignore (RFC 9110)."""
    match = _RANGE.fullmatch(header) if header else None
    if match is None:
        return None, None
    first, last = int(match[1]), match[2]
    if last is None:
        return first, None
    return (first, int(last) - first + 1) if int(last) >= first else (None, None)
