"""Hosts one run: `python -m subnet.orchestrator --run-dir DIR`.

Builds the parts and runs them; no logic. Its own process, small and without torch. Reads opening.json and
registered.json of the run folder, keeps the journal and the objects there, and writes orchestrator.json once it
listens. Exit codes: 0 stopped by SIGTERM or Ctrl-C, 2 the operator must act (one line says how).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
from loguru import logger

from subnet import config, telemetry
from subnet.chain.subtensor import SubtensorChain
from subnet.config import OrchestratorConfig
from subnet.errors import ConfigError
from subnet.orchestrator import registrations
from subnet.orchestrator.service import Service, read_state
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import RunOpened, RunResumed
from subnet.runtime import Runtime, SystemRuntime, cancel_on_signals
from subnet.storage.files import FileObjectStore
from subnet.storage.sql import SqlJournal
from subnet.transport.http_server import ControlServer
from subnet.transport.signing import Keypair, open_hotkey

GRANT_SECRET_BYTES = 32


def opening(folder: Path) -> RunOpened:
    """The run's first record. Raises ConfigError."""
    path = folder / "opening.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunOpened)
    except OSError as error:
        raise ConfigError("--run-dir", f"{path}: {error.strerror}", "name the folder of a prepared run") from None
    except msgspec.MsgspecError as error:
        raise ConfigError("--run-dir", f"{path}: {error}", "prepare the run again with this version") from None


def announce(folder: Path, url: str, hotkey: str) -> None:
    """Say where the run is hosted, once it listens."""
    beside = folder / "orchestrator.json.partial"
    beside.write_bytes(msgspec.json.encode({"url": url, "hotkey": hotkey, "pid": os.getpid()}))
    beside.replace(folder / "orchestrator.json")


async def host(settings: OrchestratorConfig, keypair: Keypair, runtime: Runtime) -> None:
    """Until cancelled."""
    folder = Path(settings.run_dir)
    opened = opening(folder)
    url = settings.journal_url or f"sqlite+aiosqlite:///{folder / 'journal.sqlite'}"
    journal = await SqlJournal.open(url)
    try:
        state = await read_state(journal)
        if state is not None and not settings.resume:
            raise ConfigError("--run-dir", "its journal already holds a run", "continue it with --resume")
        store = FileObjectStore(folder / "objects", "", runtime.random_bytes(GRANT_SECRET_BYTES), runtime.now)
        registered = folder / "registered.json"
        chain = SubtensorChain(settings.network, settings.netuid, keypair, runtime) if settings.network else None
        if chain is not None:
            await chain.check()
        elif opened.spec.audit.rate > 0:
            raise ConfigError("--network", "is missing, and this run's audits are drawn by a chain", "name the chain")
        service = Service(journal, store, runtime, Hotkey(keypair.ss58_address), state, chain=chain)
        server = ControlServer(service, store, keypair, runtime.now)

        async def begin() -> None:
            if state is None:
                target = settings.epochs or opened.target_epochs
                await service.open(msgspec.structs.replace(opened, target_epochs=target))
            else:
                await service.submit(RunResumed(target_epochs=settings.epochs or state.target_epochs))
            if chain is not None:
                await registrations.update_from_chain(chain, service)
                group.create_task(registrations.watch_chain(chain, service, runtime))
            else:
                await registrations.update(registered, service)
                group.create_task(registrations.watch(registered, service, runtime))
            port = await server.start(settings.host, settings.port)
            store.base_url = f"http://{settings.host}:{port}"
            announce(folder, store.base_url, keypair.ss58_address)
            logger.info("run {} at {}", opened.spec.run_id, store.base_url)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(service.run(begin))
                group.create_task(server.failure())
        finally:
            await server.stop()
            store.close()
            if chain is not None:
                await chain.close()
    finally:
        await journal.close()


async def until_stopped(settings: OrchestratorConfig, keypair: Keypair) -> None:
    cancel_on_signals()
    try:
        await host(settings, keypair, SystemRuntime())
    except* ConfigError as group:
        raise group.exceptions[0] from None


def main(argv: list[str]) -> int:
    with config.one_line_errors():
        settings = config.parse(OrchestratorConfig, argv, "python -m subnet.orchestrator")
        keypair = open_hotkey(str(Path(settings.run_dir) / "wallets"), "orchestrator", "default")
        telemetry.set_up("orchestrator", keypair.ss58_address, settings.log_level)
        try:
            asyncio.run(until_stopped(settings, keypair))
        except asyncio.CancelledError:
            logger.info("stopped; the journal is closed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
