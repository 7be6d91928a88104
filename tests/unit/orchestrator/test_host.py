"""Who may host a run folder and its journal: one process at a time, and only the hotkey that began it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from bittensor.keyfiles import Keypair

from subnet.config import OrchestratorConfig
from subnet.errors import ConfigError
from subnet.orchestrator.__main__ import alone, first, host, operators
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import SystemRuntime
from subnet.storage.sql import OtherWriter, SqlJournal

OURS, THEIRS = Keypair.create_from_uri("//Owner"), Keypair.create_from_uri("//Other")


@pytest.fixture
def opened(spec: RunSpec) -> m.RunOpened:
    return m.RunOpened(spec=spec, starts=(), evaluators=(), target_epochs=2)


@pytest.fixture
def settings(tmp_path: Path, opened: m.RunOpened) -> OrchestratorConfig:
    """Of a prepared run."""
    (tmp_path / "opening.json").write_bytes(msgspec.json.encode(opened))
    return OrchestratorConfig(run_dir=str(tmp_path), port=0, resume=True)


def url(settings: OrchestratorConfig) -> str:
    return f"sqlite:///{settings.run_dir}/journal.sqlite"


async def test_two_hosts_of_one_folder(settings: OrchestratorConfig) -> None:
    """1. The owner forgot the terminal where it runs: the second one ends with a line before it touches the journal.
    When the first one has ended it may."""
    folder = Path(settings.run_dir)
    with alone(folder):
        with pytest.raises(ConfigError, match="^--run-dir: another orchestrator hosts it; stop that one$"):
            await host(settings, OURS, SystemRuntime())
        assert not (folder / "journal.sqlite").exists()
    with alone(folder):
        pass


async def test_another_hotkeys_journal(settings: OrchestratorConfig, opened: m.RunOpened) -> None:
    """2. A typo in --wallet-hotkey, and the journal is another one's: said whose it is, and nothing was added to it."""
    journal = await SqlJournal.open(url(settings))
    theirs = Hotkey(THEIRS.ss58_address)
    await journal.append([msgspec.json.encode(m.Envelope(sender=theirs, at=1.0, message=opened))])
    with pytest.raises(ConfigError) as error:
        await host(settings, OURS, SystemRuntime())
    assert str(error.value) == (
        f"--wallet-hotkey: this journal is {theirs}'s; host it with that hotkey, or prepare a new run"
    )
    last = await journal.last()
    assert last is not None and last.index == 0
    await journal.close()


async def test_two_hosts_of_one_database(settings: OrchestratorConfig) -> None:
    """3. Two machines share a database: whoever comes later reads one line, however deep in its tasks it happened."""
    one, other = await SqlJournal.open(url(settings)), await SqlJournal.open(url(settings))
    await one.append([b"{}"])
    with pytest.raises(OtherWriter) as caught:
        await other.append([b"{}"])
    told = operators(first(BaseExceptionGroup("", [ExceptionGroup("", [caught.value])])))
    assert isinstance(told, ConfigError)
    assert str(told) == (
        "--journal-url: journal index 0 exists already: another writer is at work; "
        "stop the other orchestrator of this run"
    )
    await one.close()
    await other.close()


async def test_a_database_that_is_none(settings: OrchestratorConfig) -> None:
    """4. A typo in the journal's URL: the line names the flag that there is."""
    wrong = msgspec.structs.replace(settings, journal_url="sqlight:///journal")
    with pytest.raises(ConfigError, match="^--journal-url: "):
        await host(wrong, OURS, SystemRuntime())


async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """5. Something is in the lock's place: one line."""
    (tmp_path / "orchestrator.lock").mkdir()
    with pytest.raises(ConfigError, match="^--run-dir: .*orchestrator.lock: Is a directory; name a"), alone(tmp_path):
        pass
