"""Newcomers join a local net that runs: netuid, network and a wallet of their own are all they are given."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from subnet import config
from subnet.chain.base import Row
from subnet.chain.coldkey import Coldkey
from subnet.chain.subtensor import SubtensorChain
from subnet.localnet import chain_watch, public_status, wallets
from subnet.localnet.folder import OnChain, RunFolder, on_chain
from subnet.localnet.processes import SOURCES, Child, Processes, ended
from subnet.localnet.public_status import Status
from subnet.protocol.draw import choose
from subnet.protocol.ids import Hotkey
from subnet.runtime import SystemRuntime

WAIT_S = 240
"""For each thing that must happen; on an idle machine the whole takes a minute."""
STOP_S = 20
WORDS = ["and", "light", "was", "there", "waters", "upon", "evening", "morning", "day", "earth", "heaven", "seed"]
SMALL = "--miners 1 --stages 1 --epochs 10000 --seq-len 32 --micro-batch-size 4 --num-microbatches-min 60".split()
FUNDS_TAO, STAKE_TAO = 5_000.0, 2_000.0


class Net:
    """A launcher in its own process, and whoever else is started."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder, self.wallets = RunFolder(tmp_path / "run"), tmp_path / "wallets"
        self._tmp_path = tmp_path
        environment = config.child_environment(
            OMP_NUM_THREADS="1", BITTENSOR_RUNTIME_CACHE_DIR=str(tmp_path / "sdk"), HOME=str(tmp_path)
        )
        self.processes = Processes(tmp_path / "logs", environment)

    async def launch(self) -> None:
        text = self._tmp_path / "text.txt"
        text.write_text("\n".join(" ".join(choose(b"text", WORDS, n, k) for k in range(9)) for n in range(900)))
        places = ["--text", str(text), "--run-dir", str(self.folder.root), "--cache-dir", str(self._tmp_path / "cache")]
        report = ["--report", str(self._tmp_path / "report.json")]
        self.launcher = await self.processes.start("launcher", ["-m", "subnet.localnet", *SMALL, *places, *report])

    async def join(self, program: str, hotkey: str) -> Child:
        """As a newcomer types it in another terminal."""
        subnet = self.subnet
        flags = ["--netuid", str(subnet.netuid), "--network", subnet.network, "--wallet", "late"]
        flags += ["--wallet-hotkey", hotkey, "--wallet-path", str(self.wallets)]
        flags += ["--work-dir", str(self._tmp_path / hotkey)]
        return await self.processes.start(hotkey, [str(SOURCES / "neurons" / f"{program}.py"), *flags])

    async def until_weighed(self, miners: list[Hotkey], second: Hotkey, *watched: Child) -> None:
        """The chain holds weights of two validators, `second` among them, and both give something to all `miners`."""
        chain = SubtensorChain(self.subnet.network, self.subnet.netuid, None, SystemRuntime())
        rows: Mapping[int, Row] = {}

        try:
            for _ in range(WAIT_S):
                await self.until(lambda _: True, "a status", *watched)
                rows, reading = await chain.weights(), chain_watch.read(self.folder.reading)
                uids = {neuron.hotkey: neuron.uid for neuron in reading.neurons} if reading is not None else {}
                weighed = [row for row in rows.values() if all(row.shares.get(uids.get(one, -1)) for one in miners)]
                if uids.get(second) in rows and len(weighed) == 2:
                    return
                await asyncio.sleep(1.0)
        finally:
            await chain.close()
        pytest.fail(f"never two validators' weights for the late miners; the chain has {rows}")

    @property
    def subnet(self) -> OnChain:
        found = on_chain(self.folder)
        assert found is not None
        return found

    async def until(self, holds: Callable[[Status], bool], what: str, *watched: Child) -> Status:
        """The public status once it holds; nobody may have ended meanwhile."""
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    for child in (self.launcher, *watched):
                        assert child.exit_code is None, f"{child.name} ended:\n{child.log.read_text()[-3000:]}"
                    if self.folder.address.exists():
                        url = str(msgspec.json.decode(self.folder.address.read_bytes())["url"])
                        status = await public_status.fetch(url)
                        if status is not None and holds(status):
                            return status
                    await asyncio.sleep(0.25)
        except TimeoutError:
            said = [f"{child.name}:\n{child.log.read_text()[-3000:]}" for child in (self.launcher, *watched)]
            pytest.fail("\n".join([f"never: {what}", *said]))


@pytest.fixture
async def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Net]:
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "sdk"))
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "symbols.json"))
    made = Net(tmp_path)
    await made.launch()
    try:
        yield made
    finally:
        await made.processes.stop(made.processes.running(), STOP_S)


async def funded(net: Net, hotkeys: dict[str, Hotkey]) -> None:
    """A new coldkey gets TAO by a transfer, registers its hotkeys, and stakes to the validator's."""
    rich = Coldkey(net.subnet.network, wallets.opened(net.folder.wallets, "miners"), SystemRuntime())
    own = Coldkey(net.subnet.network, wallets.opened(net.wallets, "late"), SystemRuntime())
    try:
        outcomes = [await rich.transfer(own.address, FUNDS_TAO)]
        outcomes += [await own.register(net.subnet.netuid, hotkey) for hotkey in hotkeys.values()]
        outcomes.append(await own.stake(net.subnet.netuid, hotkeys["validator-b"], STAKE_TAO))
        assert all(outcome.done for outcome in outcomes), outcomes
    finally:
        await rich.close()
        await own.close()


async def test_newcomers_join_from_other_terminals(net: Net) -> None:
    """1. Two miners and a second validator come to a net that trains: the miners are credited and paid, the validator
    gets its permit and sets the weights that follow from the journal, as the first one does; then all is over."""
    await net.until(lambda status: status.micro_batches > 0, "the first micro-batch")
    hotkeys = wallets.ensure(net.wallets, "late", ["miner-a", "miner-b", "validator-b"])
    await funded(net, hotkeys)
    late = [await net.join("miner", "miner-a"), await net.join("miner", "miner-b")]
    late.append(await net.join("validator", "validator-b"))

    def credited(status: Status) -> bool:
        return all(status.credit().get(hotkeys[name], 0.0) > 0 for name in ("miner-a", "miner-b"))

    await net.until(credited, "both late miners have credit", *late)

    await net.until_weighed([hotkeys["miner-a"], hotkeys["miner-b"]], hotkeys["validator-b"], *late)
    net.launcher.signal(signal.SIGINT)
    assert await ended([net.launcher], STOP_S) and net.launcher.exit_code == 130, net.launcher.log.read_text()
    assert "join from another terminal" in net.launcher.log.read_text()

    verify = await net.processes.start("verify", ["-m", "subnet.verify", "--journal", str(net.folder.journal)])
    assert await ended([verify], WAIT_S) and verify.exit_code == 0, verify.log.read_text()
    (weights,) = (line for line in verify.log.read_text().splitlines() if line.startswith("weights"))
    assert "2 validators, all equal to the recomputed ones" in weights, weights
