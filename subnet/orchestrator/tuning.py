"""The owner's rules file: read at start, and again whenever it changes (`protocol.tuning`).

Law: what does not fit stops a start and changes nothing later: the run goes on by the rules it has, and one line says
what to mend. A file that says what already holds makes no record.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from loguru import logger

from subnet.coordination.state import State
from subnet.errors import ConfigError
from subnet.orchestrator.service import Service
from subnet.protocol import tuning
from subnet.protocol.messages import Tuned
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import Runtime

LOOK_EVERY_S = 2.0
FILE_BYTES_MAX = 1 << 20


def read(path: Path) -> bytes:
    """The file as it is now. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(tuning.FIELD, f"{path}: {error.strerror}", "name a TOML file that can be read") from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(tuning.FIELD, f"{path} is longer than {FILE_BYTES_MAX} bytes", "it holds rules only")
    return data


def next_version(state: State, asked: tuning.Tuning) -> RunSpec | None:
    """The RunSpec that the run should go by from now on; None when its newest one says the same. Raises ConfigError."""
    newest = state.versions[-1]
    if tuning.tuned(state.versions[0], asked, newest.version) == newest:
        return None
    return tuning.tuned(state.versions[0], asked, newest.version + 1)


async def update(data: bytes, service: Service) -> None:
    """Submit what a file asks for, where it is new. Raises ConfigError."""
    spec = next_version(service.state, tuning.parse(data))
    if spec is not None:
        await service.submit(Tuned(spec=spec))


async def watch(path: Path, service: Service, runtime: Runtime) -> NoReturn:
    """Look again and again; a file that does not fit is told once.

    What is seen twice counts: an editor may be in the middle of writing.
    """
    told, before = "", b""
    while True:
        await runtime.sleep(LOOK_EVERY_S)
        try:
            data = read(path)
            if data == before:
                await update(data, service)
                told = ""
            before = data
        except ConfigError as error:
            if str(error) != told:
                told = str(error)
                logger.warning("the rules stay as they are: {}", error)
