"""The dead are noticed within two heartbeats, the living are never taken for dead."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from subnet.coordination.notices import finished
from subnet.coordination.routing import due
from subnet.coordination.state import State
from subnet.errors import Unavailable
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.messages import Message, PassWork, Reply
from subnet.simulation.world import World
from subnet.transport.base import ControlClient, ObjectClient

pytestmark = pytest.mark.looptime(end=20_000)
MakeWorld = Callable[..., World]
HEARTBEAT_S = 5.0


class FarAway:
    """A line with `delay_s` each way; every call whose number leaves `lost` after division by 4 gets no answer, by
    turns because the request is lost, or the reply."""

    def __init__(self, inner: ControlClient, delay_s: float, lost: int) -> None:
        self._inner, self._delay_s, self._lost, self._count = inner, delay_s, lost, 0

    async def call(self, message: Message, spec_digest: Digest | None, timeout_s: float) -> Reply:
        number, self._count = self._count, self._count + 1
        is_lost, reply_only = number % 4 == self._lost, number // 4 % 2
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(self._delay_s)
                if is_lost and not reply_only:
                    await asyncio.sleep(timeout_s)
                reply = await self._inner.call(message, spec_digest, timeout_s)
                await asyncio.sleep(timeout_s if is_lost else self._delay_s)
                return reply
        except TimeoutError:
            raise Unavailable(f"no answer within {timeout_s:g} s") from None

    async def close(self) -> None:
        await self._inner.close()


class SlowReads:
    """Objects that take long to come."""

    def __init__(self, inner: ObjectClient, read_s: float) -> None:
        self._inner, self._read_s = inner, read_s

    async def get(self, url: str, offset: int, size_bytes: int, timeout_s: float) -> bytes:
        await asyncio.sleep(self._read_s)
        return await self._inner.get(url, offset, size_bytes, timeout_s)

    async def put(self, url: str, data: bytes, timeout_s: float) -> None:
        await self._inner.put(url, data, timeout_s)

    async def close(self) -> None:
        await self._inner.close()


def timed(lively: dict[str, Any], **change: Any) -> dict[str, Any]:
    return lively | {"heartbeat_s": HEARTBEAT_S, "dead_after_s": 9.5, "relax_after_s": 300.0} | change


@pytest.mark.parametrize("lost", range(4))
async def test_nobody_alive_is_taken_for_dead(make_world: MakeWorld, lively: dict[str, Any], lost: int) -> None:
    """1. Every line takes a second each way and loses every fourth call, a request or a reply; one miner computes for
    12 s at a time, one needs 20 s for each of its first downloads, one comes late: nobody is ever given up."""
    deadlines = {"upload_deadline_s": 120.0, "apply_deadline_s": 120.0, "reduce_deadline_s": 120.0}
    async with make_world(2, 1, b_min=2, micro_batches_per_step=2, **timed(lively, **deadlines)) as world:

        def far(client: ControlClient) -> ControlClient:
            return FarAway(client, 1.0, lost)

        await world.start("busy", control=far, compute_s=12.0)
        await world.start("quick", control=far)
        await world.start("other", control=far, objects=lambda client: SlowReads(client, 20.0))
        await asyncio.sleep(20.0)
        await world.start("late", control=far)
        await world.until(finished, 2_000.0)
    gone = [line for line in world.said if "is gone" in line]
    assert not gone
    assert all(miner.live for miner in world.state.miners.values()) and len(world.state.miners) == 4


async def test_a_death_is_noticed_within_two_heartbeats(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """2. Miners are killed at moments of all kinds, busy and idle ones: at most two heartbeats after a death
    all that the dead one held waits for others, or others have it."""
    drawn, items = random.Random(5), 0
    loop = asyncio.get_running_loop()
    async with make_world(2, 1, b_min=10_000, **timed(lively)) as world:
        for number in range(6):
            await world.start(f"miner{number}", compute_s=1.5 + number)
        await world.until(lambda state: state.completed >= 2)
        for number in range(8):
            await asyncio.sleep(drawn.uniform(0.0, 12.0))
            victim = Hotkey(f"miner{number % 6}")
            if not world.state.miners[victim].live:
                continue
            held = [world.state.offers[item] for item in world.state.miners[victim].offers]
            pieces = {(o.work.micro_batch, o.work.kind, o.work.stage) for o in held if isinstance(o.work, PassWork)}
            world.kill(victim)
            died_at = loop.time()
            await world.until(lambda state, victim=victim: not state.miners[victim].live, 60.0)
            assert loop.time() - died_at <= 2 * HEARTBEAT_S
            batches = world.state.micro_batches  # its last words may have been under way: then a piece is done
            due_still = {p for p in pieces if p[0] in batches and due(batches[p[0]]) == (p[1], p[2])}
            assert due_still <= _waiting(world.state) and not world.state.miners[victim].offers
            items += len(due_still)
            await world.start(victim, compute_s=1.5 + number % 6)
    assert items >= 5, "nobody was killed at work"


def _waiting(state: State) -> set[tuple[int, str, int]]:
    """Pieces that others hold, or that lie where free replicas find them, or that are done."""
    found = {
        (offer.work.micro_batch, offer.work.kind, offer.work.stage)
        for offer in state.offers.values()
        if isinstance(offer.work, PassWork) and state.miners[offer.hotkey].live
    }
    for stage in state.stages:
        found |= {(batch, kind, stage.stage) for batch in stage.backward_ready for kind in ("backward",)}
        found |= {(batch, kind, stage.stage) for batch in stage.forward_ready for kind in ("forward", "loss")}
    return found
