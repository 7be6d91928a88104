"""One suite for every control client, in memory and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subnet.errors import PeerFault, Unavailable
from subnet.protocol.ids import Digest, Hotkey, ItemId, Pass
from subnet.protocol.keys import Kind, make
from subnet.protocol.messages import (
    Evaluated,
    Exchange,
    ExchangeReply,
    Failed,
    Join,
    Message,
    Noted,
    Notice,
    PassDone,
    PassWork,
    Refusal,
    Reply,
    Request,
    Target,
    Verdict,
)
from subnet.protocol.reasons import Reason
from subnet.transport.base import ControlClient
from subnet.transport.memory import MemoryControlClient

TIMEOUT_S = 20.0
SPEC = Digest("d" * 64)
JOIN = Join(session="s1", device="cpu", software="test")
RUN = "run"


class Line(NamedTuple):
    """A handler and a way to reach it as any hotkey."""

    handler: Any
    client: Callable[[str], ControlClient]
    hotkey: Callable[[str], Hotkey]


@pytest.fixture(params=["memory", "http"])
async def line(
    request: pytest.FixtureRequest, open_door: Callable[..., Awaitable[Any]], keys: Callable[[str], Any]
) -> AsyncIterator[Line]:
    door = await open_door()
    clients: list[ControlClient] = []

    def client(name: str) -> ControlClient:
        if request.param == "http":
            clients.append(door.control(keys(name)))
        else:
            clients.append(MemoryControlClient(door.handler, keys(name).ss58_address, RUN))
        return clients[-1]

    yield Line(door.handler, client, lambda name: keys(name).ss58_address)
    for one in clients:
        await one.close()


# ---- control, whatever carries it ------------------------------------------------------------------------------------

items = st.text("abcdef0123456789-", min_size=1, max_size=12).map(ItemId)
results = st.one_of(
    st.builds(
        PassDone,
        item=items,
        digest=st.none() | st.just("a" * 64),
        loss=st.none() | st.floats(0, 20),
        param_version=st.integers(0, 2**40),
        compute_s=st.floats(0, 1e6),
    ),
    st.builds(Failed, item=items, reason=st.sampled_from(Reason), sentence=st.text(max_size=50)),
)
messages = st.one_of(
    st.just(JOIN),
    st.builds(
        Exchange,
        session=st.text(min_size=1, max_size=20),
        free_slots=st.integers(0, 64),
        holding=st.lists(items, max_size=4).map(tuple),
        results=st.lists(results, max_size=4).map(tuple),
    ),
    st.builds(
        Evaluated,
        epoch=st.integers(0, 1000),
        loss=st.floats(0, 20),
        num_tokens=st.integers(1, 2**40),
        parameters=st.lists(st.just("b" * 64), max_size=3).map(tuple),
    ),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(message=messages, spec=st.none() | st.just(SPEC))
async def test_what_is_sent_arrives(line: Line, clock: Any, message: Message, spec: Digest | None) -> None:
    """1. Any message of the protocol reaches the handler as it was, with the hotkey that signed it."""
    clock.advance(0.001)  # two clients with one hotkey and a standing clock would sign the same nonce
    client = line.client("Miner")
    reply = await client.call(message, spec, TIMEOUT_S)
    assert line.handler.handled[-1] == (
        line.hotkey("Miner"),
        Request(run_id=RUN, spec_digest=spec, message=message),
    )
    assert isinstance(reply, Noted)
    assert reply.notice.sentence == line.hotkey("Miner")
    await client.close()


async def test_work_comes_back_typed(line: Line) -> None:
    """2. An exchange brings verdicts and work; every field survives the way back."""
    key = make(RUN, 0, 1, "m3", Kind.BOUNDARY)
    work = PassWork(
        item=ItemId("i2"),
        kind=Pass.FORWARD,
        micro_batch=3,
        stage=1,
        epoch=0,
        stage_input=None,
        gradient=None,
        output=Target(key=key, size_bytes=4096, url="http://h/objects/k?sig=1"),
        deadline_s=10.5,
    )
    notice = Notice(reason=Reason.BUSY, sentence="you have work: é", remedy="nothing to do")
    verdict = Verdict(item=ItemId("i1"), outcome="applied", reason=Reason.OK, sentence="accepted", work_units=0.25)
    sent = ExchangeReply(verdicts=(verdict,), work=(work,), drop=(ItemId("i0"),), notice=notice)

    async def answer(sender: Hotkey, request: Request) -> Reply:
        return sent

    line.handler.answer = answer
    assert await line.client("Miner").call(JOIN, SPEC, TIMEOUT_S) == sent


async def test_answers_do_not_mix(line: Line) -> None:
    """3. Ten miners with five requests each under way at once: each gets its own answers, in whatever order."""
    gate = asyncio.Event()

    async def answer(sender: Hotkey, request: Request) -> Reply:
        await gate.wait()
        session = request.message.session
        return Noted(notice=Notice(reason=Reason.OK, sentence=f"{sender} {session}", remedy=""))

    line.handler.answer = answer
    clients = {name: line.client(name) for name in (f"Miner{n}" for n in range(10))}

    async def ask(name: str, session: str) -> None:
        reply = await clients[name].call(Join(session=session, device="", software=""), None, TIMEOUT_S)
        assert reply.notice.sentence == f"{line.hotkey(name)} {session}"

    async with asyncio.TaskGroup() as group:
        for name in clients:
            for n in range(5):
                group.create_task(ask(name, f"s{n}"))
        await line.handler.has_handled(50)
        gate.set()


async def test_a_refusal_is_an_answer(line: Line) -> None:
    """4. The handler refuses, as a reply or as the peer's fault: the caller reads reason and sentence."""
    refusal = Refusal(notice=Notice(reason=Reason.NOT_JOINED, sentence="you did not join", remedy="join first"))

    async def refuse(sender: Hotkey, request: Request) -> Reply:
        return refusal

    async def blame(sender: Hotkey, request: Request) -> Reply:
        raise PeerFault(Reason.WRONG_SPEC, "the digest changed")

    client = line.client("Miner")
    line.handler.answer = refuse
    assert await client.call(JOIN, SPEC, TIMEOUT_S) == refusal
    assert line.handler.refused == []
    line.handler.answer = blame
    reply = await client.call(JOIN, SPEC, TIMEOUT_S)
    assert isinstance(reply, Refusal)
    assert (reply.notice.reason, reply.notice.sentence) == (Reason.WRONG_SPEC, "the digest changed")
    assert [(r.reason, r.claimed) for r in line.handler.refused] == [(Reason.WRONG_SPEC, line.hotkey("Miner"))]


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_giving_up_does_not_stop_the_handler(line: Line, how: str) -> None:
    """5. A miner gives up or dies in an exchange; the orchestrator, which may be in the middle of a journal entry,
    finishes it."""
    gate, finished = asyncio.Event(), asyncio.Event()

    async def answer(sender: Hotkey, request: Request) -> Reply:
        await gate.wait()
        finished.set()
        return Noted(notice=Notice(reason=Reason.OK, sentence="", remedy=""))

    line.handler.answer = answer
    call = asyncio.ensure_future(line.client("Miner").call(JOIN, None, 0.05 if how == "timeout" else TIMEOUT_S))
    await line.handler.has_handled(1)
    if how == "cancelled":
        call.cancel()
    with pytest.raises(Unavailable if how == "timeout" else asyncio.CancelledError):
        await call
    gate.set()
    await asyncio.wait_for(finished.wait(), TIMEOUT_S)


async def test_a_closed_client_sends_nothing(line: Line) -> None:
    """6. A role that shuts down twice, or calls once more while it does."""
    client = line.client("Miner")
    await client.close()
    await client.close()
    with pytest.raises(Unavailable, match="closed"):
        await client.call(JOIN, None, TIMEOUT_S)
    assert line.handler.handled == []
