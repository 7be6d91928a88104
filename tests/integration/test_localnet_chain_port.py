"""The local chain's process: where it listens, and what the keeper does when it dies."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from subnet import config
from subnet.chain.subtensor import SubtensorChain
from subnet.config import LocalnetConfig
from subnet.localnet.chain_genesis import COLDKEYS
from subnet.localnet.chain_keeper import ChainKeeper
from subnet.localnet.crew import Crew, LaunchFailed
from subnet.localnet.faults import CHAIN_STARTS_MAX, ChainFaultPlan, Fault
from subnet.localnet.folder import OnChain, RunFolder
from subnet.localnet.plan import Plan
from subnet.localnet.prepare import make_participants
from subnet.localnet.processes import Child, Processes
from subnet.runtime import SystemRuntime

WAIT_S = 60
SETTINGS = LocalnetConfig(miners=1, stages=1)


class Net:
    """A run folder with wallets, and a crew to start its chain."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = RunFolder(tmp_path)
        make_participants(self.folder, SETTINGS)
        environment = config.child_environment(BITTENSOR_RUNTIME_CACHE_DIR=str(self.folder.sdk), HOME=str(tmp_path))
        self.processes = Processes(self.folder.logs, environment)
        self.crew = Crew(Plan(SETTINGS, self.folder, resumed=False), self.processes, SystemRuntime())

    @property
    def port(self) -> int:
        return int(str(msgspec.json.decode(self.folder.chain_address.read_bytes())["url"]).rpartition(":")[2])

    def chain(self) -> Child:
        (found,) = (child for child in self.processes.running() if child.name == "chain")
        return found


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    made = Net(tmp_path)
    assert {path.name for path in made.folder.wallets.iterdir()} == set(COLDKEYS)
    try:
        yield made
    finally:
        await made.processes.stop(made.processes.running())


async def test_a_chain_keeps_its_port_unless_it_is_taken(net: Net) -> None:
    """1. A run is continued: neurons in other terminals find the chain where it was. Meanwhile somebody else took the
    port: then it is another one."""
    first = await net.crew.start_chain()
    port = net.port
    net.folder.subnet.write_bytes(msgspec.json.encode(OnChain(network=f"ws://127.0.0.1:{port}", netuid=1)))
    await net.processes.stop([first])
    second = await net.crew.start_chain()
    assert net.port == port
    await net.processes.stop([second])
    with socket.create_server(("127.0.0.1", port)):
        await net.crew.start_chain()
        assert net.port != port


async def test_a_chain_that_dies_is_started_again_until_it_is_in_vain(net: Net) -> None:
    """2. The chain is killed: it comes back at its port with every block it had made. Then it dies at every start."""
    keeper, now_s, said = ChainKeeper(net.folder, net.crew, ChainFaultPlan(0)), 0.0, list[str]()
    at, _ = await keeper.start()
    assert (at.port, at.netuid) == (net.port, 1)
    before = keeper.block
    assert before > 0
    net.chain().signal(signal.SIGKILL)
    async with asyncio.timeout(WAIT_S):
        while keeper.block <= before or not keeper.plan.records or keeper.plan.records[0].blocks_again_at_s is None:
            said += await keeper.look(now_s, 0)
            now_s += 0.1
            await asyncio.sleep(0.1)
    assert net.port == at.port and len(said) == 2 and "ended by itself with code -9" in said[0], said
    assert keeper.plan.records[0].fault is Fault.CHAIN_DIED and keeper.plan.records[0].block >= before

    with pytest.raises(LaunchFailed, match="again and again"):
        async with asyncio.timeout(WAIT_S):
            while True:
                for child in net.processes.running():
                    child.signal(signal.SIGKILL)
                await keeper.look(now_s, 0)
                await asyncio.sleep(0.05)
    assert len(keeper.plan.records) == 1 + CHAIN_STARTS_MAX + 1


async def test_a_set_up_goes_on_where_it_stopped(net: Net) -> None:
    """3. Ctrl-C between the subnet's creation and the end of the set-up, and --resume with one validator more: the same
    subnet, and whoever has no stake gets some. Continued once more, nobody gets any again."""
    await net.crew.start_chain()
    await net.processes.stop([await net.crew.put_on_chain()])
    before = net.crew.on_chain
    net.folder.subnet.unlink()
    made = make_participants(net.folder, msgspec.structs.replace(SETTINGS, validators=2))
    await net.processes.stop([await net.crew.put_on_chain()])
    assert net.crew.on_chain == before
    chain = SubtensorChain(before.network, before.netuid, None, SystemRuntime())
    try:
        stakes = {neuron.hotkey: neuron.stake for neuron in (await chain.subnet()).neurons}
    finally:
        await chain.close()
    assert stakes[made.validators["validator-0"]] > stakes[made.validators["validator-1"]] > 0
    await net.processes.stop([await net.crew.put_on_chain()])
    assert (net.folder.logs / "chain-watch.log").read_text().count("TAO are staked to") == 2
