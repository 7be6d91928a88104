"""The door: JSON-RPC over a websocket on loopback, subscriptions, and the clock that makes blocks.

Law: one slow or rude client never holds up a block or another client: each has a bounded queue of outgoing messages,
and is cut off when it does not read them. Blocks are made here and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import msgspec
from loguru import logger
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from subnet.chain.local.chain import Chain, Produced
from subnet.chain.local.node import dev
from subnet.chain.local.node.methods import METHODS, RpcError, header_of, submit
from subnet.chain.local.store import Block

MESSAGE_BYTES_MAX = 16 * 2**20
QUEUE_MAX = 1_024
SUBSCRIPTIONS_MAX = 256
"""Of one client."""
BATCH_MAX = 1_000
PARSE_CODE, REQUEST_CODE, METHOD_CODE, PARAMS_CODE = -32700, -32600, -32601, -32602
HEADS = {
    "chain_subscribeNewHeads": "chain_newHead",
    "chain_subscribeNewHead": "chain_newHead",
    "chain_subscribeFinalizedHeads": "chain_finalizedHead",
    "chain_subscribeAllHeads": "chain_allHead",
}
"""Subscription → name of its notifications."""
WATCHED = "author_extrinsicUpdate"
UNSUBSCRIBE = {
    "chain_unsubscribeNewHeads",
    "chain_unsubscribeNewHead",
    "chain_unsubscribeFinalizedHeads",
    "chain_unsubscribeAllHeads",
    "author_unwatchExtrinsic",
}


class Client:
    """One connection, and what it wants to hear of."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.heads: dict[str, str] = {}
        """Subscription → notification."""
        self.watched: dict[str, list[str]] = {}
        """Digest of an extrinsic → subscriptions."""
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_MAX)
        self.is_lagging = asyncio.Event()

    def send(self, message: Any) -> None:
        try:
            self._queue.put_nowait(msgspec.json.encode(message))
        except asyncio.QueueFull:
            self.is_lagging.set()

    def notify(self, method: str, subscription: str, result: Any) -> None:
        self.send({"jsonrpc": "2.0", "method": method, "params": {"subscription": subscription, "result": result}})

    async def write(self) -> None:
        """Until the connection ends."""
        while True:
            await self.connection.send(await self._queue.get(), text=True)

    def count(self) -> int:
        return len(self.heads) + sum(map(len, self.watched.values()))


class Node:
    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._clients: set[Client] = set()
        self._ids = itertools.count(1)
        self._server: Server | None = None
        self._broken = asyncio.Event()
        """A block could not be made: the chain in memory is not the one on disk any more."""
        self._error: BaseException | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port. Raises OSError."""
        self._server = await serve(
            self._serve, host, port, max_size=MESSAGE_BYTES_MAX, compression=None, close_timeout=0.2
        )
        found: int = next(iter(self._server.sockets)).getsockname()[1]
        return found

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def author(self, block_s: float) -> None:
        """Makes blocks at this pace (0: none) until cancelled; late ones are not made up for. Raises what a block,
        whoever asked for it, could not be made for."""
        loop = asyncio.get_running_loop()
        due = loop.time() + block_s
        while not self._broken.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due if block_s else None):
                    await self._broken.wait()
            if block_s and not self._broken.is_set():
                due = max(due + block_s, loop.time())
                self.produce()
        assert self._error is not None
        raise self._error

    def produce(self) -> Block:
        """One block; everybody who waits for it hears of it, once it is on disk."""
        try:
            produced = self.chain.produce()
        except BaseException as error:
            self._error = error
            self._broken.set()
            raise
        header = header_of(produced.block)
        for client in self._clients:
            _report(client, produced)
            for subscription, notification in client.heads.items():
                client.notify(notification, subscription, header)
        return produced.block

    # ---- connections

    async def _serve(self, connection: ServerConnection) -> None:
        client = Client(connection)
        self._clients.add(client)
        writer = asyncio.create_task(client.write())
        watcher = asyncio.create_task(self._cut_off(client))
        try:
            async for message in connection:
                answer = self._answer(client, message)
                if answer is not None:
                    client.send(answer)
                await asyncio.sleep(0)
        except ConnectionClosed:
            pass
        finally:
            self._clients.discard(client)
            for task in (writer, watcher):
                task.cancel()
            await asyncio.gather(writer, watcher, return_exceptions=True)

    async def _cut_off(self, client: Client) -> None:
        await client.is_lagging.wait()
        logger.warning("a client does not read what it asked for; cut off")
        await client.connection.close(1008, "too slow")

    # ---- messages

    def _answer(self, client: Client, message: str | bytes) -> Any:
        try:
            parsed = msgspec.json.decode(message)
        except msgspec.DecodeError as error:
            return _failure(None, RpcError(PARSE_CODE, f"Parse error: {error}"))
        if not isinstance(parsed, list):
            return self._one(client, parsed)
        if not parsed or len(parsed) > BATCH_MAX:
            return _failure(None, RpcError(REQUEST_CODE, f"a batch holds 1 to {BATCH_MAX} requests"))
        return [self._one(client, request) for request in parsed]

    def _one(self, client: Client, request: Any) -> Any:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _failure(None, RpcError(REQUEST_CODE, "Invalid Request"))
        params = request.get("params") or []
        try:
            if not isinstance(params, list):
                raise RpcError(PARAMS_CODE, "parameters are a list")
            result = self._call(client, request["method"], params)
        except RpcError as error:
            return _failure(request.get("id"), error)
        except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            return _failure(request.get("id"), RpcError(PARAMS_CODE, f"Invalid params: {error}"))
        return {"jsonrpc": "2.0", "id": request.get("id"), "result": result}

    def _call(self, client: Client, method: str, params: list[Any]) -> Any:
        if method in METHODS:
            return METHODS[method](self.chain, *params)
        if method in HEADS:
            subscription = self._subscription(client)
            client.heads[subscription] = HEADS[method]
            client.notify(HEADS[method], subscription, header_of(self.chain.head))
            return subscription
        if method == "author_submitAndWatchExtrinsic":
            subscription = self._subscription(client)
            client.watched.setdefault(submit(self.chain, params[0]), []).append(subscription)
            return subscription
        if method in UNSUBSCRIBE:
            return _unsubscribe(client, str(params[0]))
        if method in dev.METHODS:
            return dev.METHODS[method](self.chain, self.produce, *params)
        raise RpcError(METHOD_CODE, f"Method not found: {method}")

    def _subscription(self, client: Client) -> str:
        if client.count() >= SUBSCRIPTIONS_MAX:
            raise RpcError(REQUEST_CODE, f"more than {SUBSCRIPTIONS_MAX} subscriptions")
        return f"s{next(self._ids)}"


def _report(client: Client, produced: Produced) -> None:
    """To whoever watches. In a block means final here: there is one author and there are no forks."""
    if not client.watched:
        return
    hash_ = produced.block.hash
    for digest in produced.included:
        for subscription in client.watched.pop(digest, ()):
            client.notify(WATCHED, subscription, {"inBlock": hash_})
            client.notify(WATCHED, subscription, {"finalized": hash_})
    for digest in produced.dropped:
        for subscription in client.watched.pop(digest, ()):
            client.notify(WATCHED, subscription, "invalid")


def _unsubscribe(client: Client, subscription: str) -> bool:
    if client.heads.pop(subscription, None) is not None:
        return True
    for digest, subscriptions in list(client.watched.items()):
        if subscription in subscriptions:
            subscriptions.remove(subscription)
            if not subscriptions:
                del client.watched[digest]
            return True
    return False


def _failure(id_: Any, error: RpcError) -> dict[str, Any]:
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return {"jsonrpc": "2.0", "id": id_, "error": body}
