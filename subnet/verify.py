"""Recomputes a run from its public journal and names the first difference: `python -m subnet.verify`.

    --orchestrator URL            the journal an orchestrator publishes; --save FILE keeps what it showed
    --journal FILE                a saved journal, or an orchestrator's journal.sqlite
    --receipts DIR                the folder of a miner's receipts.jsonl, to compare with either

Exit codes: 0 all checks hold, 1 one does not, 2 the operator must act (one line says how). A journal whose end was cut
off looks whole: compare the head that is printed with one kept elsewhere (a receipt, another reader's, the chain's).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import msgspec
from msgspec import Meta, Raw

from subnet import config
from subnet.config import Config, JournalFile, OrchestratorUrl
from subnet.coordination import invariants
from subnet.coordination.answers import Answers
from subnet.coordination.machine import Decision
from subnet.coordination.state import State
from subnet.errors import ConfigError, PeerFault, Unavailable
from subnet.miner.proofs import Proofs
from subnet.miner.receipts import RECEIPTS_FILE, ReceiptLine, load_receipts
from subnet.protocol.messages import Envelope
from subnet.protocol.public import PublicPage, PublicRecord
from subnet.protocol.reasons import Reason
from subnet.runtime import Runtime, SystemRuntime
from subnet.storage.journal_files import as_line, open_journal
from subnet.transport.base import JournalReader
from subnet.transport.http_client import HttpJournalReader, HttpSession, read_status
from subnet.validator import public_view
from subnet.validator.follower import Follower
from subnet.validator.weight_reports import WeightReports

PROGRAM = "python -m subnet.verify"
TRIES = 30
"""For one page; a second apart. A busy orchestrator tells readers to come again."""
WAIT_S = 1.0
VIEWS = 5
"""Tries to read the status page and the journal up to the same record."""


class VerifyConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.verify`: recompute everything a run decided from its public journal."""

    orchestrator: OrchestratorUrl = ""
    journal: JournalFile = ""
    receipts: Annotated[
        str, Meta(description="folder of a miner's receipts.jsonl to compare with it", extra={"metavar": "DIR"})
    ] = ""
    save: Annotated[str, Meta(description="keep the public journal in this file", extra={"metavar": "FILE"})] = ""

    def __post_init__(self) -> None:
        if not (self.orchestrator or self.journal):
            raise ConfigError("--orchestrator", "is missing", "name an orchestrator, or a file with --journal")
        if self.save and self.journal:
            raise ConfigError("--save", "a journal in a file is saved already", "leave out one of --save and --journal")


# ---- what is checked -------------------------------------------------------------------------------------------------


class Check(NamedTuple):
    """One row of the answer."""

    name: str
    holds: bool | None
    """None: there was nothing to compare with."""
    sentence: str


class Verification:
    """Follows one journal to its end and collects what is wrong."""

    def __init__(self, reader: JournalReader, receipts: Sequence[ReceiptLine] | None = None) -> None:
        self.follower = Follower(reader, self._watch)
        self._reader, self._answers, self._reports = reader, Answers(), WeightReports()
        self._proofs = None if receipts is None else Proofs(receipts)

    async def run(self) -> list[Check]:
        """Read all there is. A journal that breaks ends it: what follows from its records is worth nothing then."""
        follower = self.follower
        try:
            await follower.catch_up()
            state = follower.run
            checks = [Check("journal", True, self._extent()), self._own_records(), _sound(state), await self._weights()]
        except PeerFault as fault:
            return [Check("journal", False, f"{fault}; the records before it hold")]
        if self._proofs is not None:
            self._proofs.note_sealed(follower.sealed())
            said = self._proofs.result(follower.journal_index, state)
            checks.append(Check("receipts", self._proofs.difference is None, said))
        return checks

    def _watch(self, index: int, envelope: Envelope, decision: Decision | None) -> None:
        self._answers.note(index, envelope, decision)
        self._reports.note(index, envelope, decision)
        if self._proofs is not None:
            self._proofs.note(index, self.follower.head, envelope, decision)

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
        said = f"{reports.count} settings of {len(reports.validators)} validators, all equal to the recomputed ones"
        return Check(name, reports.difference is None, reports.difference or said)


def _sound(state: State) -> Check:
    first = next(invariants.broken(state), None)
    hotkeys = {hotkey for credits in state.ledger.epochs.values() for hotkey in credits}
    said = f"{state.completed} micro-batches, {len(hotkeys)} hotkeys with credit, stages at epochs "
    said += ", ".join(str(stage.epoch) for stage in state.stages)
    if strange := state.outcomes.get(f"rejected/{Reason.NEVER_GIVEN}", 0):
        said += f"; {strange} results for work that the draws gave to nobody"
    return Check("state", first is None, first or said)


def table(checks: Sequence[Check]) -> str:
    """For the terminal: one line per check."""
    words = {True: "OK", False: "FAIL", None: "-"}
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{check.name:<{width}}  {words[check.holds]:<4}  {check.sentence}" for check in checks)


# ---- an orchestrator's journal ---------------------------------------------------------------------------------------


class Patient:
    """Asks an orchestrator again when it says to wait. Raises ConfigError when there is no answer at all."""

    def __init__(self, url: str, runtime: Runtime) -> None:
        self._reader = HttpJournalReader(HttpSession(), url)
        self._url, self._runtime = url, runtime

    async def read(self, start: int, limit: int, timeout_s: float) -> PublicPage:
        for left in reversed(range(TRIES)):
            try:
                return await self._reader.read(start, limit, timeout_s)
            except Unavailable as error:
                if not left:
                    raise ConfigError("--orchestrator", f"{self._url}: {error}", "is it running? Try later") from None
                await self._runtime.sleep(WAIT_S)
        raise AssertionError("TRIES is at least 1")

    async def close(self) -> None:
        await self._reader.close()


class Saving:
    """Writes down what it reads: every open record as it was shown, good or not, then the heads of the sealed ones."""

    def __init__(self, reader: JournalReader, file: BinaryIO) -> None:
        self._reader, self._file = reader, file
        self._written = 0
        self._sealed: dict[int, PublicRecord] = {}

    async def read(self, start: int, limit: int, timeout_s: float) -> PublicPage:
        page = await self._reader.read(start, limit, timeout_s)
        for record in page.records:
            if record.index == self._written and record.body is not None:
                self._file.write(as_line(record))
                self._written += 1
                self._sealed.pop(record.index, None)
            elif record.index >= self._written:
                self._sealed[record.index] = msgspec.structs.replace(record, raw=Raw(b"null"))
        return page

    async def close(self) -> None:
        await self._reader.close()
        for index in sorted(self._sealed):
            self._file.write(as_line(self._sealed[index]))
        self._file.close()


# ---- the command -----------------------------------------------------------------------------------------------------


async def verify(settings: VerifyConfig, runtime: Runtime) -> list[Check]:
    """All checks there is something for. Raises ConfigError."""
    receipts = _receipts(settings.receipts)
    if settings.journal:
        file = open_journal(settings.journal)
        try:
            return await Verification(file, receipts).run()
        finally:
            await file.close()
    url = settings.orchestrator
    await _view(url)
    reader: JournalReader = Patient(url, runtime)
    if settings.save:
        reader = _saving(reader, settings.save)
    try:
        verification = Verification(reader, receipts)
        checks = await verification.run()
        if verification.follower.caught_up and verification.follower.broken is None:
            checks.append(await _public_view(url, verification.follower))
        return checks
    finally:
        await reader.close()


async def _public_view(url: str, follower: Follower) -> Check:
    """The status page is of one record: the newest one, which may have followers by the time it is read."""
    for _ in range(VIEWS):
        view = await _view(url)
        try:
            await follower.catch_up()
        except PeerFault as fault:
            return Check("public view", False, str(fault))
        holds, said = public_view.compare(view, follower)
        if holds is not None:
            break
    return Check("public view", holds, said)


async def _view(url: str) -> Any:
    """The orchestrator's public status."""
    try:
        return msgspec.json.decode(await read_status(url))
    except (Unavailable, PeerFault, msgspec.MsgspecError) as error:
        raise ConfigError("--orchestrator", f"{url}: {error}", "name the address of a running orchestrator") from None


def _saving(reader: JournalReader, path: str) -> Saving:
    try:
        return Saving(reader, Path(path).expanduser().open("wb"))
    except OSError as error:
        raise ConfigError("--save", f"{path}: {error.strerror}", "name a file that can be written") from None


def _receipts(folder: str) -> list[ReceiptLine] | None:
    if not folder:
        return None
    path, remedy = Path(folder).expanduser() / RECEIPTS_FILE, f"name a folder with a miner's {RECEIPTS_FILE}"
    try:
        lines = load_receipts(path)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError("--receipts", f"{path}: {error}", remedy) from None
    if not lines:
        raise ConfigError("--receipts", f"{path} holds no receipt", remedy)
    return lines


def main(argv: Sequence[str]) -> int:
    with config.one_line_errors():
        settings = config.parse(VerifyConfig, argv, PROGRAM)
        try:
            checks = asyncio.run(verify(settings, SystemRuntime()))
        except KeyboardInterrupt:
            return 130
    sys.stdout.write(f"{table(checks)}\n")
    return 1 if any(check.holds is False for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
