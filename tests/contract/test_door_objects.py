"""Object transfers through the door by plain HTTP, and the server's own life: busy ports, bugs behind it, stopping."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from subnet.errors import ConfigError, InvariantViolation, Unavailable
from subnet.protocol.ids import Hotkey
from subnet.protocol.keys import Kind, make
from subnet.protocol.messages import Join, Reply, Request
from subnet.protocol.reasons import Reason
from subnet.storage.memory import MemoryObjectStore
from subnet.transport.http_client import HttpObjectClient
from subnet.transport.http_server import ControlServer

TIMEOUT_S = 20.0
RUN = "run"
JOIN = Join(session="s1", device="cpu", software="test")
Open = Callable[..., Awaitable[Any]]

# ---- objects at the door ---------------------------------------------------------------------------------------------


async def test_puts_are_checked_before_the_body(open_door: Open, clock: Any) -> None:
    """1. Wrong length announced, none announced, a body that breaks off: nothing is stored, the slot stays usable."""
    store = MemoryObjectStore(clock)
    door = await open_door(store)
    key = make(RUN, 0, 0, "m", Kind.BOUNDARY)
    url = store.grant_put(key, 10, clock() + 60)

    async def endless() -> Any:
        yield b"0123456789"

    async with door.session.open().put(url, data=b"0123456789x") as answer:
        assert answer.status == 400
    async with door.session.open().put(url, data=endless()) as answer:
        assert answer.status == 400
    host, port = door.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"PUT {url.removeprefix(door.url)} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234".encode())
    writer.write_eof()
    await reader.read()
    writer.close()
    assert await store.size_bytes(key) is None
    async with door.session.open().put(url, data=b"0123456789") as answer:
        assert answer.status == 200
    assert await store.get(key) == b"0123456789"
    assert {r.reason for r in door.handler.refused} == {Reason.BAD_SIZE}


@pytest.mark.parametrize(
    ("header", "status", "body", "span"),
    [
        (None, 200, b"0123456789", None),
        ("bytes=0-3", 206, b"0123", "bytes 0-3/*"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/*"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/*"),
        ("bytes=10-12", 416, b"", None),
        ("bytes=-3", 200, b"0123456789", None),
        ("bytes=5-2", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=0-3", 200, b"0123456789", None),
    ],
)
async def test_ranges(
    open_door: Open, clock: Any, header: str | None, status: int, body: bytes, span: str | None
) -> None:
    """2. One plain range is served; forms a server may ignore get the whole object (RFC 9110, 14.2)."""
    store = MemoryObjectStore(clock)
    door = await open_door(store)
    key = make(RUN, 0, 0, "m", Kind.BOUNDARY)
    await store.put(key, b"0123456789")
    headers = {"Range": header} if header else {}
    async with door.session.open().get(store.grant_get(key, clock() + 60), headers=headers) as answer:
        assert (answer.status, await answer.read(), answer.headers.get("Content-Range")) == (status, body, span)


async def test_a_read_larger_than_served(open_door: Open, clock: Any) -> None:
    """3. A whole object, or a range, above the limit: told to ask for ranges."""
    store = MemoryObjectStore(clock)
    door = await open_door(store, read_bytes_max=9)
    key = make(RUN, 0, 0, "m", Kind.BOUNDARY)
    await store.put(key, b"0123456789")
    url = store.grant_get(key, clock() + 60)
    for headers, status in (({}, 413), ({"Range": "bytes=0-9"}, 413), ({"Range": "bytes=1-9"}, 206)):
        async with door.session.open().get(url, headers=headers) as answer:
            assert answer.status == status


@pytest.mark.parametrize("path", ["../../etc/passwd", "run/0/0/../data", "run%2F0/0/x/data", "run/0/0/x/secrets", ""])
async def test_a_path_is_no_key(open_door: Open, clock: Any, path: str) -> None:
    """4. Path traversal at the socket, where no client library has tidied the path up."""
    door = await open_door(MemoryObjectStore(clock))
    host, port = door.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /objects/{path}?sig=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert [r.reason for r in door.handler.refused] == [Reason.MALFORMED]


async def test_objects_under_way_are_bounded(open_door: Open, clock: Any) -> None:
    """5. A thousand slow uploads by one grant: the second is told to come again, until the first has left."""
    asked = asyncio.Event()

    class Watched(MemoryObjectStore):
        def write_size_bytes(self, key: str, query: dict[str, str]) -> int:
            asked.set()
            return super().write_size_bytes(key, query)

    store = Watched(clock)
    door = await open_door(store, objects_in_flight_bytes_max=15)
    key, other = make(RUN, 0, 0, "m", Kind.BOUNDARY), make(RUN, 0, 0, "n", Kind.BOUNDARY)
    first_half = asyncio.Event()

    async def slowly() -> Any:
        yield b"01234"
        await first_half.wait()
        yield b"56789"

    slow = asyncio.ensure_future(
        door.session.open().put(store.grant_put(key, 10, clock() + 60), data=slowly(), headers={"Content-Length": "10"})
    )
    await asked.wait()
    async with door.session.open().put(store.grant_put(other, 10, clock() + 60), data=b"0" * 10) as answer:
        assert answer.status == 503
    first_half.set()
    assert (await slow).status == 200
    objects = HttpObjectClient(door.session, door.runtime)
    await objects.put(store.grant_put(other, 10, clock() + 60), b"0" * 10, TIMEOUT_S)
    await objects.close()
    assert door.server._objects._budget.held == 0


# ---- the server itself -----------------------------------------------------------------------------------------------


async def test_a_busy_port(keys: Callable[[str], Any], clock: Any) -> None:
    """6. Another program has the port; the host is a typing error: one sentence with field and remedy."""
    taken = socket.create_server(("127.0.0.1", 0))
    server = ControlServer(None, None, keys("Orchestrator"), clock)
    with pytest.raises(ConfigError) as error:
        await server.start("127.0.0.1", taken.getsockname()[1])
    assert error.value.field == "--port"
    with pytest.raises(ConfigError) as error:
        await server.start("127.0.0.1", 70_000)
    assert error.value.field == "--port"
    with pytest.raises(ConfigError) as error:
        await server.start("no.such.host.invalid", 0)
    assert error.value.field == "--host"
    taken.close()


async def test_a_bug_behind_the_door_stops_the_process(open_door: Open, keys: Callable[[str], Any]) -> None:
    """7. The program contradicts itself: the caller learns nothing but that, the role's task group raises it."""
    door = await open_door()

    async def contradict(sender: Hotkey, request: Request) -> Reply:
        raise InvariantViolation("journal index 7 exists already")

    door.handler.answer = contradict
    client = door.control(keys("Miner"))
    with pytest.raises(Unavailable) as told:
        await client.call(JOIN, None, TIMEOUT_S)
    assert "journal" not in str(told.value)
    with pytest.raises(InvariantViolation, match="index 7"):
        await asyncio.wait_for(door.server.failure(), TIMEOUT_S)
    await client.close()


async def test_stopping_does_not_wait_for_long_polls(open_door: Open, keys: Callable[[str], Any]) -> None:
    """8. Ctrl-C while miners hold exchanges open: the server is gone within its second, callers see it as away."""
    door = await open_door()
    never = asyncio.Event()

    async def hold(sender: Hotkey, request: Request) -> Reply:
        await never.wait()
        raise AssertionError("nobody waits for this any more")

    door.handler.answer = hold
    client = door.control(keys("Miner"))
    call = asyncio.ensure_future(client.call(JOIN, None, TIMEOUT_S))
    await door.handler.has_handled(1)
    await door.server.stop()
    with pytest.raises(Unavailable):
        await call
    await client.close()
