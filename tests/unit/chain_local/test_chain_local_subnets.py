"""Subnets: their price, their owner's rights, their hyperparameters; and what a genesis may say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from subnet.chain.local import genesis as births
from subnet.chain.local.genesis import Genesis
from subnet.chain.local.node import subnet_answers
from subnet.chain.local.spec.hyperparameters import BY_NAME, HYPERPARAMETERS
from subnet.errors import ConfigError

if TYPE_CHECKING:
    from conftest import Laboratory

Make = Callable[..., "Laboratory"]
TAO = 10**9
PALLET = "SubtensorModule"


def create(lab: Laboratory, who: str = "owner") -> str:
    return lab.do(who, PALLET, "register_network", hotkey=lab.address(f"{who}/hot"))


def test_what_a_subnet_costs(make: Make) -> None:
    """1. The first for 10 TAO; the next at once for twice as much, less what has fallen off in three blocks; who cannot
    pay gets none. What it cost is its pool, and the creator has uid 0."""
    lab = make(lock_cost_tao=10)
    before = lab.free("owner")
    assert create(lab) == ""
    assert before - lab.free("owner") == 10 * TAO + 124_414
    lab.block(2)
    before = lab.free("miner")
    assert create(lab, "miner") == ""
    fallen = 10 * TAO * 3 // 100_800
    assert before - lab.free("miner") == 20 * TAO - fallen + 124_414
    assert lab.storage.number("SubnetTAO", 2) == lab.storage.number("SubnetAlphaIn", 2) == 20 * TAO - fallen
    assert lab.storage.account("Keys", 2, 0) == lab.address("miner/hot")
    poor = make(endowed={lab.address("stranger"): 5.0})
    assert create(poor, "stranger") == "CannotAffordLockCost"


def test_a_limit_of_subnets(lab: Laboratory) -> None:
    """2. There is room for one."""
    lab.storage.write("SubnetLimit", [], 1)
    assert [create(lab), create(lab)] == ["", "SubnetLimitReached"]


def test_starting(lab: Laboratory) -> None:
    """3. Once, by the owner, and not before the delay is over."""
    lab.storage.write("StartCallDelay", [], 3)
    create(lab)
    start = (PALLET, "start_call")
    assert lab.do("stranger", *start, netuid=1) == "NotSubnetOwner"
    assert lab.do("owner", *start, netuid=2) == "SubnetNotExists"
    assert lab.do("owner", *start, netuid=1) == ""
    assert lab.do("owner", *start, netuid=1) == "FirstEmissionBlockNumberAlreadySet"
    lab.storage.write("StartCallDelay", [], 30)
    create(lab)
    assert lab.do("owner", *start, netuid=2) == "NeedWaitingMoreBlocksToStarCall"


def test_a_new_subnet_has_the_usual_rules(make: Make) -> None:
    """4. Without a word in the genesis: tempo 360, weights every 100 blocks, commit-reveal on, 256 uids, 64 validators;
    with one, what it says, and only for subnets that come after."""
    usual, tuned = (
        make(new_subnets={}),
        make(new_subnets={"tempo": 20, "weights_rate_limit": 10, "yuma3_enabled": False}),
    )
    for lab in (usual, tuned):
        create(lab)
    read = {
        name: [lab.storage.value(BY_NAME[name].storage, 1) for lab in (usual, tuned)]
        for name in (
            "tempo",
            "weights_rate_limit",
            "commit_reveal_weights_enabled",
            "max_allowed_uids",
            "max_validators",
        )
    }
    assert read == {
        "tempo": [360, 20],
        "weights_rate_limit": [100, 10],
        "commit_reveal_weights_enabled": [True, True],
        "max_allowed_uids": [256, 256],
        "max_validators": [64, 64],
    }
    assert [lab.storage.flag("Yuma3On", 1) for lab in (usual, tuned)] == [True, False]


@pytest.mark.parametrize("row", [row for row in HYPERPARAMETERS if row.setter], ids=lambda row: row.name)
def test_every_hyperparameter_can_be_set(town: Laboratory, row: Any) -> None:
    """5. Root sets each of them, and the listing shows it; the owner sets those that are the owner's; a stranger
    none."""
    value: Any = 300
    if row.type == "bool":
        value = not town.storage.flag(row.storage, 1)
    elif row.type == "U64F64":
        value = {"bits": 2**65}
    elif row.name == "activity_cutoff_factor":
        value = 2_000
    elif row.name in ("max_allowed_uids", "max_validators", "min_allowed_weights", "commit_reveal_period"):
        value = 77
    args = {row.arg: value}
    assert town.tune(row.setter.removeprefix("sudo_set_"), who="stranger", **args) == "BadOrigin"
    owner = town.tune(row.setter.removeprefix("sudo_set_"), **args)
    assert owner == ("" if row.owner else "BadOrigin")
    call = town.chain.interface.compose_call("AdminUtils", row.setter, {"netuid": 1, **args})
    assert town.do("Alice", "Sudo", "sudo", call=call) == ""
    assert town.event("Sudid") == {"sudo_result": {"Ok": ()}}
    assert town.storage.value(row.storage, 1) == value
    if row.listed:
        listed = subnet_answers.hyperparameters(town.storage, 1)
        assert listed is not None
        shown = {bytes.fromhex(entry["name"][2:]).decode(): entry["value"] for entry in listed}
        assert list(shown[row.name].values()) == [value]


def test_limits(town: Laboratory) -> None:
    """6. Values that would break a subnet are refused; fewer uids than are taken as well."""
    assert town.tune("tempo", tempo=0) == "TempoOutOfBounds"
    assert town.tune("activity_cutoff_factor", factor_milli=5) == "ActivityCutoffFactorMilliOutOfBounds"
    assert town.tune("burn_increase_mult", burn_increase_mult={"bits": 5}) == "InvalidValue"
    assert town.tune("max_allowed_uids", max_allowed_uids=4) == "MaxAllowedUIdsLessThanCurrentUIds"
    assert town.tune("max_allowed_uids", max_allowed_uids=257) == "InvalidValue"
    assert town.tune("alpha_values", alpha_low=1, alpha_high=2) == "LiquidAlphaDisabled"
    town.tune("liquid_alpha_enabled", enabled=True)
    assert town.tune("alpha_values", alpha_low=3, alpha_high=2) == "AlphaLowOutOfRange"
    assert town.tune("alpha_values", alpha_low=1, alpha_high=2) == ""
    assert town.tune("epoch_consensus", mode="Null") == "InvalidValue"
    assert town.tune("epoch_consensus", mode="Yuma") == ""


def test_a_new_tempo_begins_anew(town: Laboratory) -> None:
    """7. The owner makes epochs rarer in the middle of one: the next comes a whole new tempo later."""
    town.to_epoch()
    town.block(4)
    assert town.tune("tempo", tempo=30) == ""
    begun = town.chain.number
    town.to_epoch()
    assert town.chain.number == begun + 30


def test_names(town: Laboratory) -> None:
    """8. The owner names the subnet and its token, a neuron's coldkey itself; all is in the metagraph."""
    words = dict.fromkeys(subnet_identity(), "0x") | {"subnet_name": "0x" + b"IOTA".hex()}
    assert town.do("stranger", PALLET, "set_subnet_identity", netuid=1, **words) == "NotSubnetOwner"
    assert town.do("owner", PALLET, "set_subnet_identity", netuid=1, **words) == ""
    assert town.do("owner", PALLET, "update_symbol", netuid=1, symbol="0x" + "ι".encode().hex()) == ""
    person = dict.fromkeys("name url github_repo image discord description additional".split(), "0x")
    assert town.do("miner", PALLET, "set_identity", **person | {"name": "0x" + b"Ada".hex()}) == ""
    metagraph = subnet_answers.metagraph(town.storage, 1)
    assert metagraph is not None
    assert (bytes(metagraph["name"]), bytes(metagraph["symbol"])) == (b"IOTA", "ι".encode())
    assert [one["name"] if one else None for one in metagraph["identities"]] == [None, None, None, "Ada", None]


def subnet_identity() -> list[str]:
    return "subnet_name github_repo subnet_contact subnet_url discord description logo_url additional".split()


def test_a_subnet_with_a_name(lab: Laboratory) -> None:
    """9. Created and named in one call."""
    words = dict.fromkeys(subnet_identity(), "0x") | {"subnet_name": "0x" + b"IOTA".hex()}
    call = (PALLET, "register_network_with_identity")
    assert lab.do("owner", *call, hotkey=lab.address("owner/hot"), identity=words) == ""
    assert lab.storage.value("SubnetIdentitiesV3", 1)["subnet_name"] == "IOTA"


# ---- genesis


def test_the_developer_is_rich_and_root(make: Make) -> None:
    """10. A genesis that names nobody: the well-known development key has a million TAO and is root. One that names
    root means it."""
    lab = make(endowed={})
    assert lab.free("Alice") == 1_000_000 * TAO and lab.storage.get("Sudo", "Key") == lab.address("Alice")
    other = make(sudo=lab.address("owner"))
    assert other.storage.get("Sudo", "Key") == lab.address("owner")


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ('{"endowed": {"nobody": 5}}', "nobody"),
        ('{"endowed": {"5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY": "x"}}', "endowed"),
        ('{"new_subnets": {"temp": 5}}', "temp"),
        ('{"new_subnets": {"tempo": 0}}', "tempo"),
        ('{"new_subnets": {"tempo": 2.5}}', "tempo"),
        ('{"temp": 5}', "temp"),
        ("not JSON", "malformed"),
    ],
)
def test_a_wrong_genesis(written: str, named: str) -> None:
    """11. The mistake is named, with what to write instead."""
    with pytest.raises(ConfigError, match=named):
        births.read(written.encode())


def test_endowing_on_the_command_line() -> None:
    """12. ADDRESS=TAO, added to what the file says."""
    alice = births.dev_address()
    assert births.endow(Genesis(), [f"{alice}=2.5"]).endowed == {alice: 2.5}
    for wrong in (alice, f"{alice}=much", "nobody=5"):
        with pytest.raises(ConfigError, match="endow|genesis"):
            births.endow(Genesis(), [wrong])
    assert births.balances_rao(Genesis(endowed={alice: 2.5}))[alice] == 2_500_000_000
