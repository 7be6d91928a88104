"""What the chain pays, for the operator's eyes: reads the subnet every few seconds.

Law: read only, and never in the way: a chain that does not answer leaves the last reading standing.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

from loguru import logger

from subnet.chain.base import Chain, Subnet
from subnet.errors import Unavailable
from subnet.runtime import Runtime

LOOK_EVERY_S = 2.0
LAST_READING_TIMEOUT_S = 30.0


class ChainWatch:
    """The newest reading of one subnet."""

    def __init__(self, chain: Chain, runtime: Runtime) -> None:
        self._chain, self._runtime = chain, runtime
        self.subnet: Subnet | None = None

    async def run(self) -> NoReturn:
        """Until cancelled."""
        while True:
            await self._read()
            await self._runtime.sleep(LOOK_EVERY_S)

    async def settle(self) -> None:
        """Read once more after the next chain epoch, which pays by the weights that were set last."""
        try:
            async with asyncio.timeout(LAST_READING_TIMEOUT_S):
                newest = await self._chain.wait_for_block(0)
                tempo = self.subnet.tempo if self.subnet is not None else 0
                await self._chain.wait_for_block(newest.number + tempo + 1)
                await self._read()
        except (TimeoutError, Unavailable) as error:
            logger.debug("the chain was not read again: {}", error)

    async def close(self) -> None:
        await self._chain.close()

    async def _read(self) -> None:
        try:
            self.subnet = await self._chain.subnet()
        except Unavailable as error:
            logger.debug("the chain does not answer: {}", error)
