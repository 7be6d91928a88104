"""An owner hosts a run with one command, and strangers find it by netuid: real processes on a local chain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import bittensor as bt
import msgspec
import pytest

from subnet.chain.coldkey import Coldkey
from subnet.chain.local.genesis import Genesis
from subnet.chain.subtensor import SubtensorChain
from subnet.protocol.anchor import decode
from subnet.protocol.ids import Hotkey
from subnet.runtime import SystemRuntime
from subnet.transport.http_client import read_status

ROOT = Path(__file__).resolve().parents[2]
STOP_S = 20.0
PATIENCE_S = 240.0
"""Far above what it takes: a test that hangs shall fail with its processes' last words."""
TEXT = "In the beginning God created the heaven and the earth. And the earth was without form, and void;\n"
RULES: dict[str, int | bool] = {"tempo": 10, "weights_rate_limit": 5, "commit_reveal_weights_enabled": False}


class Process(NamedTuple):
    popen: subprocess.Popen[bytes]
    log: Path

    def words(self) -> str:
        return self.log.read_text(errors="replace")

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            while self.popen.poll() is None:
                await asyncio.sleep(0.1)
        return int(self.popen.returncode)

    async def says(self, words: str, times: int = 1) -> None:
        """Wait until it has said so."""
        async with asyncio.timeout(PATIENCE_S):
            while self.words().count(words) < times:
                assert self.popen.poll() is None, f"ended with {self.popen.returncode}:\n{self.words()[-2000:]}"
                await asyncio.sleep(0.1)


class Net(NamedTuple):
    """A local chain with one subnet; processes of neurons on it."""

    folder: Path
    network: str
    netuid: int
    hotkeys: dict[str, Hotkey]
    processes: list[Process]

    def start(self, name: str, *command: str) -> Process:
        return start(self.folder, self.processes, name, *command)

    def neuron(self, program: str, hotkey: str, *more: str) -> Process:
        """Netuid, network and wallet are all that it is told of the subnet."""
        wallet, _, name = hotkey.partition("/")
        keys = ["--wallet", wallet, "--wallet-hotkey", name, "--wallet-path", str(self.folder / "wallets")]
        subnet = ["--netuid", str(self.netuid), "--network", self.network]
        work_dir = self.folder / "work" / program / name
        return self.start(
            f"{program}-{wallet}-{name}", f"neurons/{program}.py", *subnet, *keys, "--work-dir", str(work_dir), *more
        )

    def chain(self) -> SubtensorChain:
        return SubtensorChain(self.network, self.netuid, None, SystemRuntime())


def start(folder: Path, processes: list[Process], name: str, *command: str) -> Process:
    log = folder / f"{name}.log"
    own = {"HOME": str(folder), "BITTENSOR_RUNTIME_CACHE_DIR": str(folder / "sdk"), "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=output, stderr=output, env={**os.environ, **own}
        )
    processes.append(Process(popen, log))
    return processes[-1]


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    processes: list[Process] = []
    wallets = {
        name: bt.Wallet(name=wallet, hotkey=hotkey, path=str(tmp_path / "wallets"))
        for name in ("owner/main", "other/one", "other/two", "other/nobody")
        for wallet, _, hotkey in [name.partition("/")]
    }
    for name, wallet in wallets.items():
        if name.endswith(("main", "one")):
            wallet.create_new_coldkey(use_password=False, suppress=True)
        wallet.create_new_hotkey(suppress=True)
    hotkeys = {name: Hotkey(wallet.hotkey.ss58_address) for name, wallet in wallets.items()}
    endowed = {wallet.coldkeypub.ss58_address: 20_000.0 for wallet in wallets.values()}
    (tmp_path / "chain").mkdir()
    (tmp_path / "chain" / "genesis.json").write_bytes(msgspec.json.encode(Genesis(endowed=endowed, new_subnets=RULES)))
    try:
        options = ["--state", str(tmp_path / "chain"), "--port", "0", "--block", "250ms"]
        node = start(tmp_path, processes, "chain", "-m", "subnet.chain.local", *options)
        await node.says("local chain at")
        network = json.loads((tmp_path / "chain" / "chain.json").read_text())["url"]
        yield Net(tmp_path, network, await make_subnet(network, wallets, hotkeys), hotkeys, processes)
    finally:
        for process in reversed(processes):
            process.popen.terminate()
        for process in reversed(processes):
            try:
                process.popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()


async def make_subnet(network: str, wallets: dict[str, bt.Wallet], hotkeys: dict[str, Hotkey]) -> int:
    """As an owner and two miners do it: create, start, stake, register."""
    owner, other = (Coldkey(network, wallets[name], SystemRuntime()) for name in ("owner/main", "other/one"))
    try:
        created = await owner.create_subnet(hotkeys["owner/main"])
        outcomes = [created.outcome, await owner.start_subnet(created.netuid)]
        outcomes.append(await owner.stake(created.netuid, hotkeys["owner/main"], 1_000.0))
        outcomes += [await other.register(created.netuid, hotkeys[name]) for name in ("other/one", "other/two")]
        assert all(outcome.done for outcome in outcomes), outcomes
    finally:
        await owner.close()
        await other.close()
    return created.netuid


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prepared(net: Net) -> Path:
    """A run of one epoch that is trained within seconds."""
    text, folder = net.folder / "text.txt", net.folder / "run"
    text.write_text("".join(f"{number} {TEXT}" for number in range(400)))
    sizes = ["--stages", "2", "--miners", "2", "--epochs", "1", "--micro-batch-size", "2", "--seq-len", "16"]
    files = ["--run-dir", str(folder), "--text", str(text), "--cache-dir", str(net.folder / "cache")]
    command = [sys.executable, "-m", "subnet.prepare", *files, *sizes, "--num-microbatches-min", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert "--host-orchestrator" in done.stdout and str(folder) in done.stdout
    return folder


async def status(url: str) -> Any:
    return msgspec.json.decode(await read_status(url))


async def test_an_owner_hosts_and_strangers_find_it(net: Net) -> None:
    """1. The owner prepares a run and hosts it beside its validator. Two miners come with netuid and wallet alone, one
    of them before anything is published. An epoch is merged, audited and paid on chain, and its head is anchored.
    Meanwhile somebody else tries to host a rival, and a hotkey without a uid tries to mine: a line each, code 2. The
    orchestrator is killed, and the chain with it: it comes back by itself, and goes when its owner goes."""
    one = net.neuron("miner", "other/one")
    folder, port = prepared(net), free_port()
    await one.says("has not published any yet")
    hosting = ["--host-orchestrator", "--run-dir", str(folder), "--port", str(port)]
    owner = net.neuron("validator", "owner/main", *hosting)
    two = net.neuron("miner", "other/two")
    nobody = net.neuron("miner", "other/nobody")
    rival = net.neuron("validator", "other/two", *hosting[:2], str(folder), "--port", str(free_port()))
    assert (await nobody.ended(), await rival.ended()) == (2, 2)
    (line,) = [line for line in nobody.words().splitlines() if line.startswith("error: ")]
    command = f"btcli subnet register --netuid {net.netuid} -w other -H nobody -n {net.network}"
    assert f"{net.hotkeys['other/nobody']} is not registered on subnet {net.netuid}" in line and command in line
    said = f"error: --wallet-hotkey: {net.hotkeys['other/two']} is not the owner's hotkey of subnet {net.netuid}"
    assert rival.words().splitlines()[-1].startswith(said)

    chain = net.chain()
    try:
        async with asyncio.timeout(PATIENCE_S):
            uids = {neuron.hotkey: neuron.uid for neuron in (await chain.subnet()).neurons}
            own, first, second = (uids[net.hotkeys[name]] for name in ("owner/main", "other/one", "other/two"))
            while own not in (rows := await chain.weights()) or not {first, second} <= set(rows[own].shares):
                assert owner.popen.poll() is None, owner.words()[-2000:]
                await asyncio.sleep(0.5)
        assert (await one.ended(), await two.ended()) == (0, 0), one.words() + two.words()
        view = await status(f"http://127.0.0.1:{port}")
        anchor = decode(await chain.commitment(net.hotkeys["owner/main"]))
        assert anchor is not None and anchor.urls == (f"http://127.0.0.1:{port}",)
        assert (anchor.epoch, anchor.head) == (view["chain"]["anchor"]["epoch"], view["chain"]["anchor"]["head"])
        assert anchor.epoch == 1 and view["chain"]["tempo"] == 10
    finally:
        await chain.close()

    before = json.loads((folder / "orchestrator.json").read_text())["pid"]
    net.processes[0].popen.terminate()
    await net.processes[0].ended()
    os.kill(before, signal.SIGKILL)
    await owner.says("the orchestrator listens at", times=2)
    again = json.loads((folder / "orchestrator.json").read_text())["pid"]
    assert again != before and (await status(f"http://127.0.0.1:{port}"))["run_id"] == view["run_id"]
    assert "chain-away: " in (folder / "logs" / "orchestrator.log").read_text()
    owner.popen.terminate()
    assert await owner.ended() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(again, 0)
