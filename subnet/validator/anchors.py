"""The owner's commitments as this validator saw them on the chain, kept, and compared with the journal it follows.

Law: what the owner told the chain cannot be taken back, so the head in it must be one of this journal's. A commitment
comes before the journal says so and reading lags, so a head is missing only once the journal was read after the
commitment was seen. Until one of this run's is known, what stands there may be left over from the run before.
Afterwards a head that is missing, or not where it was, breaks the journal. The file is only ever added to; its last
line may be torn.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
from loguru import logger
from msgspec import Struct

from subnet.chain.base import Chain
from subnet.errors import ConfigError
from subnet.protocol.anchor import Anchor, decode
from subnet.protocol.ids import Digest, Epoch, Hotkey, RunId
from subnet.validator.follower import Follower

ANCHORS_FILE = "anchors.jsonl"
EVERY_S = 12.0
"""About a block of a public network: nothing is committed faster."""
FILE_BYTES_MAX = 16 << 20
"""Read of a file, from its end; an anchor takes some 300 bytes."""


class SeenAnchor(Struct, frozen=True, kw_only=True):
    """One line of the file."""

    at: float
    """When it was seen, unix time in seconds."""
    block: int
    """The newest block that this validator had looked at then."""
    owner: Hotkey
    """Whose commitment it was."""
    epoch: Epoch
    head: Digest
    run_id: RunId | None = None
    """The run whose journal it was compared with; None: not compared yet."""
    index: int | None = None
    """The record after which that journal had the head; None: it did not have it."""


class Anchors(NamedTuple):
    """What a file holds."""

    seen: tuple[SeenAnchor, ...]
    unreadable: int
    """Lines that are no anchors, torn ones left aside."""


def load_anchors(path: Path) -> Anchors:
    """The newest lines of a file; a missing one holds none. Raises OSError."""
    if not path.exists():
        return Anchors((), 0)
    with path.open("rb") as file:
        start = max(0, file.seek(0, 2) - FILE_BYTES_MAX)
        file.seek(start)
        lines = file.read(FILE_BYTES_MAX).split(b"\n")
    decoder = msgspec.json.Decoder(SeenAnchor)
    seen, unreadable = [], 0
    for line in lines[1:] if start else lines:
        try:
            seen.append(decoder.decode(line))
        except msgspec.ValidationError:
            unreadable += 1
        except (msgspec.DecodeError, UnicodeError):
            continue  # empty, or torn by a kill
    return Anchors(tuple(seen), unreadable)


class _Waiting(NamedTuple):
    """Seen on the chain, not in the journal yet."""

    line: SeenAnchor
    pages: int
    """How often the journal had been read then."""
    is_first: bool
    """Whether no anchor of this run was known then: it may be the run before's."""


class AnchorWatch:
    """One validator's. `path` is its `ANCHORS_FILE`; made before `follower` reads anything."""

    def __init__(self, chain: Chain, path: Path, follower: Follower) -> None:
        """Raises ConfigError when the file cannot be read."""
        self._chain, self._path, self._follower = chain, path, follower
        try:
            before = load_anchors(path).seen
        except OSError as error:
            raise ConfigError("--work-dir", f"{path}: {error.strerror}", "name a folder that can be used") from None
        follower.seek(line.head for line in before)
        self._written = {line.head for line in before}
        self._unchecked = [line for line in before if line.index is not None]
        self._kept: set[Digest] = set()
        """Anchored heads that this journal has."""
        self._waiting: dict[Digest, _Waiting] = {}
        self._current: Digest | None = None
        self._next_at = 0.0

    async def look(self, owner: Hotkey, block: int, now: float) -> bool:
        """Compare with what is known of the journal, and ask the chain if it is time: whether it was asked.

        Raises JournalBroken; Unavailable when the chain does not answer.
        """
        run_id = self._follower.run.spec.run_id
        self._check_kept(run_id)
        if now < self._next_at:
            self._check_waiting(run_id)
            return False
        anchor = decode(await self._chain.commitment(owner))
        self._next_at = now + EVERY_S
        self._current = None if anchor is None else anchor.head
        if anchor is not None and anchor.head not in self._kept and anchor.head not in self._waiting:
            self._see(anchor, owner, block, now)
        self._check_waiting(run_id)
        return True

    def _see(self, anchor: Anchor, owner: Hotkey, block: int, now: float) -> None:
        line = SeenAnchor(at=now, block=block, owner=owner, epoch=anchor.epoch, head=anchor.head)
        self._follower.seek([anchor.head])
        self._waiting[anchor.head] = _Waiting(line, self._follower.pages, not self._kept and not self._unchecked)
        if anchor.head not in self._written:
            self._write(line)

    def _check_kept(self, run_id: RunId) -> None:
        """What an earlier process found in this run's journal must be there still."""
        follower, left = self._follower, []
        for line in self._unchecked:
            if line.run_id != run_id or line.index is None:
                continue
            if line.index >= follower.shown and not follower.lacks(line.head):
                left.append(line)
            elif follower.index_of(line.head) != line.index:
                raise follower.contradicted(line.index, f"it had the head {line.head}, which the owner anchored")
            else:
                self._kept.add(line.head)
        self._unchecked = left

    def _check_waiting(self, run_id: RunId) -> None:
        follower = self._follower
        for head, (line, pages, is_first) in list(self._waiting.items()):
            index = follower.index_of(head)
            if index is not None:
                del self._waiting[head]
                if head not in self._kept:
                    self._kept.add(head)
                    self._write(msgspec.structs.replace(line, run_id=run_id, index=index))
                    logger.info("the owner anchored the head after record {}; {} epochs closed", index, line.epoch)
            elif is_first and head != self._current:
                del self._waiting[head]  # the run before's: this one has replaced it
            elif not is_first and follower.pages > pages and follower.lacks(head):
                self._write(msgspec.structs.replace(line, run_id=run_id))
                said = f"the owner anchored the head {head} after {line.epoch} epochs, and no record has it"
                raise follower.contradicted(follower.journal_index + 1, said)

    def _write(self, line: SeenAnchor) -> None:
        """A disk that is full costs the line, not the validator."""
        self._written.add(line.head)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab+") as file:
                if file.tell() > 0:
                    file.seek(-1, 2)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write(msgspec.json.encode(line) + b"\n")
        except OSError as error:
            logger.warning("an anchor could not be kept in {}: {}", self._path, error.strerror)
