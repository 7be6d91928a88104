"""Balances: accounts, transfers, fees.

Law: TAO is neither made nor lost here except by `credit` and `debit`, whose callers say where it goes. An account never
falls below the existential deposit by its own doing.
"""

from __future__ import annotations

from typing import Any

from subnet.chain.local.ledger.book import Book, Handler, require, require_origin
from subnet.chain.local.ledger.storage import Storage
from subnet.chain.local.spec.pallets import EXISTENTIAL_DEPOSIT_RAO

FEE_RAO = 124_414
"""Of every call; what a small one costs on the public network."""
COLDKEY_PAYS = {
    ("SubtensorModule", name)
    for name in (
        "set_weights",
        "set_mechanism_weights",
        "commit_timelocked_weights",
        "commit_timelocked_mechanism_weights",
        "serve_axon",
        "serve_axon_tls",
    )
} | {("Commitments", "set_commitment")}
"""Calls that hotkeys sign; hotkeys hold no TAO, so the coldkey that owns them pays."""


def account(storage: Storage, who: str) -> dict[str, Any]:
    found: dict[str, Any] = storage.get("System", "Account", who)
    return found


def free(storage: Storage, who: str) -> int:
    return int(account(storage, who)["data"]["free"])


def nonce(storage: Storage, who: str) -> int:
    return int(account(storage, who)["nonce"])


def set_free(storage: Storage, who: str, rao: int) -> None:
    record = account(storage, who)
    record["data"]["free"] = rao
    record["providers"] = 1
    storage.put("System", "Account", [who], record)


def bump_nonce(storage: Storage, who: str) -> None:
    record = account(storage, who)
    record["nonce"] += 1
    storage.put("System", "Account", [who], record)


def credit(storage: Storage, who: str, rao: int) -> None:
    set_free(storage, who, free(storage, who) + rao)


def debit(storage: Storage, who: str, rao: int, error: str, pallet: str = "SubtensorModule") -> None:
    """Raises CallFailed when the account would fall below the existential deposit."""
    left = free(storage, who) - rao
    require(left >= EXISTENTIAL_DEPOSIT_RAO, error, pallet)
    set_free(storage, who, left)


def payer_of(storage: Storage, who: str, pallet: str, call: str) -> str:
    """Whose fee it is."""
    if (pallet, call) in COLDKEY_PAYS and storage.has("Owner", who):
        return storage.account("Owner", who)
    return who


def transfer(book: Book, who: str, dest: Any, value: int) -> None:
    target = address(dest)
    debit(book.storage, who, value, "InsufficientBalance", "Balances")
    credit(book.storage, target, value)
    book.emit("Balances", "Transfer", {"from": who, "to": target, "amount": value})


def transfer_all(book: Book, who: str, dest: Any, keep_alive: bool) -> None:
    del keep_alive  # an emptied account keeps the existential deposit either way
    transfer(book, who, dest, max(0, free(book.storage, who) - EXISTENTIAL_DEPOSIT_RAO))


def force_set_balance(book: Book, signer: str, /, who: Any, new_free: int) -> None:
    """Root's way to make TAO, or to take it."""
    del signer
    require_origin(book.is_root)
    target = address(who)
    set_free(book.storage, target, new_free)
    book.emit("Balances", "BalanceSet", {"who": target, "free": new_free})


def address(multi: Any) -> str:
    """The account of a MultiAddress."""
    if isinstance(multi, dict):
        multi = multi.get("Id")
    require_origin(isinstance(multi, str))
    return str(multi)


CALLS: dict[tuple[str, str], Handler] = {
    ("Balances", "transfer_allow_death"): transfer,
    ("Balances", "transfer_keep_alive"): transfer,
    ("Balances", "transfer_all"): transfer_all,
    ("Balances", "force_set_balance"): force_set_balance,
}
