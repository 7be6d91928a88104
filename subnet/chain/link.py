"""One connection to a chain through the `bittensor` SDK: opened when needed, dropped when it fails, opened again.

Law: nothing of the SDK's errors leaves this file. A read is repeated with jittered back-off until `patience_s` is over;
then the chain does not answer: `Unavailable`. A call that changes the chain is sent once (twice if its nonce was stale,
which means that it was not taken): when its fate is unknown, the chain itself is asked whether it stands there. Every
wait has an end. A network given as an URL has no other endpoints than that one. Public nodes keep old blocks for a
while only: what this node holds no more is read from the network's archive nodes, where the SDK knows any.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple, TypeVar

import bittensor as bt
from bittensor import settings

from subnet.errors import ConfigError, Unavailable
from subnet.runtime import Runtime

T = TypeVar("T")
PATIENCE_S = 30.0
"""How long a chain may be away before a call gives up."""
WRITE_TIMEOUT_S = 60.0
"""For a call to be included and final, beside `WRITE_TIMEOUT_BLOCKS`."""
WRITE_TIMEOUT_BLOCKS = 10
_SETTLING_BLOCKS = 2
"""Waited before the chain is asked whether a call of unknown fate stands."""
_BACKOFF_S, _BACKOFF_MAX_S = 0.2, 5.0
_CLOSE_TIMEOUT_S = 0.5
_SESSION_TASK = "rpc-session"
"""What the SDK calls the task behind a connection; without it a lost connection is noticed at the next call."""
_URL_SCHEMES = ("ws://", "wss://")
_FAULTS = (bt.BittensorError, OSError, ValueError, LookupError, TypeError)
"""What the SDK raises when a node is away (its own errors, TimeoutError) or answers what cannot be read."""
_NOT_TAKEN = ("Stale", "Usurped")
"""Names of refusals after which the same call, signed afresh, goes through: another call had its nonce."""
_NOT_TAKEN_SENTENCE = "priority is too low"
"""The same from a pool that still holds the other call; it has no name."""
_UNKNOWN = bt.ErrorCode.UNKNOWN.value
_PRUNED_SENTENCE = "state discarded"
"""The SDK's of a block whose runtime, without which its body cannot be read, the node has thrown away."""


class Line(NamedTuple):
    """An open connection."""

    client: bt.Client
    substrate: bt.RpcSubstrate


class Told(NamedTuple):
    """What the chain said to a call that changes it."""

    done: bool
    block: int = 0
    name: str = ""
    """The chain's name for the refusal, such as SettingWeightsTooFast; empty where it has none."""
    code: str = ""
    """The SDK's class of the refusal, such as rate_limited."""
    sentence: str = ""
    netuid: int = 0
    """Of a subnet that was created."""


class Link:
    def __init__(self, network: str, runtime: Runtime, patience_s: float = PATIENCE_S) -> None:
        """`network` is finney, test, local or the URL of a node. Raises ConfigError for any other name."""
        try:
            label, self._endpoint = settings.resolve_endpoint(network)
        except ValueError:
            remedy = "name finney, test, local, or a node's ws:// or wss:// URL"
            raise ConfigError("--network", f"{network!r} is not known", remedy) from None
        pinned = network.startswith(_URL_SCHEMES)
        self.fallbacks = [] if pinned else settings.default_fallback_endpoints(label)
        self.archives = [] if pinned else settings.default_archive_endpoints(label)
        self.network, self._runtime, self.patience_s = network, runtime, patience_s
        self._opening: asyncio.Task[Line] | None = None
        self._archive: Link | None = None

    async def read(self, ask: Callable[[Line], Awaitable[T]]) -> T:
        """What `ask` returns. It may be asked several times, and raises what is no fault of the connection."""
        loop = asyncio.get_running_loop()
        deadline, attempt = loop.time() + self.patience_s, 0
        while True:
            opened = None
            try:
                async with asyncio.timeout_at(deadline):
                    opened = await self._open()
                    return await ask(opened)
            except _FAULTS as error:
                await self._drop(opened)
                pause_s, attempt = self._pause_s(attempt), attempt + 1
                if loop.time() + pause_s >= deadline:
                    said = f"the chain at {self.network} does not answer: {_first_line(error)}"
                    raise Unavailable(said) from None
            await self._runtime.sleep(pause_s)

    async def block_info(self, number: int) -> bt.BlockInfo:
        """A block with its extrinsics, from an archive node if need be. Raises Unavailable when nobody has it.

        The SDK goes to its archives by itself when a node has thrown away the block's state, but not when it has the
        state and lacks the body, as a node has that joined by a snapshot.
        """

        async def ask(line: Line) -> bt.BlockInfo | None:
            try:
                return await line.client.block_info(number)
            except bt.ChainError as error:
                if _PRUNED_SENTENCE in str(error).lower():
                    return None
                raise

        found = await self.read(ask)
        if found is None and self.archives:
            found = await self._opened_archive().read(ask)
        if found is None:
            raise Unavailable(f"the chain at {self.network} holds the body of block {number} no more, or not yet")
        return found

    def _opened_archive(self) -> Link:
        if self._archive is None:
            self._archive = Link(self.archives[0], self._runtime, self.patience_s)
            self._archive.fallbacks = self.archives[1:]
        return self._archive

    async def write(
        self,
        tell: Callable[[Line], Awaitable[bt.ExtrinsicResult]],
        stands: Callable[[Line], Awaitable[int | None]] | None = None,
    ) -> Told:
        """Have `tell` submit one call. `stands` finds the block of a call whose fate is unknown, if it is there."""
        told = await self._submit(tell, stands)
        if told.name in _NOT_TAKEN or (not told.done and _NOT_TAKEN_SENTENCE in told.sentence.lower()):
            await self._runtime.sleep(await self.read(block_s_of))
            told = await self._submit(tell, stands)
        return told

    async def _submit(
        self,
        tell: Callable[[Line], Awaitable[bt.ExtrinsicResult]],
        stands: Callable[[Line], Awaitable[int | None]] | None,
    ) -> Told:
        opened = await self.read(_itself)
        block_s = await self.read(block_s_of)
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S + WRITE_TIMEOUT_BLOCKS * block_s):
                told = _told(await tell(opened))
        except bt.PolicyError as error:
            return Told(False, code=error.code.value, sentence=_first_line(error))
        except bt.ChainError as error:
            told = _refused(error)
        except _FAULTS as error:
            told = Told(False, code=_UNKNOWN, sentence=_first_line(error))
        if told.done or told.name or told.code != _UNKNOWN:
            return told
        await self._drop(opened)
        await self._runtime.sleep(_SETTLING_BLOCKS * block_s)
        block = await self.read(stands) if stands is not None else None
        if block is None:
            raise Unavailable(f"the chain at {self.network} was told, but did not confirm it: {told.sentence}")
        return Told(True, block)

    async def close(self) -> None:
        archive, self._archive = self._archive, None
        if archive is not None:
            await archive.close()
        opening, self._opening = self._opening, None
        if opening is None:
            return
        if opening.done() and not opening.cancelled() and opening.exception() is None:
            await _hang_up(opening.result())
        else:
            opening.cancel()
            await asyncio.wait([opening])

    async def _open(self) -> Line:
        """Callers share one attempt: a caller that gives up leaves it to the next one, half-open or not."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._connect())
        return await asyncio.shield(self._opening)

    async def _connect(self) -> Line:
        substrate = bt.RpcSubstrate(self._endpoint, fallback_endpoints=self.fallbacks, archive_endpoints=self.archives)
        line = Line(bt.Client(self.network, substrate=substrate), substrate)
        others = asyncio.all_tasks()
        try:
            await line.client.connect()
        except BaseException:
            await _hang_up(line)
            raise
        for task in asyncio.all_tasks() - others:
            if task.get_name() == _SESSION_TASK:
                task.add_done_callback(partial(self._lost, line))
        return line

    def _lost(self, line: Line, session: asyncio.Task[object]) -> None:
        """The SDK gave the connection up by itself: forget the line, so that the next call opens another."""
        if not session.cancelled():
            session.exception()  # looked at, or asyncio would report it as nobody's
        opening = self._opening
        if opening is not None and opening.done() and opening.exception() is None and opening.result() is line:
            self._opening = None

    async def _drop(self, opened: Line | None) -> None:
        opening = self._opening
        if opened is None or opening is None or not opening.done() or opening.exception() is not None:
            return
        if opening.result() is opened:
            self._opening = None
            await _hang_up(opened)

    def _pause_s(self, attempt: int) -> float:
        jitter = self._runtime.random_bytes(1)[0] / 255
        return min(_BACKOFF_S * 2.0 ** min(attempt, 16), _BACKOFF_MAX_S) * (0.5 + jitter / 2)


def item(name: str) -> tuple[str, str]:
    """A storage item of the pallet that holds subnets, stake and weights."""
    return "SubtensorModule", name


async def _itself(line: Line) -> Line:
    return line


async def block_s_of(line: Line) -> float:
    """Seconds between two blocks, a constant of the chain's runtime."""
    return await line.client.block_time()


async def _hang_up(line: Line) -> None:
    with contextlib.suppress(*_FAULTS):
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await line.client.close()


def _told(result: bt.ExtrinsicResult) -> Told:
    if not result.success:
        return _refused(result.error or bt.ChainError(result.message or "the call failed"))
    block = int((result.extrinsic_id or "0").partition("-")[0])
    return Told(True, block, netuid=int(result.data.get("netuid") or 0))


def _refused(error: bt.ChainError) -> Told:
    return Told(False, name=error.name or "", code=error.code.value, sentence=_first_line(error))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
