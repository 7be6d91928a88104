"""Faults of the orchestrator and of what it stands on: its process, the object store, the chain. And the plan of a
storm: which faults strike when, drawn from the seed.

Law: as in `faults`. A plan is a function of seed and names alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from subnet.errors import Unavailable
from subnet.simulation.faults import (
    CorruptBytes,
    Delay,
    Drop,
    Duplicate,
    ExpiredUrl,
    Fault,
    FaultName,
    OnLines,
    Partition,
    Reorder,
)
from subnet.simulation.faults_machine import ClockSkew, Crash, Flapping, FullDisk, Kill, MassDeparture, Pause, Slow
from subnet.simulation.storm_host import POINTS
from subnet.simulation.storm_machine import Machine
from subnet.simulation.storm_world import Dice, StormWorld

ARMED_S = 8.0
"""After so long without reaching its point an ambush is given up."""


class OrchestratorCrash(Fault):
    """The orchestrator's process ends at a drawn point: before or after the journal has a batch, between two records of
    it, between two effects, in the middle of a reply. Some seconds later a new one starts from the journal."""

    name = FaultName.ORCHESTRATOR_CRASH

    def __init__(self, dice: Dice, targets: Callable[[StormWorld], list[Machine]]) -> None:
        super().__init__(dice, targets)
        self.point, self._left = dice.one_of(POINTS), dice.below(6)
        self._away_s = dice.one_of((0.0, 0.5, 3.0, 8.0))
        self._struck = asyncio.Event()

    def _ambush(self, point: str) -> bool:
        if point != self.point:
            return False
        self._left -= 1
        if self._left < 0 and not self._struck.is_set():
            self._struck.set()
            return True
        return False

    async def strike(self, world: StormWorld) -> None:
        async with world.one_host_at_a_time:
            world.ambush = self._ambush
            try:
                async with asyncio.timeout(ARMED_S):
                    await self._struck.wait()
            except TimeoutError:
                return
            finally:
                world.ambush = lambda point: False
            self.hits += 1
            await asyncio.sleep(self._away_s)
            await world.start_orchestrator()


class StoreErrors(OnLines):
    """The store answers every second request with an error, to machines and to the orchestrator."""

    name = FaultName.STORE_ERRORS

    async def strike(self, world: StormWorld) -> None:
        world.store_weather = self._fails
        try:
            await super().strike(world)
        finally:
            world.store_weather = _no_weather

    async def _fails(self) -> None:
        self.hits += 1
        if self.dice.below(2):
            raise Unavailable("503 slow down")

    async def get(self, go: Callable[[], Awaitable[bytes]]) -> bytes:
        await self._fails()
        return await go()

    async def put(self, data: bytes, go: Callable[[bytes], Awaitable[None]]) -> None:
        await self._fails()
        await go(data)


class SlowStore(OnLines):
    """The store takes seconds for everything."""

    name = FaultName.SLOW_STORE

    async def strike(self, world: StormWorld) -> None:
        world.store_weather = self._wait
        try:
            await super().strike(world)
        finally:
            world.store_weather = _no_weather

    async def _wait(self) -> None:
        self.hits += 1
        await asyncio.sleep(self.dice.seconds(0.3, 2.5))

    async def get(self, go: Callable[[], Awaitable[bytes]]) -> bytes:
        await self._wait()
        return await go()

    async def put(self, data: bytes, go: Callable[[bytes], Awaitable[None]]) -> None:
        await self._wait()
        await go(data)


class ChainOutage(Fault):
    """The chain answers nobody."""

    name = FaultName.CHAIN_OUTAGE

    async def strike(self, world: StormWorld) -> None:
        world.ledger.answers = False
        self.hits += 1
        try:
            await asyncio.sleep(self.lasts_s * 3)
        finally:
            world.ledger.answers = True


async def _no_weather() -> None: ...


CATALOGUE: dict[FaultName, type[Fault]] = {
    one.name: one
    for one in (
        Crash, Kill, Pause, Slow, Drop, Duplicate, Reorder, Delay, Partition, ClockSkew, CorruptBytes, FullDisk,
        StoreErrors, SlowStore, ExpiredUrl, ChainOutage, OrchestratorCrash, MassDeparture, Flapping,
    )
}  # fmt: skip


class Planned(NamedTuple):
    at_s: float
    fault: Fault


LAST_AT_S = 22.0
FAULTS_MAX = 7


def plan(
    dice: Dice, names: Sequence[FaultName], targets: Callable[[StormWorld], list[Machine]], count: int = 0
) -> list[Planned]:
    """`count` faults, or two to seven, in the order of their times."""
    number = count or 2 + dice.below(FAULTS_MAX - 1)
    drawn = [(dice.seconds(0.3, LAST_AT_S), dice.one_of(names)) for _ in range(number)]
    return [Planned(at_s, CATALOGUE[name](Dice(f"{dice.below(2**62)}"), targets)) for at_s, name in sorted(drawn)]
