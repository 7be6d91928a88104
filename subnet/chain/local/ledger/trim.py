"""Fewer uids than there are: the owner trims a subnet, and who stays moves together.

Law: whoever earned least goes, never the owner's hotkey and never the immune; who stays keeps all that is its own under
a uid that may be smaller. Weights and bonds follow the uids, those for or of the gone are gone. When too many are
immune, nobody goes. Unlike a public network this one knows no least number of uids and no pause between two trims.
"""

from __future__ import annotations

from subnet.chain.local.ledger import neurons
from subnet.chain.local.ledger.book import Book, Handler, require, require_owner
from subnet.chain.local.ledger.storage import Storage

IMMUNE_MAX_SHARE = 0.8
"""Of the uids that are to stay."""
_ROWS = ("Weights", "Bonds")
_VECTORS = (*(name for name, _ in neurons.BY_UID), "LastUpdate")


def trim_to_max_allowed_uids(book: Book, who: str, netuid: int, max_n: int) -> None:
    storage = book.storage
    require_owner(book, who, netuid)
    require(1 <= max_n <= storage.number("MaxAllowedUids", netuid), "InvalidValue")
    storage.write("MaxAllowedUids", [netuid], max_n)
    count = storage.number("SubnetworkN", netuid)
    if count <= max_n:
        return
    safe = _safe(storage, netuid, count, book.number)
    require(len(safe) < IMMUNE_MAX_SHARE * max_n, "TrimmingWouldExceedMaxImmunePercentage")
    emission = storage.row("Emission", netuid)
    leaving = sorted((emission[uid], -uid) for uid in range(count) if uid not in safe)[: count - max_n]
    gone = {-negative for _, negative in leaving}
    for uid in gone:
        neurons.clear(book, netuid, uid)
    _compress(storage, netuid, [uid for uid in range(count) if uid not in gone], count)


def _safe(storage: Storage, netuid: int, count: int, block: int) -> set[int]:
    immunity, owner = storage.number("ImmunityPeriod", netuid), storage.account("SubnetOwnerHotkey", netuid)
    return {
        uid
        for uid in range(count)
        if storage.account("Keys", netuid, uid) == owner
        or block - storage.number("BlockAtRegistration", netuid, uid) < immunity
    }


def _compress(storage: Storage, netuid: int, kept: list[int], count: int) -> None:
    """`kept`: those that stay, ascending; each gets its place in this list for its uid."""
    places = {uid: place for place, uid in enumerate(kept)}
    for name in _VECTORS:
        row = storage.row(name, netuid)
        storage.write(name, [netuid], [row[uid] for uid in kept])
    names = {uid: storage.account("Keys", netuid, uid) for uid in kept}
    since = {uid: storage.number("BlockAtRegistration", netuid, uid) for uid in kept}
    rows = {(name, uid): storage.row(name, netuid, uid) for name in _ROWS for uid in kept}
    for uid in range(count):
        for name in ("Keys", "BlockAtRegistration", *_ROWS):
            storage.remove(name, [netuid, uid])
    for uid, place in places.items():
        storage.write("Keys", [netuid, place], names[uid])
        storage.write("Uids", [netuid, names[uid]], place)
        storage.write("BlockAtRegistration", [netuid, place], since[uid])
        for name in _ROWS:
            moved = [(places[other], value) for other, value in rows[name, uid] if other in places]
            if moved:
                storage.write(name, [netuid, place], moved)
    storage.write("SubnetworkN", [netuid], len(kept))


CALLS: dict[tuple[str, str], Handler] = {("AdminUtils", "sudo_trim_to_max_allowed_uids"): trim_to_max_allowed_uids}
