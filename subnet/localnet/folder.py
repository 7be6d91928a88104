"""The run folder: where everything of one local run lies, and who takes part in it.

    <run folder>/
      localnet.json     the settings of the run          opening.json   the run's first record (RunOpened)
      participants.json names and hotkeys                registered.json  hotkeys that may join
      prepared.json     what was made of the text        orchestrator.json  address, while it runs
      journal.sqlite    the record of everything         objects/       tensors and token files
      chain/            the local chain                  subnet.json    network and netuid of the subnet on it
      reading.json      what that chain said last        sdk/           the SDK's caches of this run
      wallets/          keys without passwords           logs/, miners/   one file, one folder per process
      localnet.lock     held while it runs

Law: nothing of a local run is written anywhere else, but for the report and the tokenised text that runs share.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from subnet.config import LocalnetConfig
from subnet.errors import ConfigError
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import RunOpened

T = TypeVar("T")


class Participants(Struct, frozen=True, kw_only=True):
    """Who takes part; written by `prepare`."""

    orchestrator: Hotkey
    validators: dict[str, Hotkey]
    """By hotkey name in the wallet "validator"; the first has most stake."""
    miners: dict[str, Hotkey]
    """Name of the miner, which is also its hotkey's name in the wallet → address; the late joiner included."""


class TextFacts(Struct, frozen=True, kw_only=True):
    """What was made of the text; written by `prepare`."""

    name: str
    vocab_size: int
    num_train_tokens: int
    num_validation_tokens: int
    unigram_entropy: float


class RunFolder(NamedTuple):
    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "localnet.json"

    @property
    def lock(self) -> Path:
        return self.root / "localnet.lock"

    @property
    def opening(self) -> Path:
        return self.root / "opening.json"

    @property
    def participants(self) -> Path:
        return self.root / "participants.json"

    @property
    def registered(self) -> Path:
        return self.root / "registered.json"

    @property
    def text_facts(self) -> Path:
        return self.root / "prepared.json"

    @property
    def address(self) -> Path:
        return self.root / "orchestrator.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal.sqlite"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def chain(self) -> Path:
        return self.root / "chain"

    @property
    def chain_address(self) -> Path:
        return self.chain / "chain.json"

    @property
    def subnet(self) -> Path:
        return self.root / "subnet.json"

    @property
    def reading(self) -> Path:
        return self.root / "reading.json"

    @property
    def sdk(self) -> Path:
        return self.root / "sdk"

    @property
    def wallets(self) -> Path:
        return self.root / "wallets"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def sample(self) -> Path:
        return self.root / "sample.txt"

    def miner(self, name: str) -> Path:
        return self.root / "miners" / name

    def validator(self, name: str) -> Path:
        return self.root / "validators" / name


class OnChain(Struct, frozen=True, kw_only=True):
    """Where the subnet is: all that a newcomer must know."""

    network: str
    netuid: int

    @property
    def port(self) -> int:
        return int(self.network.rpartition(":")[2])


def on_chain(folder: RunFolder) -> OnChain | None:
    """As the run folder says it; None before there was a subnet."""
    if not folder.subnet.exists():
        return None
    return load(folder.subnet, OnChain)


def load(path: Path, kind: type[T], field: str = "--run-dir") -> T:
    """What a file of the run folder says. Raises ConfigError naming `field` when it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(field, f"{path} cannot be read ({reason})", "restore it, or start a new run") from None


def check_whole(folder: RunFolder) -> None:
    """Of a run that is to be continued: whatever is there must be readable. Raises ConfigError naming --resume."""
    kinds: dict[Path, Any] = {
        folder.opening: RunOpened,
        folder.participants: Participants,
        folder.registered: list[Hotkey],
        folder.text_facts: TextFacts,
        folder.subnet: OnChain,
    }
    for path, kind in kinds.items():
        if path.exists():
            load(path, kind, "--resume")


def miner_names(settings: LocalnetConfig) -> list[str]:
    """Miners started at once; the late joiner is the next number."""
    return [f"miner-{number}" for number in range(settings.miners)]


def validator_names(settings: LocalnetConfig) -> list[str]:
    """Validators' hotkey names."""
    return [f"validator-{number}" for number in range(settings.validators)]


def late_miner_name(settings: LocalnetConfig) -> str | None:
    return f"miner-{settings.miners}" if settings.join_after_s else None


def make_writable(field: str, folder: Path) -> None:
    """Creates the folder. Raises ConfigError naming `field` when nothing can be written there."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(field, f"{folder} cannot be written ({reason})", "name a writable folder") from None
