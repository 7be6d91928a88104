"""Whatever people do, the chain's books balance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subnet.chain.local.chain import START_ISSUANCE_RAO
from subnet.chain.local.ledger import neurons
from subnet.chain.local.ledger.accounts import FEE_RAO
from subnet.chain.local.ledger.extrinsics import Refused

if TYPE_CHECKING:
    from conftest import Laboratory

Make = Callable[..., "Laboratory"]
TAO = 10**9
PEOPLE = ("owner", "validator", "second", "miner", "other", "stranger")
people = st.sampled_from(PEOPLE)
netuids = st.sampled_from([1, 1, 1, 2, 0])
amounts = st.integers(0, 300 * TAO)
uids = st.lists(st.integers(0, 7), max_size=4)

steps = st.one_of(
    st.tuples(st.just("register"), people, netuids, people),
    st.tuples(st.just("create"), people),
    st.tuples(st.just("start"), people, netuids),
    st.tuples(st.just("stake"), people, netuids, people, amounts),
    st.tuples(st.just("unstake"), people, netuids, people, amounts),
    st.tuples(st.just("move"), people, netuids, people, amounts, people, netuids),
    st.tuples(st.just("weigh"), people, netuids, uids),
    st.tuples(st.just("pay"), people, people, amounts),
    st.tuples(st.just("swap"), people, people, people),
    st.tuples(st.just("uids"), netuids, st.integers(1, 8)),
    st.tuples(st.just("leave"), people, people),
    st.tuples(st.just("wait"), st.integers(1, 12)),
)


def carry_out(lab: Laboratory, step: tuple[Any, ...]) -> None:
    what, who = step[0], step[1]
    pallet = "SubtensorModule"

    def hot(person: str) -> str:
        return lab.address(f"{person}/hot")

    def tell(signer: str, name: str, pallet: str = pallet, **args: Any) -> None:
        try:
            lab.submit(signer, pallet, name, **args)
        except Refused:
            return  # no money for the fee, for example
        lab.block()

    if what == "register":
        tell(who, "burned_register", netuid=step[2], hotkey=hot(step[3]))
    elif what == "create":
        tell(who, "register_network", hotkey=hot(who))
    elif what == "start":
        tell(who, "start_call", netuid=step[2])
    elif what == "stake":
        tell(who, "add_stake", netuid=step[2], hotkey=hot(step[3]), amount_staked=step[4])
    elif what == "unstake":
        tell(who, "remove_stake", netuid=step[2], hotkey=hot(step[3]), amount_unstaked=step[4])
    elif what == "move":
        places = {"origin_netuid": step[2], "origin_hotkey": hot(step[3]), "alpha_amount": step[4]}
        tell(who, "move_stake", **places, destination_hotkey=hot(step[5]), destination_netuid=step[6])
    elif what == "weigh":
        dests = {"dests": step[3], "weights": [9] * len(step[3]), "version_key": 0}
        tell(f"{who}/hot", "set_weights", netuid=step[2], **dests)
    elif what == "pay":
        tell(who, "transfer_keep_alive", "Balances", dest=lab.address(step[2]), value=step[3])
    elif what == "swap":
        tell(who, "swap_hotkey", hotkey=hot(step[2]), new_hotkey=hot(step[3]), netuid=None)
    elif what == "uids":
        tell("owner", "sudo_set_max_allowed_uids", "AdminUtils", netuid=step[1], max_allowed_uids=step[2])
    elif what == "leave":
        tell(who, "unstake_all", hotkey=hot(step[2]))
    else:
        lab.block(step[1])


def check(lab: Laboratory, endowed: int) -> None:
    storage = lab.storage
    free = sum(account["data"]["free"] for _, account in storage.pairs("System", "Account"))
    pools = sum(tao for _, tao in storage.pairs("SubtensorModule", "SubnetTAO"))
    emitted = storage.number("TotalIssuance") - START_ISSUANCE_RAO
    fees = sum(len(lab.chain.block(n).extrinsics) - 1 for n in range(1, lab.chain.number + 1)) * FEE_RAO  # type: ignore[union-attr]
    assert free + pools + fees == endowed + emitted

    heaps: dict[int, int] = {}
    for (_, netuid), alpha in storage.pairs("SubtensorModule", "TotalHotkeyAlpha"):
        heaps[netuid] = heaps.get(netuid, 0) + alpha
    for netuid, is_there in storage.pairs("SubtensorModule", "NetworksAdded"):
        assert is_there and heaps.get(netuid, 0) == storage.number("TotalAlphaStaked", netuid)
        if netuid:
            assert heaps.get(netuid, 0) == storage.number("SubnetAlphaOut", netuid)
        hotkeys = neurons.hotkeys(storage, netuid)
        assert dict(storage.pairs("SubtensorModule", "Uids", netuid)) == {key: uid for uid, key in enumerate(hotkeys)}
        for name, _ in neurons.BY_UID:
            assert len(storage.row(name, netuid)) == len(hotkeys)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=5, max_size=30))
def test_the_books_balance(make: Make, story: list[tuple[Any, ...]]) -> None:
    """1. Six people do what comes to their minds on three subnets: TAO is in accounts, in pools or paid as fees, and
    what is more than at the beginning was emitted; alpha is in somebody's heap; a uid has one hotkey; all goes on."""
    lab = make(lock_cost_tao=10)
    endowed = sum(account["data"]["free"] for _, account in lab.storage.pairs("System", "Account"))
    begun: list[tuple[Any, ...]] = [("create", "owner"), ("start", "owner", 1)]
    begun += [("register", who, 1, who) for who in ("validator", "second", "miner")]
    for step in [*begun, *story]:
        carry_out(lab, step)
        assert "Other" not in lab.errors()
    check(lab, endowed)
