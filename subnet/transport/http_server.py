"""The orchestrator's door: signed control requests, the public status, and object transfers, over aiohttp.

Law: what reaches the handler is of bounded size, signed, fresh, new and typed; whatever does not pass is told why in
one JSON `Refusal`, reported once to `handler.refuse`, and changes nothing. Checks go from cheap to dear: size,
signature and nonce, rate, then the body's meaning. Every reply to a well-formed caller is signed back. Nothing here
grows with traffic (`limits`). An error that is the program's own is not answered in detail: `failure` raises it in the
role's task group, so the process stops and keeps its journal.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NoReturn

import msgspec
from aiohttp import hdrs, web

from subnet.errors import ConfigError, InvariantViolation, PeerFault, Unavailable
from subnet.protocol.messages import Notice, Refusal, Refused, Reply, Request
from subnet.protocol.public import PAGE_RECORDS_MAX
from subnet.protocol.reasons import REMEDY, Reason
from subnet.transport.base import ControlHandler, ObjectEndpoint
from subnet.transport.http_objects import ObjectRoutes
from subnet.transport.limits import Limits, TokenBuckets
from subnet.transport.signing import Caller, Keypair, RequestVerifier, claim

CONTROL_PATH = "/v1/control"
STATUS_PATH = "/v1/status"
JOURNAL_PATH = "/v1/journal"
OBJECTS_PATH = "/objects/"
_HTTP_STATUS = {
    Reason.UNSIGNED: 401,
    Reason.STALE: 401,
    Reason.REPLAYED: 401,
    Reason.WRONG_RECEIVER: 401,
    Reason.OVERSIZED: 413,
    Reason.MALFORMED: 400,
    Reason.BAD_SIZE: 400,
    Reason.RATE_LIMITED: 429,
}
_HTTP_STATUS_OTHERWISE = 403
_NOT_JSON = (msgspec.MsgspecError, UnicodeError, RecursionError)
_STOP_WAIT_S = 0.5
"""For requests under way, and once more for connections to close."""
_SILENT = logging.Logger("http-server", logging.CRITICAL + 1)
"""aiohttp would print a traceback for every scanner's bytes that are not HTTP."""
_SENTENCE_MAX = 300
_PAGES_AT_ONCE = 8
"""Pages of the journal in memory at once, over all callers."""
_WHOLE_NUMBER = re.compile(r"[0-9]{1,15}")
_encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(Request).decode
_Route = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]


class ControlServer:
    """Serves one handler, and the objects of a store without a server of its own when `objects` is given.

    `now` gives Unix seconds.
    """

    def __init__(
        self,
        handler: ControlHandler,
        objects: ObjectEndpoint | None,
        keypair: Keypair,
        now: Callable[[], float],
        limits: Limits | None = None,
    ) -> None:
        self._handler, self._now = handler, now
        self._limits = limits = limits or Limits()
        self._verifier = RequestVerifier(keypair, now, limits.max_age_s, limits.skew_s, limits.nonces_max)
        self._hotkeys = TokenBuckets(limits.hotkey_rate_per_s, limits.hotkey_burst, limits.table_entries_max)
        self._addresses = TokenBuckets(limits.address_rate_per_s, limits.address_burst, limits.table_entries_max)
        self._held: Counter[str] = Counter()
        self._pages = 0
        self._routes: dict[tuple[str, str], _Route] = {
            ("POST", CONTROL_PATH): self._control,
            ("GET", STATUS_PATH): self._status,
            ("GET", JOURNAL_PATH): self._journal,
        }
        self._objects = None if objects is None else ObjectRoutes(objects, limits)
        self._runner: web.ServerRunner | None = None
        self._broken = asyncio.Event()
        self._failure: BaseException | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which the system chooses when `port` is 0. Raises ConfigError when it is taken."""
        server = web.Server(
            self._serve,
            access_log=None,
            logger=_SILENT,
            auto_decompress=False,
            lingering_time=2.0,
            read_bufsize=1 << 18,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=_STOP_WAIT_S)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, backlog=1024).start()
        except (OSError, OverflowError) as error:
            await self.stop()
            raise _cannot_listen(host, port, error) from None
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening; requests under way get a moment to end, then they are cancelled."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def failure(self) -> NoReturn:
        """Wait for an error of the program's own behind this door, and raise it."""
        await self._broken.wait()
        raise self._failure or InvariantViolation("the server broke without an error")

    # ---- one request -------------------------------------------------------------------------------------------------

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        route = self._routes.get((request.method, path))
        if route is None and self._objects is not None and path.startswith(OBJECTS_PATH):
            route = self._objects.routes.get(request.method)
        if route is None:
            return web.Response(status=404)
        try:
            return await route(request, query)
        except PeerFault as fault:
            return await self._refuse(request, fault, None, _object_key(path))
        except Unavailable as error:
            return web.Response(status=503, text=str(error), headers={hdrs.RETRY_AFTER: "1"})
        except ConnectionError:
            raise  # the caller is gone; aiohttp closes the connection
        except Exception as error:
            self._failure = error
            self._broken.set()
            return web.Response(status=500, text="internal error; nothing was decided")

    async def _control(self, request: web.BaseRequest, query: str) -> web.StreamResponse:
        caller = None
        try:
            body = await self._read_body(request)
            caller = self._verifier.verify(request.headers, request.raw_path, body)
            if not self._hotkeys.take(caller.hotkey, self._now()):
                rate = self._limits.hotkey_rate_per_s
                raise PeerFault(Reason.RATE_LIMITED, f"more than {rate:g} requests per second of one hotkey")
            return self._signed(caller, await self._handle(caller, body))
        except PeerFault as fault:
            return await self._refuse(request, fault, caller, "")

    async def _read_body(self, request: web.BaseRequest) -> bytes:
        limit, length = self._limits.request_bytes_max, request.content_length
        if length is not None and length > limit:
            raise PeerFault(Reason.OVERSIZED, f"the request has {length} bytes, at most {limit} are taken")
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.transfer_timeout_s):
                while chunk := await request.content.readany():
                    body += chunk
                    if len(body) > limit:
                        raise PeerFault(Reason.OVERSIZED, f"the request has more than {limit} bytes")
        except TimeoutError:
            raise PeerFault(Reason.MALFORMED, "the request did not arrive in time") from None
        except web.RequestPayloadError:
            raise PeerFault(Reason.MALFORMED, "the request broke off") from None
        return bytes(body)

    async def _handle(self, caller: Caller, body: bytes) -> Reply:
        try:
            request = _decode_request(body)
        except _NOT_JSON as error:
            raise PeerFault(Reason.MALFORMED, f"not a request of this protocol: {error}") from None
        limit = self._limits.held_per_hotkey_max
        if self._held[caller.hotkey] >= limit:
            raise PeerFault(Reason.RATE_LIMITED, f"more than {limit} requests of one hotkey are open")
        self._held[caller.hotkey] += 1
        try:
            return await self._handler.handle(caller.hotkey, request)
        finally:
            self._held[caller.hotkey] -= 1
            if not self._held[caller.hotkey]:
                del self._held[caller.hotkey]

    async def _status(self, request: web.BaseRequest, query: str) -> web.StreamResponse:
        if not self._addresses.take(request.remote or "", self._now()):
            return web.Response(status=429, headers={hdrs.RETRY_AFTER: "1"})
        return web.Response(body=self._handler.status(), content_type="application/json")

    async def _journal(self, request: web.BaseRequest, query: str) -> web.StreamResponse:
        if not self._addresses.take(request.remote or "", self._now()):
            return web.Response(status=429, headers={hdrs.RETRY_AFTER: "1"})
        start, limit = _page_asked(query)
        if self._pages >= _PAGES_AT_ONCE:
            raise Unavailable("too many pages of the journal are on their way; come again")
        self._pages += 1
        try:
            response = web.Response(body=await self._handler.journal(start, limit), content_type="application/json")
            async with asyncio.timeout(self._limits.transfer_timeout_s):  # counted until it has left
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            raise ConnectionError("the reader is too slow") from None
        finally:
            self._pages -= 1
        return response

    # ---- answers -----------------------------------------------------------------------------------------------------

    async def _refuse(
        self, request: web.BaseRequest, fault: PeerFault, caller: Caller | None, subject: str
    ) -> web.StreamResponse:
        """Report a request that did not pass, and say why; strangers who ask too often get the short answer."""
        claimed = caller or claim(request.headers)
        name = claimed.hotkey if claimed else subject or request.remote or ""
        sentence = fault.sentence[:_SENTENCE_MAX]
        reason = Reason(fault.code)
        reply = await self._handler.refuse(Refused(reason=reason, claimed=name[:_SENTENCE_MAX], sentence=sentence))
        if caller is None and not self._addresses.take(request.remote or "", self._now()):
            limited = Notice(reason=Reason.RATE_LIMITED, sentence=sentence, remedy=REMEDY[Reason.RATE_LIMITED])
            return _answer(Refusal(notice=limited), None)
        return self._signed(claimed, reply) if claimed else _answer(reply, None)

    def _signed(self, caller: Caller, reply: Reply) -> web.Response:
        body = _encode(reply)
        return _answer(reply, self._verifier.sign_reply(CONTROL_PATH, caller, body), body)


def _answer(reply: Reply, headers: dict[str, str] | None, body: bytes | None = None) -> web.Response:
    status = 200
    if isinstance(reply, Refusal):
        status = _HTTP_STATUS.get(reply.notice.reason, _HTTP_STATUS_OTHERWISE)
    data = _encode(reply) if body is None else body
    return web.Response(body=data, status=status, headers=headers, content_type="application/json")


def _page_asked(query: str) -> tuple[int, int]:
    """(start, limit) of a journal request. Raises PeerFault."""
    asked = {"start": 0, "limit": PAGE_RECORDS_MAX}
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        if name not in asked or not _WHOLE_NUMBER.fullmatch(value):
            raise PeerFault(Reason.MALFORMED, f"ask as ?start=N&limit=M with whole numbers, not {part[:40]!r}")
        asked[name] = int(value)
    if not 1 <= asked["limit"] <= PAGE_RECORDS_MAX:
        raise PeerFault(Reason.MALFORMED, f"limit must be from 1 to {PAGE_RECORDS_MAX}, not {asked['limit']}")
    return asked["start"], asked["limit"]


def _object_key(path: str) -> str:
    return path.removeprefix(OBJECTS_PATH)


def _cannot_listen(host: str, port: int, error: Exception) -> ConfigError:
    if isinstance(error, socket.gaierror):
        return ConfigError("--host", f"cannot resolve {host!r}", "name an address of this machine, 127.0.0.1 for local")
    return ConfigError("--port", f"cannot listen on {host}:{port} ({error})", "free it or choose another, 0 for any")
