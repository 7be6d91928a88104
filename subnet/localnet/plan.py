"""How a local run is opened or continued: from the command line to a run folder that is ready.

Law: mistakes of the operator end here, before any process is started. A run that was opened can always be continued;
what its RunSpec fixes cannot be changed any more, but for what the owner's rules file (--config) may tune.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from subnet import config, presets
from subnet.config import LocalnetConfig
from subnet.errors import ConfigError
from subnet.localnet.cast import Part, cast
from subnet.localnet.folder import RunFolder, check_whole, late_miner_name, load, make_writable, miner_names
from subnet.orchestrator import tuning as rules
from subnet.orchestrator.opening import choose, order_of
from subnet.protocol.ids import Digest, RunId
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import RunOpened
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.protocol.tuning import parse, tuned
from subnet.storage.lock import held

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


class Plan(NamedTuple):
    """A checked order to run."""

    config: LocalnetConfig
    folder: RunFolder
    resumed: bool


def parts(settings: LocalnetConfig) -> dict[str, Part]:
    """What each miner plays, the late joiner included. Raises ConfigError."""
    late = late_miner_name(settings)
    return dict(zip([*miner_names(settings), *([late] if late else [])], cast(settings), strict=True))


@contextmanager
def open_plan(given: Mapping[str, Any], now: float) -> Iterator[Plan]:
    """From what the command line names to a run folder that is ready, and nobody else's inside the block.

    Raises ConfigError.
    """
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
    if plan.config.config:
        named = str(Path(plan.config.config).expanduser().absolute())
        plan = plan._replace(config=msgspec.structs.replace(plan.config, config=named))
    _check(plan)
    make_writable("--run-dir", plan.folder.root)
    make_writable("--report", Path(plan.config.report).expanduser().absolute().parent)
    field = "--resume" if plan.resumed else "--run-dir"
    with held(plan.folder.lock, field, f"{plan.folder.root} runs already", "stop it first"):
        kept = msgspec.structs.replace(plan.config, **dict.fromkeys(NOT_KEPT[:2], ""), port=0)
        config.save(kept, plan.folder.settings)
        yield plan


def _continued(given: Mapping[str, Any]) -> Plan:
    if given.get("run_dir"):
        raise ConfigError("--run-dir", "does not go together with --resume", "give only --resume RUN_DIR")
    folder = RunFolder(Path(given["resume"]).expanduser().absolute())
    if not folder.settings.is_file():
        raise ConfigError("--resume", f"{folder.root} holds no run", "name the folder of an earlier run")
    check_whole(folder)
    before = config.load(LocalnetConfig, folder.settings)
    for name in FIXED_BY_THE_RUN:
        if name in given and given[name] != getattr(before, name):
            problem = f"is {getattr(before, name)!r} in this run and cannot be changed"
            raise ConfigError(config.flag(name), problem, "leave it out, or start a new run without --resume")
    return Plan(msgspec.structs.replace(before, **given), folder, resumed=True)


def _check(plan: Plan) -> None:
    """What would stop the run later, found before anything is started."""
    settings = plan.config
    spec = _expected_spec(settings)
    parts(settings)
    if settings.text and not Path(settings.text).expanduser().exists():
        raise ConfigError("--text", f"there is no {settings.text}", "name an existing text file or folder")
    if settings.port:
        _check_port_is_free(settings.port)
    if settings.config:
        if plan.folder.opening.exists():
            spec = load(plan.folder.opening, RunOpened).spec
        tuned(spec, parse(rules.read(Path(settings.config))), spec.version + 1)


def _expected_spec(settings: LocalnetConfig) -> RunSpec:
    """What the run will begin with, but for its data, of which no rule depends."""
    file = DataFile(key=ObjectKey("none/0/0/none/data"), digest=Digest("0" * 64), size_bytes=1)
    preset = choose(order_of(settings))
    data = DataSpec(
        tokenizer=file,
        train=(file,),
        validation=(file,),
        micro_batch_size=settings.micro_batch_size,
        seq_len=settings.seq_len,
    )
    return presets.run_spec(preset, run_id=RunId("unopened"), seed=settings.seed, num_stages=settings.stages, data=data)


def _check_port_is_free(port: int) -> None:
    try:
        bind(port)
    except OSError as error:
        problem = f"{port} on 127.0.0.1 cannot be used ({error.strerror})"
        raise ConfigError("--port", problem, "name another port, or leave it out to get a free one") from None


def bind(port: int = 0) -> int:
    """Take the port for a moment; 0: any free one. Raises OSError when somebody has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return int(probe.getsockname()[1])
