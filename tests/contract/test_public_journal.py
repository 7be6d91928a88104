"""One suite for every reader of the public journal, in memory and over HTTP, and the door's own rules for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from subnet.errors import PeerFault, Unavailable
from subnet.protocol.ids import Digest
from subnet.protocol.public import PublicPage, opened, sealed
from subnet.protocol.reasons import Reason
from subnet.transport.base import JournalReader
from subnet.transport.http_client import HttpJournalReader
from subnet.transport.memory import MemoryJournalReader

TIMEOUT_S = 20.0
Open = Callable[..., Awaitable[Any]]
HEADS = [Digest(f"{number:064x}") for number in range(4)]
BODIES = [b'{"a":1.50,"b":"\\u00e9"}', '{"name":"Ærøskøbing","n":1e400}'.encode(), b'  {"spaced" :\t[ ] }'.strip()]
PAGE = PublicPage(
    records=(*(opened(index, HEADS[index], body) for index, body in enumerate(BODIES)), sealed(3, HEADS[3])),
    sealed_from=3,
    head=HEADS[3],
    index=3,
)


class Publisher:
    """The part of a handler that answers for the journal."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def journal(self, start: int, limit: int) -> bytes:
        self.asked.append((start, limit))
        await self.gate.wait()
        if self.away:
            raise Unavailable("the database is away")
        return msgspec.json.encode(PAGE)


@pytest.fixture
async def published(open_door: Open) -> tuple[Any, Publisher]:
    door, publisher = await open_door(), Publisher()
    door.handler.journal = publisher.journal
    return door, publisher


@pytest.fixture(params=["memory", "http"])
async def reader(request: pytest.FixtureRequest, published: tuple[Any, Publisher]) -> AsyncIterator[JournalReader]:
    door, publisher = published
    http = HttpJournalReader(door.session, door.url)
    yield http if request.param == "http" else MemoryJournalReader(publisher)
    await http.close()


async def test_a_body_arrives_as_it_was_hashed(reader: JournalReader, published: tuple[Any, Publisher]) -> None:
    """1. Bodies with any spelling of numbers and letters come byte for byte, sealed ones as their head alone."""
    page = await reader.read(0, 1000, TIMEOUT_S)
    assert [record.body for record in page.records] == [*BODIES, None]
    assert [record.head for record in page.records] == HEADS
    assert (page.sealed_from, page.index, page.head) == (3, 3, HEADS[3])
    await reader.read(17, 5, TIMEOUT_S)
    assert published[1].asked == [(0, 1000), (17, 5)]


async def test_a_journal_that_is_away(reader: JournalReader, published: tuple[Any, Publisher]) -> None:
    """2. The database restarts, or hangs: unavailable, to be asked again."""
    published[1].away = True
    with pytest.raises(Unavailable):
        await reader.read(0, 10, TIMEOUT_S)
    published[1].gate.clear()
    with pytest.raises(Unavailable, match="no answer within"):
        await reader.read(0, 10, 0.05)
    published[1].gate.set()


async def get(door: Any, query: str) -> tuple[int, str]:
    async with door.session.open().get(f"{door.url}/v1/journal{query}") as answer:
        return answer.status, (await answer.read()).decode()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?start=-1", "start=-1"),
        ("?start=x", "start=x"),
        ("?start=", "start="),
        ("?start=1e3", "start=1e3"),
        ("?start=" + "9" * 400, "whole numbers"),
        ("?limit=0", "limit must be from 1 to 1000, not 0"),
        ("?limit=1001", "limit must be from 1 to 1000, not 1001"),
        ("?stop=4", "stop=4"),
        ("?start=0&limit=5&", "start=N&limit=M"),
    ],
)
async def test_bad_numbers(published: tuple[Any, Publisher], query: str, said: str) -> None:
    """3. A script asks for record minus one: it reads in one line what to write instead; nothing else happens."""
    status, text = await get(published[0], query)
    assert status == 400 and said in text and text.count("\n") == 0 and len(text) < 500
    assert published[1].asked == []


async def test_what_is_left_out_has_a_default(published: tuple[Any, Publisher]) -> None:
    """4. Somebody opens the page in a browser; another asks for a record that does not exist yet."""
    for query in ("", "?start=5", "?limit=7", "?limit=7&start=999999999999999"):
        assert (await get(published[0], query))[0] == 200
    assert published[1].asked == [(0, 1000), (5, 1000), (0, 7), (999_999_999_999_999, 7)]


async def test_a_reader_in_a_hurry(open_door: Open, clock: Any) -> None:
    """5. A crawler asks without pause: told to wait, and served again a second later; a polite reader asks again."""
    door, publisher = await open_door(address_rate_per_s=1, address_burst=2), Publisher()
    door.handler.journal = publisher.journal
    assert [(await get(door, ""))[0] for _ in range(4)] == [200, 200, 429, 429]
    reader = HttpJournalReader(door.session, door.url)
    with pytest.raises(Unavailable, match="429"):
        await reader.read(0, 10, TIMEOUT_S)
    clock.advance(1)
    await reader.read(0, 10, TIMEOUT_S)
    assert len(publisher.asked) == 3 and door.handler.refused == []
    await reader.close()
    with pytest.raises(Unavailable, match="closed"):
        await reader.read(0, 10, TIMEOUT_S)


async def test_a_crowd_of_readers(published: tuple[Any, Publisher]) -> None:
    """6. Forty validators ask at the same moment: some pages are made, the others are asked for again; the server
    never holds more than a few in memory."""
    door, publisher = published
    publisher.gate.clear()
    asking = [asyncio.create_task(get(door, "")) for _ in range(40)]
    done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED, timeout=TIMEOUT_S)
    while len(done) < 32:
        done, waiting = await asyncio.wait(asking, timeout=0.01)
    assert {task.result()[0] for task in done} == {503} and len(waiting) == 8
    publisher.gate.set()
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 8
    assert (await get(door, ""))[0] == 200


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        b"<html>",
        msgspec.json.encode(PAGE).replace(HEADS[2].encode(), b"f" * 63),
        msgspec.json.encode(PAGE).replace(b'"index":3', b'"index":-3'),
        b'{"records":[' + b"[" * 100_000,
    ],
)
async def test_an_answer_that_is_no_page(published: tuple[Any, Publisher], answer: bytes) -> None:
    """7. Another program answers at that URL: its fault, in one line."""
    door = published[0]
    door.handler.journal = lambda start, limit: asyncio.sleep(0, answer)
    reader = HttpJournalReader(door.session, door.url)
    with pytest.raises(PeerFault, match="no page") as fault:
        await reader.read(0, 10, TIMEOUT_S)
    assert fault.value.code == Reason.MALFORMED
    await reader.close()
