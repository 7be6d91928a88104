"""The typed config tree: every setting of every command, and the one place that reads the environment.

Law: a setting is a field that explains itself: type, default, limits and one sentence with its unit. Flags, --help and
error lines are made from the fields (`flags`), so they cannot disagree. Precedence: flag, environment, default. What
all parties must agree on is no setting but part of the RunSpec (`presets`). Secrets never appear in a repr or a log.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from subnet import flags
from subnet.errors import ConfigError

C = TypeVar("C", bound="Config")
flag, settings = flags.flag, flags.settings
_THIS_MACHINE = re.compile(r"(?:https?|wss?)://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?/?")
_EXTRA = ("env", "choices", "secret", "metavar", "repeatable", "hidden", "alone")
_NETUID_REMEDY = "give the number of the subnet, or set BT_NETUID"


def _about(sentence: str, **limits: Any) -> Meta:
    """A field's sentence, its limits, and what else `flags` knows about fields."""
    extra: dict[str, Any] = {name: limits.pop(name) for name in _EXTRA if name in limits}
    return Meta(description=sentence, extra=extra, **limits)


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all settings. Its repr hides secrets."""

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={'***' if one.extra.get('secret') and getattr(self, name) else repr(getattr(self, name))}"
            for name, one in settings(type(self)).items()
        )
        return f"{type(self).__name__}({shown})"


LogLevel = Annotated[
    str, _about("least severe log line to write", choices=("DEBUG", "INFO", "WARNING", "ERROR"), env="IOTA_LOG_LEVEL")
]
Device = Annotated[
    str, _about("torch device: cpu, cuda, cuda:N or mps", pattern=r"^(cpu|mps|cuda(:\d+)?)$", metavar="DEVICE")
]
WalletName = Annotated[str, _about("wallet (coldkey) name", env="BT_WALLET", min_length=1, metavar="NAME")]
WalletHotkey = Annotated[
    str, _about("hotkey name in that wallet", env="BT_WALLET_HOTKEY", min_length=1, metavar="NAME")
]
WalletPath = Annotated[str, _about("folder of the wallets", env="BT_WALLET_PATH", metavar="DIR")]
OrchestratorUrl = Annotated[
    str,
    _about(
        "orchestrator's address, such as http://127.0.0.1:8091",
        env="IOTA_ORCHESTRATOR",
        pattern=r"^https?://\S+$",
        metavar="URL",
    ),
]
JournalFile = Annotated[
    str,
    _about("read this file instead of an orchestrator: a saved journal, or journal.sqlite", metavar="FILE", alone=True),
]
Network = Annotated[
    str,
    _about("chain to use: finney, test, or ws://127.0.0.1:9944 of a local one", env="BT_NETWORK", metavar="NETWORK"),
]
Netuid = Annotated[int, _about("number of the subnet", env="BT_NETUID", ge=-1, le=65_535, metavar="N")]
"""-1 stands for "not given"."""
Rules = Annotated[
    str, _about("TOML file with the owner's changes to the run's rules; may be edited while it runs", metavar="FILE")
]
PublicUrls = Annotated[
    str,
    _about(
        "address under which others reach this orchestrator, published on chain; may be given twice; default: where "
        "it listens",
        metavar="URL",
        repeatable=True,
    ),
]


class LocalnetConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.localnet`: the whole subnet as processes on this machine."""

    miners: Annotated[int, _about("miner processes to start", ge=1, le=256)] = 6
    stages: Annotated[int, _about("stages the model is cut into", ge=1, le=64)] = 3
    epochs: Annotated[int, _about("epochs (merges of every stage) until the run is finished", ge=1, le=100_000)] = 6
    seed: Annotated[int, _about("seed of the data order, the first parameters and the faults", ge=0, le=2**31)] = 7
    text: Annotated[
        str, _about("text file, or folder of .txt files, to train on; default: the King James Bible", metavar="PATH")
    ] = ""
    preset: Annotated[str, _about("model and rules to run: a name in subnet.presets", metavar="NAME")] = "laptop"
    micro_batch_size: Annotated[int, _about("B, sequences in a micro-batch", ge=1, le=1024)] = 8
    seq_len: Annotated[int, _about("T, tokens in a sequence", ge=8, le=65_536)] = 128
    num_microbatches_min: Annotated[
        int, _about("B_min, micro-batches each miner does before its stage merges; 0: the preset's", ge=0, le=100_000)
    ] = 0
    device: Device = "cpu"
    run_dir: Annotated[
        str, _about("folder for everything the run writes; default: runs/<UTC time>-seed<seed>", metavar="DIR")
    ] = ""
    resume: Annotated[str, _about("continue the stopped run in this folder", metavar="RUN_DIR")] = ""
    report: Annotated[str, _about("where the JSON report goes", metavar="PATH")] = "localnet-report.json"
    cache_dir: Annotated[str, _about("folder for tokenised text, shared by all runs", metavar="DIR")] = "runs/.cache"
    sample: Annotated[str, _about("print text generated from the last checkpoint, beginning with this")] = ""
    port: Annotated[int, _about("port of the orchestrator on 127.0.0.1; 0: a free one", ge=0, le=65_535)] = 0
    kill_miner_every_s: Annotated[
        float, _about("kill a random miner (SIGKILL) at this interval once training began; 0: never", ge=0)
    ] = 0.0
    speeds: Annotated[
        str,
        _about("relative speeds of the miners, such as 1,1,2,4, over and over; default: all alike", metavar="LIST"),
    ] = ""
    adversary: Annotated[
        str, _about("the last COUNT miners cheat in that way; may be repeated", metavar="NAME=COUNT", repeatable=True)
    ] = ""
    validators: Annotated[int, _about("validator processes to start; the first has most stake", ge=1, le=8)] = 1
    audit_rate: Annotated[
        float,
        _about("share of the settled miners' epochs to audit, 0 to 1; -1: the preset's", ge=-1, le=1, metavar="SHARE"),
    ] = -1.0
    kill_chain_every_s: Annotated[
        float, _about("kill the local chain (SIGKILL) at this interval once training began; 0: never", ge=0)
    ] = 0.0
    kill_orchestrator_every_s: Annotated[float, _about("kill the orchestrator at this interval; 0: never", ge=0)] = 0.0
    config: Rules = ""
    restart_after_s: Annotated[float, _about("start a dead miner again after this time", ge=0)] = 2.0
    join_after_s: Annotated[float, _about("one more miner joins this long after training began; 0: never", ge=0)] = 0.0
    end_after_s: Annotated[float, _about("end the run when it trained for this time; 0: by --epochs alone", ge=0)] = 0.0
    log_level: LogLevel = "INFO"

    def __post_init__(self) -> None:
        if self.miners < self.stages:
            raise ConfigError(
                "--miners",
                f"{self.miners} cannot fill {self.stages} stages",
                f"give at least {self.stages}, or fewer --stages",
            )


class OrchestratorConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.orchestrator`: hosts one run."""

    run_dir: Annotated[str, _about("run folder with opening.json, registered.json and wallets", metavar="DIR")]
    host: Annotated[str, _about("address to listen on", min_length=1)] = "127.0.0.1"
    port: Annotated[int, _about("port to listen on", ge=0, le=65_535)] = 8091
    resume: Annotated[bool, _about("continue from the folder's journal instead of opening a new run")] = False
    epochs: Annotated[int, _about("epochs until the run is finished; 0: as it was opened", ge=0)] = 0
    journal_url: Annotated[
        str,
        _about(
            "SQLAlchemy URL of the journal; default: journal.sqlite in the run folder",
            env="IOTA_JOURNAL_URL",
            secret=True,
        ),
    ] = ""
    network: Network = ""
    netuid: Netuid = -1
    public_url: PublicUrls = ""
    config: Rules = ""
    wallet: Annotated[str, _about("wallet of the subnet's owner", min_length=1, metavar="NAME")] = "orchestrator"
    wallet_hotkey: Annotated[str, _about("the owner's hotkey in it", min_length=1, metavar="NAME")] = "default"
    wallet_path: Annotated[str, _about("folder of the wallets; default: wallets in the run folder", metavar="DIR")] = ""
    log_level: LogLevel = "INFO"

    def __post_init__(self) -> None:
        if self.network and self.netuid < 0:
            raise ConfigError("--netuid", "is missing", _NETUID_REMEDY)


class NeuronConfig(Config, frozen=True, kw_only=True):
    """What a miner and a validator have in common: which subnet, as whom, on what."""

    netuid: Netuid = -1
    network: Network = "finney"
    orchestrator: OrchestratorUrl = ""
    wallet: WalletName = "default"
    wallet_hotkey: WalletHotkey = "default"
    wallet_path: WalletPath = "~/.bittensor/wallets"
    device: Device = "cpu"
    threads: Annotated[int, _about("CPU threads torch may use", ge=1, le=1024)] = 1
    log_level: LogLevel = "INFO"


class MinerConfig(NeuronConfig, frozen=True, kw_only=True):
    """`python neurons/miner.py`: trains one stage."""

    work_dir: Annotated[str, _about("folder for downloaded files and receipts.jsonl", metavar="DIR")] = "miner-work"
    slow_factor: Annotated[
        float, _about("compute this many times slower, as weaker hardware does", ge=1, le=1000, metavar="X")
    ] = 1.0
    adversary: Annotated[str, _about("cheat in this way; local nets only", metavar="NAME", hidden=True)] = ""

    def __post_init__(self) -> None:
        if not self.orchestrator and self.netuid < 0:
            remedy = f"{_NETUID_REMEDY}; or name an orchestrator with --orchestrator"
            raise ConfigError("--netuid", "is missing", remedy)
        place = self.orchestrator or self.network
        if self.adversary and not _THIS_MACHINE.fullmatch(place):
            raise ConfigError("--adversary", f"is for local nets only, not for {place}", "leave it out")


class ValidatorConfig(NeuronConfig, frozen=True, kw_only=True):
    """`python neurons/validator.py`: audits miners, measures the merged model, sets weights."""

    work_dir: Annotated[str, _about("folder for the downloaded text and the anchors seen", metavar="DIR")] = (
        "validator-work"
    )
    host_orchestrator: Annotated[
        bool, _about("also host the run, as its own process; for the subnet owner's hotkey alone")
    ] = False
    run_dir: Annotated[
        str, _about("with --host-orchestrator: folder of the run, see python -m subnet.prepare", metavar="DIR")
    ] = ""
    host: Annotated[str, _about("with --host-orchestrator: address to listen on", min_length=1)] = "127.0.0.1"
    port: Annotated[int, _about("with --host-orchestrator: port to listen on", ge=1, le=65_535)] = 8091
    public_url: PublicUrls = ""
    config: Rules = ""

    def __post_init__(self) -> None:
        if self.netuid < 0:
            raise ConfigError("--netuid", "is missing", _NETUID_REMEDY)
        if self.host_orchestrator and not self.run_dir:
            remedy = "prepare a run with python -m subnet.prepare, and name its folder"
            raise ConfigError("--run-dir", "is missing", remedy)
        if self.host_orchestrator and self.orchestrator:
            raise ConfigError(
                "--orchestrator",
                "does not go together with --host-orchestrator",
                "leave one out, and IOTA_ORCHESTRATOR unset",
            )


# ---- flags -----------------------------------------------------------------------------------------------------------


def parse(config: type[C], argv: Sequence[str], prog: str) -> C:
    """Settings from the command line and the environment. Raises ConfigError naming the flag."""
    return build(config, given(config, argv, prog))


def given(config: type[Config], argv: Sequence[str], prog: str) -> dict[str, Any]:
    """Only what the command line and the environment really name, checked field by field."""
    return flags.given(config, list(argv), prog, os.environ)


def build(config: type[C], values: Mapping[str, Any]) -> C:
    """The whole from its given parts. Raises ConfigError for a missing field and for fields that disagree."""
    for field in msgspec.structs.fields(config):
        if field.required and field.name not in values:
            one = settings(config)[field.name]
            variable = one.extra.get("env")
            remedy = f"give the {one.meta.description}" + (f", or set {variable}" if variable else "")
            raise ConfigError(flag(field.name), "is missing", remedy)
    return config(**values)


def load(config: type[C], path: Path) -> C:
    """Settings written by `save`. Raises ConfigError when the file is missing or does not fit."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=config)
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be read", "name the folder of an earlier run") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(str(path), str(error), "it was written by another version; start a new run") from None


def save(config: Config, path: Path) -> None:
    """For another process of the same run to `load`; configs with secrets are never saved."""
    assert not any(one.extra.get("secret") for one in settings(type(config)).values())
    path.write_bytes(msgspec.json.format(msgspec.json.encode(config)))


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment with additions, for the processes it starts."""
    return {**os.environ, **extra}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Shows an operator's mistake as one line on stderr with exit code 2; every command's main runs inside."""
    try:
        yield
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
