"""A miner's disk takes nothing more."""

from __future__ import annotations

import errno
import os
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from subnet.errors import ConfigError
from subnet.miner.receipts import ReceiptBook, parse_receipts
from subnet.protocol.ids import Epoch, ItemId, RunId, Stage
from subnet.protocol.messages import Verdict
from subnet.protocol.reasons import Reason
from subnet.simulation.storms import Storm, names_of, run_seed

if TYPE_CHECKING:
    from conftest import World


class Tight(RawIOBase):
    """A disk with `room` bytes left."""

    def __init__(self, room: int) -> None:
        self.room, self.held = room, b""

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")
        taken = bytes(data)[: self.room]
        self.room, self.held = self.room - len(taken), self.held + taken
        return len(taken)


def note(book: ReceiptBook, *numbers: int) -> None:
    for number in numbers:
        item = ItemId(f"f{number}.0.0")
        said = Verdict(item=item, outcome="applied", reason=Reason.OK, sentence="credited", work_units=1.0)
        book.append(RunId("run"), Stage(0), Epoch(0), (said,), None)


def test_receipts_wait_until_there_is_room(tmp_path: Path) -> None:
    """1. The disk is full in the middle of a line; somebody deletes a film: every receipt is there, whole, in order."""
    disk = Tight(300)
    book = ReceiptBook(tmp_path / "receipts", disk)
    note(book, 0, 1, 2, 3)
    assert len(disk.held) == 300 and len(parse_receipts(disk.held)) < 4
    disk.room = 10_000
    note(book, 4)
    assert [line.item for line in parse_receipts(disk.held)] == [f"f{number}.0.0" for number in range(5)]
    disk.room = 0
    note(book, 5)
    disk.room = 10_000
    book.close()
    assert len(parse_receipts(disk.held)) == 6


@pytest.mark.looptime
async def test_a_miner_whose_disk_is_full_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """2. There is no room for the text: the miner ends with one line that names the file and the remedy."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/miner/text.partial")

    def refuse(*_: object) -> None:
        raise full

    monkeypatch.setattr("subnet.transport.transfer._append", refuse)
    with pytest.raises(ConfigError, match="--work-dir: /data/miner/text.partial: No space left.*free space"):
        await world.miner.run()


def test_states_that_cannot_be_kept() -> None:
    """3. Audits are on and states do not fit the disk: the miner ends, its work goes to others, and it comes back."""
    outcome = run_seed(5, "full-disk", count=6)
    assert Storm(5, names_of("full-disk")).outcome.audited
    assert outcome.broken == "" and outcome.reasons["miner's operator: config error"]
