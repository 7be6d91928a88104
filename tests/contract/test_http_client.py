"""What only the HTTP clients can meet: bent answers, servers that are away, stores that stumble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import web

from subnet.errors import ConfigError, PeerFault, Unavailable
from subnet.protocol.keys import Kind, make
from subnet.protocol.messages import Join
from subnet.protocol.reasons import Reason
from subnet.storage.memory import MemoryObjectStore
from subnet.transport.http_client import ATTEMPTS, PIECE_BYTES, HttpObjectClient, discover
from subnet.transport.memory import MemoryObjectClient
from subnet.transport.signing import RequestVerifier, claim

TIMEOUT_S = 20.0
JOIN = Join(session="s1", device="cpu", software="test")
RUN = "run"


# ---- what an HTTP client meets ---------------------------------------------------------------------------------------


class Impostor:
    """A server of our own at some URL, which answers as a test says."""

    def __init__(self) -> None:
        self.requests = 0
        self.answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] | None = None

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests += 1
        assert self.answer is not None
        return await self.answer(request)


@pytest.fixture
async def impostor() -> AsyncIterator[tuple[Impostor, str]]:
    made = Impostor()
    runner = web.ServerRunner(web.Server(made.serve), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield made, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize(
    ("trick", "code"),
    [
        ("unsigned", Reason.UNSIGNED),
        ("changed", Reason.UNSIGNED),
        ("by another", Reason.UNSIGNED),
        ("for another", Reason.WRONG_RECEIVER),
        ("an older reply", Reason.UNSIGNED),
        ("not json", Reason.MALFORMED),
        ("not a reply", Reason.MALFORMED),
        ("large", Reason.OVERSIZED),
    ],
)
async def test_only_the_orchestrators_answer_counts(
    trick: str, code: Reason, open_door: Any, keys: Callable[[str], Any], impostor: tuple[Impostor, str]
) -> None:
    """1. Somebody sits between miner and orchestrator and bends the answers; each is the peer's fault, none is read."""
    door, (man_in_the_middle, url) = await open_door(), impostor
    kept: list[web.Response] = []

    async def relay(request: web.BaseRequest) -> web.Response:
        body, headers = await request.read(), dict(request.headers)
        async with door.session.open().post(door.url + "/v1/control", data=body, headers=headers) as answer:
            signed = {k: v for k, v in answer.headers.items() if k.startswith("X-Bittensor")}
            return web.Response(body=await answer.read(), headers=signed)

    async def bend(request: web.BaseRequest) -> web.StreamResponse:
        true = await relay(request)
        headers, body = dict(true.headers), true.body
        kept.append(true)
        if trick == "unsigned":
            headers = {k: v for k, v in headers.items() if not k.startswith("X-Bittensor")}
        elif trick == "changed":
            body = body.replace(b'"ok"', b'"no"')
        elif trick == "by another":
            mallory = RequestVerifier(keys("Mallory"), door.runtime.now)
            headers = mallory.sign_reply("/v1/control", claim(request.headers), body)
        elif trick == "for another":
            headers["X-Bittensor-Receiver"] = keys("Mallory").ss58_address
        elif trick == "an older reply":
            headers, body = dict(kept[0].headers), kept[0].body
        elif trick == "large":
            body = b" " * 2_000_000
        return web.Response(body=body, headers={k: v for k, v in headers.items() if k != "Content-Length"})

    man_in_the_middle.answer = bend
    client = door.control(keys("Miner"), url)
    if trick in ("not json", "not a reply"):  # signed by the orchestrator all the same
        raw = msgspec.Raw(b"{" if trick == "not json" else b'{"type": "welcome"}')
        door.handler.answer = lambda sender, request: asyncio.sleep(0, raw)
    if trick == "an older reply":
        await client.call(JOIN, None, TIMEOUT_S)
    with pytest.raises(PeerFault) as fault:
        await client.call(JOIN, None, TIMEOUT_S)
    assert fault.value.code == code
    await client.close()


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_proxys_error_is_no_answer(
    status: int, open_door: Any, keys: Callable[[str], Any], impostor: tuple[Impostor, str]
) -> None:
    """2. The orchestrator restarts behind its proxy: unavailable, to be tried again, nobody's fault. One attempt."""
    man, url = impostor
    man.answer = lambda request: asyncio.sleep(0, web.Response(status=status))
    client = (await open_door()).control(keys("Miner"), url)
    with pytest.raises(Unavailable):
        await client.call(JOIN, None, TIMEOUT_S)
    assert man.requests == 1
    await client.close()


async def test_nobody_listens(open_door: Any, keys: Callable[[str], Any]) -> None:
    """3. The orchestrator is not there yet, or not any more."""
    door = await open_door()
    client = door.control(keys("Miner"))
    objects = HttpObjectClient(door.session, door.runtime)
    await door.server.stop()
    with pytest.raises(Unavailable):
        await client.call(JOIN, None, TIMEOUT_S)
    with pytest.raises(Unavailable):
        await objects.get(f"{door.url}/objects/run/0/0/x/data", 0, 1, TIMEOUT_S)
    with pytest.raises(Unavailable):
        await discover(door.url)
    await client.close()
    await objects.close()


async def test_a_miner_finds_run_and_orchestrator(open_door: Any, impostor: tuple[Impostor, str]) -> None:
    """4. All a newcomer has is a URL; a wrong one is told apart from a wrong server."""
    door, (man, url) = await open_door(), impostor
    assert await discover(door.url) == (RUN, door.handler.orchestrator)
    assert await discover(door.url + "/") == (RUN, door.handler.orchestrator)
    for text in ("not a url", "ftp://127.0.0.1", "127.0.0.1:80", ""):
        with pytest.raises(ConfigError, match="--orchestrator"):
            await discover(text)
    man.answer = lambda request: asyncio.sleep(0, web.Response(text="<html>welcome</html>"))
    with pytest.raises(PeerFault, match="does not name a run"):
        await discover(url)


# ---- object transfers ------------------------------------------------------------------------------------------------


async def test_a_transfer_survives_bad_moments(runtime: Any, open_door: Any, impostor: tuple[Impostor, str]) -> None:
    """5. The store stumbles: a few jittered, growing pauses, then it works; a store that stays away is given up."""
    man, url = impostor
    failures = 0

    async def stumble(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal failures
        await request.read()
        failures -= 1
        if failures >= 0:
            return web.Response(status=503)
        return web.Response(body=b"data") if request.method == "GET" else web.Response()

    man.answer = stumble
    objects = HttpObjectClient((await open_door()).session, runtime)
    failures = ATTEMPTS - 1
    assert await objects.get(url + "/x", 0, 4, TIMEOUT_S) == b"data"
    assert len(runtime.slept) == ATTEMPTS - 1
    assert runtime.slept == sorted(set(runtime.slept))
    failures = ATTEMPTS - 1
    await objects.put(url + "/x", b"data" * 100_000, TIMEOUT_S)
    man.requests, failures = 0, 1_000
    with pytest.raises(Unavailable):
        await objects.put(url + "/x", b"data", TIMEOUT_S)
    assert man.requests == ATTEMPTS
    await objects.close()


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (web.Response(status=404), Reason.BAD_OBJECT),
        (web.Response(status=416), Reason.BAD_SIZE),
        (web.Response(status=403, text="<Error>AccessDenied</Error>"), Reason.NOT_ALLOWED),
        (web.Response(body=b"too much data"), Reason.OVERSIZED),
        (web.Response(body=b"dat"), Reason.BAD_SIZE),
        (web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), Reason.BAD_SIZE),
        (web.Response(body=b"data", headers={"Content-Encoding": "gzip"}), None),
    ],
)
async def test_a_refused_transfer_is_not_repeated(
    runtime: Any, open_door: Any, impostor: tuple[Impostor, str], response: web.Response, code: Reason | None
) -> None:
    """6. The store's no is a no: one request, no redirect followed, nothing larger than asked for, nothing unpacked,
    and no grant in the error."""
    man, url = impostor
    man.answer = lambda request: asyncio.sleep(0, response)
    objects = HttpObjectClient((await open_door()).session, runtime)
    if code is None:
        assert await objects.get(url + "/x?sig=1", 0, 4, TIMEOUT_S) == b"data"
    else:
        with pytest.raises(PeerFault) as fault:
            await objects.get(url + "/x?sig=1", 0, 4, TIMEOUT_S)
        assert fault.value.code == code
        assert "sig" not in f"{fault.value} {fault.value.evidence}"
    assert (man.requests, runtime.slept) == (1, [])
    await objects.close()


async def test_long_reads_are_made_of_ranges(clock: Any, runtime: Any, open_door: Any) -> None:
    """7. Parameters of a large stage: read in pieces the server takes, with the right bytes at the seams."""
    store = MemoryObjectStore(clock)
    door = await open_door(store, read_bytes_max=PIECE_BYTES)
    key = make(RUN, 0, 0, "p", Kind.PARAMETERS)
    data = bytes(range(251)) * (PIECE_BYTES // 251 + 10)
    await store.put(key, data)
    objects = HttpObjectClient(door.session, runtime)
    url = store.grant_get(key, clock() + 60)
    assert await objects.get(url, 3, len(data) - 3, TIMEOUT_S) == data[3:]
    with pytest.raises(PeerFault):
        await objects.get(url, 4, len(data) - 3, TIMEOUT_S)
    await objects.close()


async def test_a_slow_store_is_given_up(runtime: Any, open_door: Any, impostor: tuple[Impostor, str]) -> None:
    """8. The store accepts the connection and says nothing: the caller's timeout holds over all attempts."""
    man, url = impostor
    gate = asyncio.Event()

    async def silence(request: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.Response()

    man.answer = silence
    objects = HttpObjectClient((await open_door()).session, runtime)
    with pytest.raises(Unavailable, match="within"):
        await objects.get(url + "/x", 0, 4, 0.05)
    gate.set()
    await objects.close()


async def test_memory_and_http_objects_agree(clock: Any, runtime: Any, open_door: Any) -> None:
    """9. The simulation's object client refuses what the real one refuses, with the same reason."""
    store = MemoryObjectStore(clock)
    door = await open_door(store)
    key = make(RUN, 0, 0, "p", Kind.DATA)
    await store.put(key, b"data")
    good, expired = store.grant_get(key, clock() + 60), store.grant_get(key, clock() - 1)
    writing = store.grant_put(key, 4, clock() + 60)
    missing = store.grant_get(make(RUN, 0, 0, "q", Kind.DATA), clock() + 60)
    http, memory = HttpObjectClient(door.session, runtime), MemoryObjectClient(store)
    reads = [(good, 0, 5), (good, 4, 1), (expired, 0, 4), (missing, 0, 1), (good + "0", 0, 4), (writing, 0, 4)]
    for url, offset, size in reads:
        codes = []
        for client in (http, memory):
            with pytest.raises(PeerFault) as fault:
                await client.get(url, offset, size, TIMEOUT_S)
            codes.append(fault.value.code)
        assert codes[0] == codes[1], url
    for data in (b"dat", b"data!"):
        for client in (http, memory):
            with pytest.raises(PeerFault) as fault:
                await client.put(writing, data, TIMEOUT_S)
            assert fault.value.code == Reason.BAD_SIZE
    await http.close()
