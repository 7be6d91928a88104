"""Who is started for a local run, in which order and with which flags.

Law: every process of a run is a child with a log file; this file knows their command lines and how one tells that it is
ready, and nothing about when they are needed. An operator's mistake that a child reports is raised as its own line.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from subnet.config import LocalnetConfig
from subnet.errors import ConfigError, SubnetError
from subnet.localnet.cast import Part
from subnet.localnet.chain_genesis import BLOCK_S, PORTS, genesis
from subnet.localnet.folder import OnChain, Participants, RunFolder, TextFacts, load, on_chain
from subnet.localnet.plan import Plan, bind
from subnet.localnet.processes import SOURCES, Child, Processes, ended
from subnet.runtime import Runtime

LOOK_EVERY_S = 0.1
START_TIMEOUT_S = 60.0
"""For the chain and the orchestrator to listen."""
FOUND_ELSEWHERE = {"IOTA_ORCHESTRATOR": ""}
"""Neurons of a local run find its orchestrator by netuid, whatever the operator's environment says."""
OWN_JOURNAL = {"IOTA_JOURNAL_URL": ""}
"""Its orchestrator writes into the run folder, whatever the operator's environment says."""
LEAN = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_ARENA_MAX": "2"}
"""For the orchestrator, on glibc: a tensor on its way is given back to the system at once and leaves no hole behind."""


class LaunchFailed(SubnetError):
    """A process that the run cannot do without ended by itself."""


class Crew:
    """The children of one run."""

    def __init__(self, plan: Plan, processes: Processes, runtime: Runtime) -> None:
        self._settings: LocalnetConfig = plan.config
        self._folder: RunFolder = plan.folder
        self._resumed, self._processes, self._runtime = plan.resumed, processes, runtime
        self.url = ""
        """Of the orchestrator, once it listens."""
        self.on_chain = OnChain(network="", netuid=0)
        self._orchestrator_port = 0

    async def prepare(self) -> tuple[Participants, TextFacts]:
        """Identities, tokens, first parameters."""
        await self._to_its_end("prepare", "subnet.localnet.prepare")
        return load(self._folder.participants, Participants), load(self._folder.text_facts, TextFacts)

    async def start_chain(self) -> Child:
        """The local chain: where it was before if that is free, otherwise at the first free port."""
        self._folder.chain.mkdir(exist_ok=True)
        (self._folder.chain / "genesis.json").write_bytes(msgspec.json.encode(genesis(self._folder)))
        before = on_chain(self._folder)
        ports = [port for port in ([before.port] if before is not None else []) + list(PORTS) if _is_free(port)]
        for port in [*ports, bind()]:
            child = await self.start_chain_at(port)
            try:
                await self._listens(child, self._folder.chain_address)
            except ConfigError as error:
                if error.field != "--port":
                    raise
                continue  # somebody else took it a moment ago
            return child
        raise LaunchFailed(f"no port is free for the local chain; see {self._folder.logs}")

    async def start_chain_at(self, port: int) -> Child:
        """Its process, from what is on disk. It listens when there is chain.json again."""
        self._folder.chain_address.unlink(missing_ok=True)
        options = ["--state", str(self._folder.chain), "--port", str(port), "--block", f"{BLOCK_S:g}s"]
        return await self._processes.start("chain", ["-m", "subnet.chain.local", *options, *self._level()])

    async def put_on_chain(self) -> Child:
        """The process that reads the chain. Returns when the run's subnet is on it and was read for the first time."""
        self._folder.reading.unlink(missing_ok=True)
        child = await self.start_chain_watch()
        await self._listens(child, self._folder.reading, math.inf)  # a block or two for each neuron
        found = on_chain(self._folder)
        assert found is not None, "the set-up ends with it"
        self.on_chain = found
        return child

    async def start_chain_watch(self) -> Child:
        return await self._processes.start("chain-watch", ["-m", "subnet.localnet.chain_watch", *self._in_folder()])

    async def start_orchestrator(self) -> Child:
        """Its process, once it listens."""
        self._orchestrator_port = self._settings.port or bind()
        child = await self.start_orchestrator_again(resume=self._resumed)
        await self._listens(child, self._folder.address)
        self.url = str(msgspec.json.decode(self._folder.address.read_bytes())["url"])
        return child

    async def start_orchestrator_again(self, *, resume: bool = True) -> Child:
        """Its process, at the port that it had. It listens when there is orchestrator.json again."""
        self._folder.address.unlink(missing_ok=True)
        options = ["--host", "127.0.0.1", "--port", str(self._orchestrator_port)]
        options += ["--epochs", str(self._settings.epochs)]
        options += ["--resume"] if resume and self._folder.journal.exists() else []
        if self._settings.config:
            options += ["--config", self._settings.config]
        return await self._processes.start(
            "orchestrator",
            ["-m", "subnet.orchestrator", *self._in_folder(), *options, *self._subnet(), *self._level()],
            **LEAN,
            **OWN_JOURNAL,
        )

    async def start_miner(self, name: str, part: Part) -> Child:
        return await self._start_neuron("miner", name, "miners", self._folder.miner(name), part.flags)

    async def start_validator(self, name: str) -> Child:
        return await self._start_neuron("validator", name, "validator", self._folder.validator(name), [])

    async def sample(self) -> str:
        """Text generated from the last checkpoint."""
        options = ["--prompt", self._settings.sample, "--device", self._settings.device]
        await self._to_its_end("sample", "subnet.localnet.sample", *options)
        return self._folder.sample.read_text(encoding="utf-8")

    # ---- inside ------------------------------------------------------------------------------------------------------

    async def _to_its_end(self, name: str, module: str, *options: str) -> None:
        child = await self._processes.start(name, ["-m", module, *self._in_folder(), *options])
        await ended([child], None)
        if child.exit_code != 0:
            raise failure(child)

    async def _start_neuron(self, program: str, name: str, wallet: str, work_dir: Path, flags: list[str]) -> Child:
        """As on any network: netuid, network and wallet are all that it is told of the subnet."""
        keys = ["--wallet", wallet, "--wallet-hotkey", name, "--wallet-path", str(self._folder.wallets)]
        options = ["--device", self._settings.device, "--work-dir", str(work_dir), "--threads", "1", *flags]
        path = str(SOURCES / "neurons" / f"{program}.py")
        return await self._processes.start(
            name, [path, *self._subnet(), *keys, *options, *self._level()], **FOUND_ELSEWHERE
        )

    async def _listens(self, child: Child, address: Path, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = self._runtime.now() + timeout_s
        while not address.exists():
            if child.exit_code is not None:
                raise failure(child)
            if self._runtime.now() > deadline:
                raise LaunchFailed(f"{child.name} does not listen after {timeout_s:g}s; see {child.log}")
            await self._runtime.sleep(LOOK_EVERY_S)

    def _in_folder(self) -> list[str]:
        return ["--run-dir", str(self._folder.root)]

    def _subnet(self) -> list[str]:
        return ["--network", self.on_chain.network, "--netuid", str(self.on_chain.netuid)]

    def _level(self) -> list[str]:
        return ["--log-level", self._settings.log_level]


def _is_free(port: int) -> bool:
    try:
        bind(port)
    except OSError:
        return False
    return True


def failure(child: Child) -> SubnetError:
    """What a child that ended says to the operator: its own line when it was the operator's mistake."""
    said = child.last_line()
    if child.exit_code == 2 and said.startswith("error: ") and said.count(": ") >= 2 and "; " in said:
        field, _, rest = said.removeprefix("error: ").partition(": ")
        problem, _, remedy = rest.partition("; ")
        return ConfigError(field, problem, remedy)
    return LaunchFailed(f"{child.name} ended by itself with code {child.exit_code} ({said}); see {child.log}")
