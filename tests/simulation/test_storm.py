"""Everything at once: bad lines, slow machines, kills, restarts, an orchestrator that dies. A failing seed is its own
reproduction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from subnet.coordination.invariants import broken
from subnet.errors import Unavailable
from subnet.protocol.draw import choose, draw_below
from subnet.protocol.ids import Digest
from subnet.protocol.messages import Message, Reply
from subnet.simulation.world import World
from subnet.transport.base import ControlClient

pytestmark = pytest.mark.looptime(end=20_000)
EVENTS = ("kill", "kill", "start", "start", "orchestrator", "nothing")


class Weather:
    """What happens to a world, drawn from a seed: one event every half to three seconds."""

    def __init__(self, world: World, seed: int, names: list[str]) -> None:
        self.world, self.names, self._secret, self._drawn = world, names, f"storm {seed}".encode(), 0
        self.events: list[str] = []
        self.is_calm = False

    def draw(self, bound: int) -> int:
        self._drawn += 1
        return draw_below(self._secret, bound, self._drawn)

    def line(self, line: ControlClient) -> ControlClient:
        return BadLine(self, line)

    async def start(self, name: str) -> None:
        slow = self.draw(4) == 0
        await self.world.start(name, compute_s=3.0 if slow else 0.3 + 0.2 * self.draw(4), control=self.line)

    async def rage(self, events: int) -> None:
        for name in self.names:
            await self.start(name)
        for _ in range(events):
            await asyncio.sleep(0.5 + 0.5 * self.draw(6))
            await self._happen(choose(self._secret, EVENTS, "event", self._drawn))
        self.is_calm = True
        for name in self.names:
            if self._is_down(name):
                await self.start(name)

    async def _happen(self, event: str) -> None:
        self.events.append(event)
        down = [name for name in self.names if self._is_down(name)]
        up = [name for name in self.names if name not in down]
        if event == "kill" and up:
            self.world.kill(choose(self._secret, up, "victim", self._drawn))
        elif event == "start" and down:
            await self.start(choose(self._secret, down, "comer", self._drawn))
        elif event == "orchestrator":
            self.world.stop_orchestrator()
            await asyncio.sleep(self.draw(4))
            await self.world.start_orchestrator()

    def _is_down(self, name: str) -> bool:
        task = self.world.miners[name].task  # type: ignore[index]
        return task is not None and task.done()


class BadLine:
    """Loses one call in ten on its way there, and one answer in ten on its way back, until the weather is calm."""

    def __init__(self, weather: Weather, line: ControlClient) -> None:
        self._weather, self._line = weather, line

    async def call(self, message: Message, spec_digest: Digest | None, timeout_s: float) -> Reply:
        bad = 2 if self._weather.is_calm else self._weather.draw(10)
        if bad == 0:
            raise Unavailable("the request was lost")
        reply = await self._line.call(message, spec_digest, timeout_s)
        if bad == 1:
            raise Unavailable("the answer was lost")
        return reply

    async def close(self) -> None:
        await self._line.close()


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm(make_world: Callable[..., World], lively: dict[str, Any], seed: int) -> None:
    """1. Six machines over two stages in bad weather, then the sun: the run has its epochs, every promise of the state
    holds after every record, the journal's fold is the live state, every receipt is in the ledger, and nobody is taken
    for a cheat."""
    world = make_world(2, 2, b_min=4, seed=seed, **lively | {"deadline_first_s": 6.0})
    weather = Weather(world, seed, [f"miner{number}" for number in range(6)])
    async with world:
        await weather.rage(events=16)
        await world.finished()
    assert len(set(weather.events)) >= 3
    for length, state in enumerate(world.fold(), start=1):
        assert not list(broken(state)), f"after record {length - 1}"
    assert msgspec.msgpack.encode(state) == msgspec.msgpack.encode(world.state)
    for hotkey, miner in world.miners.items():
        assert sum(miner.credited.values()) <= world.state.ledger.total(hotkey) + 1e-9
        assert not world.state.miners[hotkey].faults and not world.state.miners[hotkey].false_complaints
    assert not any(outcome.startswith("rejected") for outcome in world.state.outcomes)
    assert [stage.epoch for stage in world.state.stages] == [2, 2]
