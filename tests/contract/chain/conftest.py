"""What the chain's tests run against: a subnet with an owner, a validator and miners, in memory and on a local node.

The node is a process of its own on a free loopback port; the subnet on it is made the way an owner makes one, through
the SDK. Each world knows how to do what no neuron can: let time pass, register, tune, and be away.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import bittensor as bt
import pytest
from websockets.sync.client import connect

from subnet.chain.base import Chain, Outcome
from subnet.chain.coldkey import Coldkey
from subnet.chain.memory import MemoryChain, MemoryLedger
from subnet.chain.subtensor import SubtensorChain
from subnet.protocol.ids import Hotkey
from subnet.runtime import LoopRuntime, SystemRuntime

TEMPO, RATE_LIMIT = 10, 3
BLOCK_S = 0.1
NAMES = ("owner", "validator", "miner", "other", "stranger")
"""All but the stranger have a uid, in this order; owner and validator have permits, the validator nearly all stake."""
ROOT = Path(__file__).resolve().parents[3]
START_TIMEOUT_S, END_TIMEOUT_S = 30.0, 10.0
ALICE = "//Alice"


class World(NamedTuple):
    """One subnet, seen from outside."""

    hotkeys: dict[str, Hotkey]
    ledger: MemoryLedger | None
    node: Node | None
    opened: list[SubtensorChain]

    def chain(self, name: str) -> Chain:
        """A hotkey's line; closed after the test."""
        if self.ledger is not None:
            return MemoryChain(self.ledger, self.hotkeys[name])
        assert self.node is not None
        signer = self.node.wallets[name].hotkey
        self.opened.append(SubtensorChain(self.node.url, self.node.netuid, signer, SystemRuntime()))
        return self.opened[-1]

    async def pass_blocks(self, count: int) -> None:
        if self.ledger is not None:
            self.ledger.advance(count)
            return
        chain = self.chain("owner")
        now = await chain.wait_for_block(0)
        await chain.wait_for_block(now.number + count)

    async def tune(self, name: str, value: int | bool) -> Outcome | None:
        """As the owner."""
        if self.ledger is not None:
            self.ledger.set_hyperparameter(name, value)
            return None
        assert self.node is not None
        owner = self.node.coldkey("owner")
        try:
            return await owner.set_hyperparameter(self.node.netuid, name, value)
        finally:
            await owner.close()

    def away(self) -> Chain:
        """The same subnet on a chain that does not answer."""
        if self.ledger is not None:
            hushed = MemoryLedger(self.hotkeys["owner"], random_bytes=bytes)
            hushed.answers = False
            return MemoryChain(hushed, self.hotkeys["owner"])
        assert self.node is not None
        url = f"ws://127.0.0.1:{free_port()}"
        signer = self.node.wallets["owner"].hotkey
        self.opened.append(SubtensorChain(url, self.node.netuid, signer, SystemRuntime(), patience_s=0.3))
        return self.opened[-1]


class Node(NamedTuple):
    """A local node with the subnet on it."""

    url: str
    netuid: int
    wallets: dict[str, bt.Wallet]

    def coldkey(self, name: str) -> Coldkey:
        return Coldkey(self.url, self.wallets[name], SystemRuntime())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Machine:
    """One state folder, and the local chain as a process on it."""

    def __init__(self, folder: Path) -> None:
        self.state, self.folder = folder / "state", folder
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self, *flags: str, port: int = 0) -> None:
        """Returns once it listens."""
        command = [sys.executable, "-m", "subnet.chain.local", "--state", str(self.state), "--port", str(port), *flags]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        said: dict[str, Any] = {}
        while said.get("pid") != self.process.pid:  # a killed chain leaves its own chain.json behind
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)
            with contextlib.suppress(FileNotFoundError):
                said = json.loads((self.state / "chain.json").read_text())
        self.url = said["url"]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(END_TIMEOUT_S)
        finally:
            self.process.kill()

    def ask(self, method: str, *params: Any) -> Any:
        """One answer of its JSON-RPC."""
        with connect(self.url) as socket:
            socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}))
            return json.loads(socket.recv(5))["result"]

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    if made.runs:
        made.end(signal.SIGKILL)


def wallet(folder: Path, name: str) -> bt.Wallet:
    made = bt.Wallet(name=name, hotkey="default", path=str(folder / "wallets"))
    made.create_new_coldkey(use_password=False, suppress=True)
    made.create_new_hotkey(suppress=True)
    return made


async def make_subnet(url: str, wallets: dict[str, bt.Wallet]) -> int:
    """Create, start, tune, register, stake: all through the SDK, each by the coldkey whose matter it is."""
    bank = Coldkey(url, bt.sp_core.Keypair.create_from_uri(ALICE), SystemRuntime())
    keys = {name: Coldkey(url, wallet, SystemRuntime()) for name, wallet in wallets.items()}
    hotkeys = {name: Hotkey(wallet.hotkey.ss58_address) for name, wallet in wallets.items()}
    try:
        outcomes = [await bank.transfer(key.address, 10_000.0) for key in keys.values()]
        created = await keys["owner"].create_subnet(hotkeys["owner"])
        netuid = created.netuid
        outcomes += [created.outcome, await keys["owner"].start_subnet(netuid)]
        rules = {"tempo": TEMPO, "weights_rate_limit": RATE_LIMIT, "commit_reveal_weights_enabled": False}
        outcomes += [await keys["owner"].set_hyperparameter(netuid, name, value) for name, value in rules.items()]
        outcomes += [await keys[name].register(netuid, hotkeys[name]) for name in NAMES[1:-1]]
        outcomes.append(await keys["validator"].stake(netuid, hotkeys["validator"], 5_000.0))
        assert all(outcome.done for outcome in outcomes), outcomes
        return netuid
    finally:
        for key in (bank, *keys.values()):
            await key.close()


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The SDK's, away from the developer's own."""
    folder = tmp_path_factory.mktemp("caches")
    os.environ["BITTENSOR_RUNTIME_CACHE_DIR"] = str(folder / "runtimes")
    os.environ["BTCLI_TOKEN_SYMBOLS_CACHE"] = str(folder / "symbols.json")


@pytest.fixture
def people(tmp_path: Path) -> Callable[..., Awaitable[tuple[dict[str, bt.Wallet], int]]]:
    """Starts a machine with these flags and makes the subnet on it: wallets by name, netuid."""

    async def settle(machine: Machine, *flags: str) -> tuple[dict[str, bt.Wallet], int]:
        wallets = {name: wallet(tmp_path, name) for name in NAMES}
        await asyncio.to_thread(machine.start, *flags)
        return wallets, await make_subnet(machine.url, wallets)

    return settle


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("chain")
    wallets = {name: wallet(folder, name) for name in NAMES}
    machine = Machine(folder)
    try:
        machine.start("--block-s", str(BLOCK_S))
        yield Node(machine.url, asyncio.run(make_subnet(machine.url, wallets)), wallets)
    finally:
        if machine.runs:
            machine.end()


@pytest.fixture(params=["memory", "subtensor"])
def world(request: pytest.FixtureRequest) -> World:
    """Past the first chain epoch, so that permits are given."""
    if request.param == "memory":
        hotkeys = {name: Hotkey(name) for name in NAMES}
        rules = {"tempo": TEMPO, "weights_rate_limit": RATE_LIMIT}
        ledger = MemoryLedger(hotkeys["owner"], random_bytes=LoopRuntime(b"world").random_bytes, **rules)
        for name in NAMES[1:-1]:
            ledger.register(hotkeys[name])
        ledger.add_stake(hotkeys["validator"], 1_000.0)
        ledger.advance()
        made = World(hotkeys, ledger, None, [])
    else:
        node: Node = request.getfixturevalue("node")
        hotkeys = {name: Hotkey(wallet.hotkey.ss58_address) for name, wallet in node.wallets.items()}
        made = World(hotkeys, None, node, [])
    return made
