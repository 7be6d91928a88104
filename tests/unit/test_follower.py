"""A validator reads an orchestrator's journal: what it believes, and what it finds out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.coordination import machine
from subnet.errors import Unavailable
from subnet.orchestrator.publication import Publication
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.keys import Kind, make
from subnet.protocol.public import PublicPage, PublicRecord, opened, sealed
from subnet.simulation.opening import text_spec
from subnet.storage.base import GENESIS_HEAD, JournalRecord, next_head
from subnet.storage.memory import MemoryJournal
from subnet.validator import follower as module
from subnet.validator.follower import Follower, JournalBroken

HOST, ALICE = Hotkey("orchestrator"), Hotkey("alice")
SPEC, _ = text_spec(
    presets.equivalence(presets.Size(num_miners=2, num_stages=2, epochs=2)),
    np.zeros(2_000, np.uint16),
    num_stages=2,
    micro_batch_size=2,
    seq_len=16,
)
START = m.Source(key=make(SPEC.run_id, 0, 0, "start", Kind.PARAMETERS), digest=Digest("a" * 64), size_bytes=1)
OPENING = m.RunOpened(
    spec=SPEC, starts=(m.StageStart(parameters=START, momentum=START),) * 2, evaluators=(), target_epochs=0
)
JOIN = m.Join(session="s", device="cpu", software="test")
EXCHANGE = m.Exchange(session="s", free_slots=1, holding=(), results=())
Bend = Callable[[PublicPage], PublicPage]


def secret(epoch: int) -> m.SecretDrawn:
    return m.SecretDrawn(epoch=epoch, secret=f"{epoch:064x}")


class Orchestrator:
    """A journal that is written by hand and published by the rules; `bend` is what it does to its pages."""

    def __init__(self) -> None:
        self.journal, self.publication = MemoryJournal(), Publication()
        self.bend: Bend = lambda page: page
        self.reads: list[int] = []
        self.away = self.finished = False
        self.at, self.secret = 1_000.0, ""

    async def say(self, *messages: m.Message | m.OwnRecord, sender: Hotkey | None = None) -> JournalRecord:
        for message in messages:
            own = not isinstance(message, m.Join | m.Exchange)
            self.at += 1.0
            entry = m.Envelope(sender=sender or (HOST if own else ALICE), at=self.at, message=message)
            record = await self.write(msgspec.json.encode(entry), message)
        return record

    async def write(self, body: bytes, message: Any = None) -> JournalRecord:
        (record,) = await self.journal.append([body])
        self.secret = getattr(message, "secret", self.secret)
        self.publication.note(record, message, self.secret, self.finished)
        return record

    async def read(self, start: int, limit: int, timeout_s: float) -> PublicPage:
        if self.away:
            raise Unavailable("the line is dead")
        self.reads.append(start)
        return self.bend(await self.publication.page(self.journal, start, limit))

    async def close(self) -> None: ...


@pytest.fixture
async def host() -> Orchestrator:
    """A run in its first epoch: records 0 and 1 are open, 2 is the live secret."""
    host = Orchestrator()
    await host.say(OPENING, m.Tick(), secret(0), m.Registered(hotkeys=(ALICE,)), JOIN, EXCHANGE)
    return host


def change(page: PublicPage, index: int, **fields: Any) -> PublicPage:
    """The page with one record changed."""
    records = [msgspec.structs.replace(r, **fields) if r.index == index else r for r in page.records]
    return msgspec.structs.replace(page, records=tuple(records))


async def broken(follower: Follower) -> JournalBroken:
    with pytest.raises(JournalBroken) as found:
        await follower.catch_up()
    with pytest.raises(JournalBroken) as again:
        await follower.catch_up()
    assert again.value is found.value is follower.broken
    return found.value


# ---- what is believed ------------------------------------------------------------------------------------------------


async def test_the_state_is_the_fold_of_what_is_open(host: Orchestrator) -> None:
    """1. A validator comes to a run in its first epoch, reads the opening and the heads of the rest; an epoch later
    the rest opens, and its state is that of anyone who reads the same journal."""
    follower = Follower(host)
    assert await follower.catch_up() == 2 and follower.run.registered == set()
    assert (follower.index, follower.journal_index, follower.caught_up) == (1, 5, False)
    records = await host.journal.read(0, 100)
    assert list(follower.sealed()) == [(r.index, r.head) for r in records[2:]]
    assert await follower.catch_up() == 0
    await host.say(EXCHANGE, secret(1), EXCHANGE)
    assert await follower.catch_up() == 5 and follower.run.registered == {ALICE}
    host.finished = True
    await host.say(m.Tick())
    assert await follower.catch_up() == 3 and follower.caught_up and list(follower.sealed()) == []
    records = await host.journal.read(0, 100)
    assert (follower.index, follower.head, follower.owner) == (9, records[-1].head, HOST)
    whole = machine.replay(msgspec.json.decode(r.body, type=m.Envelope) for r in records)
    assert msgspec.msgpack.encode(follower.run) == msgspec.msgpack.encode(whole)


async def test_a_poll_without_news_is_one_small_request(host: Orchestrator) -> None:
    """2. Nothing new is open: each poll asks once, behind what it knows already."""
    follower = Follower(host)
    await follower.catch_up()
    host.reads.clear()
    for _ in range(3):
        await follower.catch_up()
    assert host.reads == [6, 6, 6]


async def test_a_dead_line_costs_nothing(host: Orchestrator) -> None:
    """3. The line dies between two pages: what was read stays, and reading goes on where it was."""
    await host.say(*[EXCHANGE] * 1_200, secret(1))
    follower, pages = Follower(host), iter([False, True, False, False, False])
    true_read = host.read

    async def read(start: int, limit: int, timeout_s: float) -> PublicPage:
        host.away = next(pages)
        return await true_read(start, limit, timeout_s)

    host.read = read  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await follower.catch_up()
    assert follower.index == 999
    assert await follower.catch_up() == 206 and host.reads[:2] == [0, 1000]


async def test_every_record_is_watched_once(host: Orchestrator) -> None:
    """4. Somebody looks over the validator's shoulder: each open record, in order, with what followed from it."""
    seen: list[tuple[int, str, bool]] = []
    await host.say(secret(1))
    await Follower(host, lambda i, e, d: seen.append((i, type(e.message).__name__, d is None))).catch_up()
    assert seen[:2] == [(0, "RunOpened", True), (1, "Tick", False)] and [index for index, _, _ in seen] == [*range(6)]


async def test_an_orchestrator_that_forgot_what_is_open(host: Orchestrator) -> None:
    """5. Started again, it seals for a moment what it had opened before; that is no lie."""
    await host.say(secret(1), EXCHANGE)
    follower = Follower(host)
    await follower.catch_up()
    host.bend = lambda page: msgspec.structs.replace(page, sealed_from=0, records=tuple(map(closed, page.records)))
    assert await follower.catch_up() == 0
    host.bend = lambda page: page
    await host.say(secret(2))
    assert await follower.catch_up() == 2


def closed(record: PublicRecord) -> PublicRecord:
    return sealed(record.index, Digest(record.head))


# ---- what is found out -----------------------------------------------------------------------------------------------


async def test_one_changed_body(host: Orchestrator) -> None:
    """6. The orchestrator changes one value in a record of before: that record is named, and it stays named."""
    await host.say(secret(1))
    host.bend = lambda page: change(page, 3, raw=msgspec.Raw(bytes(page.records[3].raw).replace(b"alice", b"mally")))
    follower = Follower(host)
    found = await broken(follower)
    assert found.index == 3 and str(found).startswith("journal record 3: ") and follower.index == 2
    host.bend = lambda page: page
    await broken(follower)


async def test_a_sealed_record_opens_as_another(host: Orchestrator) -> None:
    """7. While an epoch runs, its records are heads. When they open, one was exchanged for another and the chain made
    anew from there: the chain holds, but it is not the chain that was shown."""
    follower = Follower(host)
    await follower.catch_up()
    forged = Orchestrator()
    await forged.say(OPENING, m.Tick(), secret(0), m.Registered(hotkeys=(ALICE,)), JOIN)
    await forged.say(msgspec.structs.replace(EXCHANGE, free_slots=2), secret(1))
    await Follower(forged).catch_up()
    host.publication, host.journal = forged.publication, forged.journal
    assert (await broken(follower)).index == 5


async def test_a_signed_receipt_says_otherwise(host: Orchestrator) -> None:
    """8. The orchestrator shows this validator another journal than the one it signs receipts from."""
    (record,) = await host.journal.read(5, 1)
    told, lied = m.Receipt(journal_index=5, head=record.head), m.Receipt(journal_index=5, head=Digest("b" * 64))
    follower = Follower(host)
    follower.expect(told)
    await follower.catch_up()
    follower.expect(told)
    with pytest.raises(JournalBroken, match="journal record 5: a signed receipt"):
        follower.expect(lied)
    early = Follower(host)
    early.expect(lied)
    assert (await broken(early)).index == 5
    await host.say(secret(1))
    late = Follower(host)
    await late.catch_up()
    late.expect(told)
    with pytest.raises(JournalBroken, match="journal record 5: a signed receipt"):
        late.expect(lied)


async def test_receipts_older_than_what_is_kept(host: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> None:
    """9. A receipt from long ago cannot be compared any more: it proves nothing either way."""
    monkeypatch.setattr(module, "FOLDED_KEPT", 2)
    await host.say(secret(1))
    follower = Follower(host)
    await follower.catch_up()
    follower.expect(m.Receipt(journal_index=0, head=Digest("b" * 64)))
    with pytest.raises(JournalBroken):
        follower.expect(m.Receipt(journal_index=4, head=Digest("b" * 64)))


BENT: dict[str, tuple[int, Bend]] = {
    "a body is withheld": (1, lambda p: change(p, 1, raw=msgspec.Raw(b"null"))),
    "a record is left out": (1, lambda p: msgspec.structs.replace(p, records=p.records[:1] + p.records[2:])),
    "all are left out": (0, lambda p: msgspec.structs.replace(p, records=())),
    "a head is changed": (1, lambda p: change(p, 1, head="b" * 64)),
    "the newest head is another": (6, lambda p: msgspec.structs.replace(p, head="b" * 64)),
    "more records than there are": (4, lambda p: msgspec.structs.replace(p, index=3)),
    "a body that is no entry": (0, lambda p: change(p, 0, raw=msgspec.Raw(b"[1]"), head=head_of(b"[1]"))),
    "a page from elsewhere": (0, lambda p: msgspec.structs.replace(p, records=p.records[1:])),
}


def head_of(body: bytes) -> Digest:
    return next_head(GENESIS_HEAD, 0, body)


@pytest.mark.parametrize("what", BENT)
async def test_a_page_that_lies(host: Orchestrator, what: str) -> None:
    """10. Whatever an orchestrator leaves out or puts in: the first record it concerns is named."""
    index, host.bend = BENT[what]
    await host.say(secret(1))
    assert (await broken(Follower(host))).index == index


async def test_a_journal_that_became_shorter(host: Orchestrator) -> None:
    """11. The orchestrator goes back to a copy of yesterday, as if the day had not been."""
    follower = Follower(host)
    await follower.catch_up()
    await host.say(EXCHANGE)
    await follower.catch_up()
    host.bend = lambda page: msgspec.structs.replace(page, index=4, records=page.records[:0])
    assert (await broken(follower)).index == 5


@pytest.mark.parametrize(
    ("message", "sender"),
    [
        (m.Registered(hotkeys=()), ALICE),  # a miner speaks as the orchestrator
        (OPENING, HOST),
        (m.ShardRecomputed(stage=7, epoch=0, shard=0, source=None), HOST),
    ],
)
async def test_records_that_the_rules_do_not_allow(host: Orchestrator, message: m.OwnRecord, sender: Hotkey) -> None:
    """12. The chain holds, but no honest orchestrator writes that: named, not crashed on."""
    await host.say(message, sender=sender)
    await host.say(secret(1))
    assert (await broken(Follower(host))).index == 6


async def test_time_that_runs_backwards(host: Orchestrator) -> None:
    """13. A record is dated before the one in front of it, to make a result look in time."""
    host.at -= 3.0
    await host.say(EXCHANGE, secret(1))
    assert (await broken(Follower(host))).index == 6


async def test_a_claim_of_endless_records(host: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> None:
    """14. An orchestrator shows heads without end, and says all is open although there is no more: memory stays
    bounded, reading comes to its end."""
    monkeypatch.setattr(module, "SEALED_MAX", 2_000)
    (first,) = await host.journal.read(0, 1)

    def endless(page: PublicPage) -> PublicPage:
        start = host.reads[-1]
        records = [sealed(index, Digest(f"{index:064x}")) for index in range(start, start + 1000)]
        if start == 0:
            records[0] = opened(*first)
        return PublicPage(records=tuple(records), sealed_from=1, head="c" * 64, index=10**9)

    host.bend = endless
    follower = Follower(host)
    assert await follower.catch_up() == 1 and len(list(follower.sealed())) < 3_001
    honest = Orchestrator()
    await honest.say(OPENING, m.Tick(), secret(0))
    honest.bend = lambda page: msgspec.structs.replace(page, sealed_from=10**9, records=page.records[:2])
    assert (await broken(Follower(honest))).index == 2


# ---- heads from elsewhere --------------------------------------------------------------------------------------------


async def test_a_head_that_is_looked_for(host: Orchestrator) -> None:
    """15. Somebody saw a head on chain: the journal is asked for it before it was read, while its record is sealed, and
    long after. One that it never shows is missing for certain as soon as all heads were shown, not before."""
    records = await host.journal.read(0, 100)
    follower, never = Follower(host), Digest("b" * 64)
    follower.seek([records[1].head, records[4].head, never])
    assert not follower.lacks(never) and follower.index_of(records[1].head) is None
    await follower.catch_up()
    assert [follower.index_of(record.head) for record in (records[1], records[4])] == [1, 4] and follower.index == 1
    assert follower.lacks(never) and not follower.lacks(records[4].head) and not follower.lacks(Digest("c" * 64))
    assert follower.shown == 6 and follower.head_at(4) == records[4].head and follower.head_at(6) is None
    await host.say(secret(1))
    later = (await host.journal.read(0, 100))[6]
    await follower.catch_up()
    follower.seek([later.head, records[3].head])
    assert follower.index_of(later.head) == 6 and follower.index_of(records[3].head) == 3
    assert follower.head_at(3) == records[3].head


async def test_a_head_of_long_ago(host: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> None:
    """16. Old heads are not kept: that one is not found among the others proves nothing, unless it was looked for from
    the first record on."""
    monkeypatch.setattr(module, "FOLDED_KEPT", 2)
    await host.say(secret(1))
    records = await host.journal.read(0, 100)
    follower, early = Follower(host), Follower(host)
    early.seek([records[0].head, Digest("b" * 64)])
    for one in (follower, early):
        await one.catch_up()
    follower.seek([records[0].head, records[5].head])
    assert follower.index_of(records[0].head) is None and not follower.lacks(records[0].head)
    assert follower.index_of(records[5].head) == 5 and follower.head_at(0) is None
    assert early.index_of(records[0].head) == 0 and early.lacks(Digest("b" * 64))
