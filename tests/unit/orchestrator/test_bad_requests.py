"""The bad-input list at the real door: real HTTP, real signatures, the real service and machine behind it.

Each request is refused with its reason, is in the journal, and changes nothing but counters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from subnet.protocol import messages as m
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import Door

EXCHANGE = m.Exchange(session="s", free_slots=0, holding=(), results=())


def request(door: Door, **change: Any) -> bytes:
    fields = {"run_id": door.spec.run_id, "spec_digest": door.spec.digest(), "message": EXCHANGE} | change
    return msgspec.json.encode(m.Request(**fields))


async def unsigned(door: Door) -> tuple[int, m.Reply]:
    return await door.post(request(door), {})


async def replayed(door: Door) -> tuple[int, m.Reply]:
    body = request(door)
    headers = door.signed(body)
    assert (await door.post(body, headers))[0] == 200
    return await door.post(body, headers)


async def stale(door: Door) -> tuple[int, m.Reply]:
    body = request(door)
    return await door.post(body, door.signed(body, shift_s=-60.0))


async def wrong_receiver(door: Door) -> tuple[int, m.Reply]:
    body = request(door)
    return await door.post(body, door.signed(body, receiver=door.hotkey("Two")))


async def oversized(door: Door) -> tuple[int, m.Reply]:
    body = request(door) + b" " * (1 << 20)
    return await door.post(body, door.signed(body))


async def not_a_number(door: Door) -> tuple[int, m.Reply]:
    message = msgspec.structs.replace(EXCHANGE, results=(door.done("l0.1.1", loss=0.125),))
    body = request(door, message=message).replace(b"0.125", b"NaN")
    return await door.post(body, door.signed(body))


async def another_run(door: Door) -> tuple[int, m.Reply]:
    body = request(door, run_id="yesterday")
    return await door.post(body, door.signed(body))


async def another_spec(door: Door) -> tuple[int, m.Reply]:
    body = request(door, spec_digest="f" * 64)
    return await door.post(body, door.signed(body))


@pytest.mark.parametrize(
    ("send", "status", "reason"),
    [
        (unsigned, 401, Reason.UNSIGNED),
        (replayed, 401, Reason.REPLAYED),
        (stale, 401, Reason.STALE),
        (wrong_receiver, 401, Reason.WRONG_RECEIVER),
        (oversized, 413, Reason.OVERSIZED),
        (not_a_number, 400, Reason.MALFORMED),
        (another_run, 403, Reason.WRONG_RUN),
        (another_spec, 403, Reason.WRONG_SPEC),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_request_that_does_not_pass(
    door: Door, send: Callable[[Door], Awaitable[tuple[int, m.Reply]]], status: int, reason: Reason
) -> None:
    """1. Unsigned, replayed, stale, for another orchestrator, too large, not JSON, of another run or RunSpec."""
    before = door.frozen()
    answered, reply = await send(door)
    assert isinstance(reply, m.Refusal)
    assert (answered, reply.notice.reason) == (status, reason) and reply.notice.remedy
    await door.clock.advance(2.0)
    assert door.state.refusals == {reason: 1}
    assert [x.reason for x in door.run.messages() if isinstance(x, m.Refused)] == [reason]
    assert door.frozen() == before and door.run.folded() == door.run.state_bytes()
