"""From a signed extrinsic to its effects.

Law: the table below is all that can be called. A failed call leaves nothing behind but its fee, its nonce and its
ExtrinsicFailed event.
"""

from __future__ import annotations

from typing import Any

from loguru import logger

from subnet.chain.local.ledger import accounts, neurons, staking, subnets, trim, weights
from subnet.chain.local.ledger.book import Book, CallFailed, Handler, require, require_origin
from subnet.chain.local.ledger.extrinsics import Call, Extrinsic, call_of, digest_of
from subnet.chain.local.spec.interface import Interface, octets

WEIGHT = {"ref_time": 10**8, "proof_size": 4_000}
BATCH_MAX = 256


def info(class_: str = "Normal") -> dict[str, Any]:
    return {"weight": WEIGHT, "class": class_, "pays_fee": "Yes"}


def apply(book: Book, extrinsic: Extrinsic) -> bytes | None:
    """Carries one out; returns the extrinsic that was shielded inside it, if any."""
    who, call = extrinsic.who, extrinsic.call
    accounts.bump_nonce(book.storage, who)
    fee = accounts.FEE_RAO
    payer = accounts.payer_of(book.storage, who, call.pallet, call.name)
    accounts.set_free(book.storage, payer, max(0, accounts.free(book.storage, payer) - fee))
    inner = None
    try:
        with book.attempt():
            if (call.pallet, call.name) == ("MevShield", "submit_encrypted"):
                inner = _shielded(book, who, call.args["ciphertext"])
            else:
                run(book, who, call)
    except CallFailed as failure:
        error = dispatch_error(book.storage.interface, failure)
        book.emit("System", "ExtrinsicFailed", {"dispatch_error": error, "dispatch_info": info()})
    else:
        book.emit("System", "ExtrinsicSuccess", {"dispatch_info": info()})
    book.emit("TransactionPayment", "TransactionFeePaid", {"who": payer, "actual_fee": fee, "tip": 0})
    return inner


def run(book: Book, who: str, call: Call) -> None:
    """A call at any depth. Raises CallFailed; a mistake of ours in a handler fails the call, not the chain."""
    handler = CALLS.get((call.pallet, call.name))
    require(handler is not None, "CallFiltered", "System")
    assert handler is not None
    try:
        handler(book, who, **call.args)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        logger.opt(exception=error).error("{}.{} of {} broke", call.pallet, call.name, who)
        raise CallFailed("Other", "") from error


def dispatch_error(interface: Interface, failure: CallFailed) -> Any:
    """As events carry it."""
    try:
        error = interface.module_error(failure.pallet, failure.name)
    except KeyError:
        return failure.name
    return {"Module": {"index": error.pallet_index, "error": "0x" + bytes([error.error_index, 0, 0, 0]).hex()}}


def _shielded(book: Book, who: str, ciphertext: Any) -> bytes:
    data = octets(ciphertext)
    book.emit("MevShield", "EncryptedSubmitted", {"id": digest_of(data), "who": who})
    return data


def sudo(book: Book, who: str, call: Any) -> None:
    require(book.storage.get("Sudo", "Key") == who, "RequireSudo", "Sudo")
    try:
        with book.as_root(), book.attempt():
            run(book, who, call_of(call))
    except CallFailed as failure:
        result = {"Err": dispatch_error(book.storage.interface, failure)}
    else:
        result = {"Ok": ()}
    book.emit("Sudo", "Sudid", {"sudo_result": result})


def batch_all(book: Book, who: str, calls: list[Any]) -> None:
    """All or none."""
    require(len(calls) <= BATCH_MAX, "TooManyCalls", "Utility")
    for call in calls:
        run(book, who, call_of(call))
        book.emit("Utility", "ItemCompleted")
    book.emit("Utility", "BatchCompleted")


def batch(book: Book, who: str, calls: list[Any]) -> None:
    """Up to the first that fails."""
    require(len(calls) <= BATCH_MAX, "TooManyCalls", "Utility")
    for index, call in enumerate(calls):
        error = _try(book, who, call)
        if error is not None:
            book.emit("Utility", "BatchInterrupted", {"index": index, "error": error})
            return
        book.emit("Utility", "ItemCompleted")
    book.emit("Utility", "BatchCompleted")


def force_batch(book: Book, who: str, calls: list[Any]) -> None:
    """Each that can."""
    require(len(calls) <= BATCH_MAX, "TooManyCalls", "Utility")
    failed = False
    for call in calls:
        error = _try(book, who, call)
        failed |= error is not None
        if error is None:
            book.emit("Utility", "ItemCompleted")
        else:
            book.emit("Utility", "ItemFailed", {"error": error})
    book.emit("Utility", "BatchCompletedWithErrors" if failed else "BatchCompleted")


def _try(book: Book, who: str, call: Any) -> Any:
    """The error, or None."""
    try:
        with book.attempt():
            run(book, who, call_of(call))
    except CallFailed as failure:
        return dispatch_error(book.storage.interface, failure)
    return None


def remark(book: Book, who: str, remark: Any) -> None:
    del book, who, remark


def remark_with_event(book: Book, who: str, remark: Any) -> None:
    book.emit("System", "Remarked", {"sender": who, "hash": digest_of(octets(remark))})


def _inherent(book: Book, who: str, now: int) -> None:
    """Only the block's author sets the time."""
    del book, who, now
    require_origin(False)


CALLS: dict[tuple[str, str], Handler] = {
    **accounts.CALLS,
    **staking.CALLS,
    **subnets.CALLS,
    **neurons.CALLS,
    **trim.CALLS,
    **weights.CALLS,
    ("Sudo", "sudo"): sudo,
    ("Utility", "batch"): batch,
    ("Utility", "batch_all"): batch_all,
    ("Utility", "force_batch"): force_batch,
    ("System", "remark"): remark,
    ("System", "remark_with_event"): remark_with_event,
    ("Timestamp", "set"): _inherent,
}
