"""Recomputes a run from its public journal and names the first difference: `python -m subnet.verify`.

    --orchestrator URL            the journal an orchestrator publishes; --save FILE keeps what it showed
    --journal FILE                a saved journal, or an orchestrator's journal.sqlite
    --receipts DIR                the folder of a miner's receipts.jsonl, to compare with either
    --network N --netuid N        the chain: what is anchored there, the weights that stand, the blocks that drew audits
    --anchors DIR                 the work folder of a validator, which keeps the anchors that it saw

Exit codes: 0 all checks hold, 1 one does not, 2 the operator must act (one line says how). A journal whose end was cut
off looks whole by itself: the owner's commitment on chain tells, or the head of a receipt or of another reader.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
from msgspec import Meta, Raw

from subnet import config
from subnet.chain.base import Chain
from subnet.chain.subtensor import SubtensorChain
from subnet.config import Config, JournalFile, Netuid, Network, OrchestratorUrl
from subnet.errors import ConfigError, PeerFault, Unavailable
from subnet.miner.proofs import Proofs
from subnet.miner.receipts import RECEIPTS_FILE, load_receipts
from subnet.protocol.public import PublicPage, PublicRecord
from subnet.runtime import Runtime, SystemRuntime
from subnet.storage.journal_files import as_line, open_journal
from subnet.transport.base import JournalReader
from subnet.transport.http_client import HttpJournalReader, HttpSession, read_status
from subnet.validator import public_view
from subnet.validator.anchors import ANCHORS_FILE, Anchors, load_anchors
from subnet.validator.checks import Check, table
from subnet.validator.follower import Follower
from subnet.validator.verification import Verification

PROGRAM = "python -m subnet.verify"
TRIES = 30
"""For one page; a second apart. A busy orchestrator tells readers to come again."""
WAIT_S = 1.0
VIEWS = 5
"""Tries to read the status page and the journal up to the same record."""
CHAIN_PATIENCE_S = 10.0


class VerifyConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.verify`: recompute everything a run decided from its public journal."""

    orchestrator: OrchestratorUrl = ""
    journal: JournalFile = ""
    receipts: Annotated[
        str, Meta(description="folder of a miner's receipts.jsonl to compare with it", extra={"metavar": "DIR"})
    ] = ""
    save: Annotated[str, Meta(description="keep the public journal in this file", extra={"metavar": "FILE"})] = ""
    network: Network = ""
    netuid: Netuid = -1
    anchors: Annotated[
        str, Meta(description="work folder of a validator, whose anchors.jsonl to compare", extra={"metavar": "DIR"})
    ] = ""

    def __post_init__(self) -> None:
        if not (self.orchestrator or self.journal):
            raise ConfigError("--orchestrator", "is missing", "name an orchestrator, or a file with --journal")
        if self.save and self.journal:
            raise ConfigError("--save", "a journal in a file is saved already", "leave out one of --save and --journal")
        if self.netuid >= 0 and not self.network:
            remedy = f"name the chain of subnet {self.netuid}: finney, test, or a node's ws:// URL"
            raise ConfigError("--network", "is missing", remedy)


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


async def verify(settings: VerifyConfig, runtime: Runtime, chain: Chain | None = None) -> list[Check]:
    """All checks there is something for; `chain` stands in for the one that the settings name. Raises ConfigError."""
    receipts, seen = _receipts(settings.receipts), _anchors(settings.anchors)
    if chain is None and settings.netuid >= 0:
        chain = SubtensorChain(settings.network, settings.netuid, None, runtime, patience_s=CHAIN_PATIENCE_S)
    try:
        if isinstance(chain, SubtensorChain):
            await chain.check()
        checks = await _read(settings, runtime, receipts, chain, seen)
    except Unavailable as error:
        raise ConfigError("--network", str(error), "name a node that is up, or leave out --netuid") from None
    finally:
        if chain is not None:
            await chain.close()
    if settings.network and chain is None:
        checks.append(Check("chain", None, f"not compared with {settings.network}: give --netuid too"))
    return checks


async def _read(
    settings: VerifyConfig,
    runtime: Runtime,
    receipts: Proofs | None,
    chain: Chain | None,
    seen: Anchors | None,
) -> list[Check]:
    if settings.journal:
        file = open_journal(settings.journal)
        try:
            return await Verification(file, receipts, chain, seen).run()
        finally:
            await file.close()
    url = settings.orchestrator
    await _view(url)
    reader: JournalReader = Patient(url, runtime)
    if settings.save:
        reader = _saving(reader, settings.save)
    try:
        verification = Verification(reader, receipts, chain, seen)
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


def _receipts(folder: str) -> Proofs | None:
    if not folder:
        return None
    path, remedy = Path(folder).expanduser() / RECEIPTS_FILE, f"name a folder with a miner's {RECEIPTS_FILE}"
    try:
        lines = load_receipts(path)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError("--receipts", f"{path}: {error}", remedy) from None
    if not lines:
        raise ConfigError("--receipts", f"{path} holds no receipt", remedy)
    return Proofs(lines)


def _anchors(folder: str) -> Anchors | None:
    if not folder:
        return None
    path, remedy = Path(folder).expanduser() / ANCHORS_FILE, f"name a validator's work folder, with {ANCHORS_FILE}"
    try:
        found = load_anchors(path)
    except OSError as error:
        raise ConfigError("--anchors", f"{path}: {error.strerror}", remedy) from None
    if not found.seen:
        raise ConfigError("--anchors", f"{path} holds no anchor", remedy)
    return found


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
