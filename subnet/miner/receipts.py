"""The miner's proof of its pay: every verdict with the place in the journal where it stands.

Law: one JSON line per verdict, flushed before the next exchange, never rewritten. A line that a kill tore in two is
skipped by the reader and does not spoil the line after it. Reading needs nothing but the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from subnet.protocol.ids import Digest, Epoch, ItemId, RunId, Stage
from subnet.protocol.messages import Receipt, Verdict
from subnet.protocol.reasons import Reason

RECEIPTS_FILE = "receipts.jsonl"


class ReceiptLine(Struct, frozen=True, kw_only=True):
    """What became of one result, and the journal entry that says so."""

    run_id: RunId
    stage: Stage
    epoch: Epoch
    """The miner's own epoch when the verdict came; the ledger's may be later, for credit of work in flight."""
    item: ItemId
    outcome: str
    reason: Reason
    sentence: str
    work_units: float
    journal_index: int | None
    """None where the reply carried no receipt."""
    head: Digest | None
    """Head of the journal's chain after that entry."""


class ReceiptBook:
    """Appends to receipts.jsonl."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("ab")
        if self._file.tell() > 0 and not path.read_bytes().endswith(b"\n"):
            self._file.write(b"\n")

    def append(
        self, run_id: RunId, stage: Stage, epoch: Epoch, verdicts: Sequence[Verdict], receipt: Receipt | None
    ) -> None:
        """Write down the verdicts of one reply."""
        lines = [
            ReceiptLine(
                run_id=run_id,
                stage=stage,
                epoch=epoch,
                item=verdict.item,
                outcome=verdict.outcome,
                reason=verdict.reason,
                sentence=verdict.sentence,
                work_units=verdict.work_units,
                journal_index=None if receipt is None else receipt.journal_index,
                head=None if receipt is None else receipt.head,
            )
            for verdict in verdicts
        ]
        if lines:
            self._file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def load_receipts(path: Path) -> list[ReceiptLine]:
    """All whole lines, in the order they came. A missing file is a miner without verdicts."""
    if not path.exists():
        return []
    decoder = msgspec.json.Decoder(ReceiptLine)
    lines = []
    for raw in path.read_bytes().split(b"\n"):
        try:
            lines.append(decoder.decode(raw))
        except msgspec.ValidationError:
            raise  # a whole line, but not one of ours
        except msgspec.DecodeError:
            continue  # empty, or torn by a kill
    return lines


def credited(receipts: Iterable[ReceiptLine]) -> dict[ItemId, float]:
    """Work units per item, each counted once. Where the first reply was lost, the second says what it was worth."""
    units: dict[ItemId, float] = {}
    for line in receipts:
        if (line.outcome == "applied" or line.reason is Reason.DUPLICATE) and line.work_units > 0:
            units[line.item] = max(line.work_units, units.get(line.item, 0.0))
    return units
