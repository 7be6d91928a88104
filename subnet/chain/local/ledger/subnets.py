"""Subnets: created, started, named, tuned by their owner.

Law: a new subnet begins with `hyperparameters`' new values, changed by the genesis where that names one. Its
pool begins with what its creation cost. Only owner and root change it.
"""

from __future__ import annotations

from typing import Any

from subnet.chain.local.ledger import accounts, neurons, stake
from subnet.chain.local.ledger.book import Book, Handler, require, require_origin, require_owner
from subnet.chain.local.ledger.storage import Storage
from subnet.chain.local.spec.hyperparameters import BY_NAME, BY_SETTER, HYPERPARAMETERS, LIMITS
from subnet.chain.local.spec.types import PERSON_FIELDS

LOCK_COST_MULTIPLIER = 2
FIRST_SYMBOL, NUM_SYMBOLS = 0x03B1, 17
"""Greek letters from alpha on stand for subnets' tokens."""
TOO_MANY_UIDS = "MaxAllowedUIdsLessThanCurrentUIds"


def add_subnet(storage: Storage, netuid: int, block: int, chosen: dict[str, int]) -> None:
    """Its rows in storage. `chosen`: hyperparameters by name that differ from the usual."""
    for row in HYPERPARAMETERS:
        value = chosen.get(row.name, row.new)
        if value is not None:
            storage.write(row.storage, [netuid], to_chain(row.type, value))
    storage.write("NetworksAdded", [netuid], True)
    storage.write("NetworkRegisteredAt", [netuid], block)
    storage.write("LastEpochBlock", [netuid], block)
    storage.write("SubnetworkN", [netuid], 0)
    storage.write("Burn", [netuid], storage.number("Burn", netuid))
    storage.write("TokenSymbol", [netuid], "0x" + symbol(netuid).encode().hex())
    storage.add("TotalNetworks", [], 1)


def symbol(netuid: int) -> str:
    return "Τ" if netuid == 0 else chr(FIRST_SYMBOL + (netuid - 1) % NUM_SYMBOLS)


def to_chain(type_: str, value: int) -> Any:
    """A raw number as the codec wants it."""
    if type_ == "bool":
        return bool(value)
    return {"bits": value} if type_ == "U64F64" else value


def lock_cost(storage: Storage, block: int) -> int:
    """Twice what the last one cost, falling back linearly over the reduction interval to the least price."""
    least, last = storage.number("NetworkMinLockCost"), storage.number("NetworkLastLockCost")
    created = [at for netuid, at in storage.pairs("SubtensorModule", "NetworkRegisteredAt") if netuid]
    if not created:
        return least
    interval = max(1, storage.number("NetworkLockReductionInterval"))
    price: int = last * LOCK_COST_MULTIPLIER - last * (block - max(created)) // interval
    return max(least, price)


# ---- calls


def register_network(book: Book, who: str, hotkey: str, identity: dict[str, Any] | None = None) -> None:
    storage = book.storage
    netuids = [netuid for netuid, is_there in storage.pairs("SubtensorModule", "NetworksAdded") if is_there]
    require(len(netuids) <= storage.number("SubnetLimit"), "SubnetLimitReached")
    cost = lock_cost(storage, book.number)
    accounts.debit(storage, who, cost, "CannotAffordLockCost")
    stake.own(storage, who, hotkey)
    netuid = max(netuids) + 1
    add_subnet(storage, netuid, book.number, book.new_subnets)
    for name in ("SubnetTAO", "SubnetAlphaIn", "SubnetLocked"):
        storage.write(name, [netuid], cost)
    storage.write("SubnetOwner", [netuid], who)
    storage.write("SubnetOwnerHotkey", [netuid], hotkey)
    storage.write("SubnetMechanism", [netuid], 1)
    storage.write("NetworkLastLockCost", [], cost)
    neurons.add(book, netuid, hotkey)
    if identity is not None:
        storage.write("SubnetIdentitiesV3", [netuid], identity)
    book.emit("SubtensorModule", "NetworkAdded", (netuid, 1))


def start_call(book: Book, who: str, netuid: int) -> None:
    storage = book.storage
    require_owner(book, who, netuid, "NotSubnetOwner")
    require(storage.value("FirstEmissionBlockNumber", netuid) is None, "FirstEmissionBlockNumberAlreadySet")
    ready = storage.number("NetworkRegisteredAt", netuid) + storage.number("StartCallDelay")
    require(book.number >= ready, "NeedWaitingMoreBlocksToStarCall")
    storage.write("FirstEmissionBlockNumber", [netuid], book.number + 1)
    storage.write("SubtokenEnabled", [netuid], True)
    book.emit("SubtensorModule", "FirstEmissionBlockNumberSet", (netuid, book.number + 1))


def trigger_epoch(book: Book, who: str, netuid: int) -> None:
    require_owner(book, who, netuid)
    require(not book.storage.number("PendingEpochAt", netuid), "EpochTriggerAlreadyPending")
    book.storage.write("PendingEpochAt", [netuid], book.number + 1)
    event = {"netuid": netuid, "by": who, "fires_at": book.number + 1}
    book.emit("SubtensorModule", "EpochTriggered", event)


def set_subnet_identity(book: Book, who: str, netuid: int, **identity: Any) -> None:
    require_owner(book, who, netuid, "NotSubnetOwner")
    book.storage.write("SubnetIdentitiesV3", [netuid], identity)
    book.emit("SubtensorModule", "SubnetIdentitySet", netuid)


def update_symbol(book: Book, who: str, netuid: int, symbol: Any) -> None:
    require_owner(book, who, netuid)
    book.storage.write("TokenSymbol", [netuid], symbol)
    book.emit("SubtensorModule", "SymbolUpdated", {"netuid": netuid, "symbol": symbol})


def set_identity(book: Book, who: str, **person: Any) -> None:
    book.storage.write("IdentitiesV2", [who], {name: person[name] for name in PERSON_FIELDS})
    book.emit("SubtensorModule", "ChainIdentitySet", who)


def set_hyperparameter(book: Book, who: str, setter: str, netuid: int, value: Any) -> None:
    """By the AdminUtils call that sets it. `value` as decoded."""
    row = BY_SETTER[setter]
    require_owner(book, who, netuid)
    require_origin(row.owner or book.is_root)
    raw = int(value["bits"]) if isinstance(value, dict) else int(value)
    low, high = LIMITS.get(row.name, (raw, raw))
    require(low <= raw <= high, _limit_error(row.name))
    if row.name == "max_allowed_uids":
        require(raw >= book.storage.number("SubnetworkN", netuid), TOO_MANY_UIDS, "AdminUtils")
    book.storage.write(row.storage, [netuid], to_chain(row.type, raw))
    if row.name == "tempo":
        book.storage.write("LastEpochBlock", [netuid], book.number)


def set_alpha_values(book: Book, who: str, netuid: int, alpha_low: int, alpha_high: int) -> None:
    require_owner(book, who, netuid)
    require(book.storage.flag("LiquidAlphaOn", netuid), "LiquidAlphaDisabled")
    require(alpha_low <= alpha_high, "AlphaLowOutOfRange")
    book.storage.write("AlphaValues", [netuid], (alpha_low, alpha_high))


def set_epoch_consensus(book: Book, who: str, netuid: int, mode: Any) -> None:
    """Only Yuma runs here."""
    require_owner(book, who, netuid)
    require(mode in ("Yuma", {"Yuma": ()}), "InvalidValue")


def _limit_error(name: str) -> str:
    return {
        "tempo": "TempoOutOfBounds",
        "activity_cutoff_factor": "ActivityCutoffFactorMilliOutOfBounds",
    }.get(name, "InvalidValue")


def _setter(name: str, arg: str) -> Handler:
    def call(book: Book, who: str, netuid: int, **arguments: Any) -> None:
        set_hyperparameter(book, who, name, netuid, arguments[arg])

    return call


CALLS: dict[tuple[str, str], Handler] = {
    ("SubtensorModule", "register_network"): register_network,
    ("SubtensorModule", "register_network_with_identity"): register_network,
    ("SubtensorModule", "start_call"): start_call,
    ("SubtensorModule", "trigger_epoch"): trigger_epoch,
    ("SubtensorModule", "set_subnet_identity"): set_subnet_identity,
    ("SubtensorModule", "update_symbol"): update_symbol,
    ("SubtensorModule", "set_identity"): set_identity,
    ("AdminUtils", "sudo_set_alpha_values"): set_alpha_values,
    ("AdminUtils", "sudo_set_epoch_consensus"): set_epoch_consensus,
    **{("AdminUtils", name): _setter(name, row.arg) for name, row in BY_SETTER.items()},
}
assert set(LIMITS) <= set(BY_NAME)
