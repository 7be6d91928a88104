"""Hosts one run: `python -m subnet.orchestrator --run-dir DIR --network NETWORK --netuid N --wallet NAME ...`.

Builds the parts and runs them; no logic. Its own process, small and without torch. Reads opening.json of the run
folder (and registered.json where there is no chain), keeps the journal and the objects there, and writes
orchestrator.json once it listens. Only the subnet owner's hotkey may host: it publishes where it is on chain. Exit
codes: 0 stopped by SIGTERM or Ctrl-C, 2 the operator must act (one line says how).
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
from loguru import logger

from subnet import config, telemetry
from subnet.chain.subtensor import SubtensorChain
from subnet.config import OrchestratorConfig
from subnet.errors import ConfigError
from subnet.orchestrator import anchoring, registrations, tuning
from subnet.orchestrator.anchoring import Publisher
from subnet.orchestrator.errands import patiently
from subnet.orchestrator.restoring import Restored, restore
from subnet.orchestrator.service import Service
from subnet.protocol import tuning as protocol_tuning
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Envelope, RunOpened, RunResumed
from subnet.runtime import Runtime, SystemRuntime, cancel_on_signals
from subnet.storage.files import FileObjectStore
from subnet.storage.lock import held
from subnet.storage.sql import OtherWriter, SqlJournal
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


def alone(folder: Path) -> AbstractContextManager[None]:
    """Hold the run folder for this process. Raises ConfigError when another one does."""
    return held(folder / "orchestrator.lock", "--run-dir", "another orchestrator hosts it", "stop that one")


async def check_ours(journal: SqlJournal, hotkey: Hotkey) -> None:
    """Raises ConfigError when another hotkey began the journal: its records would not fold with ours behind them."""
    for first_record in await journal.read(0, 1):
        owner = msgspec.json.decode(first_record.body, type=Envelope).sender
        if owner != hotkey:
            remedy = "host it with that hotkey, or prepare a new run"
            raise ConfigError("--wallet-hotkey", f"this journal is {owner}'s", remedy)


def announce(folder: Path, url: str, public: tuple[str, ...], hotkey: str) -> None:
    """Say where the run is hosted, once it listens: for this machine, and for others."""
    beside = folder / "orchestrator.json.partial"
    beside.write_bytes(msgspec.json.encode({"url": url, "public": public, "hotkey": hotkey, "pid": os.getpid()}))
    beside.replace(folder / "orchestrator.json")


class Host:
    """The parts of one hosted run. `restored` is what its journal leads to; None for a new run."""

    def __init__(
        self,
        settings: OrchestratorConfig,
        keypair: Keypair,
        runtime: Runtime,
        opened: RunOpened,
        journal: SqlJournal,
        restored: Restored | None,
    ) -> None:
        self._settings, self._keypair, self._runtime = settings, keypair, runtime
        self._opened, self._state = opened, restored.state if restored is not None else None
        self._hotkey, self._folder = Hotkey(keypair.ss58_address), Path(settings.run_dir)
        self._store = FileObjectStore(
            self._folder / "objects", "", runtime.random_bytes(GRANT_SECRET_BYTES), runtime.now
        )
        named = settings.network != ""
        self._chain = SubtensorChain(settings.network, settings.netuid, keypair, runtime) if named else None
        self._service = Service(
            journal, self._store, runtime, self._hotkey, restored, chain=self._chain, snapshots=journal.snapshots
        )
        self._server = ControlServer(self._service, self._store, keypair, runtime.now)

    async def run(self) -> None:
        """Until cancelled. Raises ConfigError, alone or in a group."""
        try:
            is_owner = await self._is_owner()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._service.run(lambda: self._begin(group, is_owner)))
                group.create_task(self._server.failure())
        except asyncio.CancelledError:
            await self._service.snapshot()
            raise
        finally:
            await self._server.stop()
            self._store.close()
            if self._chain is not None:
                await self._chain.close()

    # ---- beginning ---------------------------------------------------------------------------------------------------

    async def _is_owner(self) -> bool:
        """Whether the chain says so; it is not asked for long when the run goes on. Raises ConfigError when it denies.

        A run that goes on without an answer is asked for it again, before anything is published.
        """
        return await anchoring.at_start(self._check_owner, self._runtime, goes_on=self._state is not None)

    async def _check_owner(self) -> None:
        if self._chain is not None:
            await self._chain.check()
            await anchoring.check_owner(self._chain, self._hotkey, self._settings.netuid)

    async def _begin(self, group: asyncio.TaskGroup, is_owner: bool) -> None:
        """The first records of this process, then listen."""
        service, settings, rules = self._service, self._settings, self._settings.config
        if self._state is None:
            target = settings.epochs or self._opened.target_epochs
            await service.open(msgspec.structs.replace(self._opened, target_epochs=target))
        else:
            await service.submit(RunResumed(target_epochs=settings.epochs or self._state.target_epochs))
        if rules:
            await tuning.update(tuning.read(Path(rules)), service)
            group.create_task(tuning.watch(Path(rules), service, self._runtime))
        await self._learn_registrations(group, is_owner)
        url, public = await self._listen()
        if self._chain is not None:
            publisher = Publisher(self._chain, service, self._hotkey, public, self._runtime)
            group.create_task(self._publish(publisher, is_owner))
        announce(self._folder, url, public, self._hotkey)
        logger.info("run {} at {}", self._opened.spec.run_id, " and ".join(public))

    async def _learn_registrations(self, group: asyncio.TaskGroup, chain_answers: bool) -> None:
        chain, service, runtime = self._chain, self._service, self._runtime
        if chain is not None:
            if chain_answers:
                goes_on = self._state is not None
                await anchoring.at_start(
                    lambda: registrations.update_from_chain(chain, service), runtime, goes_on=goes_on
                )
            group.create_task(registrations.watch_chain(chain, service, runtime))
        else:
            file = self._folder / "registered.json"
            await registrations.update(file, service)
            group.create_task(registrations.watch(file, service, runtime))

    async def _listen(self) -> tuple[str, tuple[str, ...]]:
        """Where, for this machine, and as others know it."""
        settings = self._settings
        try:
            port = await self._server.start(settings.host, settings.port)
        except OSError as error:
            problem = f"{settings.port} on {settings.host} cannot be used ({error.strerror})"
            raise ConfigError("--port", problem, "name another port, or another --host") from None
        public = anchoring.urls_of(settings.public_url, settings.host, port, settings.network)
        self._store.base_url = public[0]
        return anchoring.local_url(settings.host, port), public

    async def _publish(self, publisher: Publisher, is_owner: bool) -> None:
        if not is_owner:
            await patiently(self._check_owner, self._runtime)
        await publisher.run()


async def host(settings: OrchestratorConfig, keypair: Keypair, runtime: Runtime) -> None:
    """Until cancelled."""
    folder = Path(settings.run_dir)
    opened = opening(folder)
    if not settings.network and opened.spec.audit.rate > 0:
        raise ConfigError("--network", "is missing, and this run's audits are drawn by a chain", "name the chain")
    anchoring.urls_of(settings.public_url, settings.host, settings.port, settings.network)
    url = settings.journal_url or f"sqlite+aiosqlite:///{folder / 'journal.sqlite'}"
    with alone(folder):
        journal = await SqlJournal.open(url)
        try:
            await check_ours(journal, Hotkey(keypair.ss58_address))
            if not settings.resume and await journal.last() is not None:
                raise ConfigError("--run-dir", "its journal already holds a run", "continue it with --resume")
            began_at = runtime.now()
            restored = await restore(journal, journal.snapshots)
            if restored is not None:
                took_s = runtime.now() - began_at
                logger.info("restored in {:.1f} s: {}", took_s, restored.sentence)
            if settings.config:
                # a mistake stops the start before anything is journaled
                protocol_tuning.tuned(opened.spec, protocol_tuning.parse(tuning.read(Path(settings.config))), 2)
            await Host(settings, keypair, runtime, opened, journal, restored).run()
        finally:
            await journal.close()


async def until_stopped(settings: OrchestratorConfig, keypair: Keypair) -> None:
    cancel_on_signals()
    try:
        await host(settings, keypair, SystemRuntime())
    except* (ConfigError, OtherWriter) as group:
        raise operators(first(group)) from None


def first(error: BaseException) -> BaseException:
    """Of errors that ended several tasks together."""
    return first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def operators(error: BaseException) -> BaseException:
    """As the operator's to mend."""
    if isinstance(error, OtherWriter):
        return ConfigError("--journal-url", str(error), "stop the other orchestrator of this run")
    return error


def main(argv: list[str]) -> int:
    with config.one_line_errors():
        settings = config.parse(OrchestratorConfig, argv, "python -m subnet.orchestrator")
        keypair = open_hotkey(
            settings.wallet_path or str(Path(settings.run_dir) / "wallets"), settings.wallet, settings.wallet_hotkey
        )
        telemetry.set_up("orchestrator", keypair.ss58_address, settings.log_level)
        try:
            asyncio.run(telemetry.counted(until_stopped(settings, keypair), Path(settings.run_dir)))
        except asyncio.CancelledError:
            logger.info("stopped; the journal is closed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
