"""What of the journal anyone may read, and when: never a live secret, nor what it decides, and everything else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.coordination.notices import finished
from subnet.orchestrator.publication import Publication, Published
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey
from subnet.protocol.public import PAGE_BYTES_MAX, PAGE_RECORDS_MAX, PublicPage
from subnet.storage.base import JournalRecord
from subnet.storage.memory import MemoryJournal

pytestmark = pytest.mark.looptime(end=3_600)
Host = Callable[..., Awaitable[Any]]

TICK, SECRET = m.Tick(), m.SecretDrawn(epoch=0, secret="5e" * 32)
UNASKED = m.SecretDrawn(epoch=0, secret="bb" * 32)
"""The state does not take it: the live one stays."""
NAMED = m.Refused(reason="malformed", claimed="x", sentence='says "secret-drawn"')


async def publish(*messages: m.OwnRecord, finished_at: Sequence[int] = ()) -> tuple[MemoryJournal, Publication]:
    """A journal of these messages and its publication; the run is finished after the records named."""
    journal, publication = MemoryJournal(), Publication()
    live = ""
    for message in messages:
        entry = m.Envelope(sender=Hotkey("orchestrator"), at=1.0, message=message)
        (record,) = await journal.append([msgspec.json.encode(entry)])
        live = SECRET.secret if message is SECRET else live
        publication.note(record, message, live, record.index in finished_at)
    return journal, publication


def shown(page: PublicPage) -> list[bool]:
    return [record.body is not None for record in page.records]


async def test_sealed_from_the_newest_secret_on() -> None:
    """1. Two secrets were drawn: what the first one decided is open, it too; the live one, and all after it, are
    heads that commit to what will be shown."""
    journal, publication = await publish(TICK, SECRET, TICK, NAMED, SECRET, TICK)
    page = await publication.page(journal, 0, 10)
    assert shown(page) == [True] * 4 + [False] * 2 and page.sealed_from == 4
    records = await journal.read(0, 10)
    assert [record.head for record in page.records] == [record.head for record in records]
    assert [record.body for record in page.records[:4]] == [record.body for record in records[:4]]
    assert (page.index, page.head) == (5, records[-1].head)
    unasked = (await publish(TICK, SECRET, TICK, UNASKED, TICK))[1]
    assert unasked.sealed_from == 1
    assert b"5e5e" not in msgspec.json.encode(await publication.page(journal, 2, 10))


async def test_nothing_is_open_before_the_first_secret() -> None:
    """2. The run has just been opened: the page says so, and an empty journal is an empty page."""
    assert (await Publication().page(MemoryJournal(), 0, 10)) == PublicPage(
        records=(), sealed_from=0, head="0" * 64, index=-1
    )
    journal, publication = await publish(TICK, TICK)
    assert shown(await publication.page(journal, 0, 9)) == [False, False]


async def test_a_finished_run_is_open_and_a_longer_one_seals_again() -> None:
    """3. The run ends and everything is open. The operator adds epochs: what was open stays open, what comes now is
    sealed until the next secret but one."""
    journal, publication = await publish(TICK, SECRET, TICK, TICK, TICK, finished_at=(2, 3))
    assert shown(await publication.page(journal, 0, 9)) == [True] * 4 + [False]
    journal, publication = await publish(TICK, SECRET, TICK, TICK, TICK, SECRET, TICK, finished_at=(2, 3))
    assert shown(await publication.page(journal, 0, 9)) == [True] * 5 + [False] * 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([TICK, SECRET, NAMED, UNASKED]), max_size=130), st.data())
async def test_a_new_process_goes_on_where_the_old_one_was(messages: list[m.OwnRecord], data: st.DataObject) -> None:
    """4. The orchestrator is killed at any point: the next process is told where the last one had come to, takes the
    records since then, and opens the same ones."""
    numbers = st.integers(0, len(messages))
    cut, finished_at = data.draw(numbers), sorted(data.draw(st.sets(numbers)))
    journal, whole = await publish(*messages, finished_at=finished_at)
    before = (await publish(*messages[:cut], finished_at=finished_at))[1]
    after = Publication(msgspec.msgpack.decode(msgspec.msgpack.encode(before.at), type=Published))
    for record in (await journal.read(0, 200))[cut:]:
        live = SECRET.secret if SECRET in messages[: record.index + 1] else ""
        after.note(record, messages[record.index], live, record.index in finished_at)
    for start in (0, len(messages) // 2):
        assert await after.page(journal, start, 200) == await whole.page(journal, start, 200)


async def test_a_secret_drawn_while_a_page_is_read() -> None:
    """5. While the page of a finished run is read, the run goes on and draws a secret: it is not in that page."""

    class Slow(MemoryJournal):
        async def read(self, start: int, limit: int) -> list[JournalRecord]:
            if start == 0:
                entry = m.Envelope(sender=Hotkey("orchestrator"), at=1.0, message=SECRET)
                (record,) = await self.append([msgspec.json.encode(entry)])
                publication.note(record, SECRET, SECRET.secret, False)
            return await super().read(start, limit)

    journal, publication = Slow(), Publication()
    for number in range(3):
        (record,) = await journal.append([b'"%d"' % number])
        publication.note(record, TICK, "", True)
    page = await publication.page(journal, 0, 9)
    assert shown(page) == [True] * 3 and (page.index, page.sealed_from) == (2, 3)
    assert shown(await publication.page(journal, 1, 9)) == [True, True, False]


async def test_pages_are_bounded() -> None:
    """6. A reader asks for everything at once: so many records, so many bytes; a record larger than a page comes
    alone, and whoever asks on from the last one gets all of them."""
    journal, publication = MemoryJournal(), Publication()
    bodies = [b'"%s"' % (b"x" * size) for size in [PAGE_BYTES_MAX + 9, *[400_000] * 25, *[1] * 1_500]]
    for record in await journal.append(bodies):
        publication.note(record, TICK, "", True)
    got: list[int] = []
    sizes: list[int] = []
    while len(got) < len(bodies):
        page = await publication.page(journal, len(got), 10_000)
        sizes.append(len(page.records))
        assert page.records and len(page.records) <= PAGE_RECORDS_MAX
        assert len(page.records) == 1 or sum(len(r.body or b"") for r in page.records) <= PAGE_BYTES_MAX
        got += [record.index for record in page.records]
    assert got == list(range(len(bodies))) and sizes == [1, 10, 10, PAGE_RECORDS_MAX, 505]
    assert (await publication.page(journal, 10**14, 10)).records == ()


async def test_a_live_service(host: Host) -> None:
    """7. Two miners train under the first secret: the page ends with the opening, and not one word of what they do is
    in it. Started again over its journal, the service shows the same."""
    run = await host()
    await run.join("one", "two")
    await run.exchange("one", free_slots=1)
    page = msgspec.json.decode(data := await run.service.journal(0, 1000), type=PublicPage)
    secrets = [index for index, message in enumerate(run.messages()) if isinstance(message, m.SecretDrawn)]
    assert page.sealed_from == secrets[-1] and shown(page).count(True) == page.sealed_from
    assert (page.index, page.head) == (len(run.records) - 1, run.records[-1].head)
    assert b"run-opened" in data and b"free_slots" not in data and run.state.secret().hex().encode() not in data
    await run.stop()
    await run.start()
    again = msgspec.json.decode(await run.service.journal(0, 1000), type=PublicPage)
    assert again.records[: page.sealed_from] == page.records[: page.sealed_from]
    assert run.state.secret().hex().encode() not in msgspec.json.encode(again)


async def test_a_page_waits_for_nobody(host: Host) -> None:
    """8. The disk stalls in the middle of an append: pages of what was decided before are served."""
    run = await host(journal=(journal := Gated()))
    journal.open.clear()
    joining = asyncio.create_task(run.join("one"))
    await asyncio.sleep(1.0)
    page = msgspec.json.decode(await run.service.journal(0, 1000), type=PublicPage)
    assert len(page.records) == page.index + 1 and not finished(run.state)
    journal.open.set()
    await joining


class Gated(MemoryJournal):
    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.open.set()

    async def append(self, bodies: Sequence[bytes]) -> list[JournalRecord]:
        await self.open.wait()
        return await super().append(bodies)
