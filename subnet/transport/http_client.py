"""The client side of HTTP: signed control calls, object transfers by granted URL, and discovery.

Law: a control call is sent once: only its caller may repeat it, signed afresh. Object transfers are idempotent and are
retried here with jittered back-off, a bounded number of times. No answer is `Unavailable`; an answer that is too large,
not signed by the orchestrator, or not of the protocol is `PeerFault`. Sizes are bounded before bytes are read. Clock,
sleep and randomness come from the runtime.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import partial
from typing import TypeVar

import aiohttp
import msgspec
from aiohttp import hdrs

from subnet.errors import ConfigError, PeerFault, Unavailable
from subnet.protocol.ids import Digest, Hotkey, RunId
from subnet.protocol.messages import Message, Refusal, Reply, Request
from subnet.protocol.public import PublicPage
from subnet.protocol.reasons import Reason
from subnet.runtime import Runtime
from subnet.transport.http_session import HttpSession, answer_within, answered, read_bounded, without_grant
from subnet.transport.signing import SIGNATURE_HEADER, Keypair, RequestSigner

__all__ = ["HttpControlClient", "HttpJournalReader", "HttpObjectClient", "HttpSession", "discover", "read_status"]

T = TypeVar("T")
_CONTROL_PATH = "/v1/control"
_STATUS_PATH = "/v1/status"
_JOURNAL_PATH = "/v1/journal"
_OBJECTS_PATH = "/objects/"
_MIB = 1 << 20
REPLY_BYTES_MAX = 32 * _MIB
"""A merge's work names the chunk digests of every replica: megabytes for large stages."""
STATUS_BYTES_MAX = _MIB
PIECE_BYTES = 8 * _MIB
"""Longer reads are made of ranges of this size."""
ATTEMPTS = 4
"""For one object transfer or piece of it."""
BACKOFF_S = 0.2
BACKOFF_MAX_S = 5.0
_SEND_BYTES = 1 << 18
_JSON = {hdrs.CONTENT_TYPE: "application/json"}
_NOT_JSON = (msgspec.MsgspecError, UnicodeError, RecursionError)
_reply_decoder: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)
_encode = msgspec.json.Encoder().encode
_decode_refusal = msgspec.json.Decoder(Refusal).decode
_decode_page = msgspec.json.Decoder(PublicPage).decode


class _Client:
    """A user of the pool, until it is closed."""

    def __init__(self, session: HttpSession) -> None:
        self._session: HttpSession | None = session
        session.retain()

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.release()


class HttpControlClient(_Client):
    """One hotkey's signed line to the orchestrator at `url`, for one run."""

    def __init__(
        self,
        session: HttpSession,
        url: str,
        keypair: Keypair,
        orchestrator: Hotkey,
        run_id: RunId,
        runtime: Runtime,
        reply_bytes_max: int = REPLY_BYTES_MAX,
    ) -> None:
        super().__init__(session)
        self.run_id = run_id
        self.answers = True
        """Whether the last call had an answer of the orchestrator's."""
        self.move(url)
        self._signer = RequestSigner(keypair, orchestrator, runtime.now)
        self._reply_bytes_max = reply_bytes_max

    def move(self, url: str) -> None:
        """The same orchestrator is at another address: later calls go there."""
        self._url = url.rstrip("/") + _CONTROL_PATH

    async def call(self, message: Message, spec_digest: Digest | None, timeout_s: float) -> Reply:
        try:
            reply = await self._call(message, spec_digest, timeout_s)
        except (Unavailable, PeerFault):
            self.answers = False
            raise
        self.answers = True
        return reply

    async def _call(self, message: Message, spec_digest: Digest | None, timeout_s: float) -> Reply:
        if self._session is None:
            raise Unavailable("the control client is closed")
        body = _encode(Request(run_id=self.run_id, spec_digest=spec_digest, message=message))
        headers, nonce = self._signer.sign(_CONTROL_PATH, body)
        async with (
            answer_within(timeout_s),
            self._session.open().post(self._url, data=body, headers=_JSON | headers, allow_redirects=False) as response,
        ):
            data = await read_bounded(response, self._reply_bytes_max)
            if SIGNATURE_HEADER not in response.headers and (response.status == 429 or response.status >= 500):
                raise Unavailable(f"{self._url} answered {response.status}")
            self._signer.check_reply(response.headers, _CONTROL_PATH, nonce, data)
        try:
            return _reply_decoder.decode(data)
        except _NOT_JSON as error:
            raise PeerFault(Reason.MALFORMED, f"the reply does not fit the protocol: {error}") from None


class HttpJournalReader(_Client):
    """The public journal of the orchestrator at `url`; nothing about it is signed but what receipts say."""

    def __init__(self, session: HttpSession, url: str) -> None:
        super().__init__(session)
        self.move(url)

    def move(self, url: str) -> None:
        """The same journal is at another address."""
        self._url = url.rstrip("/") + _JOURNAL_PATH

    async def read(self, start: int, limit: int, timeout_s: float) -> PublicPage:
        if self._session is None:
            raise Unavailable("the journal reader is closed")
        url = f"{self._url}?start={start}&limit={limit}"
        async with answer_within(timeout_s), self._session.open().get(url, allow_redirects=False) as response:
            data = await read_bounded(response, REPLY_BYTES_MAX)
        if response.status == 429 or response.status >= 500:
            raise Unavailable(f"{self._url} answered {response.status}")
        try:
            return _decode_page(data)
        except _NOT_JSON as error:
            raise PeerFault(Reason.MALFORMED, f"{url} gave {response.status} and no page: {error}", url) from None


class HttpObjectClient(_Client):
    """Moves objects by granted URL: those of the orchestrator's file store and presigned S3 ones alike."""

    def __init__(self, session: HttpSession, runtime: Runtime) -> None:
        super().__init__(session)
        self._runtime = runtime
        self._moved_from: tuple[str, ...] = ()
        self._moved_to = ""

    def move(self, url: str, known: Collection[str]) -> None:
        """What the orchestrator serves itself, under any of its `known` addresses, is read and written at `url`.

        A grant names the address that the orchestrator prefers; it holds at every one of them.
        """
        self._moved_from = tuple(f"{one.rstrip('/')}{_OBJECTS_PATH}" for one in known if one != url)
        self._moved_to = f"{url.rstrip('/')}{_OBJECTS_PATH}"

    async def get(self, url: str, offset: int, size_bytes: int, timeout_s: float) -> bytes:
        url = self._reachable(url)
        pieces: list[bytes] = []
        async with answer_within(timeout_s):
            for start in range(0, max(size_bytes, 1), PIECE_BYTES):
                length = min(PIECE_BYTES, size_bytes - start)
                pieces.append(await self._retried(partial(self._get_piece, url, offset + start, length)))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def put(self, url: str, data: bytes, timeout_s: float) -> None:
        url = self._reachable(url)
        async with answer_within(timeout_s):
            await self._retried(partial(self._put_once, url, data))

    async def _get_piece(self, url: str, offset: int, length: int) -> bytes:
        headers = {hdrs.RANGE: f"bytes={offset}-{offset + length - 1}"} if length else {}
        async with answered(), self._open().get(url, headers=headers, allow_redirects=False) as response:
            if response.status not in (200, 206):
                raise await _object_fault(response)
            if response.status == 200 and offset:
                raise PeerFault(Reason.BAD_OBJECT, "the store does not serve ranges", without_grant(url))
            data = await read_bounded(response, length)
        if len(data) != length:
            sentence = f"the object ends after {offset + len(data)} bytes, {offset + length} were expected"
            raise PeerFault(Reason.BAD_SIZE, sentence, without_grant(url))
        return data

    async def _put_once(self, url: str, data: bytes) -> None:
        headers = {hdrs.CONTENT_LENGTH: str(len(data))}
        body = data if len(data) <= _SEND_BYTES else _slices(data)
        async with answered(), self._open().put(url, data=body, headers=headers, allow_redirects=False) as response:
            if response.status not in (200, 201, 204):
                raise await _object_fault(response)

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        for failures in range(1, ATTEMPTS):
            try:
                return await attempt()
            except Unavailable:
                fraction = int.from_bytes(self._runtime.random_bytes(4), "big") / 2**32
                await self._runtime.sleep(min(BACKOFF_MAX_S, BACKOFF_S * 2**failures) * (0.5 + fraction / 2))
        return await attempt()

    def _reachable(self, url: str) -> str:
        before = next((one for one in self._moved_from if url.startswith(one)), None)
        return url if before is None else self._moved_to + url.removeprefix(before)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise Unavailable("the object client is closed")
        return self._session.open()


async def read_status(url: str, timeout_s: float = 10.0) -> bytes:
    """The orchestrator's public view, as JSON.

    Raises ConfigError for a URL that is none, Unavailable and PeerFault as a call does.
    """
    session = HttpSession()
    session.retain()
    try:
        async with answer_within(timeout_s), session.open().get(url.rstrip("/") + _STATUS_PATH) as response:
            data = await read_bounded(response, STATUS_BYTES_MAX)
            if response.status != 200:
                raise Unavailable(f"{url} answered {response.status} to {_STATUS_PATH}")
        return data
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        raise ConfigError("--orchestrator", f"{url!r} is not a URL", "write it as http://HOST:PORT") from None
    finally:
        await session.release()


async def discover(url: str, timeout_s: float = 10.0) -> tuple[RunId, Hotkey]:
    """Which run the orchestrator at `url` hosts, and its hotkey, as its public status says."""
    try:
        status = msgspec.json.decode(await read_status(url, timeout_s), type=_PublicStatus)
    except _NOT_JSON:
        raise PeerFault(Reason.MALFORMED, f"{url}{_STATUS_PATH} does not name a run and an orchestrator") from None
    return RunId(status.run_id), Hotkey(status.orchestrator)


class _PublicStatus(msgspec.Struct):
    run_id: str
    orchestrator: str


async def _object_fault(response: aiohttp.ClientResponse) -> PeerFault | Unavailable:
    """What a store's refusal means to the caller."""
    status, url = response.status, without_grant(str(response.url))
    if status == 429 or status >= 500:
        return Unavailable(f"the store answered {status} for {url}")
    if status == 404:
        return PeerFault(Reason.BAD_OBJECT, f"there is no object at {url}", url)
    if status == 416:
        return PeerFault(Reason.BAD_SIZE, f"the object at {url} is shorter than was said", url)
    try:
        notice = _decode_refusal(await read_bounded(response, _MIB)).notice
        return PeerFault(notice.reason, notice.sentence, url)
    except (*_NOT_JSON, PeerFault):
        reason = Reason.NOT_ALLOWED if status in (401, 403) else Reason.BAD_SIZE
        return PeerFault(reason, f"the store answered {status} for {url}", url)


async def _slices(data: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(data), _SEND_BYTES):
        yield view[start : start + _SEND_BYTES]
