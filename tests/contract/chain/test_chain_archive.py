"""Old blocks: a public node has thrown them away, an archive node has them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from subnet.chain.subtensor import SubtensorChain
from subnet.errors import Unavailable
from subnet.protocol.ids import Hotkey
from subnet.runtime import SystemRuntime

BODY_GONE = {"chain_getBlock": {"result": None}}
"""As a node answers that joined by a snapshot."""
STATE_GONE = {
    method: {"error": {"code": 4003, "message": "Client error: UnknownBlock: State already discarded for 0x12"}}
    for method in ("state_getRuntimeVersion", "state_getStorageAt", "state_call")
}
"""As a node answers that keeps the state of its last blocks only."""


@asynccontextmanager
async def forgetful(url: str, answers: dict[str, dict[str, Any]]) -> AsyncIterator[str]:
    """A node that answers some methods so when they name a block, and is else the node at `url`. Its URL."""

    async def relay(client: ServerConnection) -> None:
        async with connect(url) as node:
            async for message in client:
                asked = json.loads(message)
                answer = answers.get(asked["method"])
                if answer is None or not any(asked.get("params") or ()):
                    await node.send(message)
                    await client.send(await node.recv())
                else:
                    await client.send(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}))

    async with serve(relay, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


@pytest.mark.parametrize("answers", [BODY_GONE, STATE_GONE])
async def test_an_anchor_of_last_month(node: Any, answers: dict[str, dict[str, Any]]) -> None:
    """1. The owner's anchor stands in a block that the node keeps no more, with its body or with the runtime that reads
    it: alone the node cannot say what was committed, and says so at once; with an archive node it can."""
    owner = SubtensorChain(node.url, node.netuid, node.wallets["owner"].hotkey, SystemRuntime())
    outcome = await owner.commit("an anchor")
    assert outcome.done
    hotkey = Hotkey(node.wallets["owner"].hotkey.ss58_address)
    async with forgetful(node.url, answers) as url:
        alone = SubtensorChain(url, node.netuid, None, SystemRuntime())
        with pytest.raises(Unavailable, match=f"holds the body of block {outcome.block} no more"):
            await alone.committed_in(outcome.block, hotkey)
        helped = SubtensorChain(url, node.netuid, None, SystemRuntime())
        helped._link.archives = [node.url]
        assert await helped.committed_in(outcome.block, hotkey) == "an anchor"
        assert await helped.committed_in(outcome.block, Hotkey(node.wallets["miner"].hotkey.ss58_address)) is None
        for chain in (alone, helped, owner):
            await chain.close()
