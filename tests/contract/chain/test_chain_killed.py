"""SIGKILL in the middle of making blocks, and a neuron that lives through it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_sync

from subnet.chain.subtensor import SubtensorChain
from subnet.errors import Unavailable
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason
from subnet.runtime import SystemRuntime

if TYPE_CHECKING:
    from conftest import Machine

FLAGS = ("--block-s", "0.1", "--keep-blocks", "16")
KILLS, HEADS_BETWEEN = 3, 8
SUBSCRIBE = {"jsonrpc": "2.0", "id": 1, "method": "chain_subscribeNewHeads", "params": []}
VALIDATOR, MINER, OTHER = 1, 2, 3


class Ear:
    """Hears of every head while the chain is there, and never of two for one number."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.heard: dict[int, dict[str, Any]] = {}
        self._news = asyncio.Condition()

    async def listen(self) -> None:
        while True:
            try:
                async with connect(self._url) as socket:
                    await socket.send(json.dumps(SUBSCRIBE))
                    async for message in socket:
                        await self._hear(json.loads(message))
            except (OSError, WebSocketException):
                await asyncio.sleep(0.02)

    async def _hear(self, message: dict[str, Any]) -> None:
        if (header := message.get("params", {}).get("result")) is not None:
            async with self._news:
                assert self.heard.setdefault(int(header["number"], 16), header) == header
                self._news.notify_all()

    async def more(self, count: int) -> None:
        wanted = len(self.heard) + count
        async with self._news:
            await self._news.wait_for(lambda: len(self.heard) >= wanted)


@contextlib.contextmanager
def subscribed(url: str) -> Iterator[ClientConnection]:
    with connect_sync(url) as socket:
        socket.send(json.dumps(SUBSCRIBE))
        yield socket


class Busy:
    """A validator that anchors and sets weights without pause; what it was told is done, by block."""

    def __init__(self, chain: SubtensorChain) -> None:
        self._chain = chain
        self.anchors: dict[int, str] = {}
        self.rows: dict[int, float] = {}
        self.unknown = 0

    async def anchor(self) -> None:
        for number in itertools.count():
            try:
                outcome = await self._chain.commit(f"anchor {number}")
            except Unavailable:
                self.unknown += 1
                continue
            assert outcome.done or outcome.reason is Reason.RATE_LIMITED, outcome
            if outcome.done:
                self.anchors[outcome.block] = f"anchor {number}"

    async def weigh(self) -> None:
        for number in itertools.count(1):
            try:
                outcome = await self._chain.set_weights({MINER: 1.0, OTHER: float(number)})
            except Unavailable:
                self.unknown += 1
                continue
            assert outcome.done or outcome.reason in (Reason.RATE_LIMITED, Reason.NO_PERMIT), outcome
            if outcome.done:
                self.rows[outcome.block] = number / (number + 1)
            await self._chain.wait_for_block((await self._chain.wait_for_block(0)).number + 1)


async def test_killed_again_and_again(machine: Machine, people: Any) -> None:
    """1. kill -9 three times while a validator anchors and sets weights: on the same port each time, no head that
    anybody heard of is another one afterwards, no anchor and no weight that was confirmed is gone, and the validator
    goes on by itself. Bodies of all blocks can be read though states are kept for 16."""
    wallets, netuid = await people(machine, *FLAGS)
    port, hotkey = int(machine.url.rpartition(":")[2]), Hotkey(wallets["validator"].hotkey.ss58_address)
    chain = SubtensorChain(machine.url, netuid, wallets["validator"].hotkey, SystemRuntime())
    before, ear, busy = await chain.subnet(), Ear(machine.url), Busy(chain)
    tasks = [asyncio.create_task(work) for work in (ear.listen(), busy.anchor(), busy.weigh())]
    done_before = []
    for _ in range(KILLS):
        await ear.more(HEADS_BETWEEN)
        assert await asyncio.to_thread(machine.end, signal.SIGKILL) == -signal.SIGKILL
        done_before.append(len(busy.anchors))
        await asyncio.to_thread(machine.start, *FLAGS, port=port)
        while len(busy.anchors) < done_before[-1] + 2 or not busy.rows:
            await ear.more(1)
    for task in tasks:
        assert not task.done(), task
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    hashes = machine.ask("chain_getBlockHash", sorted(ear.heard))
    assert [machine.ask("chain_getHeader", hash_) for hash_ in hashes] == [ear.heard[n] for n in sorted(ear.heard)]
    for block, text in busy.anchors.items():
        assert await chain.committed_in(block, hotkey) == text
    row = (await chain.weights())[VALIDATOR]
    assert row.block >= max(busy.rows) and row.shares[OTHER] >= busy.rows[max(busy.rows)] - 1e-4
    after = await chain.subnet()
    assert [n.hotkey for n in after.neurons] == [n.hotkey for n in before.neurons]
    assert after.neurons[VALIDATOR].stake >= before.neurons[VALIDATOR].stake > 0
    assert busy.unknown <= 2 * KILLS, "each call's fate is unknown at most when the chain dies under it"
    await chain.close()


def test_killed_in_the_middle_of_a_block(machine: Machine) -> None:
    """2. A chain that makes one block after the other without pause is killed five times, so always in the middle of
    one: who listens has heard of nothing that is not there afterwards, and each start goes on from the end."""
    heads: dict[int, Any] = {}
    machine.start("--block-s", "0.001")
    port = int(machine.url.rpartition(":")[2])
    for _ in range(5):
        with subscribed(machine.url) as socket:
            for _ in range(40):
                header = json.loads(socket.recv(5)).get("params", {}).get("result")
                if header is not None:
                    heads[int(header["number"], 16)] = header
            assert machine.end(signal.SIGKILL) == -signal.SIGKILL
            with contextlib.suppress(ConnectionClosed):
                while True:  # told before it died
                    header = json.loads(socket.recv(5))["params"]["result"]
                    heads[int(header["number"], 16)] = header
        machine.start("--block-s", "0.001", port=port)
        hashes = machine.ask("chain_getBlockHash", sorted(heads))
        with connect_sync(machine.url) as socket:
            for number, hash_ in zip(sorted(heads), hashes, strict=True):
                socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "chain_getHeader", "params": [hash_]}))
                assert json.loads(socket.recv(5))["result"] == heads[number]
        assert int(machine.ask("chain_getHeader")["number"], 16) >= max(heads)
