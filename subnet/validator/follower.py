"""Follows the public journal: verifies the chain record by record and folds what is open into the run's state.

Law: nothing is believed. Every head is recomputed from the body; every head that was shown for a sealed record, and
every one that a signed receipt names, is kept until the body opens and must then be the same. Heads that come from
elsewhere, such as the chain's commitments, are looked for while it reads. The first record that
breaks any of this is named, and from then on this journal is not followed any more. The state is a function of the
records alone, so whoever follows one journal arrives at the same state.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import get_args

import msgspec

from subnet.coordination import machine
from subnet.coordination.state import State
from subnet.errors import PeerFault
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.messages import Envelope, OwnRecord, Receipt
from subnet.protocol.public import PAGE_RECORDS_MAX, PublicPage, PublicRecord
from subnet.protocol.reasons import Reason
from subnet.storage.base import GENESIS_HEAD, next_head
from subnet.transport.base import JournalReader

READ_TIMEOUT_S = 30.0
SEALED_MAX = 1_000_000
"""Heads kept of records that are still sealed; beyond it, reading waits until some open."""
FOLDED_KEPT = 100_000
"""Heads kept of records that were folded, for receipts and anchors that come late."""
_BREATH_RECORDS = 100
"""Records folded before the loop's other tasks get a turn."""
_OWN = get_args(OwnRecord)

Watch = Callable[[int, Envelope, machine.Decision | None], None]
"""Called after each record: its index, what it says, and what followed (None for the first)."""


class JournalBroken(PeerFault):
    """The journal contradicts itself, a receipt, or what it showed before; `index` is the first record that does."""

    def __init__(self, index: int, sentence: str) -> None:
        super().__init__(Reason.BAD_DIGEST, f"journal record {index}: {sentence}", str(index))
        self.index = index


class Follower:
    """One journal, read from its beginning. `watch` sees every record that was folded."""

    def __init__(self, reader: JournalReader, watch: Watch | None = None) -> None:
        self.state: State | None = None
        """After record `index`; None before the first one."""
        self.index, self.head = -1, GENESIS_HEAD
        """The last record that was folded, and the chain's head after it."""
        self.journal_index = -1
        """The newest record the journal spoke of, sealed or not."""
        self.owner: Hotkey | None = None
        """The orchestrator: who opened the run, and who alone may write own records."""
        self.broken: JournalBroken | None = None
        """Once set, nothing is read any more, and `state` is of no use: its last record may be half in it."""
        self.pages = 0
        """How often the journal was read."""
        self._reader, self._watch = reader, watch
        self._decode = msgspec.json.Decoder(Envelope).decode
        self._open_to = self._seen = 0
        self._promised: dict[int, Digest] = {}
        self._folded: deque[Digest] = deque(maxlen=FOLDED_KEPT)
        self._sought: dict[Digest, int | None] = {}
        self._uncertain: set[Digest] = set()

    @property
    def run(self) -> State:
        """The state. Raises PeerFault while nothing is open."""
        if self.state is None:
            raise PeerFault(Reason.MALFORMED, "the journal shows no record yet")
        return self.state

    @property
    def caught_up(self) -> bool:
        """Whether the whole journal, as far as it was last seen, is in the state: nothing is sealed."""
        return self.index == self.journal_index >= 0

    def sealed(self) -> Iterator[tuple[int, Digest]]:
        """Heads of the records that are not open yet, in their order."""
        return ((index, self._promised[index]) for index in range(self.index + 1, self._seen))

    @property
    def shown(self) -> int:
        """How many records' heads the journal has shown, from its first one on."""
        return self._seen

    async def catch_up(self) -> int:
        """Read on until nothing new is open; how many records were folded.

        Raises JournalBroken, now and at every later call; Unavailable when the journal is away: what was read stays.
        """
        before = self.index
        while await self._step():
            pass
        return self.index - before

    def expect(self, receipt: Receipt) -> None:
        """A signed reply says what the head is at an index. Raises JournalBroken where the journal says otherwise."""
        index, head = receipt.journal_index, receipt.head
        if index > self.index:
            self._promised.setdefault(index, head)
        if self.head_at(index) not in (None, head):
            raise self.contradicted(index, "a signed receipt names another head")

    # ---- heads from elsewhere ----------------------------------------------------------------------------------------

    def head_at(self, index: int) -> Digest | None:
        """The head after a record; None where none was shown, or it is no longer kept."""
        back = self.index - index + 1
        if back < 1:
            return self._promised.get(index)
        return self._folded[-back] if back <= len(self._folded) else None

    def seek(self, heads: Iterable[Digest]) -> None:
        """Look out for these heads from now on, and among those that are kept."""
        new = {head for head in heads if head not in self._sought}
        if not new:
            return
        self._sought |= dict.fromkeys(new)
        if self.index + 1 > len(self._folded):
            self._uncertain |= new
        first = self.index + 1 - len(self._folded)
        for index, head in [*enumerate(self._folded, first), *self._promised.items()]:
            if head in new:
                self._sought[head] = index

    def index_of(self, head: Digest) -> int | None:
        """The record after which the journal had a head that is sought; None where it has not shown it."""
        return self._sought.get(head)

    def lacks(self, head: Digest) -> bool:
        """Whether it is certain that the journal, as far as it was last seen, never had a head that is sought."""
        known = self._seen > self.journal_index >= 0 and head in self._sought and head not in self._uncertain
        return known and self._sought[head] is None

    # ---- one page ----------------------------------------------------------------------------------------------------

    async def _step(self) -> bool:
        """Read one page; whether there is more to read at once."""
        if self.broken is not None:
            raise self.broken
        next_open = self.index + 1
        start = next_open if next_open < max(self._open_to, 1) else max(self._seen, next_open)
        page = await self._reader.read(start, PAGE_RECORDS_MAX, READ_TIMEOUT_S)
        self.pages += 1
        self._check_page(page, start)
        for count, record in enumerate(page.records, 1):
            self._take(record, page)
            if count % _BREATH_RECORDS == 0:
                await asyncio.sleep(0)
        self._open_to = min(page.sealed_from, page.index + 1)
        more_open = self.index + 1 < self._open_to
        return more_open or (self._seen <= page.index and self._seen - self.index < SEALED_MAX)

    def _check_page(self, page: PublicPage, start: int) -> None:
        """That it is the page asked for, of a journal that has not become shorter."""
        if page.index < self.journal_index:
            said = f"it is gone; the journal had {self.journal_index + 1} records before"
            raise self.contradicted(page.index + 1, said)
        self.journal_index = page.index
        if start <= page.index and not page.records:
            raise self.contradicted(start, f"it is withheld; the journal says it has {page.index + 1} records")
        for index, record in enumerate(page.records, start):
            if record.index != index or index > page.index:
                raise self.contradicted(index, f"record {record.index} stands in its place")

    def _take(self, record: PublicRecord, page: PublicPage) -> None:
        """Compare the head with every earlier promise; fold the record when it is the next open one."""
        index, head = record.index, Digest(record.head)
        if index > self.index and self._promised.setdefault(index, head) != head:
            raise self.contradicted(index, "its head is another one than was shown or receipted before")
        if index == page.index and head != page.head:
            raise self.contradicted(index, "its head is not the journal's newest head")
        self._seen = max(self._seen, index + 1)
        if head in self._sought:
            self._sought[head] = index
        body = record.body
        if body is None and index < page.sealed_from:
            raise self.contradicted(index, "its body is withheld, although it is open")
        if body is not None and index == self.index + 1:
            self._fold(index, head, body)

    def _fold(self, index: int, head: Digest, body: bytes) -> None:
        if next_head(self.head, index, body) != head:
            raise self.contradicted(index, "its head does not follow from its body and the head before")
        try:
            envelope = self._decode(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise self.contradicted(index, f"it is no entry of a journal: {error}") from None
        decision = self._handle(index, envelope)
        self.index, self.head = index, head
        self._folded.append(self._promised.pop(index))
        if self._watch is not None:
            self._watch(index, envelope, decision)

    def _handle(self, index: int, envelope: Envelope) -> machine.Decision | None:
        own = isinstance(envelope.message, _OWN)
        if own and self.owner not in (None, envelope.sender):
            raise self.contradicted(index, f"{envelope.sender} speaks as the orchestrator, who is {self.owner}")
        try:
            if self.state is None:
                self.state = machine.open_run(envelope)
                self.owner = envelope.sender
                return None
            return machine.handle(self.state, envelope)
        except Exception as error:
            # the machine trusts the orchestrator's own records, we do not: whatever they make it do is their fault
            raise self.contradicted(index, f"the rules cannot follow it ({type(error).__name__}: {error})") from error

    def contradicted(self, index: int, sentence: str) -> JournalBroken:
        """To be raised: from now on this journal is not followed any more."""
        self.broken = JournalBroken(index, sentence)
        return self.broken
