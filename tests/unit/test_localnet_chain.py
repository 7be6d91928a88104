"""The local chain as the launcher sees it: what it begins with, where it is, and what was read of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from subnet.chain.memory import MemoryChain, MemoryLedger
from subnet.localnet import chain_genesis, chain_watch, wallets
from subnet.localnet.chain_genesis import COLDKEYS, TUNED, genesis
from subnet.localnet.folder import OnChain, RunFolder, on_chain
from subnet.protocol.ids import Hotkey
from subnet.runtime import LoopRuntime

OWNER, MINER = Hotkey("5Owner"), Hotkey("5Miner")


def test_weights_may_be_set_in_every_chain_epoch() -> None:
    """1. A validator that must wait longer than a tempo would let the chain pay by old weights."""
    assert 0 < TUNED["weights_rate_limit"] <= TUNED["tempo"]


def test_the_genesis_endows_the_runs_own_wallets(tmp_path: Path) -> None:
    """2. Owner, validators and miners of this run have TAO when the chain begins: the addresses are the wallets'."""
    folder = RunFolder(tmp_path)
    for name in COLDKEYS:
        wallets.ensure(folder.wallets, name, ["default"])
    made = genesis(folder)
    addresses = {
        str(wallets.opened(folder.wallets, name).coldkeypub.ss58_address): tao for name, tao in COLDKEYS.items()
    }
    assert made.endowed == addresses and len(addresses) == 3 and made.new_subnets == TUNED
    assert chain_genesis.coldkey(folder, "miners") in made.endowed


def test_where_the_subnet_is(tmp_path: Path) -> None:
    """3. A newcomer reads subnet.json; a run that is continued finds the port of before in it."""
    folder = RunFolder(tmp_path)
    assert on_chain(folder) is None
    folder.subnet.write_bytes(msgspec.json.encode(OnChain(network="ws://127.0.0.1:9946", netuid=2)))
    found = on_chain(folder)
    assert found is not None and (found.netuid, found.port) == (2, 9946)


async def test_a_reading_travels_between_two_processes(tmp_path: Path) -> None:
    """4. One process reads the chain, the launcher reads what it wrote; a chain that is away leaves that standing."""
    ledger = MemoryLedger(OWNER, random_bytes=LoopRuntime(b"seed").random_bytes, tempo=20)
    assert ledger.register(MINER).done
    ledger.advance(20)
    path = tmp_path / "reading.json"
    assert chain_watch.read(path) is None
    watching = asyncio.create_task(chain_watch.watch(MemoryChain(ledger, OWNER), path, LoopRuntime(b"")))
    async with asyncio.timeout(10):
        while chain_watch.read(path) is None:
            await asyncio.sleep(0)
    read = chain_watch.read(path)
    assert read == ledger.subnet() and read is not None and read.pay[1] == ledger.subnet().pay[1]
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


class Impatient(LoopRuntime):
    """Sleeps only as long as it must for others to run."""

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(0)


async def test_a_chain_that_is_away_leaves_the_last_reading(tmp_path: Path) -> None:
    """5. It is killed and started again: what was read before stands until it can be read anew."""
    ledger = MemoryLedger(OWNER, random_bytes=LoopRuntime(b"seed").random_bytes, tempo=20)
    path = tmp_path / "reading.json"
    watching = asyncio.create_task(chain_watch.watch(MemoryChain(ledger, OWNER), path, Impatient(b"")))
    async with asyncio.timeout(10):
        while chain_watch.read(path) is None:
            await asyncio.sleep(0)
        ledger.answers = False
        ledger.advance(5)
        for _ in range(100):
            await asyncio.sleep(0)
        before = chain_watch.read(path)
        assert before is not None and before.block.number < 5 and not watching.done()
        ledger.answers = True
        while (now := chain_watch.read(path)) is None or now.block.number < 5:
            await asyncio.sleep(0)
    watching.cancel()
    await asyncio.wait([watching])
