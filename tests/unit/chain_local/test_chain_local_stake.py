"""Stake: the pool's price, shares of a heap, and the calls that move it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subnet.chain.local.ledger import pool, stake

if TYPE_CHECKING:
    from conftest import Laboratory

Make = Callable[..., "Laboratory"]
TAO = 10**9
PALLET = "SubtensorModule"


def hot(lab: Laboratory, who: str) -> str:
    return lab.address(f"{who}/hot")


def buys(lab: Laboratory, who: str, tao: float, at: str = "validator", netuid: int = 1, **limit: Any) -> str:
    call = "add_stake_limit" if limit else "add_stake"
    args = {"hotkey": hot(lab, at), "netuid": netuid, "amount_staked": int(tao * TAO)} | limit
    return lab.do(who, PALLET, call, **args)


def sells(lab: Laboratory, who: str, alpha: int, at: str = "validator", netuid: int = 1, **limit: Any) -> str:
    call = "remove_stake_limit" if limit else "remove_stake"
    args = {"hotkey": hot(lab, at), "netuid": netuid, "amount_unstaked": alpha} | limit
    return lab.do(who, PALLET, call, **args)


@pytest.fixture
def calm(town: Laboratory) -> Laboratory:
    """The town without emission, so that only what people do changes the pool."""
    town.storage.write("Tempo", [1], 0)
    town.storage.write("TotalIssuance", [], 21_000_000 * TAO)
    return town


amounts = st.integers(1, 10**15)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pool_tao=amounts, pool_alpha=amounts, tao=amounts)
def test_nobody_gains_by_trading_alone(lab: Laboratory, pool_tao: int, pool_alpha: int, tao: int) -> None:
    """1. Buy and sell again at once: whatever pool and amount, the product never shrinks and one has no more than
    before."""
    storage = lab.storage
    storage.write("SubnetTAO", [5], pool_tao)
    storage.write("SubnetAlphaIn", [5], pool_alpha)
    storage.write("SubnetVolume", [5], 0)
    alpha = pool.buy(storage, 5, tao)
    assert 0 <= alpha < pool_alpha
    assert storage.number("SubnetTAO", 5) * storage.number("SubnetAlphaIn", 5) >= pool_tao * pool_alpha
    assert pool.sell(storage, 5, alpha) <= tao
    assert storage.number("SubnetTAO", 5) >= pool_tao


moves = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-100, 100)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=moves, rewards=st.lists(st.integers(0, 10**12), min_size=12, max_size=12))
def test_a_heap_is_shared_fairly(make: Make, moves: list[tuple[str, int]], rewards: list[int]) -> None:
    """2. Three people stake and unstake at one hotkey while it earns: nobody's action takes from the others more than a
    rao of rounding, and what all hold together is the heap."""
    lab = make(endowed={})
    storage, hotkey = lab.storage, lab.address("h")
    people = {name: lab.address(name) for name in "abc"}
    for (name, amount), reward in zip(moves, rewards, strict=False):
        if storage.number("TotalHotkeyAlpha", hotkey, 1):
            stake.add_to_heap(storage, hotkey, 1, reward)
        before = {other: stake.stake_of(storage, hotkey, who, 1) for other, who in people.items()}
        if amount > 0:
            stake.add_alpha(storage, hotkey, people[name], 1, amount * 10**9)
        elif amount < 0:
            gone = min(before[name], -amount * 10**9)
            stake.take_alpha(storage, hotkey, people[name], 1, gone)
            assert stake.stake_of(storage, hotkey, people[name], 1) <= before[name] - gone
        for other, who in people.items():
            if other != name:
                assert before[other] - 1 <= stake.stake_of(storage, hotkey, who, 1) <= before[other] + 1_000
        held = sum(alpha for _, alpha in stake.holders(storage, hotkey, 1))
        heap = storage.number("TotalHotkeyAlpha", hotkey, 1)
        assert heap - 3 <= held <= heap
        assert storage.number("SubnetAlphaOut", 1) == storage.number("TotalAlphaStaked", 1) == heap


def test_staking_and_back(calm: Laboratory) -> None:
    """3. Five TAO become alpha at the price, and back with the loss that a small pool means; the price moves and
    returns."""
    price, free = pool.price(calm.storage, 1), calm.free("stranger")
    assert buys(calm, "stranger", 5) == ""
    alpha = calm.alpha("validator", "stranger")
    assert alpha == pytest.approx(5 * TAO / price, rel=0.02) and pool.price(calm.storage, 1) > price
    assert calm.event("StakeAdded")[3] == alpha
    assert calm.storage.row("StakingHotkeys", calm.address("stranger")) == [hot(calm, "validator")]
    assert sells(calm, "stranger", alpha + 1) == "NotEnoughStakeToWithdraw"
    assert sells(calm, "stranger", alpha) == ""
    assert calm.alpha("validator", "stranger") == 0
    assert free - 4 * 124_414 <= calm.free("stranger") <= free
    assert pool.price(calm.storage, 1) == pytest.approx(price, rel=1e-6)


def test_what_cannot_be_staked(calm: Laboratory) -> None:
    """4. Too little, too much, nowhere, on nobody, and before the subnet is started."""
    assert buys(calm, "stranger", 0.001) == "AmountTooLow"
    assert buys(calm, "stranger", 200_000) == "NotEnoughBalanceToStake"
    assert buys(calm, "stranger", 1, netuid=9) == "SubnetNotExists"
    assert buys(calm, "stranger", 1, at="nobody") == "HotKeyAccountNotExists"
    assert sells(calm, "stranger", 0) == "AmountTooLow"
    calm.do("owner", PALLET, "register_network", hotkey=hot(calm, "owner"))
    assert buys(calm, "stranger", 1, netuid=2) == "SubtokenDisabled"


def test_root_is_one_for_one(calm: Laboratory) -> None:
    """5. Root stake stays TAO, and counts on every subnet at the chain's weight for it."""
    before = stake.total_stake(calm.storage, hot(calm, "validator"), 1)
    assert buys(calm, "stranger", 100, netuid=0) == ""
    assert calm.alpha("validator", "stranger", 0) == 100 * TAO
    gained = stake.total_stake(calm.storage, hot(calm, "validator"), 1) - before
    assert gained == pytest.approx(0.0527 * 100 * TAO, rel=1e-3)
    assert sells(calm, "stranger", 100 * TAO, netuid=0) == ""


def test_limits(calm: Laboratory) -> None:
    """6. At most two percent above today's price: all or nothing is refused, partly stakes just as much as fits. The
    same downwards."""
    price = int(pool.price(calm.storage, 1) * TAO)
    most = {"limit_price": price * 102 // 100}
    assert buys(calm, "stranger", 500, **most, allow_partial=False) == "SlippageTooHigh"
    free = calm.free("stranger")
    assert buys(calm, "stranger", 500, **most, allow_partial=True) == ""
    assert 5 * TAO < free - calm.free("stranger") < 20 * TAO
    assert pool.price(calm.storage, 1) * TAO == pytest.approx(most["limit_price"], rel=1e-5)
    alpha = calm.alpha("validator", "stranger")
    least = {"limit_price": price * 101 // 100}
    assert sells(calm, "stranger", alpha, **least, allow_partial=False) == "SlippageTooHigh"
    assert sells(calm, "stranger", alpha, **least, allow_partial=True) == ""
    assert 0 < calm.alpha("validator", "stranger") < alpha
    assert sells(calm, "stranger", 1, limit_price=10**18, allow_partial=True) == "SlippageTooHigh"


def test_moving(calm: Laboratory) -> None:
    """7. From one validator to another nothing is lost; to somebody else only where the subnet allows it; to another
    subnet through TAO."""
    buys(calm, "stranger", 10)
    alpha = calm.alpha("validator", "stranger")
    move = {"origin_hotkey": hot(calm, "validator"), "destination_hotkey": hot(calm, "second"), "alpha_amount": alpha}
    assert calm.do("stranger", PALLET, "move_stake", **move, origin_netuid=1, destination_netuid=1) == ""
    assert (calm.alpha("validator", "stranger"), calm.alpha("second", "stranger")) == (0, alpha)

    gift = {"hotkey": hot(calm, "second"), "destination_coldkey": calm.address("miner"), "alpha_amount": alpha // 2}
    gift |= {"origin_netuid": 1, "destination_netuid": 1}
    calm.storage.write("TransferToggle", [1], False)
    assert calm.do("stranger", PALLET, "transfer_stake", **gift) == "TransferDisallowed"
    calm.storage.write("TransferToggle", [1], True)
    assert calm.do("stranger", PALLET, "transfer_stake", **gift) == ""
    assert calm.alpha("second", "miner") == alpha // 2

    swap = {"hotkey": hot(calm, "second"), "origin_netuid": 1, "destination_netuid": 0, "alpha_amount": alpha // 4}
    assert calm.do("stranger", PALLET, "swap_stake", **swap | {"destination_netuid": 1}) == "SameNetuid"
    limit = {"limit_price": 10**12, "allow_partial": False}
    assert calm.do("stranger", PALLET, "swap_stake_limit", **swap, **limit) == "SlippageTooHigh"
    assert calm.do("stranger", PALLET, "swap_stake", **swap) == ""
    assert calm.alpha("second", "stranger", 0) == pytest.approx(alpha / 4 * pool.price(calm.storage, 1), rel=0.01)


def test_all_of_it(calm: Laboratory) -> None:
    """8. A nominator leaves a validator altogether, on every subnet at once; another sells the whole with a limit; a
    third takes its alpha to root."""
    buys(calm, "stranger", 10)
    buys(calm, "stranger", 10, netuid=0)
    buys(calm, "other", 3)
    assert calm.do("stranger", PALLET, "unstake_all", hotkey=hot(calm, "validator")) == ""
    assert calm.alpha("validator", "stranger") == calm.alpha("validator", "stranger", 0) == 0
    full = {"hotkey": hot(calm, "validator"), "netuid": 1, "limit_price": None}
    assert calm.do("other", PALLET, "remove_stake_full_limit", **full) == ""
    assert calm.alpha("validator", "other") == 0
    buys(calm, "miner", 3)
    assert calm.do("miner", PALLET, "unstake_all_alpha", hotkey=hot(calm, "validator")) == ""
    assert calm.alpha("validator", "miner") == 0
    assert calm.alpha("validator", "miner", 0) == pytest.approx(3 * TAO, rel=1e-6)
    assert calm.do("miner", PALLET, "unstake_all_alpha", hotkey=hot(calm, "validator")) == "AmountTooLow"


def test_takes_and_owners(calm: Laboratory) -> None:
    """9. A hotkey belongs to the coldkey that first claimed it; its take has a ceiling."""
    assert calm.do("stranger", PALLET, "try_associate_hotkey", hotkey=calm.address("new")) == ""
    assert calm.do("miner", PALLET, "try_associate_hotkey", hotkey=calm.address("new")) == "NonAssociatedColdKey"
    take = {"hotkey": hot(calm, "validator")}
    assert calm.do("miner", PALLET, "decrease_take", **take, take=5) == "NonAssociatedColdKey"
    assert calm.do("validator", PALLET, "increase_take", **take, take=20_000) == "DelegateTakeTooHigh"
    assert calm.do("validator", PALLET, "decrease_take", **take, take=5) == ""
    assert calm.storage.number("Delegates", hot(calm, "validator")) == 5
