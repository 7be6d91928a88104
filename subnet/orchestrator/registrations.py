"""Who may join, as a file tells it: a JSON list of hotkeys, read again when it changes.

Law: the machine learns of registrations only through a journaled Registered record. On a chain, the same record is
made from the metagraph.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import msgspec
from loguru import logger

from subnet.errors import ConfigError
from subnet.orchestrator.service import Service
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Registered
from subnet.runtime import Runtime

LOOK_EVERY_S = 2.0


async def update(path: Path, service: Service) -> None:
    """Submit the file's content when it differs from what the run knows. Raises ConfigError."""
    try:
        hotkeys = tuple(sorted(msgspec.json.decode(path.read_bytes(), type=list[Hotkey])))
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError("--run-dir", f"{path}: {error}", "it must hold a JSON list of hotkeys") from None
    if set(hotkeys) != service.state.registered:
        await service.submit(Registered(hotkeys=hotkeys))


async def watch(path: Path, service: Service, runtime: Runtime) -> NoReturn:
    """Look again and again; a file that cannot be read changes nothing."""
    while True:
        await runtime.sleep(LOOK_EVERY_S)
        try:
            await update(path, service)
        except ConfigError as error:
            logger.warning("registrations stay as they are: {}", error)
