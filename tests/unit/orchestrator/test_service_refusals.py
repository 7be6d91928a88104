"""Requests of another run or another RunSpec, strangers, and the public status."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from subnet.coordination.status import status
from subnet.protocol import messages as m
from subnet.protocol.reasons import REMEDY, Reason

pytestmark = pytest.mark.looptime(end=3_600)
Host = Callable[..., Awaitable[Any]]
EXCHANGE = m.Exchange(session="s", free_slots=1, holding=(), results=())
JOIN = m.Join(session="s", device="cpu", software="test")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"message": EXCHANGE, "run": "another-run"}, Reason.WRONG_RUN),
        ({"message": JOIN, "run": "another-run", "digest": None}, Reason.WRONG_RUN),
        ({"message": EXCHANGE, "digest": "f" * 64}, Reason.WRONG_SPEC),
        ({"message": EXCHANGE, "digest": None}, Reason.WRONG_SPEC),
        ({"message": JOIN, "digest": "f" * 64}, Reason.WRONG_SPEC),
    ],
    ids=["run", "run of a join", "RunSpec", "no RunSpec", "old RunSpec of a join"],
)
async def test_another_run_or_another_spec(host: Host, request_: dict[str, Any], reason: Reason) -> None:
    """1. A miner of yesterday's run, or with yesterday's RunSpec: refused with the reason and a remedy, recorded and
    counted within a second or two, and nothing but the count changes. A join without a digest is how it is learned."""
    run = await host()
    await run.join("one")
    before, length = run.state_bytes(), len(run.records)
    reply = await run.ask("one", **request_)
    assert isinstance(reply, m.Refusal)
    assert (reply.notice.reason, reply.notice.remedy, reply.receipt) == (reason, REMEDY[reason], None)
    assert run.state_bytes() == before and len(run.records) == length
    await asyncio.sleep(2.0)
    (refused,) = run.messages()[length:]
    assert (refused.reason, refused.claimed, refused.times) == (reason, "one", 1)
    assert run.state.refusals == {reason: 1}
    after = run.state
    after.refusals, after.at = {}, msgspec.msgpack.decode(before, type=type(after)).at
    assert run.state_bytes() == before


async def test_a_flood_becomes_one_record_a_second(host: Host) -> None:
    """2. Ten thousand requests of a wrong run in ten seconds, from many names: the journal grows by one record a second
    and reason, the count is exact, and a good miner is served meanwhile."""
    run = await host()
    await run.join("one")
    length = len(run.records)
    for number in range(100):
        for _ in range(100):
            await run.ask(f"stranger-{number}", EXCHANGE, run="another-run")
        await asyncio.sleep(0.1)
    assert (await run.exchange("one")).notice.reason is Reason.STAGE_EMPTY
    await asyncio.sleep(2.0)
    refused = [message for message in run.messages()[length:] if isinstance(message, m.Refused)]
    assert len(refused) <= 12 and sum(record.times for record in refused) == 10_000
    assert run.state.refusals == {Reason.WRONG_RUN: 10_000} and run.folded() == run.state_bytes()


async def test_a_long_name_fits_the_record(host: Host) -> None:
    """3. A run id as long as a request allows: the sentence is cut, so the journal can still be read."""
    run = await host()
    await run.ask("one", EXCHANGE, run="x" * 5_000)
    await asyncio.sleep(2.0)
    assert run.folded() == run.state_bytes()


async def test_strangers_and_former_members(host: Host) -> None:
    """4. Not registered, not joined, an older process, and a hotkey that left the subnet: each hears what it is; those
    whom the run knows with a receipt, because the run itself has decided. A stranger does not get into the journal."""
    run = await host()
    await run.join("one")
    newer = msgspec.structs.replace(JOIN, session="s2")
    asked = [
        await run.ask("nobody", JOIN, digest=None),
        await run.ask("two", EXCHANGE),
        await run.ask("two", m.Evaluated(epoch=0, loss=5.0, num_tokens=1, parameters=())),
    ]
    assert isinstance(await run.ask("one", newer, digest=None), m.Joined)
    asked.append(await run.ask("one", EXCHANGE))
    await run.service.submit(m.Registered(hotkeys=("two",)))
    asked.append(await run.ask("one", msgspec.structs.replace(EXCHANGE, session="s2")))
    reasons = [Reason.NOT_REGISTERED, Reason.NOT_JOINED, Reason.NOT_ALLOWED, Reason.OLD_SESSION, Reason.DEREGISTERED]
    assert [reply.notice.reason for reply in asked] == reasons
    assert [reply.receipt is not None for reply in asked] == [False, True, True, True, True]
    assert not run.state.evaluations and run.folded() == run.state_bytes()


async def test_the_public_status(host: Host) -> None:
    """5. What the dashboard reads: the view of `coordination.status`, the orchestrator's hotkey, the journal's head;
    made once per record, not once per reader."""
    run = await host()
    await run.join("one", "two")
    await run.exchange("one", free_slots=1)
    body = run.service.status()
    seen = msgspec.json.decode(body)
    assert run.service.status() is body
    last = run.records[-1]
    assert seen.pop("orchestrator") == "orchestrator"
    assert seen.pop("journal") == {"index": last.index, "head": last.head}
    assert seen == msgspec.json.decode(msgspec.json.encode(status(run.state)))
    assert (seen["in_flight"], seen["finished"], seen["tokens"]) == (1, False, 0)
    (replica,) = seen["stages"][0]["replicas"]
    assert (replica["hotkey"], replica["live"], replica["holding"], replica["reason"]) == ("one", True, 1, "busy")
    assert {"credit", "faults", "free_slots", "epoch_micro_batches", "sentence", "remedy"} <= replica.keys()
    await run.exchange("one")
    assert run.service.status() != body
