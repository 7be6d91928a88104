"""Faults by name, and those of lines: each a small class that says when it begins, what it does, when it ends.

Law: a fault is drawn from a seed, disturbs only what its name says, and leaves everything as it was when it ends. It
knows machines, lines and the world's switches, and nothing of what the roles make of it. `faults_machine` has those of
machines and their processes, `faults_host` those of the orchestrator and of what it stands on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import ClassVar

from subnet.errors import PeerFault, SubnetError, Unavailable
from subnet.protocol.messages import Reply
from subnet.protocol.reasons import Reason
from subnet.simulation.storm_machine import Machine
from subnet.simulation.storm_world import Dice, StormWorld


class FaultName(StrEnum):
    CRASH = "crash"
    KILL = "kill"
    PAUSE = "pause"
    SLOW = "slow"
    DROP = "drop"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    DELAY = "delay"
    PARTITION = "partition"
    CLOCK_SKEW = "clock-skew"
    CORRUPT_BYTES = "corrupt-bytes"
    FULL_DISK = "full-disk"
    STORE_ERRORS = "store-errors"
    SLOW_STORE = "slow-store"
    EXPIRED_URL = "expired-url"
    CHAIN_OUTAGE = "chain-outage"
    ORCHESTRATOR_CRASH = "orchestrator-crash"
    MASS_DEPARTURE = "mass-departure"
    FLAPPING = "flapping"


class Fault:
    """One occurrence. `dice` draws its details."""

    name: ClassVar[FaultName]

    def __init__(self, dice: Dice, targets: Callable[[StormWorld], list[Machine]]) -> None:
        self.dice, self._targets = dice, targets
        self.lasts_s = dice.seconds(1.0, 10.0)
        self.hits = 0
        """How often it really did something."""

    def victims(self, world: StormWorld, count: int = 1) -> list[Machine]:
        """Machines that it may strike and whose process runs."""
        return self.dice.some_of([one for one in self._targets(world) if world.is_up(one)], count)

    async def strike(self, world: StormWorld) -> None:
        """From its beginning to its end."""
        raise NotImplementedError

    # what it does to a line that it lies on
    async def call(self, go: Callable[[], Awaitable[Reply]]) -> Reply:
        return await go()

    async def get(self, go: Callable[[], Awaitable[bytes]]) -> bytes:
        return await go()

    async def put(self, data: bytes, go: Callable[[bytes], Awaitable[None]]) -> None:
        await go(data)


class OnLines(Fault):
    """Lies on the lines of one to three machines for a while."""

    async def strike(self, world: StormWorld) -> None:
        struck = self.victims(world, 1 + self.dice.below(3))
        for one in struck:
            one.lines.append(self)
        try:
            await asyncio.sleep(self.lasts_s)
        finally:
            for one in struck:
                one.lines.remove(self)


class Drop(OnLines):
    """A request, or its answer, is lost: every third one."""

    name = FaultName.DROP

    async def call(self, go: Callable[[], Awaitable[Reply]]) -> Reply:
        lot = self.dice.below(6)
        if lot == 0:
            self.hits += 1
            raise Unavailable("the request was lost")
        reply = await go()
        if lot == 1:
            self.hits += 1
            raise Unavailable("the answer was lost")
        return reply


class Duplicate(OnLines):
    """A request arrives twice, the second time a little later."""

    name = FaultName.DUPLICATE

    async def call(self, go: Callable[[], Awaitable[Reply]]) -> Reply:
        again = asyncio.create_task(self._again(go, self.dice.seconds(0.0, 0.5)))
        self._under_way.add(again)
        again.add_done_callback(self._under_way.discard)
        self.hits += 1
        return await go()

    async def _again(self, go: Callable[[], Awaitable[Reply]], late_s: float) -> None:
        await asyncio.sleep(late_s)
        try:
            await go()
        except SubnetError:
            pass  # nobody hears the second answer

    def __init__(self, dice: Dice, targets: Callable[[StormWorld], list[Machine]]) -> None:
        super().__init__(dice, targets)
        self._under_way: set[asyncio.Task[None]] = set()

    async def strike(self, world: StormWorld) -> None:
        await super().strike(world)
        for task in [*self._under_way]:
            task.cancel()


class Reorder(OnLines):
    """Requests overtake each other, and so do reads and writes."""

    name = FaultName.REORDER

    async def call(self, go: Callable[[], Awaitable[Reply]]) -> Reply:
        self.hits += 1
        await asyncio.sleep(self.dice.one_of((0.0, 0.0, 0.6, 1.5)))
        return await go()

    async def get(self, go: Callable[[], Awaitable[bytes]]) -> bytes:
        await asyncio.sleep(self.dice.one_of((0.0, 0.0, 0.6)))
        return await go()

    async def put(self, data: bytes, go: Callable[[bytes], Awaitable[None]]) -> None:
        await asyncio.sleep(self.dice.one_of((0.0, 0.0, 0.6)))
        await go(data)


class Delay(OnLines):
    """A long way there and back."""

    name = FaultName.DELAY

    async def call(self, go: Callable[[], Awaitable[Reply]]) -> Reply:
        self.hits += 1
        await asyncio.sleep(0.4)
        reply = await go()
        await asyncio.sleep(0.4)
        return reply


class Partition(OnLines):
    """Machines are cut off from the orchestrator, from the store, or from both; calls run into nothing."""

    name = FaultName.PARTITION

    def __init__(self, dice: Dice, targets: Callable[[StormWorld], list[Machine]]) -> None:
        super().__init__(dice, targets)
        self._control, self._objects = dice.one_of(((True, False), (False, True), (True, True)))

    async def _lost(self) -> None:
        self.hits += 1
        await asyncio.sleep(1.0)
        raise Unavailable("there is no way to it")

    async def call(self, go: Callable[[], Awaitable[Reply]]) -> Reply:
        if self._control:
            await self._lost()
        return await go()

    async def get(self, go: Callable[[], Awaitable[bytes]]) -> bytes:
        if self._objects:
            await self._lost()
        return await go()

    async def put(self, data: bytes, go: Callable[[bytes], Awaitable[None]]) -> None:
        if self._objects:
            await self._lost()
        await go(data)


class CorruptBytes(OnLines):
    """A bit flips in every fourth object on its way to or from the store. The line's owner is to blame for it."""

    name = FaultName.CORRUPT_BYTES

    async def strike(self, world: StormWorld) -> None:
        struck = self.victims(world)
        world.promises.explained.update(one.hotkey for one in struck)
        for one in struck:
            one.lines.append(self)
        try:
            await asyncio.sleep(self.lasts_s)
        finally:
            for one in struck:
                one.lines.remove(self)

    def _flipped(self, data: bytes) -> bytes:
        if not data or self.dice.below(4):
            return data
        self.hits += 1
        at, bit = self.dice.below(len(data)), 1 << self.dice.below(8)
        return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]

    async def get(self, go: Callable[[], Awaitable[bytes]]) -> bytes:
        return self._flipped(await go())

    async def put(self, data: bytes, go: Callable[[bytes], Awaitable[None]]) -> None:
        await go(self._flipped(data))


class ExpiredUrl(OnLines):
    """Every third granted URL is too old when it is used."""

    name = FaultName.EXPIRED_URL

    def _check(self) -> None:
        if self.dice.below(3) == 0:
            self.hits += 1
            raise PeerFault(Reason.STALE, "the URL expired")

    async def get(self, go: Callable[[], Awaitable[bytes]]) -> bytes:
        self._check()
        return await go()

    async def put(self, data: bytes, go: Callable[[bytes], Awaitable[None]]) -> None:
        self._check()
        await go(data)
