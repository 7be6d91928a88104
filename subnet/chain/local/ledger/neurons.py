"""Uids: who has one, how it is bought, who loses it when the subnet is full, and where a neuron says it serves.

Law: a uid belongs to one hotkey at a time; a newcomer who takes it over inherits nothing: weights, bonds, scores and
endpoint of the old one are gone. The owner's hotkey is never pruned.
"""

from __future__ import annotations

from typing import Any

from subnet.chain.local.ledger import accounts, pool, stake
from subnet.chain.local.ledger.book import Book, Handler, require, require_subnet
from subnet.chain.local.ledger.pool import ROOT
from subnet.chain.local.ledger.storage import Storage

BY_UID: tuple[tuple[str, Any], ...] = (
    ("Active", True),
    ("ValidatorPermit", False),
    ("Emission", 0),
    ("Dividends", 0),
    ("Consensus", 0),
    ("ValidatorTrust", 0),
    ("StakeWeight", 0),
    ("Incentive", 0),
)
"""Vectors with one element for each uid, and what a new uid begins with."""
LOOPBACK_V4, LOOPBACK_V6 = 0x7F000001, 1


def uid_of(storage: Storage, netuid: int, hotkey: str) -> int | None:
    found = storage.value("Uids", netuid, hotkey)
    return None if found is None else int(found)


def hotkeys(storage: Storage, netuid: int) -> list[str]:
    """By uid."""
    return [storage.account("Keys", netuid, uid) for uid in range(storage.number("SubnetworkN", netuid))]


def set_element(storage: Storage, name: str, netuid: int, uid: int, value: Any) -> None:
    """One element of a vector over uids, which grows as needed."""
    row = storage.row(name, netuid)
    row += [0] * (uid + 1 - len(row))
    row[uid] = value
    storage.write(name, [netuid], row)


def add(book: Book, netuid: int, hotkey: str, taken_from: int | None = None) -> int:
    """A hotkey gets the next uid, or the one that is taken from another. Returns it."""
    storage = book.storage
    uid = taken_from
    if uid is None:
        uid = storage.number("SubnetworkN", netuid)
        storage.write("SubnetworkN", [netuid], uid + 1)
    else:
        clear(book, netuid, uid)
    storage.write("Keys", [netuid, uid], hotkey)
    storage.write("Uids", [netuid, hotkey], uid)
    storage.write("IsNetworkMember", [hotkey, netuid], True)
    storage.write("BlockAtRegistration", [netuid, uid], book.number)
    for name, value in BY_UID:
        set_element(storage, name, netuid, uid, value)
    set_element(storage, "LastUpdate", netuid, uid, book.number)
    return uid


def clear(book: Book, netuid: int, uid: int) -> None:
    """Whoever had this uid has none any more, and nothing of it is left."""
    storage = book.storage
    old = storage.account("Keys", netuid, uid)
    for name in ("Uids", "Axons", "Prometheus", "AlphaDividendsPerSubnet"):
        storage.remove(name, [netuid, old])
    storage.remove("IsNetworkMember", [old, netuid])
    for name in ("CommitmentOf", "LastCommitment", "UsedSpaceOf"):
        storage.drop("Commitments", name, [netuid, old])
    storage.remove("Weights", [netuid, uid])
    storage.remove("Bonds", [netuid, uid])
    # others' weights for this uid stay; consensus ignores those that are older than the registration
    for holder, row in storage.pairs("SubtensorModule", "Bonds", netuid):
        kept = [pair for pair in row if pair[0] != uid]
        if len(kept) < len(row):
            storage.write("Bonds", [netuid, holder], kept)


def to_prune(storage: Storage, netuid: int, block: int) -> int | None:
    """Who leaves when one must: the lowest emission that is not immune, else the lowest of the immune; of equal ones
    the oldest. The immune go first only when sparing them would leave too few others."""
    immunity, emission = storage.number("ImmunityPeriod", netuid), storage.row("Emission", netuid)
    owner = storage.account("SubnetOwnerHotkey", netuid)
    free: list[tuple[int, int, int]] = []
    immune: list[tuple[int, int, int]] = []
    for uid, hotkey in enumerate(hotkeys(storage, netuid)):
        if hotkey == owner:
            continue
        since = storage.number("BlockAtRegistration", netuid, uid)
        (immune if block - since < immunity else free).append((emission[uid], since, uid))
    if free and (not immune or len(free) > storage.number("MinNonImmuneUids", netuid)):
        return min(free)[2]
    candidates = immune or free
    return min(candidates)[2] if candidates else None


# ---- calls


def burned_register(book: Book, who: str, netuid: int, hotkey: str, limit_price: int | None = None) -> None:
    storage = book.storage
    require(netuid != ROOT, "RegistrationNotPermittedOnRootSubnet")
    require_subnet(book, netuid)
    require(storage.flag("NetworkRegistrationAllowed", netuid), "SubNetRegistrationDisabled")
    limit = storage.number("MaxRegistrationsPerBlock", netuid)
    require(storage.number("RegistrationsThisBlock", netuid) < limit, "TooManyRegistrationsThisBlock")
    require(uid_of(storage, netuid, hotkey) is None, "HotKeyAlreadyRegisteredInSubNet")
    cost = storage.number("Burn", netuid)
    require(limit_price is None or cost <= limit_price, "RegistrationPriceLimitExceeded")
    stake.own(storage, who, hotkey)
    accounts.debit(storage, who, cost, "NotEnoughBalanceToStake")
    taken = None
    if storage.number("SubnetworkN", netuid) >= storage.number("MaxAllowedUids", netuid):
        taken = to_prune(storage, netuid, book.number)
        require(taken is not None, "NoNeuronIdAvailable")
    pool.buy(storage, netuid, cost)  # the price buys alpha, and the alpha is destroyed
    uid = add(book, netuid, hotkey, taken)
    multiplier = int(storage.value("BurnIncreaseMult", netuid)["bits"])
    ceiling = storage.number("MaxBurn", netuid)
    storage.write("Burn", [netuid], max(storage.number("MinBurn", netuid), min(cost * multiplier >> 64, ceiling)))
    storage.add("RAORecycledForRegistration", [netuid], cost)
    storage.add("RegistrationsThisBlock", [netuid], 1)
    book.emit("SubtensorModule", "NeuronRegistered", (netuid, uid, hotkey))


def root_register(book: Book, who: str, hotkey: str) -> None:
    """A seat on root, for hotkeys with root stake; the smallest stake makes room."""
    storage = book.storage
    require(uid_of(storage, ROOT, hotkey) is None, "HotKeyAlreadyRegisteredInSubNet")
    stake.own(storage, who, hotkey)
    stakes = [storage.number("TotalHotkeyAlpha", seated, ROOT) for seated in hotkeys(storage, ROOT)]
    taken = None
    if len(stakes) >= storage.number("MaxAllowedValidators", ROOT):
        require(storage.number("TotalHotkeyAlpha", hotkey, ROOT) > min(stakes), "StakeTooLowForRoot")
        taken = stakes.index(min(stakes))
    uid = add(book, ROOT, hotkey, taken)
    book.emit("SubtensorModule", "NeuronRegistered", (ROOT, uid, hotkey))


def swap_hotkey(
    book: Book, who: str, hotkey: str, new_hotkey: str, netuid: int | None, keep_stake: bool = False
) -> None:
    """The new hotkey takes over uid, scores and (unless kept) stake, on one subnet or on all."""
    storage = book.storage
    require(hotkey != new_hotkey, "NewHotKeyIsSameWithOld")
    require(storage.account("Owner", hotkey) == who, "NonAssociatedColdKey")
    stake.own(storage, who, new_hotkey)
    everywhere = [there for there, is_there in storage.pairs("SubtensorModule", "NetworksAdded") if is_there]
    for there in everywhere if netuid is None else [netuid]:
        require(uid_of(storage, there, new_hotkey) is None, "HotKeyAlreadyRegisteredInSubNet")
        uid = uid_of(storage, there, hotkey)
        if uid is not None:
            _rename(storage, there, uid, hotkey, new_hotkey)
        if not keep_stake:
            for coldkey, alpha in stake.holders(storage, hotkey, there):
                stake.take_alpha(storage, hotkey, coldkey, there, alpha)
                stake.add_alpha(storage, new_hotkey, coldkey, there, alpha)
    event = {"coldkey": who, "old_hotkey": hotkey, "new_hotkey": new_hotkey}
    if netuid is None:
        book.emit("SubtensorModule", "HotkeySwapped", event)
    else:
        book.emit("SubtensorModule", "HotkeySwappedOnSubnet", event | {"netuid": netuid})


def _rename(storage: Storage, netuid: int, uid: int, old: str, new: str) -> None:
    storage.write("Keys", [netuid, uid], new)
    storage.remove("Uids", [netuid, old])
    storage.write("Uids", [netuid, new], uid)
    storage.remove("IsNetworkMember", [old, netuid])
    storage.write("IsNetworkMember", [new, netuid], True)
    if storage.account("SubnetOwnerHotkey", netuid) == old:
        storage.write("SubnetOwnerHotkey", [netuid], new)
    axon = storage.value("Axons", netuid, old)
    if axon is not None:
        storage.remove("Axons", [netuid, old])
        storage.write("Axons", [netuid, new], axon)


def serve_axon(book: Book, who: str, netuid: int, ip: int, port: int, ip_type: int, **rest: Any) -> None:
    storage = book.storage
    require(uid_of(storage, netuid, who) is not None, "HotKeyNotRegisteredInNetwork")
    require(ip_type in (4, 6), "InvalidIpType")
    require(not is_loopback(ip, ip_type), "InvalidIpAddress")
    require(port or not ip, "InvalidPort")
    before = storage.value("Axons", netuid, who)
    waited = book.number - before["block"] if before else None
    require(waited is None or waited >= storage.number("ServingRateLimit", netuid), "ServingRateLimitExceeded")
    names = ("version", "protocol", "placeholder1", "placeholder2")
    # address 0 says that nothing serves any more
    axon = {"block": book.number, "ip": ip, "port": port, "ip_type": ip_type} | {name: rest[name] for name in names}
    storage.write("Axons", [netuid, who], axon)
    book.emit("SubtensorModule", "AxonServed", (netuid, who))


def is_loopback(ip: int, ip_type: int) -> bool:
    return ip == (LOOPBACK_V4 if ip_type == 4 else LOOPBACK_V6)


CALLS: dict[tuple[str, str], Handler] = {
    ("SubtensorModule", "burned_register"): burned_register,
    ("SubtensorModule", "register_limit"): burned_register,
    ("SubtensorModule", "root_register"): root_register,
    ("SubtensorModule", "swap_hotkey"): swap_hotkey,
    ("SubtensorModule", "swap_hotkey_v2"): swap_hotkey,
    ("SubtensorModule", "serve_axon"): serve_axon,
    ("SubtensorModule", "serve_axon_tls"): serve_axon,
}
