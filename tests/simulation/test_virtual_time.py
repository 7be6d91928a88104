"""The loop whose clock jumps."""

from __future__ import annotations

import asyncio
import math

import pytest

from subnet.errors import InvariantViolation
from subnet.simulation import virtual_time


def test_a_day_passes_at_once() -> None:
    """1. Somebody sleeps for a day, another one wakes every hour: both see the time that passed."""

    async def program() -> tuple[float, int]:
        woken = 0

        async def wake() -> None:
            nonlocal woken
            while True:
                await asyncio.sleep(3600.0)
                woken += 1

        waker = asyncio.create_task(wake())
        await asyncio.sleep(86_400.5)
        waker.cancel()
        return asyncio.get_running_loop().time(), woken

    assert virtual_time.run(program()) == (86_400.5, 24)


@pytest.mark.parametrize("least_s", [1e-14, 1e-12, 1e-10, 1e-7])
@pytest.mark.parametrize("at_s", [0.3, 120.0, 7777.777777])
def test_what_is_almost_due_comes(at_s: float, least_s: float) -> None:
    """2. A deadline is a rounding error away: it passes, instead of being looked at for ever."""

    async def program() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(at_s)
        deadline = max(loop.time() + least_s, math.nextafter(loop.time(), math.inf))
        while (left_s := deadline - loop.time()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await asyncio.Event().wait()
            except TimeoutError:
                pass
        return loop.time()

    assert virtual_time.run(program()) == pytest.approx(at_s, abs=1e-5)


def test_a_wait_for_nothing_is_named() -> None:
    """3. Everybody waits for everybody: an error instead of a test that hangs."""
    with pytest.raises(InvariantViolation, match="everybody waits"):
        virtual_time.run(asyncio.Event().wait())
