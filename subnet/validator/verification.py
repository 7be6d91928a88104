"""Recomputes a run from its public journal, and compares it with everything else that is known of the run.

Law: what the journal says is compared with what follows from it, with the chain, with what validators saw there and
with a miner's receipts; nothing is believed because the orchestrator says so. A journal that breaks ends it: what
follows from its records is worth nothing then.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from subnet.chain.base import Chain
from subnet.coordination import invariants
from subnet.coordination.answers import Answers
from subnet.coordination.machine import Decision
from subnet.coordination.state import State
from subnet.errors import PeerFault
from subnet.protocol.ids import Digest
from subnet.protocol.messages import Envelope
from subnet.protocol.reasons import Reason
from subnet.transport.base import JournalReader
from subnet.validator import chain_view
from subnet.validator.anchors import Anchors
from subnet.validator.chain_weights import check_weights
from subnet.validator.checks import Check
from subnet.validator.follower import Follower
from subnet.validator.weight_reports import WeightReports


class Receipts(Protocol):
    """A miner's receipts beside the journal: `miner.proofs`."""

    difference: str | None

    def note(self, index: int, head: Digest, envelope: Envelope, decision: Decision | None) -> None: ...

    def note_sealed(self, heads: Iterable[tuple[int, Digest]]) -> None: ...

    def result(self, journal_index: int, state: State) -> str: ...


class Verification:
    """Follows one journal to its end and collects what is wrong."""

    def __init__(
        self,
        reader: JournalReader,
        receipts: Receipts | None = None,
        chain: Chain | None = None,
        seen: Anchors | None = None,
    ) -> None:
        """`chain` is asked where it is given, and `seen` compared, the anchors that a validator saw."""
        self.follower = Follower(reader, self._watch)
        self._reader, self._answers, self._reports = reader, Answers(), WeightReports()
        self._receipts = receipts
        self._records, self._chain, self._seen = chain_view.ChainRecords(), chain, seen

    async def run(self) -> list[Check]:
        """Read all there is. A journal that breaks ends it: what follows from its records is worth nothing then.

        Raises Unavailable when the chain does not answer.
        """
        follower = self.follower
        follower.seek(line.head for line in self._anchors_seen().seen)
        if self._chain is not None and (anchor := await chain_view.commitment(self._chain)) is not None:
            follower.seek([anchor.head])
        try:
            await follower.catch_up()
            checks = [Check("journal", True, self._extent()), self._own_records(), _sound(follower.run)]
            checks.append(await self._weights())
            if self._receipts is not None:
                self._receipts.note_sealed(follower.sealed())
                said = self._receipts.result(follower.journal_index, follower.run)
                checks.append(Check("receipts", self._receipts.difference is None, said))
            return [*checks, *await self._on_chain()]
        except PeerFault as fault:
            return [Check("journal", False, f"{fault}; the records before it hold")]

    async def _on_chain(self) -> list[Check]:
        records, chain = self._records, self._chain
        if chain is None and self._seen is None and not records.anchored:
            return []
        checks = [await chain_view.check_anchors(records, self.follower, self._anchors_seen(), chain)]
        if chain is not None:
            checks.append(await chain_view.check_draws(records, chain))
            checks.append(await check_weights(self._reports, records.newest_block, chain))
        return checks

    def _anchors_seen(self) -> Anchors:
        return self._seen or Anchors((), 0)

    def _watch(self, index: int, envelope: Envelope, decision: Decision | None) -> None:
        self._answers.note(index, envelope, decision)
        self._reports.note(index, envelope, decision)
        self._records.note(index, envelope, self.follower)
        if self._receipts is not None:
            self._receipts.note(index, self.follower.head, envelope, decision)

    def _extent(self) -> str:
        follower = self.follower
        said = f"{follower.index + 1} records chained and recomputed, head {follower.head}"
        if not follower.caught_up:
            said += f"; {follower.journal_index - follower.index} more are sealed: heads only"
        return said

    def _own_records(self) -> Check:
        answers = self._answers
        said = f"{answers.count} answers of the orchestrator, each to a question of the rules"
        return Check("own records", answers.difference is None, answers.difference or said)

    async def _weights(self) -> Check:
        reports, name = self._reports, "weights"
        if reports.count:
            again = Follower(self._reader, lambda index, *_: reports.compare(index, again.head, again.run))
            await again.catch_up()
        elif reports.difference is None:
            return Check(name, None, "no validator has reported any")
        return Check(name, reports.difference is None, reports.difference or reports.sentence())


def _sound(state: State) -> Check:
    first = next(invariants.broken(state), None)
    hotkeys = {hotkey for credits in state.ledger.epochs.values() for hotkey in credits}
    said = f"{state.completed} micro-batches, {len(hotkeys)} hotkeys with credit, stages at epochs "
    said += ", ".join(str(stage.epoch) for stage in state.stages)
    if strange := state.outcomes.get(f"rejected/{Reason.NEVER_GIVEN}", 0):
        said += f"; {strange} results for work that the draws gave to nobody"
    return Check("state", first is None, first or said)
