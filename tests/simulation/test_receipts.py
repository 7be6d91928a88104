"""A bad line between miners and the orchestrator: no credit is lost, none is doubled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from subnet.errors import Unavailable
from subnet.protocol.draw import draw_below
from subnet.protocol.ids import Digest
from subnet.protocol.messages import Exchange, Message, Reply
from subnet.simulation.world import World
from subnet.transport.base import ControlClient

pytestmark = pytest.mark.looptime(end=20_000)
MakeWorld = Callable[..., World]
PERCENT = 25


class BadLine:
    """Loses requests before they arrive and answers on their way back, and delivers some requests twice, as seeded."""

    def __init__(self, line: ControlClient, seed: str, what: str) -> None:
        self._line, self._seed, self._what = line, seed, what
        self._calls = self.lost = 0

    async def call(self, message: Message, spec_digest: Digest | None, timeout_s: float) -> Reply:
        self._calls += 1
        is_bad = draw_below(self._seed.encode(), 100, self._calls) < PERCENT and isinstance(message, Exchange)
        self.lost += is_bad
        if is_bad and self._what == "requests":
            raise Unavailable("the request was lost")
        reply = await self._line.call(message, spec_digest, timeout_s)
        if is_bad and self._what == "twice":
            return await self._line.call(message, spec_digest, timeout_s)
        if is_bad:
            raise Unavailable("the answer was lost")
        return reply

    async def close(self) -> None:
        await self._line.close()


async def run(world: World, what: str, seed: int) -> int:
    """To the end of the run over bad lines; how many calls went wrong."""
    lines: list[BadLine] = []

    def bad(line: ControlClient, number: int) -> ControlClient:
        lines.append(BadLine(line, f"{seed} {number}", what))
        return lines[-1]

    async with world:
        for number in range(4):
            await world.start(f"miner{number}", control=lambda line, number=number: bad(line, number))
        await world.finished()
    return sum(line.lost for line in lines)


@pytest.mark.parametrize("what", ["answers", "requests", "twice"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_bad_line(
    make_world: MakeWorld, lively: dict[str, Any], check_credit: Callable[..., None], what: str, seed: int
) -> None:
    """1. A quarter of all exchanges lose their answer, do not arrive, or arrive twice. The run completes, each miner's
    receipts.jsonl is its ledger to the last unit and pass, and nobody is blamed for the line."""
    world = make_world(2, 2, b_min=6, seed=seed, **lively)
    assert await run(world, what, seed) > 20
    check_credit(world)
    assert [stage.epoch for stage in world.state.stages] == [2, 2]
    assert not any(miner.faults for miner in world.state.miners.values())
    if what == "answers":
        assert world.state.outcomes["ignored/duplicate"] > 5
    assert not any(outcome.startswith("rejected") for outcome in world.state.outcomes)
