"""An orchestrator that moved, over real HTTP: what a neuron has open to it goes along, and nothing else does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from subnet.errors import Unavailable
from subnet.protocol.ids import Hotkey, RunId
from subnet.protocol.keys import Kind, make
from subnet.protocol.messages import Join, Noted
from subnet.protocol.public import PublicPage
from subnet.storage.memory import MemoryObjectStore
from subnet.transport.http_client import discover
from subnet.transport.rendezvous import ByUrl, Found, Lines

TIMEOUT_S = 20.0
JOIN = Join(session="s1", device="cpu", software="test")
RUN = RunId("run")
PAGE = PublicPage(records=(), sealed_from=0, head="0" * 64, index=-1)


async def page(start: int, limit: int) -> bytes:
    return msgspec.json.encode(PAGE)


@pytest.fixture
async def lines_to(keys: Callable[[str], Any], runtime: Any) -> AsyncIterator[Callable[..., Lines]]:
    """Lines of a miner to a door; closed after the test."""
    made: list[Lines] = []

    def open_lines(door: Any, *known: str) -> Lines:
        door.handler.journal = page
        found = Found(door.url, RUN, Hotkey(door.handler.orchestrator), (door.url, *known))
        made.append(Lines(found, keys("Miner"), runtime))
        return made[-1]

    yield open_lines
    for lines in made:
        await lines.close()


async def test_everything_goes_along(
    clock: Any, open_door: Callable[..., Awaitable[Any]], lines_to: Callable[..., Lines]
) -> None:
    """1. The owner starts the orchestrator at another address and shuts the old one. Calls, the journal, and objects
    that were granted under the old address are there again; a store that is no orchestrator's stays where it is."""
    store = MemoryObjectStore(clock)
    key, other = make(RUN, 0, 0, "p", Kind.DATA), make(RUN, 0, 0, "q", Kind.DATA)
    await store.put(key, b"data")
    old = await open_door(store)
    reading, writing = store.grant_get(key, clock() + 60), store.grant_put(other, 4, clock() + 60)
    lines = lines_to(old)
    assert isinstance(await lines.control.call(JOIN, None, TIMEOUT_S), Noted) and lines.answers
    new = await open_door(store)
    new.handler.journal = page
    await old.server.stop()
    for ask in (
        lambda: lines.control.call(JOIN, None, TIMEOUT_S),
        lambda: lines.journal.read(0, 1, TIMEOUT_S),
        lambda: lines.objects.get(reading, 0, 4, TIMEOUT_S),
    ):
        with pytest.raises(Unavailable):
            await ask()
    assert not lines.answers
    lines.move(f"{new.url}/", (old.url, new.url))
    assert isinstance(await lines.control.call(JOIN, None, TIMEOUT_S), Noted) and lines.answers
    assert await lines.journal.read(0, 1, TIMEOUT_S) == PAGE
    assert await lines.objects.get(reading, 0, 4, TIMEOUT_S) == b"data"
    await lines.objects.put(writing, b"more", TIMEOUT_S)
    assert await store.get(other) == b"more"
    with pytest.raises(Unavailable):
        await lines.objects.get(f"http://127.0.0.1:1/objects/{key}", 0, 4, TIMEOUT_S)


async def test_the_address_that_answers_serves_the_objects_too(
    clock: Any, open_door: Callable[..., Awaitable[Any]], lines_to: Callable[..., Lines]
) -> None:
    """2. Two addresses are published and only the second answers from here. Grants name the first one, which the
    orchestrator prefers: they are good at the second."""
    store = MemoryObjectStore(clock)
    door = await open_door(store)
    key = make(RUN, 0, 0, "p", Kind.DATA)
    await store.put(key, b"data")
    store.base_url = "http://127.0.0.1:1"
    granted = store.grant_get(key, clock() + 60)
    assert granted.startswith("http://127.0.0.1:1/")
    assert await lines_to(door, "http://127.0.0.1:1").objects.get(granted, 0, 4, TIMEOUT_S) == b"data"


async def test_a_real_door_is_found(open_door: Callable[..., Awaitable[Any]], runtime: Any) -> None:
    """3. What a door says of itself is what a neuron finds."""
    door = await open_door()
    found = await ByUrl(door.url, runtime, discover=discover).find()
    assert found == Found(door.url, RUN, Hotkey(door.handler.orchestrator), (door.url,))
