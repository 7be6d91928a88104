"""The door's limits and what stands behind its signatures: nobody can make the process grow, or be somebody else."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from subnet.errors import PeerFault
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Join, Noted, Notice, Reply, Request
from subnet.protocol.reasons import Reason
from subnet.transport.limits import ByteBudget, TokenBuckets
from subnet.transport.signing import RequestSigner, RequestVerifier, claim

TIMEOUT_S = 20.0
PATH = "/v1/control"
JOIN = Join(session="s1", device="cpu", software="test")
Open = Callable[..., Awaitable[Any]]

# ---- limits ----------------------------------------------------------------------------------------------------------


async def test_one_hotkey_asks_too_often(open_door: Open, stranger: Any, clock: Any) -> None:
    """1. A miner in a tight loop is slowed down, in signed words; the others and its own later self are served."""
    door = await open_door(hotkey_rate_per_s=2, hotkey_burst=3)
    greedy, modest = stranger(door, "Greedy"), stranger(door, "Modest")
    assert [(await greedy.post(greedy.signed()))[0] for _ in range(5)] == [200, 200, 200, 429, 429]
    assert [r.reason for r in door.handler.refused] == [Reason.RATE_LIMITED] * 2
    assert (await modest.post(modest.signed()))[0] == 200
    clock.advance(1.0)
    assert [(await greedy.post(greedy.signed()))[0] for _ in range(3)] == [200, 200, 429]


async def test_a_flood_of_forgeries(open_door: Open, stranger: Any, clock: Any) -> None:
    """2. Forged requests in the name of an honest miner, from the same address: they get short, unsigned answers, the
    status page closes for that address, the miner is served as before."""
    door = await open_door(address_rate_per_s=1, address_burst=3)
    mallory, honest = stranger(door, "Mallory"), stranger(door, "Honest")
    forged = [honest.signed() | {"X-Bittensor-Signature": "0x" + "00" * 64} for _ in range(6)]
    answers = [await mallory.post(headers) for headers in forged]
    assert [status for status, _, _ in answers] == [401] * 3 + [429] * 3
    assert [("X-Bittensor-Signature" in headers) for _, _, headers in answers] == [True] * 3 + [False] * 3
    assert len(door.handler.refused) == 6
    async with door.session.open().get(door.url + "/v1/status") as answer:
        assert answer.status == 429
    assert (await honest.post(honest.signed()))[0] == 200
    clock.advance(1)
    async with door.session.open().get(door.url + "/v1/status") as answer:
        assert answer.status == 200


async def test_too_many_open_exchanges(open_door: Open, keys: Callable[[str], Any]) -> None:
    """3. One hotkey holds requests open by the dozen; the surplus is refused, the places are free again later."""
    door = await open_door(held_per_hotkey_max=2)
    gate = asyncio.Event()

    async def hold(sender: Hotkey, request: Request) -> Reply:
        await gate.wait()
        return Noted(notice=Notice(reason=Reason.OK, sentence="", remedy=""))

    door.handler.answer = hold
    client = door.control(keys("Miner"))
    held = [asyncio.ensure_future(client.call(JOIN, None, TIMEOUT_S)) for _ in range(2)]
    await door.handler.has_handled(2)
    refused = await client.call(JOIN, None, TIMEOUT_S)
    assert refused.notice.reason == Reason.RATE_LIMITED
    gate.set()
    await asyncio.gather(*held)
    assert isinstance(await client.call(JOIN, None, TIMEOUT_S), Noted)
    await client.close()


async def test_nonces_are_bounded(clock: Any, keys: Callable[[str], Any]) -> None:
    """4. More requests than the table of nonces holds: refused until the window has moved on, none forgotten early."""
    verifier = RequestVerifier(keys("Orchestrator"), clock, nonces_max=3)
    signer = RequestSigner(keys("Miner"), verifier.hotkey, clock)
    requests = [signer.sign(PATH, b"x")[0] for _ in range(4)]
    for headers in requests[:3]:
        verifier.verify(headers, PATH, b"x")
    with pytest.raises(PeerFault) as fault:
        verifier.verify(requests[3], PATH, b"x")
    assert fault.value.code == Reason.RATE_LIMITED
    clock.advance(12.1)
    verifier.verify(signer.sign(PATH, b"x")[0], PATH, b"x")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 3)), max_size=60))
@example([("a", 0.0), ("a", 100.0), ("a", 0.0), ("a", 0.0), ("a", 0.0)])
def test_a_bucket_never_gives_more_than_it_holds(steps: list[tuple[str, float]]) -> None:
    """5. In any order of callers and pauses: in every stretch of time at most burst + rate x time each, the first
    always, and a table of bounded size."""
    rate, burst = 2.0, 3
    buckets, now = TokenBuckets(rate, burst, entries_max=6), 0.0
    allowed: dict[str, list[float]] = {}
    for name, pause_s in steps:
        now += pause_s
        if buckets.take(name, now):
            allowed.setdefault(name, []).append(now)
        assert name in allowed
    for times in allowed.values():
        for first, start in enumerate(times):
            for last in range(first, len(times)):
                assert last - first + 1 <= burst + rate * (times[last] - start) + 1e-6
    small = TokenBuckets(1.0, 1, entries_max=2)
    for name, _ in steps:
        small.take(name, 0.0)
        assert len(small) <= 2


def test_a_byte_budget_bounds_but_never_starves() -> None:
    """6. Small transfers share the budget; a lone large one passes."""
    budget = ByteBudget(10)
    assert (budget.take(6), budget.take(5), budget.take(4)) == (True, False, True)
    budget.release(6)
    budget.release(4)
    assert budget.take(100)
    assert not budget.take(1)


# ---- signing, without a server ---------------------------------------------------------------------------------------

HEADERS = ["Version", "Hotkey", "Receiver", "Nonce", "Crypto", "Signature"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(HEADERS), st.text(max_size=60) | st.just("1"), max_size=6))
def test_any_headers_are_a_peers_fault(keys: Callable[[str], Any], bent: dict[str, str]) -> None:
    """7. Whatever stands in the headers, verification ends in one kind of error."""
    verifier = RequestVerifier(keys("Orchestrator"), lambda: 1.7e9)
    headers, _ = RequestSigner(keys("Miner"), verifier.hotkey, lambda: 1.7e9).sign(PATH, b"x")
    changed = headers | {f"X-Bittensor-{name}": value for name, value in bent.items()}
    claim(changed)
    try:
        caller = verifier.verify(changed, PATH, b"x")
    except PeerFault as fault:
        assert Reason(fault.code) in (Reason.UNSIGNED, Reason.STALE, Reason.WRONG_RECEIVER)
    else:
        assert caller.hotkey == keys("Miner").ss58_address
        assert {name: text for name, text in changed.items() if not name.endswith("Crypto")} == headers


def test_another_networks_spelling_of_a_key(keys: Callable[[str], Any]) -> None:
    """8. The same key written with another network's prefix is not a second miner."""
    polkadot = "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5"  # //Alice

    class Spelled:
        ss58_address, crypto_type = polkadot, keys("Alice").crypto_type
        public_key, sign = keys("Alice").public_key, staticmethod(keys("Alice").sign)

    verifier = RequestVerifier(keys("Orchestrator"), lambda: 1.7e9)
    headers, _ = RequestSigner(Spelled(), verifier.hotkey, lambda: 1.7e9).sign(PATH, b"x")
    with pytest.raises(PeerFault, match="not an address of this network"):
        verifier.verify(headers, PATH, b"x")
    assert claim(headers) is None


def test_nonces_grow_even_when_the_clock_stands(keys: Callable[[str], Any]) -> None:
    """9. Two requests in one tick, or after the clock was set back, are two requests."""
    times = iter([1.7e9, 1.7e9, 1.6e9, 1.7e9 + 1])
    signer = RequestSigner(keys("Miner"), Hotkey(keys("Orchestrator").ss58_address), lambda: next(times))
    nonces = [signer.sign(PATH, b"x")[1] for _ in range(4)]
    assert nonces == sorted(set(nonces))
    assert math.isclose(nonces[0], 1.7e18)
