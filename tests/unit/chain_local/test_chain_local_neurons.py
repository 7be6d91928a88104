"""Uids: what they cost, who loses one, what a newcomer inherits (nothing), and who may serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Laboratory

TAO = 10**9
AXON = {"netuid": 1, "version": 1, "ip": 0x01020304, "port": 8091, "ip_type": 4, "protocol": 4}
AXON |= {"placeholder1": 0, "placeholder2": 0}


def test_the_price_of_a_uid(town: Laboratory) -> None:
    """1. Each registration raises the price by 26 %; it halves in 360 blocks, down to half a thousandth of a TAO."""
    price, before = town.storage.number("Burn", 1), town.free("stranger")
    assert town.register("stranger") == ""
    cooled = int(price * 0.5 ** (1 / 360))
    assert before - town.free("stranger") == cooled + 124_414
    assert town.storage.number("Burn", 1) == pytest.approx(cooled * 1.26, rel=1e-6)
    town.block(360)
    assert town.storage.number("Burn", 1) == pytest.approx(cooled * 0.63, rel=1e-4)
    town.storage.write("Burn", [1], 600_000)
    town.block(120)
    assert town.storage.number("Burn", 1) == 500_000


def test_what_it_pays_is_destroyed(town: Laboratory) -> None:
    """2. The price buys alpha from the pool, which nobody gets."""
    held = town.storage.number("SubnetAlphaOut", 1)
    pool = town.storage.number("SubnetTAO", 1), town.storage.number("SubnetAlphaIn", 1)
    town.tune("subnet_emission_enabled", who="owner", enabled=False)
    town.register("stranger")
    assert town.storage.number("SubnetAlphaOut", 1) == held
    assert town.storage.number("SubnetTAO", 1) > pool[0]


def test_who_may_not_register(town: Laboratory) -> None:
    """3. Twice, on root, on a subnet that is not there, with somebody else's hotkey, above one's limit, or while it is
    closed."""
    hotkey = town.address("stranger/hot")
    assert town.register("miner") == "HotKeyAlreadyRegisteredInSubNet"
    assert town.register("stranger", "miner") == "HotKeyAlreadyRegisteredInSubNet"
    name = ("SubtensorModule", "burned_register")
    assert town.do("stranger", *name, netuid=0, hotkey=hotkey) == "RegistrationNotPermittedOnRootSubnet"
    assert town.do("stranger", *name, netuid=7, hotkey=hotkey) == "SubnetNotExists"
    town.do("owner", "SubtensorModule", "register_network", hotkey=town.address("owner/hot"))
    assert town.do("stranger", *name, netuid=2, hotkey=town.address("miner/hot")) == "NonAssociatedColdKey"
    limit = {"netuid": 1, "hotkey": hotkey, "limit_price": 5}
    assert town.do("stranger", "SubtensorModule", "register_limit", **limit) == "RegistrationPriceLimitExceeded"
    assert town.tune("network_registration_allowed", registration_allowed=False) == ""
    assert town.register("stranger") == "SubNetRegistrationDisabled"


def test_one_too_many_in_a_block(town: Laboratory) -> None:
    """4. Root (the owner may not) allows one registration in a block and two come: the second may try again later."""
    assert town.tune("max_registrations_per_block", max_registrations_per_block=1) == "BadOrigin"
    town.storage.write("MaxRegistrationsPerBlock", [1], 1)
    for who in ("stranger", "owner"):
        town.submit(who, "SubtensorModule", "burned_register", netuid=1, hotkey=town.address(f"{who}/warm"))
    town.block()
    assert sorted(town.errors()) == ["", "TooManyRegistrationsThisBlock"]


def full(town: Laboratory, **rules: Any) -> None:
    """The town has as many uids as it may have."""
    for setter, value in ({"max_allowed_uids": 5} | rules).items():
        assert town.tune(setter, **{setter: value}) == ""


def test_the_worst_leaves(town: Laboratory) -> None:
    """5. Full, and nobody is immune any more: the newcomer gets the uid with the lowest emission, here `other`'s, who
    earned nothing; of the miners without emission the oldest would go first. The owner stays whatever it earns."""
    full(town, immunity_period=1)
    town.to_epoch()
    for who in ("validator", "second"):
        town.weigh(who, {3: 1})
    town.to_epoch()
    emission = town.storage.row("Emission", 1)
    assert emission[4] == emission[0] == 0 < min(emission[1:4])
    assert town.register("stranger") == ""
    assert (town.uid("stranger"), town.uid("other"), town.uid("owner")) == (4, None, 0)


def test_the_immune_stay(town: Laboratory) -> None:
    """6. `other` is new, `miner` is not: though both earn nothing, the old one leaves. When all are new, the oldest of
    them does."""
    full(town, immunity_period=1000)
    town.storage.write("BlockAtRegistration", [1, 4], town.chain.number)
    town.storage.write("ImmunityPeriod", [1], 3)
    town.block(2)
    for uid in (1, 2):
        town.storage.write("BlockAtRegistration", [1, uid], town.chain.number)
    assert town.register("stranger") == ""
    assert (town.uid("stranger"), town.uid("miner")) == (3, None)
    town.storage.write("ImmunityPeriod", [1], 1000)
    assert town.register("miner") == ""
    assert (town.uid("miner"), town.uid("other")) == (4, None)


def test_too_few_would_be_left(town: Laboratory) -> None:
    """7. The public rule that a few must stay prunable, off here unless root sets it: five wanted, three there."""
    full(town, immunity_period=3)
    town.storage.write("MinNonImmuneUids", [1], 5)
    town.block(4)
    town.storage.write("BlockAtRegistration", [1, 4], town.chain.number)
    assert town.register("stranger") == ""
    assert town.uid("other") is None and town.uid("miner") == 3


def test_only_the_owner_is_left(town: Laboratory) -> None:
    """8. A subnet of one uid, and it is the owner's: there is no room for anybody."""
    town.storage.write("SubnetworkN", [1], 1)
    town.storage.write("MaxAllowedUids", [1], 1)
    assert town.register("stranger") == "NoNeuronIdAvailable"


def test_a_newcomer_inherits_nothing(town: Laboratory) -> None:
    """9. The miner had an endpoint, a commitment, incentive, and a validator's bonds. Whoever takes its uid has none of
    that, and earns nothing from weights that were meant for the miner."""
    commitment = {"fields": [{"Raw2": "0x6869"}]}
    town.to_epoch()
    assert town.do("miner/hot", "SubtensorModule", "serve_axon", **AXON) == ""
    assert town.do("miner/hot", "Commitments", "set_commitment", netuid=1, info=commitment) == ""
    town.weigh("validator", {3: 1, 4: 3})
    town.to_epoch()
    assert town.storage.row("Incentive", 1)[3] > 0 and dict(town.storage.row("Bonds", 1, 1))[3] > 0
    full(town, immunity_period=1)
    assert town.register("stranger") == "" and town.uid("stranger") == 2  # `second` earned nothing
    town.storage.write("Emission", [1], [9, 9, 9, 0, 9])
    assert town.do("stranger", "SubtensorModule", "burned_register", netuid=1, hotkey=town.address("warm")) == ""
    assert town.storage.number("Uids", 1, town.address("warm")) == 3
    assert town.storage.value("Axons", 1, town.address("miner/hot")) is None
    assert town.storage.get("Commitments", "CommitmentOf", 1, town.address("miner/hot")) is None
    assert not town.storage.flag("IsNetworkMember", town.address("miner/hot"), 1)
    assert (town.storage.row("Incentive", 1)[3], town.storage.row("Weights", 1, 3)) == (0, [])
    assert 3 not in dict(town.storage.row("Bonds", 1, 1))
    town.to_epoch()
    assert town.storage.row("Incentive", 1)[3] == 0 < town.storage.row("Incentive", 1)[4]
    assert town.storage.number("TotalHotkeyAlpha", town.address("warm"), 1) == 0


def test_serving(town: Laboratory) -> None:
    """10. An endpoint is checked, and not changed more often than every fifty blocks; address 0 takes it away."""
    serve = ("miner/hot", "SubtensorModule", "serve_axon")
    assert town.do(*serve, **AXON | {"port": 0}) == "InvalidPort"
    assert town.do(*serve, **AXON | {"ip": 0x7F000001}) == "InvalidIpAddress", "nobody else can reach it"
    assert town.do(*serve, **AXON | {"ip_type": 5}) == "InvalidIpType"
    assert town.do("owner", "SubtensorModule", "serve_axon", **AXON) == "HotKeyNotRegisteredInNetwork"
    assert town.do(*serve, **AXON) == ""
    assert town.do(*serve, **AXON) == "ServingRateLimitExceeded"
    town.block(50)
    assert town.do(*serve, **AXON | {"port": 9}) == ""
    assert town.storage.value("Axons", 1, town.address("miner/hot"))["port"] == 9
    town.block(50)
    assert town.do(*serve, **AXON | {"ip": 0, "port": 0}) == ""
    assert town.storage.value("Axons", 1, town.address("miner/hot"))["ip"] == 0


def test_a_swapped_hotkey(town: Laboratory) -> None:
    """11. The validator's hotkey was on a stolen laptop: a new one takes over uid and stake, nominators' as well."""
    stake = {"hotkey": town.address("validator/hot"), "netuid": 1, "amount_staked": TAO}
    assert town.do("stranger", "SubtensorModule", "add_stake", **stake) == ""
    town.to_epoch()
    before = town.alpha("validator", "validator"), town.alpha("validator", "stranger")
    swap = {"hotkey": town.address("validator/hot"), "new_hotkey": town.address("new/hot"), "netuid": None}
    assert town.do("stranger", "SubtensorModule", "swap_hotkey", **swap) == "NonAssociatedColdKey"
    assert town.do("validator", "SubtensorModule", "swap_hotkey", **swap) == ""
    assert (town.uid("new"), town.uid("validator")) == (1, None)
    after = town.alpha("new", "validator"), town.alpha("new", "stranger")
    assert after == pytest.approx(before, rel=1e-9)
    assert town.storage.row("ValidatorPermit", 1)[1]
    taken = swap | {"hotkey": town.address("new/hot"), "new_hotkey": town.address("miner/hot")}
    assert town.do("validator", "SubtensorModule", "swap_hotkey", **taken) == "NonAssociatedColdKey"
    back = swap | {"hotkey": town.address("new/hot"), "new_hotkey": town.address("new/hot")}
    assert town.do("validator", "SubtensorModule", "swap_hotkey", **back) == "NewHotKeyIsSameWithOld"


def test_a_seat_on_root(town: Laboratory) -> None:
    """12. Root has few seats; who has more root stake takes the place of who has least."""
    town.storage.write("MaxAllowedValidators", [0], 1)
    for who, tao in (("validator", 5), ("second", 9)):
        stake = {"hotkey": town.address(f"{who}/hot"), "netuid": 0, "amount_staked": tao * TAO}
        assert town.do(who, "SubtensorModule", "add_stake", **stake) == ""
    seat = ("SubtensorModule", "root_register")
    assert town.do("validator", *seat, hotkey=town.address("validator/hot")) == ""
    assert town.do("second", *seat, hotkey=town.address("second/hot")) == ""
    assert town.storage.account("Keys", 0, 0) == town.address("second/hot")
    assert town.do("validator", *seat, hotkey=town.address("validator/hot")) == "StakeTooLowForRoot"


def trim(town: Laboratory, max_n: int, who: str = "owner") -> str:
    return town.do(who, "AdminUtils", "sudo_trim_to_max_allowed_uids", netuid=1, max_n=max_n)


def test_a_trimmed_subnet(town: Laboratory) -> None:
    """13. The owner wants four uids instead of five. Of those that earned least the youngest goes; who stays keeps
    stake, pay, permit, bonds and the weights given to it, under uids without gaps; a newcomer then needs another's."""
    town.tune("immunity_period", immunity_period=1)
    town.to_epoch()
    town.weigh("validator", {2: 1, 4: 3})
    town.weigh("second", {2: 1, 4: 3, 3: 0})
    town.to_epoch()
    before = {who: (town.alpha(who, who), town.uid(who)) for who in ("validator", "second", "other")}
    shares, bond = town.storage.row("Incentive", 1), dict(town.storage.row("Bonds", 1, 1))[4]
    assert trim(town, 4, who="stranger") == "BadOrigin"
    assert trim(town, 257) == trim(town, 0) == "InvalidValue"
    assert trim(town, 4) == ""
    assert [town.uid(who) for who in ("owner", "validator", "second", "miner", "other")] == [0, 1, 2, None, 3]
    assert (town.storage.number("SubnetworkN", 1), town.storage.number("MaxAllowedUids", 1)) == (4, 4)
    assert [town.alpha(who, who) for who in before] == [alpha for alpha, _ in before.values()]
    assert town.storage.row("Incentive", 1) == [shares[uid] for uid in (0, 1, 2, 4)]
    assert dict(town.storage.row("Weights", 1, 1)) == {2: 21845, 3: 65535}
    assert dict(town.storage.row("Bonds", 1, 1))[3] == bond
    assert all(len(town.storage.row(name, 1)) == 4 for name in ("LastUpdate", "ValidatorPermit", "Emission", "Active"))
    assert not town.storage.has("Keys", 1, 4) and not town.storage.has("Weights", 1, 4)
    town.to_epoch()
    assert town.storage.row("Incentive", 1)[3] == pytest.approx(shares[4], rel=1e-2)
    assert town.register("stranger") == "" and town.storage.number("SubnetworkN", 1) == 4


def test_too_many_are_immune(town: Laboratory) -> None:
    """14. Everybody came lately: nobody may be thrown out, and the limit stays what it was. A limit above the number
    of uids throws nobody out."""
    town.tune("immunity_period", immunity_period=5000)
    assert trim(town, 4) == "TrimmingWouldExceedMaxImmunePercentage"
    assert (town.storage.number("SubnetworkN", 1), town.storage.number("MaxAllowedUids", 1)) == (5, 256)
    assert trim(town, 9) == "" and town.uid("other") == 4
    assert town.storage.number("MaxAllowedUids", 1) == 9
