"""Why a miner earns what it earns, from the public journal: `python -m subnet.explain --hotkey HK`.

    --hotkey HK                   address, a prefix of it that fits nobody else, or a local net's name such as miner-0
    --all                         a line for every hotkey instead
    --orchestrator URL            the journal an orchestrator publishes
    --journal FILE                a saved journal, or an orchestrator's journal.sqlite

Law: every figure is `coordination.settlement.sheet` of the journal's own fold, the very one that validators set weights
by; nothing is computed a second way, and nothing is believed that does not follow from the records. Zero pay is
explained as pay is: reason, sentence, remedy. Exit codes: 0 explained, 2 the operator must act (one line says how).
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from rich.console import Console

from subnet import config
from subnet.config import Config, JournalFile, OrchestratorUrl
from subnet.coordination.machine import Decision
from subnet.coordination.settlement import sheet
from subnet.errors import ConfigError, PeerFault, Unavailable
from subnet.localnet.folder import Participants
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Envelope
from subnet.runtime import Runtime, SystemRuntime
from subnet.storage.journal_files import open_journal
from subnet.transport.base import JournalReader
from subnet.transport.http_client import read_status
from subnet.validator.account import Fates, account, known_hotkeys
from subnet.validator.explanation import Source, everybody, explanation
from subnet.validator.follower import Follower
from subnet.validator.history import History
from subnet.verify import Patient

PROGRAM = "python -m subnet.explain"
PARTICIPANTS_FILE = "participants.json"
"""Beside the journal of a local net: who has which name."""
SHOWN_MAX = 5
PIPED_WIDTH = 1000
SHORT_LETTERS = 12
"""Of a hotkey on a terminal: enough to name it by."""
_ADDRESS = re.compile(r"[1-9A-HJ-NP-Za-km-z]{46,48}")


class ExplainConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.explain`: why a hotkey earns what it earns, is idle, or was refused."""

    hotkey: Annotated[
        str,
        Meta(
            description="hotkey to explain: its address, the beginning of it, or its name in a local net",
            extra={"metavar": "HK"},
        ),
    ] = ""
    all: Annotated[bool, Meta(description="a line for every hotkey")] = False
    orchestrator: OrchestratorUrl = ""
    journal: JournalFile = ""

    def __post_init__(self) -> None:
        if not (self.orchestrator or self.journal):
            raise ConfigError("--orchestrator", "is missing", "name an orchestrator, or a file with --journal")
        if bool(self.hotkey) == self.all:
            problem = "is missing" if not self.all else "does not go together with --all"
            raise ConfigError("--hotkey", problem, "name one hotkey, or give --all alone for a line about each")


async def _is_there(url: str) -> None:
    """Raises ConfigError at once when nothing answers: a busy orchestrator is waited for, an absent one is not."""
    try:
        await read_status(url)
    except (Unavailable, PeerFault) as error:
        raise ConfigError("--orchestrator", f"{url}: {error}", "name the address of a running orchestrator") from None


async def explain(settings: ExplainConfig, runtime: Runtime, console: Console) -> None:
    """Read all that is open of the journal, and print. Raises ConfigError."""
    reader: JournalReader
    if settings.journal:
        reader, field, names = open_journal(settings.journal), "--journal", names_beside(settings.journal)
    else:
        await _is_there(settings.orchestrator)
        reader, field, names = Patient(settings.orchestrator, runtime), "--orchestrator", {}
    fates, history = Fates(), History()

    def watch(index: int, envelope: Envelope, decision: Decision | None) -> None:
        fates.note(index, envelope, decision)
        history.note(index, envelope)

    follower = Follower(reader, watch)
    try:
        await follower.catch_up()
        state = follower.run
    except PeerFault as fault:
        remedy = "such a journal explains nothing; python -m subnet.verify tells more"
        raise ConfigError(field, str(fault), remedy) from None
    finally:
        await reader.close()
    now, source = sheet(state), Source(follower.index, follower.journal_index, state.pay.chain.block)
    known = known_hotkeys(state, history)
    if settings.all:
        accounts = [account(state, now, fates, history, hotkey) for hotkey in known]
        letters_max = SHORT_LETTERS if console.is_terminal else PIPED_WIDTH
        for part in everybody(accounts, now, names, source, letters_max):
            console.print(part)
        return
    hotkey = find(settings.hotkey, known, names, source.sealed)
    for part in explanation(account(state, now, fates, history, hotkey), now, history, names, source):
        console.print(part, soft_wrap=not console.is_terminal)


def find(asked: str, known: Iterable[Hotkey], names: Mapping[str, str], sealed: int) -> Hotkey:
    """The hotkey that is meant. Raises ConfigError when nobody is, or more than one may be."""
    hotkeys = sorted(set(known) | {Hotkey(hotkey) for hotkey in names})
    exact = [hotkey for hotkey in hotkeys if asked in (hotkey, names.get(hotkey))]
    fitting = exact or [hotkey for hotkey in hotkeys if hotkey.startswith(asked)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        shown = ", ".join(fitting[:SHOWN_MAX]) + (", ..." if len(fitting) > SHOWN_MAX else "")
        raise ConfigError("--hotkey", f"{asked!r} fits {len(fitting)} hotkeys: {shown}", "write more of it")
    if _ADDRESS.fullmatch(asked):
        return Hotkey(asked)  # a stranger's: there is a reason for its zero pay, too
    remedy = "--all lists who is known" + (f"; {sealed} records are sealed still, so try again later" if sealed else "")
    raise ConfigError("--hotkey", f"nobody in this journal fits {asked!r}", remedy)


def names_beside(journal: str) -> dict[str, str]:
    """Names by hotkey, where the journal lies in the folder of a local net."""
    path = Path(journal.removeprefix("sqlite:///")).expanduser().parent / PARTICIPANTS_FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Participants)
    except (OSError, msgspec.MsgspecError):
        return {}
    named = {"owner": found.orchestrator, **found.validators, **found.miners}
    return {hotkey: name for name, hotkey in named.items()}


def main(argv: Sequence[str]) -> int:
    with config.one_line_errors():
        settings = config.parse(ExplainConfig, argv, PROGRAM)
        # into a pipe, lines are as long as what they say
        is_terminal = sys.stdout.isatty()
        console = Console(highlight=False, force_terminal=is_terminal, width=None if is_terminal else PIPED_WIDTH)
        try:
            asyncio.run(explain(settings, SystemRuntime(), console))
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
