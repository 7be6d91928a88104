"""The ledger in memory: pay, permits, uids and time, told as what happens to a subnet's neurons."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.chain.base import Row
from subnet.chain.consensus import Account
from subnet.chain.memory import MemoryChain, MemoryLedger
from subnet.chain.memory_ledger import RAO
from subnet.errors import Unavailable
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason
from subnet.runtime import LoopRuntime

OWNER, VALIDATOR = Hotkey("owner"), Hotkey("validator")
MINERS = [Hotkey(f"miner{i}") for i in range(4)]
TEMPO = 20


def ledger(**hyperparameters: int | bool) -> MemoryLedger:
    """Owner 0, validator 1 with stake and permit, miners 2 to 5; past the first chain epoch."""
    rules = {"tempo": TEMPO, "weights_rate_limit": 2} | hyperparameters
    made = MemoryLedger(OWNER, random_bytes=LoopRuntime(b"seed").random_bytes, **rules)
    for hotkey in (VALIDATOR, *MINERS):
        assert made.register(hotkey).done
    made.add_stake(VALIDATOR, 1_000.0)
    made.advance(TEMPO)
    return made


def stakes(of: MemoryLedger) -> dict[Hotkey, float]:
    return {neuron.hotkey: neuron.stake for neuron in of.subnet().neurons}


def uid(of: MemoryLedger, hotkey: Hotkey) -> int:
    return next(neuron.uid for neuron in of.subnet().neurons if neuron.hotkey == hotkey)


# ---- pay -------------------------------------------------------------------------------------------------------------


def test_one_tempo_of_alpha_goes_41_41_18() -> None:
    """1. A validator gives two miners 3:1; at the next chain epoch 20 alpha are there to share: 8.2, 8.2 and 3.6."""
    subnet = ledger()
    before = stakes(subnet)
    assert subnet.set_weights(VALIDATOR, {2: 3.0, 3: 1.0}).done
    subnet.advance(TEMPO)
    earned = {hotkey: stake - before[hotkey] for hotkey, stake in stakes(subnet).items()}
    assert earned[MINERS[0]] == pytest.approx(6.15, rel=1e-4) and earned[MINERS[1]] == pytest.approx(2.05, rel=1e-4)
    assert earned[VALIDATOR] == pytest.approx(8.2, rel=1e-4) and earned[OWNER] == pytest.approx(3.6, rel=1e-4)
    pay = subnet.subnet().pay
    assert pay[2].incentive == pytest.approx(0.75, rel=1e-4) and pay[1].dividends == 1.0
    assert pay[2].emission_alpha == pytest.approx(earned[MINERS[0]], rel=1e-9)


def test_weight_on_the_owner_burns() -> None:
    """2. Half the weight goes to the owner's uid: the chain shows that pay, and nobody gets it."""
    subnet = ledger()
    before = stakes(subnet)[OWNER]
    subnet.set_weights(VALIDATOR, {0: 1.0, 2: 1.0})
    subnet.advance(TEMPO)
    assert subnet.subnet().pay[0].emission_alpha == pytest.approx(4.1, rel=1e-4)
    assert stakes(subnet)[OWNER] - before == pytest.approx(3.6, rel=1e-4), "the cut alone"
    assert subnet.account().burnt == pytest.approx(4.1 * RAO, rel=1e-4)


def test_without_weights_miners_get_nothing() -> None:
    """3. No validator has set weights yet: their part goes to the validators' stake, nobody's incentive is above 0."""
    subnet = ledger()
    subnet.advance(TEMPO)
    assert all(pay.incentive == 0 for pay in subnet.subnet().pay.values())
    assert subnet.account().miners == 0 and subnet.account().validators > 0


def test_a_minority_cannot_lift_its_friend() -> None:
    """4. A validator with a tenth of the stake gives everything to a miner that the others give nothing: it stays
    at nothing, and the one who stood alone earns no dividends."""
    subnet = ledger()
    other = Hotkey("other validator")
    subnet.register(other)
    subnet.add_stake(other, 100.0)
    subnet.advance(TEMPO)
    assert subnet.set_weights(VALIDATOR, {2: 1.0}).done and subnet.set_weights(other, {3: 1.0}).done
    subnet.advance(TEMPO)
    pay = subnet.subnet().pay
    assert pay[2].incentive == 1.0 and pay[3].incentive == 0.0
    assert pay[1].dividends == 1.0 and pay[uid(subnet, other)].dividends == 0.0


def test_who_sets_no_weights_any_more_stops_counting() -> None:
    """5. A validator goes silent for longer than the activity cutoff: its old weights pay nobody."""
    subnet = ledger(activity_cutoff_factor=1_000)
    subnet.set_weights(VALIDATOR, {2: 1.0})
    subnet.advance(TEMPO)
    assert subnet.subnet().pay[2].incentive == 1.0
    subnet.advance(TEMPO)
    assert subnet.subnet().pay[2].incentive == 0.0


Weights = dict[int, float]
rows = st.dictionaries(st.integers(0, 7), st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(
    stakes_alpha=st.lists(st.floats(0, 1e6), min_size=3, max_size=3),
    told=st.lists(st.tuples(st.integers(0, 2), rows, st.integers(1, 50)), max_size=12),
    alpha_per_block=st.sampled_from([0.0, 1e-9, 0.123456789, 1.0]),
)
def test_nothing_is_minted_or_lost_on_the_way(
    stakes_alpha: Sequence[float], told: list[tuple[int, Weights, int]], alpha_per_block: float
) -> None:
    """6. Whatever validators set and whoever holds what: every rao minted is paid, burnt or pending; every share is
    finite, non-negative, and sums to 1 or 0; stake is what was put there plus what was paid."""
    validators = [Hotkey(f"v{i}") for i in range(3)]
    subnet = MemoryLedger(OWNER, random_bytes=bytes, alpha_per_block=alpha_per_block, tempo=13, weights_rate_limit=0)
    for hotkey in (*validators, *MINERS):
        subnet.register(hotkey)
    for hotkey, stake in zip(validators, stakes_alpha, strict=True):
        subnet.add_stake(hotkey, stake)
    put = sum(round(stake * RAO) for stake in stakes_alpha)
    for who, weights, blocks in told:
        subnet.set_weights(validators[who], weights)
        subnet.advance(blocks)
        account = subnet.account()
        assert sum(account[1:]) == account.minted == subnet.number() * round(alpha_per_block * RAO)
        assert min(account) >= 0
        seen = subnet.subnet()
        figures = [figure for pay in seen.pay.values() for figure in pay]
        assert all(math.isfinite(figure) and figure >= 0 for figure in figures)
        for shares in ([p.incentive for p in seen.pay.values()], [p.dividends for p in seen.pay.values()]):
            assert sum(shares) == pytest.approx(1.0) or sum(shares) == 0
        held = sum(round(neuron.stake * RAO) for neuron in seen.neurons)
        assert held == pytest.approx(put + account.miners + account.validators + account.owner, rel=1e-12, abs=20)


# ---- permits, limits, uids -------------------------------------------------------------------------------------------


def test_a_fresh_validator_waits_twice() -> None:
    """7. Registered and staked: no permit before the next chain epoch, and no weights before the rate limit is over."""
    subnet = ledger(weights_rate_limit=TEMPO + 5)
    fresh = Hotkey("fresh")
    subnet.register(fresh)
    subnet.add_stake(fresh, 10.0)
    assert subnet.set_weights(fresh, {2: 1.0}).reason is Reason.NO_PERMIT
    subnet.advance(TEMPO)
    outcome = subnet.set_weights(fresh, {2: 1.0})
    assert outcome.reason is Reason.RATE_LIMITED and f"block {2 * TEMPO + 5}" in outcome.sentence
    subnet.advance(5)
    assert subnet.set_weights(fresh, {2: 1.0}).done


def test_permits_go_to_the_largest_stakes() -> None:
    """8. Two permits and three stakes: the smallest has none; the owner has one always; no stake, no permit."""
    assert {n.hotkey for n in ledger().subnet().neurons if n.permit} == {OWNER, VALIDATOR}
    subnet = ledger(max_validators=2)
    subnet.add_stake(MINERS[0], 500.0)
    subnet.add_stake(MINERS[1], 400.0)
    subnet.advance(TEMPO)
    permits = {neuron.hotkey for neuron in subnet.subnet().neurons if neuron.permit}
    assert permits == {OWNER, VALIDATOR, MINERS[0]}


def test_a_full_subnet_prunes_the_least_useful() -> None:
    """9. Six uids and no more: the newcomer takes the uid of the miner that earned least, never the owner's; the one
    that left finds no uid, and the weights its uid was given pay the newcomer nothing."""
    subnet = ledger(max_allowed_uids=6, immunity_period=5)
    assert subnet.set_weights(VALIDATOR, {2: 1.0, 3: 2.0, 4: 0.5, 5: 3.0}).done
    subnet.advance(TEMPO)
    newcomer = Hotkey("newcomer")
    assert subnet.register(newcomer).done and uid(subnet, newcomer) == 4
    assert subnet.set_weights(MINERS[2], {2: 1.0}).reason is Reason.NOT_REGISTERED
    subnet.advance(TEMPO)
    assert subnet.subnet().pay[4].incentive == 0.0, "the weight was told before it came"
    subnet.set_weights(VALIDATOR, {2: 1.0, 4: 1.0})
    subnet.advance(TEMPO)
    assert subnet.subnet().pay[4].incentive == pytest.approx(0.5)


def test_the_immune_are_pruned_last() -> None:
    """10. A fresh miner that earned nothing yet stays; an old one that earned something goes."""
    subnet = ledger(max_allowed_uids=7, immunity_period=TEMPO + 3)
    subnet.set_weights(VALIDATOR, {2: 1.0, 3: 2.0, 4: 3.0, 5: 4.0, 1: 1.0})
    subnet.advance(TEMPO)
    subnet.register(Hotkey("fresh"))
    assert subnet.register(Hotkey("newcomer")).done
    assert {"fresh", "newcomer"} <= set(stakes(subnet)), "validator 1 earns dividends, so miner 2 went"
    assert MINERS[0] not in stakes(subnet)


def test_only_the_owner_is_left() -> None:
    """11. One uid allowed: nobody can register, and it is said why."""
    subnet = MemoryLedger(OWNER, random_bytes=bytes, max_allowed_uids=1)
    outcome = subnet.register(VALIDATOR)
    assert not outcome.done and outcome.reason is Reason.NO_UID
    assert subnet.register(OWNER).done, "it has one already"


def test_a_swapped_hotkey_keeps_its_uid_and_its_pay() -> None:
    """12. A miner's hotkey leaked and is swapped: uid, stake and the weights given to it go on under the new one."""
    subnet = ledger()
    subnet.set_weights(VALIDATOR, {2: 1.0})
    new = Hotkey("new key")
    subnet.swap_hotkey(MINERS[0], new)
    subnet.advance(TEMPO)
    assert uid(subnet, new) == 2 and subnet.subnet().pay[2].incentive == 1.0
    assert MINERS[0] not in stakes(subnet)
    with pytest.raises(ValueError, match="has no uid"):
        subnet.swap_hotkey(MINERS[0], Hotkey("another"))


def test_sealed_weights_count_later() -> None:
    """13. Commit-reveal with a period of two: the weights are shown and pay from the second chain epoch on."""
    subnet = ledger(commit_reveal_weights_enabled=True, commit_reveal_period=2)
    assert subnet.set_weights(VALIDATOR, {2: 1.0}).done
    subnet.advance(TEMPO)
    assert subnet.weights() == {} and subnet.subnet().pay[2].incentive == 0.0
    subnet.advance(TEMPO)
    assert subnet.weights() == {1: Row({2: 1.0}, TEMPO)} and subnet.subnet().pay[2].incentive == 1.0


def test_commitments_have_a_budget() -> None:
    """14. An orchestrator that anchors like mad is told to wait for the next chain epoch, and then may again."""
    subnet = ledger()
    outcomes = [subnet.commit(OWNER, f"{i:0128d}") for i in range(25)]
    assert [outcome.done for outcome in outcomes].count(True) == 3_100 // 128
    assert outcomes[-1].reason is Reason.RATE_LIMITED
    subnet.advance(TEMPO)
    assert subnet.commit(OWNER, "again").done


async def test_old_bodies_are_gone() -> None:
    """15. A node keeps bodies for a while only: what was committed in older blocks is not there, which is no answer."""
    subnet = ledger()
    chain = MemoryChain(subnet, OWNER)
    first = await chain.commit("first")
    subnet.advance()
    second = await chain.commit("second")
    assert await chain.committed_in(first.block, OWNER) == "first"
    subnet.commitments.prune(second.block)
    with pytest.raises(Unavailable, match=f"no body of block {first.block}"):
        await chain.committed_in(first.block, OWNER)
    assert await chain.committed_in(second.block, OWNER) == "second"
    assert await chain.committed_in(second.block, VALIDATOR) is None


# ---- time ------------------------------------------------------------------------------------------------------------


async def test_blocks_follow_the_clock() -> None:
    """16. A block every 12 seconds of the loop's time: an hour is 300 blocks, and who waits for one gets it on time."""
    clock = LoopRuntime(b"seed")
    subnet = MemoryLedger(OWNER, random_bytes=clock.random_bytes, now=lambda: clock.now() * 1e4, block_s=12.0)
    chain = MemoryChain(subnet, OWNER, sleep=lambda duration_s: clock.sleep(duration_s / 1e4))
    number = (await chain.wait_for_block(0)).number
    assert (await chain.wait_for_block(number + 2)).number == number + 2
    assert subnet.number() >= number + 2
    with pytest.raises(ValueError, match="follow its clock"):
        subnet.advance()
    with pytest.raises(ValueError, match="still to come"):
        subnet.block(subnet.number() + 10)


async def test_who_waits_by_hand_is_woken() -> None:
    """17. Two validators wait for the same block; both get the same hash, which nobody had before."""
    subnet = ledger()
    waiting = [asyncio.create_task(MemoryChain(subnet, hotkey).wait_for_block(TEMPO + 3)) for hotkey in MINERS[:2]]
    for _ in range(3):
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        subnet.advance()
    first, second = await asyncio.gather(*waiting)
    assert first == second == subnet.block(TEMPO + 3)
    assert not subnet.blocks.listeners


def test_two_ledgers_have_other_hashes() -> None:
    """18. Another seed is another chain; the same seed is the same one."""
    clock = LoopRuntime(b"one")
    hashes = {MemoryLedger(OWNER, random_bytes=clock.random_bytes).block(0).hash for _ in range(3)}
    assert len(hashes) == 3 and all(len(digest) == 64 for digest in hashes)
    again = MemoryLedger(OWNER, random_bytes=LoopRuntime(b"one").random_bytes)
    assert again.block(0).hash in hashes


def test_a_long_sleep_misses_no_chain_epoch() -> None:
    """19. Nobody looks at the chain for a month: every chain epoch of it was paid, and a new tempo is kept from now."""
    subnet = ledger()
    subnet.set_weights(VALIDATOR, {2: 1.0})
    subnet.advance(TEMPO * 1_000)
    assert subnet.account().pending == 0
    subnet.set_hyperparameter("tempo", 5)
    subnet.advance(4)
    assert subnet.account().pending == 4 * RAO
    subnet.advance(1)
    assert subnet.account().pending == 0 and isinstance(subnet.account(), Account)
    with pytest.raises(ValueError, match="no hyperparameter 'rho'"):
        subnet.set_hyperparameter("rho", 1)
