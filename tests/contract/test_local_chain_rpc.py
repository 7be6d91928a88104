"""The local chain's door: JSON-RPC over a websocket, as a client meets it that knows nothing of the chain behind."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import bittensor_core as core
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from subnet.chain.local.chain import Chain
from subnet.chain.local.genesis import Genesis
from subnet.chain.local.node import server
from subnet.chain.local.node.server import Node
from subnet.chain.local.store import Store

ALICE = core.Keypair.create_from_uri("//Alice")
BOB = str(core.Keypair.create_from_uri("//Bob").ss58_address)


class Client:
    """One websocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.heard: list[dict[str, Any]] = []

    async def ask(self, method: str, *params: Any) -> Any:
        """The whole answer; notifications that come before it are kept."""
        await self.socket.send(json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": list(params)}))
        while True:
            message = json.loads(await asyncio.wait_for(self.socket.recv(), 5))
            if "id" in message:
                assert message["id"] == 7 and message["jsonrpc"] == "2.0"
                return message
            self.heard.append(message)

    async def __call__(self, method: str, *params: Any) -> Any:
        answer = await self.ask(method, *params)
        assert "error" not in answer, answer
        return answer["result"]

    async def error(self, method: str, *params: Any) -> dict[str, Any]:
        found: dict[str, Any] = (await self.ask(method, *params))["error"]
        return found

    async def hear(self) -> dict[str, Any]:
        """The next notification."""
        if self.heard:
            return self.heard.pop(0)
        found: dict[str, Any] = json.loads(await asyncio.wait_for(self.socket.recv(), 5))
        return found


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    store = Store(None)
    made = Node(Chain(store, Genesis(), now=time.time, random_bytes=os.urandom, keep_blocks=20))
    yield made
    await made.stop()
    store.close()


@pytest.fixture
async def url(node: Node) -> str:
    return f"ws://127.0.0.1:{await node.start('127.0.0.1', 0)}"


@pytest.fixture
async def ask(url: str) -> AsyncIterator[Client]:
    async with connect(url) as socket:
        yield Client(socket)


def transfer(chain: Chain, nonce: int) -> str:
    """One TAO from Alice to Bob."""
    genesis = bytes.fromhex(str(chain.hash_at(0))[2:])
    parts = {"era": "00", "nonce": nonce, "tip": 0, "tip_asset_id": None}
    call = chain.interface.compose_call("Balances", "transfer_keep_alive", {"dest": BOB, "value": 10**9})
    payload = chain.interface.signature_payload(call, genesis_hash=genesis, era_block_hash=genesis, **parts)
    data, _ = chain.interface._runtime.encode_signed_extrinsic(
        call, public_key=ALICE.public_key, signature=ALICE.sign(payload), signature_version=1, **parts
    )
    return "0x" + bytes(data).hex()


async def test_blocks(ask: Client, node: Node) -> None:
    """1. By number, by hash, the newest; what is not there is null, as a Substrate node answers."""
    await ask("dev_newBlock", 3)
    hashes = await ask("chain_getBlockHash", [0, 1, 2, 3, 4])
    assert hashes[4] is None and len(set(hashes[:4])) == 4
    assert await ask("chain_getBlockHash") == await ask("chain_getHead") == await ask("chain_getFinalizedHead")
    assert await ask("chain_getBlockHash", 2) == await ask("chain_getBlockHash", "0x2") == hashes[2]
    header = await ask("chain_getHeader", hashes[2])
    assert (header["number"], header["parentHash"]) == ("0x2", hashes[1])
    block = await ask("chain_getBlock", hashes[2])
    assert block["block"]["header"] == header and len(block["block"]["extrinsics"]) == 1
    assert await ask("chain_getHeader", "0x" + "ab" * 32) is None
    assert await ask("chain_getBlock", "0x" + "ab" * 32) is None
    assert int((await ask("chain_getHeader"))["number"], 16) == node.chain.number == 3


async def test_state(ask: Client, node: Node) -> None:
    """2. One value, many values, keys page by page; now and then; too old says so, unknown too."""
    interface = node.chain.interface
    key = "0x" + interface.storage_key("System", "Number", []).hex()
    await ask("dev_newBlock", 2)
    first = await ask("chain_getBlockHash", 1)
    assert await ask("state_getStorageAt", key) == "0x02000000"
    assert await ask("state_getStorageAt", key, first) == await ask("state_getStorage", key, first) == "0x01000000"
    assert await ask("state_getStorageAt", "0x1234") is None
    ((answer),) = await ask("state_queryStorageAt", [key, "0x1234"], first)
    assert answer == {"block": first, "changes": [[key, "0x01000000"], ["0x1234", None]]}

    prefix = "0x" + interface.storage_key("System", "BlockHash", []).hex()
    await ask("dev_newBlock", 5)
    pages: list[str] = []
    while page := await ask("state_getKeysPaged", prefix, 3, pages[-1] if pages else None):
        pages += page
    assert len(pages) == 7 and pages == sorted(pages) and all(key.startswith(prefix) for key in pages)
    assert len(await ask("state_getKeysPaged", prefix, 100, None, first)) == 1

    await ask("dev_newBlock", 30)
    assert (await ask.error("state_getStorageAt", key, first))["code"] == 4003
    assert "State already discarded" in (await ask.error("state_getStorageAt", key, first))["message"]
    assert "UnknownBlock" in (await ask.error("state_getStorageAt", key, "0x" + "ab" * 32))["message"]


async def test_what_runs_here(ask: Client, node: Node) -> None:
    """3. Version and metadata, by the old way and by the runtime API; metadata of another version is none."""
    version = await ask("state_getRuntimeVersion")
    assert (version["specName"], version["specVersion"]) == ("node-subtensor", 475)
    metadata = node.chain.interface.metadata
    assert await ask("state_getMetadata") == "0x" + metadata.hex()
    opaque = await ask("state_call", "Metadata_metadata_at_version", "0x0f000000")
    assert opaque.endswith(metadata.hex()) and opaque.startswith("0x01")
    assert await ask("state_call", "Metadata_metadata_at_version", "0x0e000000") == "0x00"
    assert await ask("state_call", "Metadata_metadata_versions", "0x") == "0x040f000000"
    assert (await ask("system_properties"))["tokenSymbol"] == "TAO"
    assert {"state_call", "author_submitExtrinsic"} <= set((await ask("rpc_methods"))["methods"])
    assert "not found" in (await ask.error("state_call", "Core_version", "0x"))["message"]


async def test_an_extrinsic_is_watched(ask: Client, node: Node) -> None:
    """4. Submitted, in a block, final; the nonce counts what waits; the same once more is refused with Substrate's
    code."""
    address = str(ALICE.ss58_address)
    assert await ask("account_nextIndex", address) == 0
    subscription = await ask("author_submitAndWatchExtrinsic", transfer(node.chain, 0))
    digest = await ask("author_submitExtrinsic", transfer(node.chain, 1))
    assert await ask("account_nextIndex", address) == 2 and digest.startswith("0x")
    assert (await ask.error("author_submitExtrinsic", transfer(node.chain, 1)))["code"] == 1014
    node.produce()
    head = node.chain.head.hash
    heard = [(await ask.hear())["params"] for _ in range(2)]
    assert heard == [{"subscription": subscription, "result": {state: head}} for state in ("inBlock", "finalized")]
    refused = await ask.error("author_submitExtrinsic", transfer(node.chain, 1))
    assert (refused["code"], refused["data"]) == (1010, "Transaction is outdated")
    assert len((await ask("chain_getBlock"))["block"]["extrinsics"]) == 3


async def test_a_watched_one_is_dropped(ask: Client, node: Node) -> None:
    """5. Its number was used by a shielded one: whoever watches hears `invalid` instead of waiting for ever."""
    inner = bytes.fromhex(transfer(node.chain, 1)[2:])
    key = bytes.fromhex(node.chain.storage.get("MevShield", "NextKey")[2:])
    genesis = bytes.fromhex(str(node.chain.hash_at(0))[2:])
    parts = {"era": "00", "nonce": 0, "tip": 0, "tip_asset_id": None}
    sealed = "0x" + bytes(core.encrypt_mlkem768(key, inner, True)).hex()
    call = node.chain.interface.compose_call("MevShield", "submit_encrypted", {"ciphertext": sealed})
    payload = node.chain.interface.signature_payload(call, genesis_hash=genesis, era_block_hash=genesis, **parts)
    outer, _ = node.chain.interface._runtime.encode_signed_extrinsic(
        call, public_key=ALICE.public_key, signature=ALICE.sign(payload), signature_version=1, **parts
    )
    await ask("author_submitExtrinsic", "0x" + bytes(outer).hex())
    subscription = await ask("author_submitAndWatchExtrinsic", transfer(node.chain, 1))
    node.produce()
    assert (await ask.hear())["params"] == {"subscription": subscription, "result": "invalid"}


async def test_heads(ask: Client, url: str, node: Node) -> None:
    """6. Two listeners hear of each block, one of them until it has had enough; the other's line breaks and nobody
    minds."""
    subscription = await ask("chain_subscribeNewHeads")
    assert (await ask.hear())["params"]["result"]["number"] == "0x0"
    async with connect(url) as socket:
        other = Client(socket)
        await other("chain_subscribeFinalizedHeads")
        await other.hear()
        node.produce()
        assert (await other.hear())["method"] == "chain_finalizedHead"
        heard = await ask.hear()
        assert (heard["method"], heard["params"]["subscription"]) == ("chain_newHead", subscription)
    node.produce()
    assert (await ask.hear())["params"]["result"]["number"] == "0x2"
    assert await ask("chain_unsubscribeNewHeads", subscription) is True
    assert await ask("chain_unsubscribeNewHeads", subscription) is False
    node.produce()
    assert await ask("chain_getHead") == node.chain.head.hash and not ask.heard


async def test_for_developers(ask: Client, node: Node) -> None:
    """7. The next blocks now; a time-lock opened now, which does nothing where there is none."""
    assert await ask("dev_newBlock") == 1 and await ask("dev_newBlock", 4) == 5 == node.chain.number
    assert await ask("dev_reveal", 1, BOB, [0], [1]) is True
    assert await ask("dev_newBlock") == 6
    events = node.chain.storage.get("System", "Events")
    assert [event["event_id"] for event in events] == ["ExtrinsicSuccess"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", -32700),
        ("[]", -32600),
        ('"hello"', -32600),
        ('{"id": 1}', -32600),
        ('{"id": 1, "method": "make_coffee"}', -32601),
        ('{"id": 1, "method": "chain_getHeader", "params": {"a": 1}}', -32602),
        ('{"id": 1, "method": "chain_getHeader", "params": [1, 2, 3]}', -32602),
        ('{"id": 1, "method": "state_getStorageAt", "params": ["xyz"]}', -32602),
        ('{"id": 1, "method": "state_call", "params": ["SubnetInfoRuntimeApi_get_metagraph", "0x"]}', -32602),
        ('{"id": 1, "method": "author_submitExtrinsic", "params": ["0x00"]}', 1010),
        ('{"id": 1, "method": "dev_newBlock", "params": [100000]}', -32602),
    ],
)
async def test_mistakes(ask: Client, node: Node, message: str, code: int) -> None:
    """8. Whatever a client sends, it gets an error with the right code, and the next question is answered."""
    await ask.socket.send(message)
    assert json.loads(await ask.socket.recv())["error"]["code"] == code
    assert await ask("chain_getHead") == node.chain.head.hash


async def test_a_batch(ask: Client) -> None:
    """9. Several questions in one message, answered in their order, the wrong one among them with its error."""
    questions = [{"jsonrpc": "2.0", "id": n, "method": method} for n, method in enumerate(["chain_getHead", "nope"])]
    await ask.socket.send(json.dumps(questions))
    first, second = json.loads(await ask.socket.recv())
    assert (first["id"], first["result"][:2]) == (0, "0x") and second["error"]["code"] == -32601
    await ask.socket.send(json.dumps([questions[0]] * 2_000))
    assert json.loads(await ask.socket.recv())["error"]["code"] == -32600


async def test_too_many_subscriptions(ask: Client) -> None:
    """10. A client that subscribes in a loop is stopped at 256; after it gives one back it may have another."""
    subscriptions = [await ask("chain_subscribeNewHeads") for _ in range(server.SUBSCRIPTIONS_MAX)]
    assert "more than" in (await ask.error("chain_subscribeNewHeads"))["message"]
    assert await ask("chain_unsubscribeNewHeads", subscriptions[0]) is True
    await ask("chain_subscribeNewHeads")


async def test_a_client_that_does_not_read(ask: Client, url: str, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """11. Somebody subscribes and goes for lunch: his queue is full, he is cut off, and the others hear every block."""
    monkeypatch.setattr(server, "QUEUE_MAX", 8)
    await ask("chain_subscribeNewHeads")
    await ask.hear()
    async with connect(url) as socket:
        lazy = Client(socket)
        await lazy("chain_subscribeNewHeads")
        for _ in range(20):
            node.produce()  # no turn for the writer: everything stays in the queue
        with pytest.raises(ConnectionClosed):
            while True:
                await asyncio.wait_for(socket.recv(), 5)
    numbers = [int((await ask.hear())["params"]["result"]["number"], 16) for _ in range(20)]
    assert numbers == list(range(1, 21))
