"""Extrinsics: who may say what, in which order, at whose cost; and what is left of a call that failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import bittensor_core as core
import pytest

from subnet.chain.local.ledger import subnets
from subnet.chain.local.ledger.accounts import FEE_RAO
from subnet.chain.local.ledger.extrinsics import PAYMENT, STALE, Refused

if TYPE_CHECKING:
    from conftest import Laboratory

Make = Callable[..., "Laboratory"]
TAO = 10**9


def transfer(lab: Laboratory, value: int = TAO, **options: Any) -> bytes:
    """From the owner to the stranger, who has 100,000 TAO each."""
    return lab.extrinsic(
        "owner", "Balances", "transfer_keep_alive", dest=lab.address("stranger"), value=value, **options
    )


def test_a_transfer(lab: Laboratory) -> None:
    """1. One TAO changes hands; the sender pays the fee as well, and the next nonce is one higher."""
    before = lab.free("owner"), lab.free("stranger")
    lab.chain.submit(transfer(lab))
    lab.block()
    assert (lab.free("owner"), lab.free("stranger")) == (before[0] - TAO - FEE_RAO, before[1] + TAO)
    assert lab.chain.next_nonce(lab.address("owner")) == 1
    assert lab.event("Transfer") == {"from": lab.address("owner"), "to": lab.address("stranger"), "amount": TAO}
    assert lab.event("TransactionFeePaid")["actual_fee"] == FEE_RAO


@pytest.mark.parametrize("at", [5, 40, 70, 100, 105, -1], ids=["signer", "signature", "end", "era", "call", "last"])
def test_a_flipped_bit(lab: Laboratory, at: int) -> None:
    """2. An extrinsic is changed on its way: whatever bit it is, it does not pass."""
    data = bytearray(transfer(lab))
    data[at] ^= 1
    with pytest.raises(Refused):
        lab.chain.submit(bytes(data))


def test_another_chain(make: Make) -> None:
    """3. A payment on one chain is no payment on another, though signer, nonce and call are the same."""
    one, other = make(seed=b"one"), make(seed=b"other")
    with pytest.raises(Refused, match="bad signature"):
        other.chain.submit(transfer(one))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x04\x84", b"\xff" * 200, bytes(150)], ids=repr)
def test_rubbish(lab: Laboratory, data: bytes) -> None:
    """4. A port scanner says hello; so does somebody with an unsigned extrinsic."""
    with pytest.raises(Refused):
        lab.chain.submit(data)
    inherent = lab.block().block.extrinsics[0]
    with pytest.raises(Refused):
        lab.chain.submit(inherent)


def test_nonces_in_any_order(lab: Laboratory) -> None:
    """5. Three payments come in as 2, 0, 1: all are in the next block, in their order. The first one again is outdated,
    one with a number that waits already is refused, and one far in the future too."""
    amounts = {0: 10, 1: 20, 2: 30}
    for nonce in (2, 0, 1):
        lab.chain.submit(transfer(lab, amounts[nonce], nonce=nonce))
    with pytest.raises(Refused, match="waits already"):
        lab.chain.submit(transfer(lab, 99, nonce=1))
    lab.block()
    assert [e["amount"] for _, name, e in lab.events() if name == "Transfer"] == [10, 20, 30]
    with pytest.raises(Refused, match=STALE):
        lab.chain.submit(transfer(lab, nonce=0))
    with pytest.raises(Refused, match="future"):
        lab.chain.submit(transfer(lab, nonce=5_000))


def test_a_gap(lab: Laboratory) -> None:
    """6. Number 1 comes before number 0 and waits; when its era is over, it is dropped and whoever watches hears it."""
    digest = lab.chain.submit(transfer(lab, nonce=1, era={"period": 8, "current": lab.chain.number}))
    assert lab.chain.next_nonce(lab.address("owner")) == 0
    produced = [lab.block() for _ in range(8)]
    assert not any(one.included for one in produced)
    assert [digest in one.dropped for one in produced].count(True) == 1
    assert produced[-2].dropped == (digest,)  # block 7 was the last that could hold it


def test_a_mortal_extrinsic_is_refused_late(lab: Laboratory) -> None:
    """7. It was signed for blocks 0 to 7 and arrives when block 9 is next: the signature is over another hash."""
    data = transfer(lab, era={"period": 8, "current": 0})
    lab.block(9)
    with pytest.raises(Refused, match="bad signature"):
        lab.chain.submit(data)


def test_no_money(make: Make) -> None:
    """8. An account without TAO cannot pay the fee: refused at the door. One that has too little pays the fee alone."""
    lab = make(endowed={})
    with pytest.raises(Refused) as refused:
        lab.chain.submit(transfer(lab))
    assert (refused.value.sentence, refused.value.code) == (PAYMENT, 1010)
    rich = make()
    before = rich.free("owner")
    rich.chain.submit(transfer(rich, value=10**18))
    rich.block()
    assert rich.errors() == ["InsufficientBalance"]
    assert rich.free("owner") == before - FEE_RAO


def test_the_coldkey_pays_for_its_hotkey(town: Laboratory) -> None:
    """9. A hotkey has no TAO. It serves an axon; the miner's coldkey pays. Somebody's unowned hotkey cannot."""
    before = town.free("miner")
    axon = {"version": 1, "ip": 0x01020304, "port": 80, "ip_type": 4, "protocol": 4, "placeholder1": 0}
    axon |= {"placeholder2": 0, "netuid": 1}
    assert town.do("miner/hot", "SubtensorModule", "serve_axon", **axon) == ""
    assert town.free("miner") == before - FEE_RAO
    with pytest.raises(Refused, match="Inability to pay"):
        town.submit("unknown/hot", "SubtensorModule", "serve_axon", **axon)


def test_a_failed_call_leaves_nothing(town: Laboratory) -> None:
    """10. A batch pays somebody, registers a hotkey, and then fails: nobody was paid, nothing registered, no event of
    it is left; fee and nonce are gone."""
    interface = town.chain.interface
    calls = [
        interface.compose_call("Balances", "transfer_keep_alive", {"dest": town.address("miner"), "value": TAO}),
        interface.compose_call(
            "SubtensorModule", "burned_register", {"netuid": 1, "hotkey": town.address("stranger/hot")}
        ),
        interface.compose_call("SubtensorModule", "start_call", {"netuid": 1}),
    ]
    before = town.free("stranger"), town.free("miner"), town.chain.next_nonce(town.address("stranger"))
    uids, burn = town.storage.number("SubnetworkN", 1), town.storage.number("Burn", 1)
    assert town.do("stranger", "Utility", "batch_all", calls=calls) == "NotSubnetOwner"
    assert (town.free("stranger"), town.free("miner")) == (before[0] - FEE_RAO, before[1])
    assert town.chain.next_nonce(town.address("stranger")) == before[2] + 1
    assert town.storage.number("SubnetworkN", 1) == uids and town.uid("stranger") is None
    assert town.storage.number("Burn", 1) <= burn
    names = [name for _, name, _ in town.events()]
    assert "Transfer" not in names and "NeuronRegistered" not in names

    assert town.do("stranger", "Utility", "batch", calls=calls) == ""  # up to the first that fails
    assert town.event("BatchInterrupted")["index"] == 2 and town.uid("stranger") == uids
    assert town.do("stranger", "Utility", "force_batch", calls=calls[:1] + calls) == ""  # each that can
    assert [name for _, name, _ in town.events() if name.startswith("Item")].count("ItemFailed") == 2
    assert town.free("miner") == before[1] + 3 * TAO


def test_sudo(lab: Laboratory) -> None:
    """11. Root gives itself money and a stranger does not; what root's call fails at is reported inside its event."""
    call = lab.chain.interface.compose_call(
        "Balances", "force_set_balance", {"who": lab.address("miner"), "new_free": 7}
    )
    assert lab.do("stranger", "Sudo", "sudo", call=call) == "RequireSudo"
    assert lab.do("stranger", "Balances", "force_set_balance", who=lab.address("miner"), new_free=7) == "BadOrigin"
    assert lab.do("Alice", "Sudo", "sudo", call=call) == ""
    assert lab.free("miner") == 7 and lab.event("Sudid") == {"sudo_result": {"Ok": ()}}
    broken = lab.chain.interface.compose_call("SubtensorModule", "start_call", {"netuid": 9})
    assert lab.do("Alice", "Sudo", "sudo", call=broken) == ""
    (error,) = lab.event("Sudid")["sudo_result"].values()
    assert lab.error_name(error) == "SubnetNotExists"


def test_a_shielded_extrinsic(lab: Laboratory) -> None:
    """12. A transfer travels encrypted inside another extrinsic of the same signer, numbered after it: both are in the
    block, nobody could read it before, and the plain one that took the same number meanwhile is dropped."""
    inner = transfer(lab, value=5 * TAO, nonce=1)
    key = bytes.fromhex(lab.storage.get("MevShield", "NextKey")[2:])
    sealed = bytes(core.encrypt_mlkem768(key, inner, True))
    assert inner not in sealed
    lab.submit("owner", "MevShield", "submit_encrypted", ciphertext="0x" + sealed.hex())
    late = lab.chain.submit(transfer(lab, value=9, nonce=1))
    produced = lab.block()
    assert len(produced.included) == 2 and produced.dropped == (late,)
    assert produced.block.extrinsics[2] == inner
    assert lab.event("Transfer")["amount"] == 5 * TAO
    assert lab.errors() == ["", ""]


def test_a_forged_shield(lab: Laboratory) -> None:
    """13. The ciphertext is broken, holds rubbish, or an extrinsic with a wrong number: the outer one stands alone."""
    key = bytes.fromhex(lab.storage.get("MevShield", "NextKey")[2:])
    whole = bytearray(core.encrypt_mlkem768(key, transfer(lab, nonce=1), True))
    whole[-1] ^= 1
    rubbish = core.encrypt_mlkem768(key, b"hello", True)
    wrong = core.encrypt_mlkem768(key, transfer(lab, nonce=77), True)
    for number, sealed in enumerate([bytes(whole), bytes(rubbish), bytes(wrong), b"", bytes(90)], start=1):
        lab.submit("owner", "MevShield", "submit_encrypted", ciphertext="0x" + sealed.hex())
        assert len(lab.block().included) == 1
        assert lab.chain.next_nonce(lab.address("owner")) == number


def test_our_own_mistake_fails_one_call(lab: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    """14. A bug in a handler: the call fails as `Other`, and the chain goes on."""

    def broken(storage: object, block: int) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(subnets, "lock_cost", broken)
    assert lab.do("owner", "SubtensorModule", "register_network", hotkey=lab.address("owner/hot")) == "Other"
    assert lab.block().block.number == 2


def test_everything_declared_is_handled(lab: Laboratory) -> None:
    """15. A call is in the metadata: there is a handler for it, and for nothing else."""
    from subnet.chain.local.ledger.dispatch import CALLS
    from subnet.chain.local.spec.pallets import pallets

    declared = {(pallet.name, call.name) for pallet in pallets(250) for call in pallet.calls}
    assert declared - set(CALLS) == {("MevShield", "submit_encrypted")}  # opened by dispatch itself
    assert not set(CALLS) - declared
