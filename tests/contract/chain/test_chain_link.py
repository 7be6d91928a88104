"""The line to a real node when it is bad: cut, frozen, gone, and a call whose fate nobody told us."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import bittensor as bt
import pytest

from subnet.chain.link import Line, Link, Told
from subnet.chain.subtensor import SubtensorChain, check_usable, owner_uid
from subnet.errors import ConfigError, Unavailable
from subnet.protocol.reasons import Reason
from subnet.runtime import SystemRuntime


class Wire:
    """A relay to the node on a port of its own, which can be cut, frozen and mended. What froze once stays silent."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._stalled: set[asyncio.StreamWriter] = set()
        self.frozen, self.port, self.accepted = False, 0, 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self, *, for_good: bool = False) -> None:
        """End every connection; `for_good` accepts none until it is mended."""
        if for_good and self._server is not None:
            self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        there, back = await asyncio.open_connection(self._to.hostname, self._to.port)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._relay(reader, back), self._relay(there, writer))
        finally:
            self._writers -= {writer, back}
            for end in (writer, back):
                end.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.frozen:
                    self._stalled.add(writer)
                if writer not in self._stalled:
                    writer.write(data)
                    await writer.drain()
        writer.transport.abort()


@pytest.fixture
async def wire(node: Any) -> AsyncIterator[Wire]:
    made = Wire(node.url)
    await made.mend()
    yield made
    made.cut(for_good=True)


async def number(line: Line) -> int:
    return await line.client.block()


# ---- reads -----------------------------------------------------------------------------------------------------------


async def test_a_cut_line_is_opened_again(node: Any, wire: Wire) -> None:
    """1. The node's proxy drops every connection between two readings: the second one connects afresh."""
    chain = SubtensorChain(wire.url, node.netuid, None, SystemRuntime())
    first = await chain.subnet()
    wire.cut()
    second = await chain.subnet()
    assert second.block.number >= first.block.number and wire.accepted >= 2
    await chain.close()


async def test_a_blink_is_not_noticed(node: Any, wire: Wire) -> None:
    """2. The node is gone while somebody waits for a block, and back within his patience: he gets his block. Nobody
    finds a stranger's traceback in the log."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    chain = SubtensorChain(wire.url, node.netuid, None, SystemRuntime(), patience_s=20.0)
    start = (await chain.wait_for_block(0)).number
    idle = SubtensorChain(wire.url, node.netuid, None, SystemRuntime())
    await idle.subnet()
    waiting = asyncio.create_task(chain.wait_for_block(start + 3))
    wire.cut(for_good=True)
    away = SubtensorChain(wire.url, node.netuid, None, SystemRuntime(), patience_s=1.0)
    with pytest.raises(Unavailable, match="does not answer"):
        await away.subnet()
    await wire.mend()
    assert (await waiting).number == start + 3
    assert (await away.subnet()).block.number >= start, "who gave up once may ask again"
    assert (await idle.subnet()).block.number >= start
    await asyncio.gather(chain.close(), away.close(), idle.close())
    del chain, away, idle
    gc.collect()
    assert reported == []


async def test_a_frozen_node_costs_patience_and_no_more(node: Any, wire: Wire) -> None:
    """3. The node accepts and says nothing: an open line and a fresh one both give up, and both go on later."""
    opened = SubtensorChain(wire.url, node.netuid, None, SystemRuntime(), patience_s=0.5)
    await opened.subnet()
    fresh = SubtensorChain(wire.url, node.netuid, None, SystemRuntime(), patience_s=0.5)
    wire.frozen = True
    for chain in (opened, fresh):
        with pytest.raises(Unavailable, match="does not answer"):
            await chain.subnet()
    wire.frozen = False
    assert (await opened.wait_for_block(0)).number > 0, "what was asked then is lost: it takes a new line"
    wire.cut()
    assert (await fresh.wait_for_block(0)).number > 0
    await asyncio.gather(opened.close(), fresh.close())


async def test_one_line_for_many_askers(node: Any, wire: Wire) -> None:
    """4. Twenty tasks of a role ask at once: one connection serves them."""
    link = Link(wire.url, SystemRuntime())
    numbers = await asyncio.gather(*(link.read(number) for _ in range(20)))
    assert wire.accepted == 1 and max(numbers) - min(numbers) <= 2
    await link.close()
    await link.close()


# ---- calls -----------------------------------------------------------------------------------------------------------


async def test_a_call_whose_fate_is_unknown(node: Any, wire: Wire) -> None:
    """5. The line is cut after a call went out. It is not sent again: the chain is asked; where it cannot be asked,
    that is said."""
    link, times = Link(wire.url, SystemRuntime()), []

    async def tell(line: Line) -> bt.ExtrinsicResult:
        times.append(await line.client.block())
        wire.cut()
        raise ConnectionResetError("cut")

    async def stands(line: Line) -> int | None:
        return await line.client.block()

    told = await link.write(tell, stands)
    assert told.done and told.block >= times[0] and len(times) == 1
    with pytest.raises(Unavailable, match="did not confirm"):
        await link.write(tell)
    assert len(times) == 2
    await link.close()


class Lossy(Link):
    """Loses the connection around every call: before it was sent, or after it was taken."""

    sent = False

    async def write(
        self,
        tell: Callable[[Line], Awaitable[bt.ExtrinsicResult]],
        stands: Callable[[Line], Awaitable[int | None]] | None = None,
    ) -> Told:
        async def lost(line: Line) -> bt.ExtrinsicResult:
            if self.sent:
                assert (await tell(line)).success
            raise ConnectionResetError("lost")

        return await super().write(lost, stands)


async def test_what_stands_and_what_does_not(node: Any) -> None:
    """6. The connection dies just before the validator's weights and commitment went out, and then just after: the
    first time nothing is claimed to stand, the second time it is known where."""
    chain = SubtensorChain(node.url, node.netuid, node.wallets["validator"].hotkey, SystemRuntime())
    while not (seen := await chain.subnet()).neurons[1].permit:
        await chain.wait_for_block(seen.block.number + 1)
    await chain.wait_for_block(seen.block.number + int(seen.hyperparameters["weights_rate_limit"]))
    assert (await chain.commit("the same")).done
    await chain.wait_for_block((await chain.wait_for_block(0)).number + 4)
    chain._link = lossy = Lossy(node.url, SystemRuntime())
    with pytest.raises(Unavailable, match="did not confirm it: lost"):
        await chain.set_weights({2: 1.0, 3: 4.0})
    with pytest.raises(Unavailable, match="did not confirm it: lost"):
        await chain.commit("the same")
    lossy.sent = True
    outcome = await chain.set_weights({2: 1.0, 3: 4.0})
    assert outcome.done and outcome.block > 0
    assert (await chain.weights())[1].shares == pytest.approx({2: 0.2, 3: 0.8}, abs=1e-4)
    committed = await chain.commit("the same")
    assert committed.done
    assert await chain.committed_in(committed.block, seen.neurons[1].hotkey) == "the same"
    await chain.close()


@pytest.mark.parametrize(("refusals", "calls", "done"), [(1, 2, True), (2, 2, False)])
async def test_a_stale_nonce_is_tried_once_more(node: Any, refusals: int, calls: int, done: bool) -> None:
    """7. After a shielded call the coldkey's nonce is behind: signed afresh the call goes through. Not a third time."""
    link, results = Link(node.url, SystemRuntime()), []
    stale = bt.ExtrinsicResult(success=False, error=bt.ChainError("the nonce was already used", "Stale"))

    async def tell(line: Line) -> bt.ExtrinsicResult:
        results.append(stale if len(results) < refusals else bt.ExtrinsicResult(success=True, extrinsic_id="77-0002"))
        return results[-1]

    told = await link.write(tell)
    assert len(results) == calls and told.done is done
    assert (told.block, told.name) == ((77, "") if done else (0, "Stale"))
    await link.close()


async def test_a_coldkey_goes_on_after_a_shielded_call(node: Any) -> None:
    """8. The real thing: a newcomer registers (shielded), stakes, registers again. What is so already is done."""
    coldkey, hotkey = node.coldkey("miner"), node.wallets["miner"].hotkey.ss58_address
    outcomes = [
        await coldkey.register(node.netuid, hotkey),
        await coldkey.stake(node.netuid, hotkey, 1.0),
        await coldkey.register(node.netuid, hotkey),
        await coldkey.start_subnet(node.netuid),
    ]
    assert [outcome.done for outcome in outcomes] == [True, True, True, False]
    assert outcomes[0].sentence.endswith("already") and outcomes[3].reason is Reason.CHAIN_REFUSED
    assert await coldkey.balance_tao() > 9_000.0
    assert await coldkey.owned_subnet(node.wallets["owner"].hotkey.ss58_address) == node.netuid
    assert await coldkey.owned_subnet(hotkey) is None
    with pytest.raises(ConfigError, match="no_such_name"):
        await coldkey.set_hyperparameter(node.netuid, "no_such_name", 1)
    refused = await coldkey.set_hyperparameter(node.netuid, "immunity_period", 7_000)
    assert not refused.done and refused.reason is Reason.CHAIN_REFUSED, "not the owner"
    await coldkey.close()


# ---- what an operator got wrong --------------------------------------------------------------------------------------


async def test_a_check_at_the_start(node: Any) -> None:
    """9. The right chain passes; another netuid and a misspelt network are one line to the operator."""
    right = SubtensorChain(node.url, node.netuid, None, SystemRuntime())
    await right.check()
    wrong = SubtensorChain(node.url, 77, None, SystemRuntime())
    with pytest.raises(ConfigError, match="there is no subnet 77"):
        await wrong.check()
    with pytest.raises(ConfigError, match="there is no subnet 77"):
        await wrong.subnet()
    with pytest.raises(ConfigError, match="reading only"):
        await right.set_weights({0: 1.0})
    with pytest.raises(ConfigError, match="^--network: 'fineny.opentensor.ai' is not known; name "):
        SubtensorChain("fineny.opentensor.ai", 1, None, SystemRuntime())
    await asyncio.gather(right.close(), wrong.close())


async def test_a_chain_older_than_the_sdk() -> None:
    """10. A node whose runtime lacks what the SDK reads before it sets weights: said at the start, with its version."""

    class OldClient:
        async def query(self, item: tuple[str, str], params: list[int]) -> object:
            raise ValueError(f"storage function {item[1]} not found")

        async def spec_version(self) -> int:
            return 425

    with pytest.raises(ConfigError, match=r"spec 425\) is too old.*spec 474"):
        await check_usable(OldClient(), 1, "local")  # type: ignore[arg-type]


async def test_an_url_is_that_node_alone() -> None:
    """11. A private node must not be replaced by a public one; finney may be."""
    link = Link("ws://127.0.0.1:9944", SystemRuntime())
    assert link.fallbacks == [] and link.archives == []
    assert Link("wss://entrypoint-finney.opentensor.ai:443", SystemRuntime()).fallbacks == []
    assert Link("finney", SystemRuntime()).fallbacks and Link("finney", SystemRuntime()).archives


@pytest.mark.parametrize(("hotkey", "uid"), [("b", 1), ("c", 2), ("gone", 0), (None, -1)])
def test_where_burnt_weight_goes(hotkey: str | None, uid: int) -> None:
    """12. To the uid of the owner's hotkey; where that hotkey has none, to another of the owner's; else nowhere."""
    neurons = [
        SimpleNamespace(uid=i, hotkey=name, coldkey="owner" if name == "a" else "x") for i, name in enumerate("abc")
    ]
    graph = SimpleNamespace(neurons=neurons if hotkey else [], owner_hotkey=hotkey, owner_coldkey="owner")
    assert owner_uid(graph) == uid  # type: ignore[arg-type]
