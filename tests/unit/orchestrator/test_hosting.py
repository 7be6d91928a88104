"""An orchestrator beside the work that hosts it, under virtual time: when it is started, again, and ended."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from subnet.config import OrchestratorConfig, ValidatorConfig, parse
from subnet.orchestrator.hosting import PAUSE_MAX_S, SETTLED_S, Address, Ended, Hosting
from subnet.runtime import LoopRuntime

pytestmark = pytest.mark.looptime(end=36_000)
PROGRAM = Path(__file__).parents[3] / "neurons" / "validator.py"


class Process:
    """One orchestrator; `words` is the end of its log."""

    def __init__(self, pid: int) -> None:
        self.pid, self.exit_code, self.words = pid, None, "last words"

    def last_line(self) -> str:
        return self.words


class Machine:
    """Starts processes that listen after two seconds, unless `listens` says otherwise."""

    def __init__(self, folder: Path) -> None:
        self.file, self.listens = folder / "orchestrator.json", True
        self.started: list[Process] = []
        self.starts_at: list[float] = []
        self.events: list[str] = []
        self.on_start: Callable[[Process], None] = lambda process: None
        self.hosting = Hosting(self.start, self.stop, self.file, LoopRuntime(b"hosting"))

    async def start(self) -> Process:
        process = Process(100 + len(self.started))
        self.started.append(process)
        self.starts_at.append(asyncio.get_running_loop().time())
        if self.listens:
            asyncio.get_running_loop().call_later(2.0, self.announce, process.pid)
        self.on_start(process)
        return process

    def announce(self, pid: int) -> None:
        self.file.write_bytes(msgspec.json.encode(Address("http://127.0.0.1:8091", ("https://iota.example.org",), pid)))

    async def stop(self, child: Process) -> None:
        self.events.append(f"stopped {child.pid}")
        child.exit_code = 0

    async def work(self, address: Address) -> None:
        """Goes on until it is cancelled."""
        self.events.append(f"work at {address.url}")
        try:
            await asyncio.Event().wait()
        finally:
            self.events.append("work over")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_one_after_the_other_and_the_other_way_round(machine: Machine) -> None:
    """1. The work begins when the orchestrator listens; at Ctrl-C it ends first, so its last word is heard. What an
    earlier process left in the folder is not taken for the new one's address."""
    machine.announce(99)
    task = asyncio.create_task(machine.hosting.beside(machine.work))
    await asyncio.sleep(1.0)
    assert machine.events == []
    await asyncio.sleep(5.0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert machine.events == ["work at http://127.0.0.1:8091", "work over", "stopped 100"]


async def test_it_comes_back(machine: Machine) -> None:
    """2. Somebody kills the orchestrator after some minutes: another one stands in its place within a second, its
    address is not the dead one's, and the work has not noticed more than an outage."""
    task = asyncio.create_task(machine.hosting.beside(machine.work))
    await asyncio.sleep(300.0)
    machine.started[0].exit_code = -9
    await asyncio.sleep(1.5)
    assert len(machine.started) == 2 and not machine.file.exists()
    await asyncio.sleep(10.0)
    assert machine.file.exists() and machine.events == ["work at http://127.0.0.1:8091"]
    task.cancel()
    await asyncio.wait([task])
    assert machine.events[1:] == ["work over", "stopped 101"]


async def test_one_that_dies_again_and_again(machine: Machine) -> None:
    """3. It dies as soon as it starts, all night: pauses grow to a minute and no further. One that ran for a while is
    started again at once."""

    def dies(process: Process) -> None:
        process.exit_code = 1

    machine.on_start, machine.listens = dies, False
    task = asyncio.create_task(machine.hosting.beside(machine.work))
    await asyncio.sleep(3_600.0)
    pauses = [later - before for before, later in zip(machine.starts_at, machine.starts_at[1:], strict=False)]
    assert pauses[0] <= 1.0 and pauses[3] > pauses[0]
    assert PAUSE_MAX_S / 2 <= min(pauses[10:]) <= max(pauses) <= PAUSE_MAX_S + 1.0
    machine.on_start, machine.listens = lambda process: None, True
    await asyncio.sleep(2 * PAUSE_MAX_S + SETTLED_S)
    count = len(machine.started)
    machine.started[-1].exit_code = 1
    await asyncio.sleep(1.5)
    assert len(machine.started) == count + 1
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("after_s", [1.0, 100.0])
async def test_what_only_the_operator_can_mend(machine: Machine, after_s: float) -> None:
    """4. The orchestrator ends with code 2, at its start or later: both end, with its own line."""
    task = asyncio.create_task(machine.hosting.beside(machine.work))
    await asyncio.sleep(after_s)
    machine.started[0].words, machine.started[0].exit_code = "error: --port: 80 is taken; name another", 2
    with pytest.raises(Ended, match="^error: --port: 80 is taken; name another$"):
        await task
    assert len(machine.started) == 1 and machine.events[-1] == "stopped 100"


async def test_work_that_fails_takes_it_along(machine: Machine) -> None:
    """5. The validator finds that it is not registered: its own line is what the operator sees, and nothing is left."""

    async def fails(address: Address) -> None:
        raise ValueError("not registered")

    with pytest.raises(ValueError, match="not registered"):
        await machine.hosting.beside(fails)
    assert machine.events == ["stopped 100"]


async def test_the_journal_stays_public_when_the_run_is_over(machine: Machine) -> None:
    """6. The validator has set its last weights: others still read the journal, until the owner stops it."""

    async def short(address: Address) -> None:
        await asyncio.sleep(10.0)

    task = asyncio.create_task(machine.hosting.beside(short))
    await asyncio.sleep(100.0)
    assert not task.done() and machine.started[0].exit_code is None
    machine.started[0].exit_code = -9
    await asyncio.sleep(10.0)
    assert len(machine.started) == 2
    task.cancel()
    await asyncio.wait([task])
    assert machine.events == ["stopped 101"]


async def test_ctrl_c_twice(machine: Machine) -> None:
    """7. The work takes its time to end, and the operator's patience is over first: nobody waits for it any more, but
    the orchestrator is stopped all the same, and no other one is started."""

    async def dawdles(address: Address) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(3_600.0)

    task = asyncio.create_task(machine.hosting.beside(dawdles))
    await asyncio.sleep(5.0)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(1.0)
    assert task.cancelled() and machine.events == ["stopped 100"]
    await asyncio.sleep(100.0)
    assert len(machine.started) == 1


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("neurons_validator", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_orchestrator_is_told_what_the_validator_was(program: ModuleType) -> None:
    """8. Identity, subnet, addresses and rules are the same, an environment that says otherwise changes nothing, and
    there is no flag that the orchestrator does not know."""
    asked = ["--netuid", "12", "--network", "test", "--wallet", "owner", "--wallet-hotkey", "main"]
    asked += ["--wallet-path", "keys", "--host-orchestrator", "--run-dir", "run", "--host", "0.0.0.0", "--port", "80"]
    asked += ["--public-url", "http://a.example.org", "--public-url", "http://b.example.org", "--config", "rules.toml"]
    settings = parse(ValidatorConfig, asked, "neurons/validator.py")
    module, name, *flags = program.orchestrator(settings)
    assert (module, name) == ("-m", "subnet.orchestrator")
    told = parse(OrchestratorConfig, flags, "python -m subnet.orchestrator")
    shared = set(OrchestratorConfig.__struct_fields__) & set(ValidatorConfig.__struct_fields__)
    assert {field: getattr(told, field) for field in shared} == {field: getattr(settings, field) for field in shared}
    assert told.resume and {"netuid", "network", "wallet", "wallet_hotkey", "public_url", "config"} <= shared
