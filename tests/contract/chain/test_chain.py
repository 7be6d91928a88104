"""One suite for every chain: the ledger in memory, and a local node behind the real SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from subnet.chain.base import Chain, Subnet
from subnet.errors import Unavailable
from subnet.protocol.reasons import Reason

OWNER, VALIDATOR, MINER, OTHER = range(4)


async def permitted(world: Any) -> Chain:
    """The validator's line, once its permit is given and it may set weights."""
    chain: Chain = world.chain("validator")
    seen = await chain.subnet()
    while not seen.neurons[VALIDATOR].permit:
        await world.pass_blocks(1)
        seen = await chain.subnet()
    await world.pass_blocks(int(seen.hyperparameters["weights_rate_limit"]))
    return chain


async def paid(world: Any, chain: Chain, weights: Mapping[int, float]) -> Subnet:
    """Weights told, and the reading after a chain epoch that was all theirs."""
    outcome = await chain.set_weights(weights)
    assert outcome.done and outcome.reason is Reason.OK, outcome
    await world.pass_blocks((await chain.subnet()).tempo + 1)
    return await chain.subnet()


@pytest.fixture(autouse=True)
async def closed_after(world: Any) -> AsyncIterator[None]:
    yield
    for chain in world.opened:
        await chain.close()


# ---- reading ---------------------------------------------------------------------------------------------------------


async def test_a_newcomer_looks_around(world: Any) -> None:
    """1. Somebody who knows network and netuid alone reads who is there, whose subnet it is and how fast it goes."""
    seen = await world.chain("stranger").subnet()
    names = [name for neuron in seen.neurons for name, hotkey in world.hotkeys.items() if hotkey == neuron.hotkey]
    assert names == ["owner", "validator", "miner", "other"] and [n.uid for n in seen.neurons] == [0, 1, 2, 3]
    assert seen.owner_uid == OWNER and seen.owner_hotkey == world.hotkeys["owner"]
    assert seen.neurons[VALIDATOR].stake > 100 * seen.neurons[MINER].stake
    assert seen.tempo == seen.hyperparameters["tempo"] == 10 and seen.block_s > 0
    assert seen.hyperparameters["weights_rate_limit"] == 3
    assert seen.hyperparameters["commit_reveal_weights_enabled"] in (False, 0)
    assert set(seen.pay) == {0, 1, 2, 3}
    assert len(seen.block.hash) == 64 and set(seen.block.hash) <= set("0123456789abcdef")


async def test_two_parties_see_the_same_block(world: Any) -> None:
    """2. Two validators wait for the same block to come and draw from its hash: it is the same, now and later."""
    first, second = world.chain("validator"), world.chain("owner")
    now = await first.wait_for_block(0)
    waiting = [asyncio.create_task(chain.wait_for_block(now.number + 2)) for chain in (first, second)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    await world.pass_blocks(2)
    one, other = await asyncio.gather(*waiting)
    assert one == other and one.number == now.number + 2 and one.hash != now.hash
    await world.pass_blocks(2)
    assert await second.wait_for_block(now.number) == now, "a block that has passed"
    assert (await first.wait_for_block(0)).number >= one.number + 2


async def test_a_chain_that_is_away(world: Any) -> None:
    """3. The node is down: everything says so, in one kind of error, within its patience."""
    chain = world.away()
    for asked in (
        chain.wait_for_block(0),
        chain.wait_for_block(5),
        chain.subnet(),
        chain.set_weights({0: 1.0}),
        chain.commit("x"),
        chain.commitment(world.hotkeys["owner"]),
        chain.committed_in(1, world.hotkeys["owner"]),
        chain.weights(),
    ):
        with pytest.raises(Unavailable, match="does not answer"):
            await asked
    await chain.close()


async def test_the_owner_tunes_while_it_runs(world: Any) -> None:
    """4. The owner changes a hyperparameter: the next reading has it."""
    chain = world.chain("miner")
    try:
        await world.tune("weights_rate_limit", 5)
        assert (await chain.subnet()).hyperparameters["weights_rate_limit"] == 5
    finally:
        await world.tune("weights_rate_limit", 3)


# ---- weights ---------------------------------------------------------------------------------------------------------


async def test_who_may_not_set_weights(world: Any) -> None:
    """5. A stranger has no uid, a miner no permit: each is told, and nothing changes."""
    await permitted(world)
    before = await world.chain("owner").weights()
    stranger = await world.chain("stranger").set_weights({MINER: 1.0})
    assert not stranger.done and stranger.reason is Reason.NOT_REGISTERED and stranger.block == 0
    assert world.hotkeys["stranger"] in stranger.sentence
    seen = await world.chain("other").subnet()
    if not seen.neurons[OTHER].permit:
        other = await world.chain("other").set_weights({MINER: 1.0})
        assert not other.done and other.reason is Reason.NO_PERMIT and f"uid {OTHER}" in other.sentence
    assert await world.chain("owner").weights() == before


async def test_weights_no_chain_would_take(world: Any) -> None:
    """6. A uid that nobody has, a row of zeros: refused with the reason. Negative and NaN never get that far."""
    chain = await permitted(world)
    unknown = await chain.set_weights({MINER: 1.0, 200: 1.0})
    assert not unknown.done and unknown.reason is Reason.NO_UID and "uid 200" in unknown.sentence
    zero = await chain.set_weights({MINER: 0.0})
    assert not zero.done and zero.reason is Reason.NO_WEIGHTS
    assert (await chain.set_weights({})).reason is Reason.NO_WEIGHTS
    for bad in ({MINER: -1.0}, {MINER: float("nan")}, {-1: 1.0}):
        with pytest.raises(ValueError, match="non-negative"):
            await chain.set_weights(bad)


async def test_weights_become_pay(world: Any) -> None:
    """7. The validator gives 3:1; after a chain epoch the miners' incentive is 3:1, the validator has all dividends,
    and every part of the emission is there."""
    chain = await permitted(world)
    before = await chain.subnet()
    seen = await paid(world, chain, {MINER: 3.0, OTHER: 1.0})
    rows = await chain.weights()
    assert rows[VALIDATOR].shares == pytest.approx({MINER: 0.75, OTHER: 0.25}, abs=1e-4)
    assert MINER not in rows and all(sum(row.shares.values()) == pytest.approx(1.0) for row in rows.values())
    assert seen.pay[MINER].incentive == pytest.approx(0.75, abs=1e-3)
    assert seen.pay[OTHER].incentive == pytest.approx(0.25, abs=1e-3)
    assert seen.pay[VALIDATOR].dividends == pytest.approx(1.0, abs=1e-3) and seen.pay[VALIDATOR].incentive == 0
    assert seen.pay[MINER].emission_alpha == pytest.approx(3 * seen.pay[OTHER].emission_alpha, rel=1e-2)
    total = sum(pay.emission_alpha for pay in seen.pay.values())
    assert seen.pay[VALIDATOR].emission_alpha == pytest.approx(total / 2, rel=1e-2), "41 to 41"
    for uid in (MINER, OTHER, VALIDATOR, OWNER):
        assert seen.neurons[uid].stake > before.neurons[uid].stake


async def test_weight_on_the_owner_is_burnt(world: Any) -> None:
    """8. Three quarters to the owner's uid: the miner gets its quarter, the rest is nobody's."""
    chain = await permitted(world)
    seen = await paid(world, chain, {OWNER: 3.0, MINER: 1.0})
    assert seen.pay[MINER].incentive == pytest.approx(0.25, abs=1e-3)
    assert seen.pay[OWNER].incentive == pytest.approx(0.75, abs=1e-3)
    await world.pass_blocks(seen.tempo)
    later = await chain.subnet()
    grown = [later.neurons[uid].stake - seen.neurons[uid].stake for uid in (OWNER, MINER)]
    assert grown[0] < 3.5 * grown[1], "the owner's 18 % cut alone, not three times the miner's pay beside it"


async def test_weights_too_soon(world: Any) -> None:
    """9. A validator that sets weights twice within the rate limit is told the block from which it may."""
    chain = await permitted(world)
    try:
        first = await chain.set_weights({MINER: 1.0})
        await world.tune("weights_rate_limit", 500)
        second = await chain.set_weights({OTHER: 1.0})
        assert first.done and not second.done and second.reason is Reason.RATE_LIMITED
        assert str(first.block + 500) in second.sentence
        row = (await chain.weights())[VALIDATOR]
        assert set(row.shares) == {MINER} and row.block == first.block
    finally:
        await world.tune("weights_rate_limit", 3)
    await world.pass_blocks(3)
    assert (await chain.set_weights({OTHER: 1.0})).done


async def test_sealed_weights_are_not_shown(world: Any) -> None:
    """10. With commit-reveal on, the same call seals the weights: done, and not to be copied by anybody yet."""
    chain = await permitted(world)
    assert (await chain.set_weights({MINER: 1.0})).done
    await world.tune("commit_reveal_weights_enabled", True)
    try:
        await world.pass_blocks(3)
        sealed = await chain.set_weights({OTHER: 1.0})
        assert sealed.done and sealed.block > 0, sealed
        assert set((await chain.weights())[VALIDATOR].shares) == {MINER}
    finally:
        await world.tune("commit_reveal_weights_enabled", False)


# ---- commitments -----------------------------------------------------------------------------------------------------


async def test_the_owner_publishes(world: Any) -> None:
    """11. The owner commits its URL; miners read it by hotkey alone. The next one overwrites it; where the first one
    was told it can still be found."""
    owner, miner = world.chain("owner"), world.chain("miner")
    first = await owner.commit("https://one.example")
    assert first.done and first.block > 0
    assert await miner.commitment(world.hotkeys["owner"]) == "https://one.example"
    await world.pass_blocks(1)
    second = await owner.commit("https://two.example")
    assert await miner.commitment(world.hotkeys["owner"]) == "https://two.example"
    assert await miner.committed_in(first.block, world.hotkeys["owner"]) == "https://one.example"
    assert await miner.committed_in(second.block, world.hotkeys["owner"]) == "https://two.example"
    assert await miner.committed_in(first.block, world.hotkeys["miner"]) is None
    with pytest.raises(Unavailable, match="holds"):
        await miner.committed_in(second.block + 10**6, world.hotkeys["owner"])


async def test_a_commitment_has_128_bytes(world: Any) -> None:
    """12. 128 bytes fit, counted in UTF-8; one more does not. Who committed nothing has nothing."""
    await world.pass_blocks(11)  # a fresh budget
    owner = world.chain("owner")
    longest = "é" * 64
    assert (await owner.commit(longest)).done
    refused = await owner.commit(longest + "x")
    assert not refused.done and refused.reason is Reason.OVERSIZED and "129" in refused.sentence
    assert await owner.commitment(world.hotkeys["owner"]) == longest
    assert await owner.commitment(world.hotkeys["other"]) is None


async def test_only_the_registered_commit(world: Any) -> None:
    """13. A stranger has no slot."""
    outcome = await world.chain("stranger").commit("hello")
    assert not outcome.done and outcome.reason is Reason.NOT_REGISTERED
