"""The unmodified SDK on the local chain: a subnet's life from its creation to its first emission, and beyond."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest
from bittensor import metagraph

from subnet.chain.local.chain import Chain
from subnet.chain.local.genesis import Genesis
from subnet.chain.local.node.server import Node
from subnet.chain.local.store import Store

BLOCK_S, TEMPO = 0.03, 8
RULES = {"tempo": TEMPO, "weights_rate_limit": 0, "commit_reveal_weights_enabled": False}
PEOPLE = ("owner", "validator", "miner", "other")


class Street:
    """A node with blocks every 30 ms, people with wallets and 5,000 TAO each, and the SDK's connection."""

    def __init__(self, url: str, node: Node, client: Any, wallets: dict[str, Any]) -> None:
        self.url, self.node, self.client, self.wallets = url, node, client, wallets
        self.netuid = 0
        self.result: Any = None

    def hotkey(self, who: str) -> str:
        return str(self.wallets[who].hotkey.ss58_address)

    async def tell(self, who: str, intent: Any) -> str:
        """'' when it was done, else why not; told a second time when a shielded call has used the nonce."""
        for _ in range(2):
            try:
                self.result = await self.client.execute(intent, self.wallets[who])
            except bt.ChainError as error:
                return str(error.code)
            if self.result.success or self.result.error.name != "Stale":
                break
        return "" if self.result.success else str(self.result.error.name)

    async def do(self, who: str, intent: Any) -> Any:
        """Successfully."""
        assert await self.tell(who, intent) == ""
        return self.result

    async def uid(self, who: str) -> int:
        found = await self.client.read("uid", hotkey_ss58=self.hotkey(who), netuid=self.netuid)
        return int(found)

    async def settle(self) -> None:
        """A subnet with a validator that has stake and permit, and two miners."""
        created = await self.do("owner", bt.RegisterSubnet())
        self.netuid = int(created.data["netuid"])
        await self.do("owner", bt.StartCall(netuid=self.netuid))
        for who in PEOPLE[1:]:
            await self.do(who, bt.BurnedRegister(netuid=self.netuid))
        stake = bt.AddStake(hotkey_ss58=self.hotkey("validator"), netuid=self.netuid, amount_tao=10)
        await self.do("validator", stake)
        await self.client.wait_for_epoch(self.netuid, timeout=20)


@pytest.fixture
async def street(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "cache"))
    wallets = {}
    for who in PEOPLE:
        wallets[who] = bt.Wallet(name=who, hotkey="default", path=str(tmp_path / "wallets"))
        wallets[who].create_new_coldkey(use_password=False, suppress=True)
        wallets[who].create_new_hotkey(suppress=True)
    endowed = {str(wallet.coldkeypub.ss58_address): 5_000.0 for wallet in wallets.values()}
    store = Store(None)
    genesis = Genesis(endowed=endowed, new_subnets=RULES, block_ms=int(BLOCK_S * 1000))
    node = Node(Chain(store, genesis, now=time.time, random_bytes=os.urandom))
    port = await node.start("127.0.0.1", 0)
    author = asyncio.create_task(node.author(BLOCK_S))
    url = f"ws://127.0.0.1:{port}"
    async with bt.Subtensor(url, fallback_endpoints=[], archive_endpoints=[]) as client:
        yield Street(url, node, client, wallets)
    author.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await author
    await node.stop()
    store.close()


async def test_from_creation_to_emission(street: Street) -> None:
    """1. Create, start, register (shielded), stake, wait for the permit, set weights, wait for the epoch: incentive and
    emission follow the weights, the validator has the dividends, and the SDK shows all of it."""
    await street.settle()
    client, netuid = street.client, street.netuid
    validator, miner, other = [await street.uid(who) for who in PEOPLE[1:]]
    assert await client.query(("SubtensorModule", "ValidatorPermit"), [netuid]) == [True, True, False, False]
    await street.do("validator", bt.SetWeights(netuid=netuid, weights={miner: 0.75, other: 0.25}))
    first = await client.wait_for_epoch(netuid, timeout=20)
    second = await client.wait_for_epoch(netuid, timeout=20)
    assert second.block - first.block == TEMPO

    graph = await metagraph.fetch(client, netuid, commitments=True)
    incentive = {neuron.uid: neuron.incentive for neuron in graph}
    assert (incentive[miner], incentive[other]) == pytest.approx((0.75, 0.25), abs=1e-4)
    neurons = {neuron.uid: neuron for neuron in await client.read("neurons", netuid=netuid)}
    assert neurons[validator].raw["dividends"] == 65_535 and neurons[validator].validator_permit
    emission = {uid: neuron.raw["emission"] for uid, neuron in neurons.items()}
    assert emission[miner] / emission[other] == pytest.approx(3, rel=1e-3)
    assert emission[validator] == pytest.approx(emission[miner] + emission[other], rel=1e-3)
    assert sum(emission.values()) == pytest.approx(0.82 * TEMPO * 1e9, rel=1e-3)
    assert await client.read("weights", netuid=netuid) == {validator: {miner: 0.75, other: 0.25}}

    status = await client.read("epoch_status", netuid=netuid)
    assert (status["tempo"], status["last_epoch_block"] % TEMPO) == (TEMPO, second.block % TEMPO)
    hyperparameters = await client.read("subnet_hyperparameters", netuid=netuid)
    assert "commit_reveal_weights_enabled" in str(hyperparameters)


async def test_what_is_refused_is_told(street: Street) -> None:
    """2. Twice the same registration, weights from a stranger to the subnet, an endpoint too often: each has its name
    among the SDK's errors."""
    await street.settle()
    netuid = street.netuid
    assert await street.tell("miner", bt.BurnedRegister(netuid=netuid)) == "HotKeyAlreadyRegisteredInSubNet"
    axon = bt.ServeAxon(netuid=netuid, ip="203.0.113.5", port=8091)
    assert [await street.tell("miner", axon) for _ in range(2)] == ["", "ServingRateLimitExceeded"]
    assert await street.tell("miner", bt.SetWeights(netuid=netuid, weights={1: 1.0})) == "NeuronNoValidatorPermit"


async def test_commitments_and_tuning(street: Street) -> None:
    """3. The owner's hotkey commits a URL and everybody reads it; the owner changes hyperparameters by name and by
    call; with commit-reveal on, SetWeights commits under time-lock, and a developer opens it."""
    await street.settle()
    client, netuid = street.client, street.netuid
    text = b"http://127.0.0.1:8091"
    info = {"fields": [{f"Raw{len(text)}": "0x" + text.hex()}]}
    call = bt.calls.Commitments.set_commitment(netuid=netuid, info=info)
    assert (await client.submit_call(call, street.wallets["owner"], signer="hotkey")).success
    found = await client.read("commitment", netuid=netuid, hotkey_ss58=street.hotkey("owner"))
    assert found.data == text.decode()

    tempo = bt.calls.AdminUtils.sudo_set_tempo(netuid=netuid, tempo=50)
    assert (await client.submit_call(tempo, street.wallets["owner"])).success
    switch = bt.SetHyperparameter(netuid=netuid, name="commit_reveal_weights_enabled", value=True)
    await street.do("owner", switch)
    assert (await client.query(("SubtensorModule", "Tempo"), [netuid])) == 50

    committed = await street.do("validator", bt.SetWeights(netuid=netuid, weights={2: 1.0}))
    assert committed.data["reveal_round"] > 0
    waiting = await client.read("timelocked_weight_commits", netuid=netuid)
    assert [row["hotkey"] for rows in waiting.values() for row in rows] == [street.hotkey("validator")]
    assert await client.read("weights", netuid=netuid) == {}
    street.node.chain.reveal_later(netuid, street.hotkey("validator"), [2], [65_535])
    await asyncio.sleep(3 * BLOCK_S)
    assert await client.read("weights", netuid=netuid) == {1: {2: 1.0}}


async def test_money_and_blocks(street: Street) -> None:
    """4. Balances, a transfer, the stream of blocks, and the blocking client of a script."""
    client = street.client
    owner, miner = (str(street.wallets[who].coldkeypub.ss58_address) for who in ("owner", "miner"))
    await street.do("owner", bt.Transfer(dest_ss58=miner, amount_tao=3))
    assert (await client.balances.get(miner)).tao == pytest.approx(5_003)
    assert 4_996.9 < (await client.balances.get(owner)).tao < 4_997
    heard = []
    async for head in client.blocks():
        heard.append(head.number)
        if len(heard) == 3:
            break
    assert heard == list(range(heard[0], heard[0] + 3))
    assert await client.block_time() == pytest.approx(BLOCK_S)

    def script() -> int:
        return int(bt.Subtensor(street.url, fallback_endpoints=[], archive_endpoints=[]).block)

    assert await asyncio.to_thread(script) >= heard[-1]
