"""A miner's receipts beside the journal: was each result written down, and was it judged as the miner was told?

Law: pure. A receipt names a record, its head, one result in it and the verdict; all of it must be what the journal
holds and what the rules make of it. Where the record is sealed still, only the head can be compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from subnet.coordination.machine import Decision
from subnet.coordination.state import State
from subnet.miner.receipts import ReceiptLine, credited
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.messages import Envelope, Exchange, ExchangeReply, RunOpened


class Proofs:
    """Fed with every record in order; receipts of other runs are left aside."""

    def __init__(self, lines: Sequence[ReceiptLine]) -> None:
        self.difference: str | None = None
        """The first one, by record."""
        self.hotkey: Hotkey | None = None
        """Whose receipts they are, as the journal says."""
        self._all, self._of_run, self._sealed = lines, 0, 0
        self._open: defaultdict[int, list[ReceiptLine]] = defaultdict(list)
        self._good: list[ReceiptLine] = []

    def note(self, index: int, head: Digest, envelope: Envelope, decision: Decision | None) -> None:
        """One open record."""
        message = envelope.message
        if isinstance(message, RunOpened):
            for line in self._all:
                if line.run_id == message.spec.run_id and line.journal_index is not None:
                    self._open[line.journal_index].append(line)
                    self._of_run += 1
        for line in self._open.pop(index, ()):
            wrong = _wrong_head(line, head) or self._wrong(line, envelope, decision)
            if wrong is None:
                self._good.append(line)
            else:
                self._differ(f"record {index}: {wrong}")

    def note_sealed(self, heads: Iterable[tuple[int, Digest]]) -> None:
        """What is known of the records after the open ones."""
        for index, head in heads:
            for line in self._open.pop(index, ()):
                self._sealed += 1
                if wrong := _wrong_head(line, head):
                    self._differ(f"record {index}: {wrong}")

    def result(self, journal_index: int, state: State) -> str:
        """In words, when the whole journal was noted; `difference` says whether it is good."""
        for index in sorted(self._open):
            item = self._open[index][0].item
            self._differ(f"record {index} is missing: {item} was receipted there, the journal ends at {journal_index}")
        if not self._of_run:
            self._differ(f"none of {len(self._all)} receipts is of run {state.spec.run_id}")
        if self.difference is not None:
            return self.difference
        said = f"{len(self._good)} of {self._of_run} receipts are in the journal as they say"
        if self._sealed:
            said += f", {self._sealed} are in sealed records with the right head"
        if self.hotkey is not None:
            units, total = sum(credited(self._good).values()), state.ledger.total(self.hotkey)
            said += f"; {units:.4f} work units receipted, {total:.4f} in the ledger of {self.hotkey}"
            if units > total + 1e-6:
                said += " (credit of outputs that turned out bad was taken back)"
        return said

    def _wrong(self, line: ReceiptLine, envelope: Envelope, decision: Decision | None) -> str | None:
        message, reply = envelope.message, None if decision is None else decision.reply
        if not isinstance(message, Exchange) or all(result.item != line.item for result in message.results):
            return f"it holds no result for {line.item}, which was receipted there"
        if self.hotkey not in (None, envelope.sender):
            return f"it is of {envelope.sender}, earlier receipts are of {self.hotkey}"
        self.hotkey = envelope.sender
        verdicts = reply.verdicts if isinstance(reply, ExchangeReply) else ()
        told = (line.outcome, str(line.reason), line.work_units)
        found = [(v.outcome, str(v.reason), v.work_units) for v in verdicts if v.item == line.item]
        if told not in found:
            rules = " or ".join(map(_words, found)) or "nothing"
            return f"{line.item} was receipted as {_words(told)}, the rules say {rules}"
        return None

    def _differ(self, sentence: str) -> None:
        self.difference = self.difference or sentence


def _wrong_head(line: ReceiptLine, head: Digest) -> str | None:
    return None if line.head == head else f"its head is {head}, the receipt of {line.item} names {line.head}"


def _words(verdict: tuple[str, str, float]) -> str:
    outcome, reason, work_units = verdict
    return f"{outcome}/{reason} for {work_units:g}"
