"""The chain in memory, as one hotkey's line to a shared `MemoryLedger`.

Law: what is refused, allowed and paid is the ledger's matter; this file adds only that things take their time and that
the chain may be away. It has no clock of its own: blocks come by the ledger's clock or by its `advance`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from subnet.chain.base import Block, Outcome, Row, Subnet
from subnet.chain.memory_ledger import MemoryLedger
from subnet.errors import Unavailable
from subnet.protocol.ids import Hotkey

__all__ = ["MemoryChain", "MemoryLedger"]

_CLOCK_STEP_S = 1e-3
"""Slept at least: a block's time may be a rounding error away."""


class MemoryChain:
    """Implements `base.Chain`. `sleep` is needed only where the ledger has a clock that is not the event loop's."""

    def __init__(
        self, ledger: MemoryLedger, hotkey: Hotkey, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._ledger, self._hotkey, self._sleep = ledger, hotkey, sleep

    async def wait_for_block(self, number: int) -> Block:
        ledger = self._asked()
        if number == 0:
            return ledger.block(ledger.number())
        while ledger.number() < number:
            if ledger.blocks.has_clock:
                await self._sleep(max(ledger.blocks.until_s(number), _CLOCK_STEP_S))
            else:
                await self._next_block()
            self._asked()
        return ledger.block(number)

    async def _next_block(self) -> None:
        heard = asyncio.Event()
        self._ledger.blocks.listeners.add(heard.set)
        try:
            await heard.wait()
        finally:
            self._ledger.blocks.listeners.discard(heard.set)

    async def subnet(self) -> Subnet:
        return self._asked().subnet()

    async def set_weights(self, weights: Mapping[int, float]) -> Outcome:
        return self._asked().set_weights(self._hotkey, weights)

    async def weights(self) -> Mapping[int, Row]:
        return self._asked().weights()

    async def commit(self, data: str) -> Outcome:
        return self._asked().commit(self._hotkey, data)

    async def commitment(self, hotkey: Hotkey) -> str | None:
        return self._asked().commitments.newest(hotkey)

    async def committed_in(self, number: int, hotkey: Hotkey) -> str | None:
        ledger = self._asked()
        if not ledger.commitments.oldest <= number <= ledger.number():
            raise Unavailable(f"the chain in memory holds no body of block {number}")
        return ledger.commitments.told_in(number, hotkey)

    async def close(self) -> None:
        pass

    def _asked(self) -> MemoryLedger:
        if not self._ledger.answers:
            raise Unavailable("the chain in memory does not answer")
        return self._ledger
