"""The door's bad-input list: whatever arrives at `ControlServer` is refused with its reason, recorded once, and changes
nothing; honest callers are served meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from subnet.protocol.messages import Exchange, Join, Request
from subnet.protocol.reasons import Reason

RUN = "run"
PATH = "/v1/control"
JOIN = Join(session="s1", device="cpu", software="test")
BODY = msgspec.json.encode(Request(run_id=RUN, spec_digest=None, message=JOIN))
Open = Callable[..., Awaitable[Any]]


def change(name: str, value: str | None) -> Callable[[dict[str, str]], dict[str, str]]:
    """Headers with one of them replaced, or taken away."""
    return lambda headers: {k: v for k, v in headers.items() if k != name} | ({} if value is None else {name: value})


@pytest.mark.parametrize(
    ("bend", "reason"),
    [
        (lambda headers: {}, Reason.UNSIGNED),
        (change("X-Bittensor-Version", None), Reason.UNSIGNED),
        (change("X-Bittensor-Version", "2"), Reason.UNSIGNED),
        (change("X-Bittensor-Signature", None), Reason.UNSIGNED),
        (change("X-Bittensor-Signature", "0xzz"), Reason.UNSIGNED),
        (change("X-Bittensor-Signature", "0x00"), Reason.UNSIGNED),
        (change("X-Bittensor-Signature", "0x" + "00" * 64), Reason.UNSIGNED),
        (change("X-Bittensor-Nonce", None), Reason.UNSIGNED),
        (change("X-Bittensor-Nonce", "soon"), Reason.UNSIGNED),
        (change("X-Bittensor-Nonce", "9" * 5000), Reason.UNSIGNED),
        (change("X-Bittensor-Nonce", "1"), Reason.STALE),
        (change("X-Bittensor-Hotkey", None), Reason.UNSIGNED),
        (change("X-Bittensor-Hotkey", "5Mallory"), Reason.UNSIGNED),
        (change("X-Bittensor-Hotkey", "5" + "F" * 4000), Reason.UNSIGNED),
        (change("X-Bittensor-Crypto", "rsa"), Reason.UNSIGNED),
        (change("X-Bittensor-Crypto", "ed25519"), Reason.UNSIGNED),
        (change("X-Bittensor-Receiver", None), Reason.WRONG_RECEIVER),
        (change("X-Bittensor-Receiver", "5Mallory"), Reason.WRONG_RECEIVER),
    ],
)
async def test_a_signature_that_does_not_hold(
    open_door: Open, stranger: Any, bend: Callable[[dict[str, str]], dict[str, str]], reason: Reason
) -> None:
    """1. Unsigned, half signed, signed by nobody, by somebody else, for somebody else."""
    door = await open_door()
    someone = stranger(door)
    status, refusal, _ = await someone.post(bend(someone.signed()))
    assert (status, refusal.notice.reason) == (401, reason)
    assert [r.reason for r in door.handler.refused] == [reason]
    assert door.handler.handled == []


async def test_another_body_method_or_path(open_door: Open, stranger: Any) -> None:
    """2. A caught signature is put on other content, another target, and another method."""
    door = await open_door()
    someone = stranger(door)
    assert (await someone.post(someone.signed(), BODY.replace(b"cpu", b"gpu")))[0] == 401
    assert (await someone.post(someone.signed(), path=PATH + "?x=1"))[0] == 401
    async with door.session.open().put(door.url + PATH, data=BODY, headers=someone.signed()) as answer:
        assert answer.status == 404
    assert door.handler.handled == []


async def test_the_same_request_twice(open_door: Open, stranger: Any, clock: Any) -> None:
    """3. Replayed at once, and at the end of the freshness window: once is enough. Its sender is not locked out."""
    door = await open_door()
    someone = stranger(door)
    headers = someone.signed()
    assert (await someone.post(headers))[0] == 200
    for wait_s, reason in ((0.0, Reason.REPLAYED), (9.9, Reason.REPLAYED), (0.2, Reason.STALE)):
        clock.advance(wait_s)
        status, refusal, _ = await someone.post(headers)
        assert (status, refusal.notice.reason) == (401, reason)
    assert (await someone.post(someone.signed()))[0] == 200
    assert len(door.handler.handled) == 2


async def test_a_wrong_clock(open_door: Open, stranger: Any, clock: Any) -> None:
    """4. A miner's clock is a minute behind, or ahead: refused with what to do, and the refusal is signed, so the
    miner can believe it although the clocks differ."""
    door = await open_door()
    someone = stranger(door)
    for shift_s in (-60.0, 60.0, 2.5):
        clock.advance(shift_s)
        headers = someone.signed()
        clock.advance(-shift_s)
        status, refusal, signed = await someone.post(headers)
        assert (status, refusal.notice.reason) == (401, Reason.STALE)
        someone.signer.check_reply(signed, PATH, someone.nonce, msgspec.json.encode(refusal))
        clock.advance(1)
    assert door.handler.handled == []


async def test_a_request_for_another_orchestrator(open_door: Open, stranger: Any, keys: Callable[[str], Any]) -> None:
    """5. A request that was caught on its way to another subnet's orchestrator is not taken here."""
    door = await open_door()
    someone = stranger(door, receiver=keys("Other").ss58_address)
    status, refusal, _ = await someone.post(someone.signed())
    assert (status, refusal.notice.reason) == (401, Reason.WRONG_RECEIVER)
    assert door.handler.handled == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_oversized_request(open_door: Open, stranger: Any, chunked: bool) -> None:
    """6. Larger than the limit, announced or not: refused before it is held in memory, signed or not."""
    door = await open_door(request_bytes_max=1000)
    someone = stranger(door)
    body = BODY + b" " * 200_000

    async def pieces() -> Any:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    status, refusal, _ = await someone.post(someone.signed(body), pieces() if chunked else body)
    assert (status, refusal.notice.reason) == (413, Reason.OVERSIZED)
    assert "1000" in refusal.notice.sentence
    assert [r.reason for r in door.handler.refused] == [Reason.OVERSIZED]
    assert (await someone.post(someone.signed()))[0] == 200


MALFORMED = [
    b"",
    b"{",
    b"\xff\xfe",
    b"null",
    b"[]",
    b'{"run_id": "run"}',
    BODY.replace(b"join", b"leave"),
    BODY.replace(b'"s1"', b"1"),
    BODY.replace(b'"s1"', b'""'),
    BODY.replace(b'"cpu"', b'"' + b"x" * 301 + b'"'),
    BODY.replace(b'"cpu"', b"NaN"),
    BODY[:-1] + b', "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    msgspec.json.encode(
        Request(
            run_id=RUN, spec_digest=None, message=Exchange(session="s", free_slots=1, holding=("i",) * 300, results=())
        )
    ),
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
async def test_a_message_that_does_not_fit(open_door: Open, stranger: Any, body: bytes) -> None:
    """7. Signed by a true hotkey, and nonsense: wrong types, unknown tags, too long, too deep, too many."""
    door = await open_door()
    someone = stranger(door)
    status, refusal, signed = await someone.post(someone.signed(body), body)
    assert (status, refusal.notice.reason) == (400, Reason.MALFORMED)
    assert [(r.reason, r.claimed) for r in door.handler.refused] == [
        (Reason.MALFORMED, someone.signer._keypair.ss58_address)
    ]
    someone.signer.check_reply(signed, PATH, someone.nonce, msgspec.json.encode(refusal))
    assert door.handler.handled == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", PATH),
        ("HEAD", "/v1/status"),
        ("POST", "/v1/status"),
        ("GET", "/v1/"),
        ("PUT", "/objects/x"),
    ],
)
async def test_other_paths_do_not_exist(open_door: Open, method: str, path: str) -> None:
    """8. Scanners find 404, and the handler hears nothing of them."""
    door = await open_door()
    async with door.session.open().request(method, door.url + path) as answer:
        assert answer.status == 404
    assert (door.handler.handled, door.handler.refused) == ([], [])


async def test_noise_on_the_socket_stops_nothing(
    open_door: Open, stranger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """9. Bytes that are not HTTP, a request line of a megabyte, a body that breaks off: no traceback, no log."""
    door = await open_door()
    host, port = door.url.removeprefix("http://").split(":")
    someone = stranger(door)
    half = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nhalf"
    for noise in (b"\x16\x03\x01\x00" * 50, b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n", half.encode()):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(noise)
        if writer.can_write_eof():
            writer.write_eof()
        with suppress(ConnectionError):
            assert b"Traceback" not in await reader.read()
        writer.close()
    assert caplog.records == []
    assert (await someone.post(someone.signed()))[0] == 200
    assert len(door.handler.handled) == 1
