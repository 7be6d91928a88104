"""Who is started for a local run, in which order and with which flags.

Law: every process of a run is a child with a log file; this file knows their command lines and how one tells that it is
ready, and nothing about when they are needed. An operator's mistake that a child reports is raised as its own line.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from subnet.config import LocalnetConfig
from subnet.errors import ConfigError, SubnetError
from subnet.localnet.cast import Part
from subnet.localnet.chain_setup import BLOCK_S, OnChain, genesis
from subnet.localnet.folder import Participants, Plan, RunFolder, TextFacts, free_port
from subnet.localnet.processes import SOURCES, Child, Processes, ended
from subnet.runtime import Runtime

LOOK_EVERY_S = 0.1
START_TIMEOUT_S = 60.0
"""For the chain and the orchestrator to listen."""


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

    async def prepare(self) -> tuple[Participants, TextFacts]:
        """Identities, tokens, first parameters."""
        await self._to_its_end("prepare", "subnet.localnet.prepare")
        participants = msgspec.json.decode(self._folder.participants.read_bytes(), type=Participants)
        return participants, msgspec.json.decode(self._folder.text_facts.read_bytes(), type=TextFacts)

    async def start_chain(self) -> Child:
        """The local chain, with the run's subnet on it."""
        self._folder.chain_address.unlink(missing_ok=True)
        self._folder.chain.mkdir(exist_ok=True)
        (self._folder.chain / "genesis.json").write_bytes(msgspec.json.encode(genesis(self._folder)))
        options = ["--state", str(self._folder.chain), "--port", "0", "--block", f"{BLOCK_S:g}s"]
        chain = await self._processes.start("chain", ["-m", "subnet.chain.local", *options, *self._level()])
        await self._listens(chain, self._folder.chain_address)
        await self._to_its_end("chain-setup", "subnet.localnet.chain_setup")
        # the address may be another one than before a resume, the subnet is the same
        network = str(msgspec.json.decode(self._folder.chain_address.read_bytes())["url"])
        netuid = msgspec.json.decode(self._folder.subnet.read_bytes(), type=OnChain).netuid
        self.on_chain = OnChain(network=network, netuid=netuid)
        return chain

    async def start_orchestrator(self) -> Child:
        port = self._settings.port or free_port()
        self._folder.address.unlink(missing_ok=True)
        options = ["--host", "127.0.0.1", "--port", str(port), "--epochs", str(self._settings.epochs)]
        resume = ["--resume"] if self._resumed and self._folder.journal.exists() else []
        child = await self._processes.start(
            "orchestrator",
            ["-m", "subnet.orchestrator", *self._in_folder(), *options, *self._subnet(), *resume, *self._level()],
            **LEAN,
        )
        await self._listens(child, self._folder.address)
        self.url = str(msgspec.json.decode(self._folder.address.read_bytes())["url"])
        return child

    async def start_miner(self, name: str, part: Part) -> Child:
        program = str(SOURCES / "neurons" / "miner.py")
        options = ["--device", self._settings.device, "--work-dir", str(self._folder.miner(name)), "--threads", "1"]
        return await self._processes.start(
            name, [program, *self._as_wallet("miners", name), *options, *part.flags, *self._level()]
        )

    async def start_validator(self, name: str) -> Child:
        program = str(SOURCES / "neurons" / "validator.py")
        options = ["--device", self._settings.device, "--work-dir", str(self._folder.validator(name)), "--threads", "1"]
        return await self._processes.start(
            name, [program, *self._as_wallet("validator", name), *self._subnet(), *options, *self._level()]
        )

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

    async def _listens(self, child: Child, address: Path) -> None:
        deadline = self._runtime.now() + START_TIMEOUT_S
        while not address.exists():
            if child.exit_code is not None:
                raise failure(child)
            if self._runtime.now() > deadline:
                raise LaunchFailed(f"{child.name} does not listen after {START_TIMEOUT_S:g}s; see {child.log}")
            await self._runtime.sleep(LOOK_EVERY_S)

    def _in_folder(self) -> list[str]:
        return ["--run-dir", str(self._folder.root)]

    def _subnet(self) -> list[str]:
        return ["--network", self.on_chain.network, "--netuid", str(self.on_chain.netuid)]

    def _as_wallet(self, wallet: str, hotkey: str) -> list[str]:
        path = str(self._folder.wallets)
        return ["--orchestrator", self.url, "--wallet", wallet, "--wallet-hotkey", hotkey, "--wallet-path", path]

    def _level(self) -> list[str]:
        return ["--log-level", self._settings.log_level]


def failure(child: Child) -> SubnetError:
    """What a child that ended says to the operator: its own line when it was the operator's mistake."""
    said = child.last_line()
    if child.exit_code == 2 and said.startswith("error: ") and said.count(": ") >= 2 and "; " in said:
        field, _, rest = said.removeprefix("error: ").partition(": ")
        problem, _, remedy = rest.partition("; ")
        return ConfigError(field, problem, remedy)
    return LaunchFailed(f"{child.name} ended by itself with code {child.exit_code} ({said}); see {child.log}")
