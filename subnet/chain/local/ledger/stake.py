"""Who holds how much alpha.

Law: a hotkey's alpha on a subnet is one heap; coldkeys hold shares of the heap, so what the heap earns is
everybody's at once. Root stake is the same with TAO. Every change keeps the subnet's totals.
"""

from __future__ import annotations

from subnet.chain.local.ledger.book import require
from subnet.chain.local.ledger.pool import ROOT
from subnet.chain.local.ledger.storage import Storage

SHARES_PER_RAO = 10**9
SHARE_EXPONENT = -9
"""Shares are stored as mantissa x 10^exponent; a share is worth about one rao of alpha at first."""


def shares(storage: Storage, hotkey: str, coldkey: str, netuid: int) -> tuple[int, int]:
    """Mantissas of this coldkey's shares and of all."""
    own = storage.value("AlphaV2", hotkey, coldkey, netuid)["mantissa"]
    return int(own), int(storage.value("TotalHotkeySharesV2", hotkey, netuid)["mantissa"])


def stake_of(storage: Storage, hotkey: str, coldkey: str, netuid: int) -> int:
    """Alpha in rao."""
    own, total = shares(storage, hotkey, coldkey, netuid)
    return own * storage.number("TotalHotkeyAlpha", hotkey, netuid) // total if total else 0


def holders(storage: Storage, hotkey: str, netuid: int) -> list[tuple[str, int]]:
    """Coldkeys and their alpha at a hotkey."""
    found = storage.pairs("SubtensorModule", "AlphaV2", hotkey)
    return [(coldkey, stake_of(storage, hotkey, coldkey, netuid)) for (coldkey, at), _ in found if at == netuid]


def add_alpha(storage: Storage, hotkey: str, coldkey: str, netuid: int, alpha: int) -> None:
    """New alpha for one coldkey."""
    if not alpha:
        return
    own, total = shares(storage, hotkey, coldkey, netuid)
    heap = storage.number("TotalHotkeyAlpha", hotkey, netuid)
    new = alpha * total // heap if heap and total else alpha * SHARES_PER_RAO
    _write_shares(storage, hotkey, coldkey, netuid, own + new, total + new)
    _grow(storage, hotkey, netuid, alpha)
    hotkeys = storage.row("StakingHotkeys", coldkey)
    if hotkey not in hotkeys:
        storage.write("StakingHotkeys", [coldkey], [*hotkeys, hotkey])


def add_to_heap(storage: Storage, hotkey: str, netuid: int, alpha: int) -> None:
    """New alpha for all who hold shares at a hotkey; for its owner when nobody does."""
    if storage.value("TotalHotkeySharesV2", hotkey, netuid)["mantissa"]:
        _grow(storage, hotkey, netuid, alpha)
    else:
        add_alpha(storage, hotkey, storage.account("Owner", hotkey), netuid, alpha)


def take_alpha(storage: Storage, hotkey: str, coldkey: str, netuid: int, alpha: int) -> None:
    """Raises CallFailed when the coldkey has less."""
    held = stake_of(storage, hotkey, coldkey, netuid)
    require(held >= alpha, "NotEnoughStakeToWithdraw")
    own, total = shares(storage, hotkey, coldkey, netuid)
    heap = storage.number("TotalHotkeyAlpha", hotkey, netuid)
    gone = own if alpha == held else min(own, -(-alpha * total // heap))
    _write_shares(storage, hotkey, coldkey, netuid, own - gone, total - gone)
    _grow(storage, hotkey, netuid, -alpha)


def _write_shares(storage: Storage, hotkey: str, coldkey: str, netuid: int, own: int, total: int) -> None:
    if own:
        storage.write("AlphaV2", [hotkey, coldkey, netuid], {"mantissa": own, "exponent": SHARE_EXPONENT})
    else:
        storage.remove("AlphaV2", [hotkey, coldkey, netuid])
    storage.write("TotalHotkeySharesV2", [hotkey, netuid], {"mantissa": total, "exponent": SHARE_EXPONENT})


def _grow(storage: Storage, hotkey: str, netuid: int, alpha: int) -> None:
    storage.add("TotalHotkeyAlpha", [hotkey, netuid], alpha)
    storage.add("TotalAlphaStaked", [netuid], alpha)
    if netuid != ROOT:
        storage.add("SubnetAlphaOut", [netuid], alpha)


def total_stake(storage: Storage, hotkey: str, netuid: int) -> int:
    """What counts in consensus: the hotkey's alpha, and its root TAO at the chain's weight for it."""
    root = storage.number("TotalHotkeyAlpha", hotkey, ROOT) * storage.number("TaoWeight") >> 64
    return root + (storage.number("TotalHotkeyAlpha", hotkey, netuid) if netuid != ROOT else 0)


def own(storage: Storage, coldkey: str, hotkey: str) -> None:
    """Binds a hotkey to a coldkey, once and for all. Raises CallFailed when it belongs to another."""
    if storage.has("Owner", hotkey):
        require(storage.account("Owner", hotkey) == coldkey, "NonAssociatedColdKey")
        return
    storage.write("Owner", [hotkey], coldkey)
    storage.write("OwnedHotkeys", [coldkey], [*storage.row("OwnedHotkeys", coldkey), hotkey])
