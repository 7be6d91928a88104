"""The run folder: where everything of one local run lies, and how a run is opened or continued.

    <run folder>/
      localnet.json     the settings of the run          opening.json   the run's first record (RunOpened)
      participants.json names and hotkeys                registered.json  hotkeys that may join
      prepared.json     what was made of the text        orchestrator.json  address, while it runs
      journal.sqlite    the record of everything         objects/       tensors and token files
      chain/            the local chain                  subnet.json    where the subnet is on it
      wallets/          keys without passwords           logs/, miners/   one file, one folder per process

Law: mistakes of the operator end here, before any process is started. A run that was opened can always be continued;
what its RunSpec fixes cannot be changed any more.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from subnet import config, presets
from subnet.config import LocalnetConfig
from subnet.errors import ConfigError
from subnet.localnet.cast import Part, cast
from subnet.model.split import split
from subnet.protocol.ids import Hotkey

FIXED_BY_THE_RUN = (
    "stages",
    "seed",
    "text",
    "preset",
    "micro_batch_size",
    "seq_len",
    "num_microbatches_min",
    "audit_rate",
)
NOT_KEPT = ("run_dir", "resume", "port")


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


class Plan(NamedTuple):
    """A checked order to run."""

    config: LocalnetConfig
    folder: RunFolder
    resumed: bool


def miner_names(settings: LocalnetConfig) -> list[str]:
    """Miners started at once; the late joiner is the next number."""
    return [f"miner-{number}" for number in range(settings.miners)]


def validator_names(settings: LocalnetConfig) -> list[str]:
    """Validators' hotkey names."""
    return [f"validator-{number}" for number in range(settings.validators)]


def late_miner_name(settings: LocalnetConfig) -> str | None:
    return f"miner-{settings.miners}" if settings.join_after_s else None


def parts(settings: LocalnetConfig) -> dict[str, Part]:
    """What each miner plays, the late joiner included. Raises ConfigError."""
    late = late_miner_name(settings)
    return dict(zip([*miner_names(settings), *([late] if late else [])], cast(settings), strict=True))


def open_plan(given: Mapping[str, Any], now: float) -> Plan:
    """From what the command line names to a run folder that is ready. Raises ConfigError."""
    if given.get("resume"):
        plan = _continued(given)
    else:
        settings = config.build(LocalnetConfig, given)
        name = f"{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S}-seed{settings.seed}"
        folder = RunFolder(Path(settings.run_dir or Path("runs") / name).expanduser().absolute())
        if folder.settings.exists():
            remedy = f"continue it with --resume {folder.root}, or name another folder"
            raise ConfigError("--run-dir", f"{folder.root} already holds a run", remedy)
        plan = Plan(settings, folder, resumed=False)
    _check(plan.config)
    make_writable("--run-dir", plan.folder.root)
    make_writable("--report", Path(plan.config.report).expanduser().absolute().parent)
    kept = msgspec.structs.replace(plan.config, **dict.fromkeys(NOT_KEPT[:2], ""), port=0)
    config.save(kept, plan.folder.settings)
    return plan


def _continued(given: Mapping[str, Any]) -> Plan:
    if given.get("run_dir"):
        raise ConfigError("--run-dir", "does not go together with --resume", "give only --resume RUN_DIR")
    folder = RunFolder(Path(given["resume"]).expanduser().absolute())
    if not folder.settings.is_file():
        raise ConfigError("--resume", f"{folder.root} holds no run", "name the folder of an earlier run")
    before = config.load(LocalnetConfig, folder.settings)
    for name in FIXED_BY_THE_RUN:
        if name in given and given[name] != getattr(before, name):
            problem = f"is {getattr(before, name)!r} in this run and cannot be changed"
            raise ConfigError(config.flag(name), problem, "leave it out, or start a new run without --resume")
    return Plan(msgspec.structs.replace(before, **given), folder, resumed=True)


def _check(settings: LocalnetConfig) -> None:
    """What would stop the run later, found before anything is started."""
    size = presets.Size(settings.miners, settings.stages, settings.epochs, settings.num_microbatches_min)
    preset = presets.choose(settings.preset, size)
    split(preset.model, preset.boundary, settings.stages, settings.seq_len)
    parts(settings)
    if settings.text and not Path(settings.text).expanduser().exists():
        raise ConfigError("--text", f"there is no {settings.text}", "name an existing text file or folder")
    if settings.port:
        _check_port_is_free(settings.port)


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


def _check_port_is_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            problem = f"{port} on 127.0.0.1 cannot be used ({error.strerror})"
            raise ConfigError("--port", problem, "name another port, or leave it out to get a free one") from None


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
