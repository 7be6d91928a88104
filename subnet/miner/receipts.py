"""The miner's proof of its pay: every verdict with the place in the journal where it stands.

Law: one JSON line per verdict, written before the next exchange, never rewritten. A line that a kill tore in two is
skipped by the reader and does not spoil the line after it. A disk that is full stops nobody: the lines wait, and go out
in their order with the next ones. Reading needs nothing but the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import RawIOBase
from pathlib import Path

import msgspec
from loguru import logger
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
    """Appends to receipts.jsonl, or to `file`. While the disk takes nothing more, lines wait in memory."""

    def __init__(self, path: Path, file: RawIOBase | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file: RawIOBase = file or path.open("ab", buffering=0)
        torn = file is None and self._file.tell() > 0 and not path.read_bytes().endswith(b"\n")
        self._unwritten = b"\n" if torn else b""
        self._said = False

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
            self._unwritten += b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
            self._write()

    def _write(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not self._said:
                said = "receipts wait in memory; free space on its disk: credit is in the ledger either way"
                logger.warning("{}: {}; {}", self._path, error.strerror, said)
            self._said = True
        else:
            self._said = False

    def close(self) -> None:
        self._write()
        if self._unwritten:
            lost = self._unwritten.count(b"\n")
            logger.error("{}: {} receipts could not be written; the public journal holds them", self._path, lost)
        self._file.close()


def load_receipts(path: Path) -> list[ReceiptLine]:
    """All whole lines, in the order they came. A missing file is a miner without verdicts."""
    return parse_receipts(path.read_bytes()) if path.exists() else []


def parse_receipts(data: bytes) -> list[ReceiptLine]:
    """The same from a file's bytes."""
    decoder = msgspec.json.Decoder(ReceiptLine)
    lines = []
    for raw in data.split(b"\n"):
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
