"""Emission: how much is made, when it is paid, and to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.chain.local.ledger.emission import HALF_SUPPLY, block_emission

if TYPE_CHECKING:
    from conftest import Laboratory

TAO = 10**9


def test_halvings() -> None:
    """1. One TAO a block until half of 21 million are there, then half of that, and so on; nothing at the end."""
    at = {0: TAO, HALF_SUPPLY - TAO: TAO, HALF_SUPPLY: TAO // 2, HALF_SUPPLY * 3 // 2: TAO // 4, 2 * HALF_SUPPLY: 0}
    assert {issued: block_emission(issued) for issued in at} == at


@settings(deadline=None)
@given(st.integers(0, 2 * HALF_SUPPLY + 5))
def test_it_only_falls(issued: int) -> None:
    """2. The more there is, the less is made."""
    assert TAO >= block_emission(issued) >= block_emission(issued + TAO) >= 0


def alpha_of(town: Laboratory, who: str) -> int:
    return town.storage.number("TotalHotkeyAlpha", town.address(f"{who}/hot"), 1)


def test_41_41_18(town: Laboratory) -> None:
    """3. One tempo of ten blocks makes ten alpha: 18 % go to the owner, 41 % to the miners by their weights, 41 % to
    the validators by dividends; not one rao is made beside that."""
    for who in ("validator", "second"):
        town.storage.write("Delegates", [town.address(f"{who}/hot")], 0)
    town.to_epoch()
    for who in ("validator", "second"):
        assert town.weigh(who, {3: 3, 4: 1}) == ""
    town.to_epoch()
    people = ("owner", "validator", "second", "miner", "other")
    before = {who: alpha_of(town, who) for who in people}
    town.to_epoch()
    paid = {who: alpha_of(town, who) - before[who] for who in people}
    assert paid["owner"] == pytest.approx(1.8 * TAO, rel=1e-4)
    assert (paid["miner"], paid["other"]) == pytest.approx((0.75 * 4.1 * TAO, 0.25 * 4.1 * TAO), rel=1e-3)
    assert paid["validator"] + paid["second"] == pytest.approx(4.1 * TAO, rel=1e-3)
    assert paid["validator"] / paid["second"] == pytest.approx(before["validator"] / before["second"], rel=0.05)
    assert 10 * TAO - 5 <= sum(paid.values()) <= 10 * TAO
    emission = town.storage.row("Emission", 1)
    assert sum(emission) == pytest.approx(8.2 * TAO, rel=1e-3) and emission[3] == pytest.approx(paid["miner"], rel=1e-3)


def test_nobody_is_weighed(town: Laboratory) -> None:
    """4. The subnet is young and no weights are set: validators share everything but the owner's part, by stake."""
    town.to_epoch()  # permits
    before = {who: alpha_of(town, who) for who in ("validator", "second", "miner")}
    town.to_epoch()
    paid = {who: alpha_of(town, who) - alpha for who, alpha in before.items()}
    assert paid["miner"] == 0
    assert paid["validator"] / paid["second"] == pytest.approx(before["validator"] / before["second"], rel=0.01)
    assert town.storage.row("Incentive", 1) == [0] * 5


def test_the_owner_does_not_mine(town: Laboratory) -> None:
    """5. A validator gives its weight to the owner's hotkey and to another hotkey of the owner's coldkey: both parts
    are burned, nobody gets them."""
    assert town.register("owner", "second-of-owner") == ""
    town.to_epoch()
    for who in ("validator", "second"):
        town.weigh(who, {0: 1, 5: 1, 3: 2})
    town.to_epoch()
    before = {who: alpha_of(town, who) for who in ("owner", "second-of-owner", "miner")}
    town.to_epoch()
    assert alpha_of(town, "second-of-owner") == before["second-of-owner"] == 0
    assert alpha_of(town, "owner") - before["owner"] == pytest.approx(1.8 * TAO, rel=1e-4)  # the cut alone
    assert alpha_of(town, "miner") - before["miner"] == pytest.approx(2.05 * TAO, rel=1e-3)
    emitted = town.event("IncentiveAlphaEmittedToMiners")["emissions"]
    assert emitted[3] == pytest.approx(2.05 * TAO, rel=1e-3)


def test_nominators_share(town: Laboratory) -> None:
    """6. A nominator holds as much at the validator as the validator itself: of the dividends the validator keeps 18 %,
    and both share the rest equally. The owner's cut switched off goes to miners and validators."""
    storage, hotkey = town.storage, town.address("validator/hot")
    stake = {"hotkey": hotkey, "netuid": 1, "amount_staked": 110 * TAO}
    assert town.do("stranger", "SubtensorModule", "add_stake", **stake) == ""
    assert town.tune("owner_cut_enabled", enabled=False) == ""
    town.to_epoch()
    town.weigh("validator", {3: 1})
    town.to_epoch()
    before = town.alpha("validator", "validator"), town.alpha("validator", "stranger"), alpha_of(town, "owner")
    town.to_epoch()
    own, nominated = (
        town.alpha("validator", who) - old for who, old in zip(("validator", "stranger"), before, strict=False)
    )
    dividends = storage.number("AlphaDividendsPerSubnet", 1, hotkey)
    assert own + nominated == pytest.approx(dividends, abs=10)
    assert nominated == pytest.approx(0.82 * dividends * before[1] / (before[0] + before[1]), rel=0.02)
    assert alpha_of(town, "owner") == before[2]


def test_epochs_come_on_time(town: Laboratory) -> None:
    """7. Every tempo; one that the owner asks for comes at once; and the cycle begins anew after it."""
    town.to_epoch()
    first = town.chain.number
    town.to_epoch()
    assert town.chain.number - first == 10
    town.block(3)
    for _ in range(2):
        town.submit("owner", "SubtensorModule", "trigger_epoch", netuid=1)
    asked = town.block().block.number
    assert town.errors() == ["", "EpochTriggerAlreadyPending"]
    town.to_epoch()
    assert town.storage.number("LastEpochBlock", 1) == asked + 1
    town.to_epoch()
    assert town.chain.number == asked + 11


def test_not_started(lab: Laboratory) -> None:
    """8. A subnet that its owner has not started makes nothing, but its epochs give permits."""
    lab.do("owner", "SubtensorModule", "register_network", hotkey=lab.address("owner/hot"))
    lab.block(25)
    assert lab.storage.number("SubnetEpochIndex", 1) == 2
    assert lab.storage.number("SubnetAlphaOut", 1) == 0
    assert lab.storage.row("ValidatorPermit", 1) == [True]


def test_prices_share_the_tao(town: Laboratory) -> None:
    """9. Two subnets: new TAO goes to their pools by price; root may switch one off, its owner may not."""
    town.do("owner", "SubtensorModule", "register_network", hotkey=town.address("owner/hot"))
    town.do("owner", "SubtensorModule", "start_call", netuid=2)
    town.block()
    into = [town.storage.number("SubnetTaoInEmission", netuid) for netuid in (1, 2)]
    assert sum(into) == pytest.approx(TAO // 2, abs=2) and into[0] > into[1] > 0
    assert town.tune("subnet_emission_enabled", enabled=False) == "BadOrigin"
    call = town.chain.interface.compose_call(
        "AdminUtils", "sudo_set_subnet_emission_enabled", {"netuid": 1, "enabled": False}
    )
    town.do("Alice", "Sudo", "sudo", call=call)
    town.block()
    into = [town.storage.number("SubnetTaoInEmission", netuid) for netuid in (1, 2)]
    assert into[0] == 0 and into[1] == pytest.approx(TAO // 2, abs=2)
