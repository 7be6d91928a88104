"""A run's state from its journal, by way of the newest snapshot; and the snapshots that make the way short.

    journal 0 ...................... s ............ n        restored = fold(state at s, records s+1 to n)
                                     └ snapshot: state and publication after record s

Law: the journal decides. A snapshot counts only if the journal has its very head at its index and the same code made
it; one that is of other code, of another journal, or cannot be read is passed over with one line, and at worst the
whole journal is folded. Encoding happens between two records, so a snapshot is never of half a decision; packing and
writing go on beside the work, and a snapshot that cannot be written costs a line.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Coroutine
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from loguru import logger
from msgspec import Struct

from subnet import coordination
from subnet.coordination import machine
from subnet.coordination.notices import finished
from subnet.coordination.state import State
from subnet.errors import InvariantViolation, Unavailable
from subnet.orchestrator.publication import Publication, Published, live_secret
from subnet.protocol.ids import Digest
from subnet.protocol.messages import Envelope
from subnet.runtime import Runtime
from subnet.storage.base import Journal, Snapshot, Snapshots

SNAPSHOT_EVERY = 10_000
"""Records: what a restart has to fold, at most, and a little more while a snapshot is on its way."""
KEPT = 2
"""The newest one may be of a record that a power cut took."""
SAID_EVERY = 100_000
"""Records of a long fold between two lines about it."""
_PAGE = 1000
_PACKED = 1
"""Level of zlib: States repeat their field names, so the fastest one does nearly all that there is to do."""
_FOLDING = ("protocol", "coordination", "merging", "scoring")
"""The folders whose code decides what a journal leads to, and what a State looks like."""


class _Saved(Struct):
    """A snapshot's body, packed."""

    state: State
    published: Published


class Restored(NamedTuple):
    """Where a journal has led to."""

    state: State
    publication: Publication
    snapshot_index: int
    """Of the last record that was not folded now; -1: all were."""
    replayed: int
    """Records that were."""

    @property
    def sentence(self) -> str:
        """For the operator."""
        where = f"the snapshot of record {self.snapshot_index:,}" if self.snapshot_index >= 0 else "no snapshot"
        return f"{where}, and {self.replayed:,} records folded"


# ---- reading ---------------------------------------------------------------------------------------------------------


async def restore(journal: Journal, snapshots: Snapshots | None = None) -> Restored | None:
    """Fold a journal page by page, from a snapshot on where there is one; None when it is empty. Raises Unavailable."""
    last = await journal.last()
    if last is None:
        return None
    saved = await _newest(journal, snapshots, last.index) if snapshots is not None else None
    state, publication = (saved.state, Publication(saved.published)) if saved is not None else (None, Publication())
    first = publication.at.index + 1
    decode, start = msgspec.json.Decoder(Envelope).decode, first
    while page := await journal.read(start, _PAGE):
        for record in page:
            envelope = decode(record.body)
            if state is None:
                state = machine.open_run(envelope)
            else:
                machine.handle(state, envelope)
            publication.note(record, envelope.message, live_secret(state), finished(state))
        start = page[-1].index + 1
        if (start - first) % SAID_EVERY == 0:
            logger.info("{:,} of {:,} records folded", start, last.index + 1)
    if state is None:
        raise InvariantViolation("a journal that has a last record has no first one")
    return Restored(state, publication, first - 1, start - first)


async def _newest(journal: Journal, snapshots: Snapshots, index: int) -> _Saved | None:
    while (snapshot := await snapshots.newest(index)) is not None:
        saved = await _read(journal, snapshot)
        if isinstance(saved, _Saved):
            return saved
        logger.warning("the snapshot of record {:,} is passed over: {}", snapshot.index, saved)
        index = snapshot.index - 1
    return None


async def _read(journal: Journal, snapshot: Snapshot) -> _Saved | str:
    """What is in it, or why it does not count."""
    if snapshot.rules != rules_digest():
        return "other code made it, which may decide otherwise"
    records = await journal.read(snapshot.index, 1)
    if not records or (records[0].index, records[0].head) != (snapshot.index, snapshot.head):
        return "the journal has another head there"
    try:
        saved = msgspec.msgpack.decode(zlib.decompress(snapshot.body), type=_Saved)
    except (zlib.error, msgspec.MsgspecError) as error:
        return f"it cannot be read ({error})"
    if (saved.published.index, saved.published.head) != (snapshot.index, snapshot.head):
        return "it is of another record than it says"
    return saved


@cache
def rules_digest() -> Digest:
    """Of the sources that a fold depends on. Another version of msgspec or Python does not fold otherwise."""
    root = Path(coordination.__path__[0]).parent
    files = sorted(path for folder in _FOLDING for path in (root / folder).rglob("*.py"))
    files += [path for path in (root / "orchestrator" / "publication.py", Path(__file__)) if files]
    if not files:
        raise InvariantViolation(f"no sources lie below {root}, so snapshots cannot say which code made them")
    parts = (part for path in files for part in (str(path.relative_to(root)).encode(), path.read_bytes()))
    return Digest(hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest())


# ---- writing ---------------------------------------------------------------------------------------------------------


class Snapshooter:
    """Of one process. `at` is the index that the newest snapshot reaches to, as far as is known."""

    def __init__(self, snapshots: Snapshots, runtime: Runtime, every: int, at: int) -> None:
        self._snapshots, self._runtime, self._every, self._at = snapshots, runtime, every, at
        self._writing = asyncio.Lock()

    def is_due(self, index: int) -> bool:
        return index - self._at >= self._every and not self._writing.locked()

    def take(self, state: State, publication: Publication) -> Coroutine[Any, Any, None]:
        """Encode at once, between two records; what is returned packs that off the loop and writes it."""
        at = publication.at
        self._at = at.index
        return self._put(msgspec.msgpack.encode(_Saved(state, at)), at)

    async def _put(self, encoded: bytes, at: Published) -> None:
        async with self._writing:
            body = await self._runtime.run_blocking(lambda: zlib.compress(encoded, _PACKED))
            try:
                await self._snapshots.put(Snapshot(at.index, at.head, rules_digest(), body), KEPT)
            except Unavailable as error:
                logger.warning("no snapshot of record {:,}: {}; a restart folds from an older one", at.index, error)
                return
            logger.debug("snapshot of record {:,}: {:,} bytes, packed from {:,}", at.index, len(body), len(encoded))
