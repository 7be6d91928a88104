"""Faults of machines and their processes, by name. Law: as in `faults`."""

from __future__ import annotations

import asyncio
import math

from subnet.simulation.faults import Fault, FaultName
from subnet.simulation.storm_machine import Machine
from subnet.simulation.storm_world import StormWorld


class Kill(Fault):
    """A process is gone without a word; half of them come back by themselves."""

    name = FaultName.KILL

    def end(self, world: StormWorld, one: Machine) -> None:
        world.kill(one.name)

    async def strike(self, world: StormWorld) -> None:
        for one in self.victims(world):
            self.end(world, one)
            self.hits += 1
            if self.dice.below(2):
                await asyncio.sleep(self.lasts_s)
                await world.switch_on_again(one)


class Crash(Kill):
    """A process ends in the middle of what it does: at the next thing it says, reads, writes or computes."""

    name = FaultName.CRASH

    def end(self, world: StormWorld, one: Machine) -> None:
        one.crashes = True


class Pause(Fault):
    """A process is frozen for a while, shorter or longer than silence is tolerated, and goes on where it was."""

    name = FaultName.PAUSE

    async def strike(self, world: StormWorld) -> None:
        struck = self.victims(world, 1 + self.dice.below(2))
        for one in struck:
            one.running.clear()
            self.hits += 1
        try:
            await asyncio.sleep(self.lasts_s)
        finally:
            for one in struck:
                one.running.set()


class Slow(Fault):
    """A machine computes many times more slowly."""

    name = FaultName.SLOW

    async def strike(self, world: StormWorld) -> None:
        struck, factor = self.victims(world, 1 + self.dice.below(2)), 3.0 + self.dice.below(15)
        for one in struck:
            one.slowness *= factor
            self.hits += 1
        try:
            await asyncio.sleep(self.lasts_s)
        finally:
            for one in struck:
                one.slowness /= factor


class ClockSkew(Fault):
    """A machine's clock jumps by up to ten minutes and runs fast or slow, until it is set right."""

    name = FaultName.CLOCK_SKEW

    async def strike(self, world: StormWorld) -> None:
        for one in self.victims(world):
            one.clock_from = 1_700_000_000.0 + asyncio.get_running_loop().time()
            one.clock_off_s, one.clock_rate = self.dice.seconds(-600.0, 600.0), self.dice.one_of((0.7, 1.0, 1.5))
            self.hits += 1
            try:
                await asyncio.sleep(self.lasts_s)
            finally:
                one.clock_off_s, one.clock_rate = 0.0, 1.0


class FullDisk(Fault):
    """Nothing can be written to a machine's disk: neither receipts nor states."""

    name = FaultName.FULL_DISK

    async def strike(self, world: StormWorld) -> None:
        for one in self.victims(world):
            one.disk_is_full, one.disk_refused = True, 0
            try:
                await asyncio.sleep(self.lasts_s)
            finally:
                one.disk_is_full = False
                self.hits += one.disk_refused


class MassDeparture(Fault):
    """35 % of all machines at once, or every replica of one stage; most come back one after the other."""

    name = FaultName.MASS_DEPARTURE

    async def strike(self, world: StormWorld) -> None:
        up = [one for one in self._targets(world) if world.is_up(one)]
        if self.dice.below(2):
            struck = self.dice.some_of(up, math.ceil(0.35 * len(up)))
        else:
            stage = self.dice.below(len(world.state.stages))
            known = world.state.miners
            struck = [one for one in up if one.hotkey in known and known[one.hotkey].stage == stage]
        for one in struck:
            world.kill(one.name)
        self.hits += bool(struck)
        await asyncio.sleep(self.lasts_s)
        for one in struck:
            if self.dice.below(3):
                await asyncio.sleep(self.dice.seconds(0.0, 2.0))
                await world.switch_on_again(one)


class Flapping(Fault):
    """A process that comes and goes."""

    name = FaultName.FLAPPING

    async def strike(self, world: StormWorld) -> None:
        for one in self.victims(world):
            for _ in range(2 + self.dice.below(3)):
                world.kill(one.name)
                self.hits += 1
                await asyncio.sleep(self.dice.seconds(0.1, 1.5))
                await world.switch_on_again(one)
                await asyncio.sleep(self.dice.seconds(0.1, 2.5))
