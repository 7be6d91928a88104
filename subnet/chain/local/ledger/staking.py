"""Calls that move stake: add, remove, move, transfer, swap; and the hotkey's take of what it earns for others.

Law: every call is a sale, a purchase, or both at the pool's price of this block; with a limit it never trades beyond
that price. All amounts are rao of TAO or of alpha.
"""

from __future__ import annotations

from collections.abc import Callable

from subnet.chain.local.ledger import accounts, pool, stake
from subnet.chain.local.ledger.book import Book, Handler, require, require_subnet
from subnet.chain.local.ledger.pool import ROOT
from subnet.chain.local.ledger.storage import Storage

MIN_STAKE_RAO = 2_000_000
RAO_PER_TAO = 10**9
SEARCH_STEPS = 64


def add_stake(
    book: Book,
    who: str,
    hotkey: str,
    netuid: int,
    amount_staked: int,
    limit_price: int | None = None,
    allow_partial: bool = False,
) -> None:
    storage = book.storage
    _require_trading(book, netuid)
    require(storage.has("Owner", hotkey), "HotKeyAccountNotExists")
    if limit_price is not None:
        amount_staked = _within(
            amount_staked, allow_partial, lambda tao: _price_after_buy(storage, netuid, tao) <= limit_price
        )
    require(amount_staked >= MIN_STAKE_RAO, "AmountTooLow")
    accounts.debit(storage, who, amount_staked, "NotEnoughBalanceToStake")
    _stake(book, who, hotkey, netuid, amount_staked)


def remove_stake(
    book: Book,
    who: str,
    hotkey: str,
    netuid: int,
    amount_unstaked: int,
    limit_price: int | None = None,
    allow_partial: bool = False,
) -> None:
    storage = book.storage
    require_subnet(book, netuid)
    if limit_price is not None:
        amount_unstaked = _within(
            amount_unstaked, allow_partial, lambda alpha: _price_after_sell(storage, netuid, alpha) >= limit_price
        )
    require(amount_unstaked > 0, "AmountTooLow")
    accounts.credit(storage, who, _unstake(book, who, hotkey, netuid, amount_unstaked))


def remove_stake_full_limit(book: Book, who: str, hotkey: str, netuid: int, limit_price: int | None) -> None:
    held = stake.stake_of(book.storage, hotkey, who, netuid)
    remove_stake(book, who, hotkey, netuid, held, limit_price)


def unstake_all(book: Book, who: str, hotkey: str) -> None:
    for netuid, held in _held(book.storage, who, hotkey):
        accounts.credit(book.storage, who, _unstake(book, who, hotkey, netuid, held))


def unstake_all_alpha(book: Book, who: str, hotkey: str) -> None:
    """All alpha becomes stake on root."""
    positions = [(netuid, held) for netuid, held in _held(book.storage, who, hotkey) if netuid != ROOT]
    tao = sum(_unstake(book, who, hotkey, netuid, held) for netuid, held in positions)
    require(tao, "AmountTooLow")
    _stake(book, who, hotkey, ROOT, tao)


def _held(storage: Storage, who: str, hotkey: str) -> list[tuple[int, int]]:
    """(netuid, rao) of a coldkey's positions at a hotkey."""
    netuids = [netuid for netuid, is_there in storage.pairs("SubtensorModule", "NetworksAdded") if is_there]
    held = ((netuid, stake.stake_of(storage, hotkey, who, netuid)) for netuid in netuids)
    return [(netuid, rao) for netuid, rao in held if rao]


def move_stake(
    book: Book,
    who: str,
    origin_hotkey: str,
    destination_hotkey: str,
    origin_netuid: int,
    destination_netuid: int,
    alpha_amount: int,
) -> None:
    tao = _shift(book, (origin_hotkey, who, origin_netuid), (destination_hotkey, who, destination_netuid), alpha_amount)
    attributes = (who, origin_hotkey, origin_netuid, destination_hotkey, destination_netuid, tao)
    book.emit("SubtensorModule", "StakeMoved", attributes)


def transfer_stake(
    book: Book,
    who: str,
    destination_coldkey: str,
    hotkey: str,
    origin_netuid: int,
    destination_netuid: int,
    alpha_amount: int,
) -> None:
    require(book.storage.flag("TransferToggle", origin_netuid), "TransferDisallowed")
    target = (hotkey, destination_coldkey, destination_netuid)
    tao = _shift(book, (hotkey, who, origin_netuid), target, alpha_amount)
    attributes = (who, destination_coldkey, hotkey, origin_netuid, destination_netuid, tao)
    book.emit("SubtensorModule", "StakeTransferred", attributes)


def swap_stake(
    book: Book,
    who: str,
    hotkey: str,
    origin_netuid: int,
    destination_netuid: int,
    alpha_amount: int,
    limit_price: int | None = None,
    allow_partial: bool = False,
) -> None:
    """`limit_price` is of the origin's alpha in the destination's, rao for one."""
    storage = book.storage
    require(origin_netuid != destination_netuid, "SameNetuid")
    if limit_price is not None:
        there = pool.price(storage, destination_netuid)
        alpha_amount = _within(
            alpha_amount,
            allow_partial,
            lambda alpha: _price_after_sell(storage, origin_netuid, alpha) / there >= limit_price,
        )
    tao = _shift(book, (hotkey, who, origin_netuid), (hotkey, who, destination_netuid), alpha_amount)
    book.emit("SubtensorModule", "StakeSwapped", (who, hotkey, origin_netuid, destination_netuid, tao))


def try_associate_hotkey(book: Book, who: str, hotkey: str) -> None:
    stake.own(book.storage, who, hotkey)


def set_take(book: Book, who: str, hotkey: str, take: int) -> None:
    storage = book.storage
    require(storage.account("Owner", hotkey) == who, "NonAssociatedColdKey")
    require(take <= storage.number("MaxDelegateTake"), "DelegateTakeTooHigh")
    rises = take > storage.number("Delegates", hotkey)
    storage.write("Delegates", [hotkey], take)
    book.emit("SubtensorModule", "TakeIncreased" if rises else "TakeDecreased", (who, hotkey, take))


# ---- parts

Place = tuple[str, str, int]
"""(hotkey, coldkey, netuid)."""


def _shift(book: Book, origin: Place, target: Place, alpha: int) -> int:
    """Alpha from one place to another, through TAO when the subnets differ. Its worth in TAO."""
    storage = book.storage
    require_subnet(book, origin[2])
    _require_trading(book, target[2])
    require(storage.has("Owner", target[0]), "HotKeyAccountNotExists")
    require(alpha > 0, "AmountTooLow")
    if origin[2] == target[2]:
        stake.take_alpha(storage, *origin, alpha)
        stake.add_alpha(storage, *target, alpha)
        return int(alpha * pool.price(storage, origin[2]))
    tao = _unstake(book, origin[1], origin[0], origin[2], alpha)
    _stake(book, target[1], target[0], target[2], tao)
    return tao


def _stake(book: Book, who: str, hotkey: str, netuid: int, tao: int) -> None:
    """TAO that is nobody's any more becomes stake."""
    alpha = pool.buy(book.storage, netuid, tao)
    stake.add_alpha(book.storage, hotkey, who, netuid, alpha)
    book.storage.add("TotalStake", [], tao)
    book.emit("SubtensorModule", "StakeAdded", (who, hotkey, tao, alpha, netuid, 0))


def _unstake(book: Book, who: str, hotkey: str, netuid: int, alpha: int) -> int:
    """Stake becomes TAO that is nobody's yet."""
    stake.take_alpha(book.storage, hotkey, who, netuid, alpha)
    tao = pool.sell(book.storage, netuid, alpha)
    book.storage.write("TotalStake", [], max(0, book.storage.number("TotalStake") - tao))
    book.emit("SubtensorModule", "StakeRemoved", (who, hotkey, tao, alpha, netuid, 0))
    return tao


def _require_trading(book: Book, netuid: int) -> None:
    require_subnet(book, netuid)
    require(netuid == ROOT or book.storage.flag("SubtokenEnabled", netuid), "SubtokenDisabled")


def _price_after_buy(storage: Storage, netuid: int, tao: int) -> float:
    if netuid == ROOT:
        return RAO_PER_TAO
    left = storage.number("SubnetAlphaIn", netuid) - pool.quote_buy(storage, netuid, tao)
    return (storage.number("SubnetTAO", netuid) + tao) / max(1, left) * RAO_PER_TAO


def _price_after_sell(storage: Storage, netuid: int, alpha: int) -> float:
    if netuid == ROOT:
        return RAO_PER_TAO
    left = storage.number("SubnetTAO", netuid) - pool.quote_sell(storage, netuid, alpha)
    return left / max(1, storage.number("SubnetAlphaIn", netuid) + alpha) * RAO_PER_TAO


def _within(amount: int, allow_partial: bool, is_fine: Callable[[int], bool]) -> int:
    """The amount, or as much of it as the limit allows. Raises CallFailed when that is not enough."""
    if is_fine(amount):
        return amount
    require(allow_partial, "SlippageTooHigh")
    low, high = 0, amount
    for _ in range(SEARCH_STEPS):
        middle = (low + high) // 2
        low, high = (middle, high) if is_fine(middle) else (low, middle)
    require(low, "SlippageTooHigh")
    return low


_BY_NAME: dict[str, Handler] = {
    "add_stake": add_stake,
    "add_stake_limit": add_stake,
    "remove_stake": remove_stake,
    "remove_stake_limit": remove_stake,
    "remove_stake_full_limit": remove_stake_full_limit,
    "unstake_all": unstake_all,
    "unstake_all_alpha": unstake_all_alpha,
    "move_stake": move_stake,
    "transfer_stake": transfer_stake,
    "swap_stake": swap_stake,
    "swap_stake_limit": swap_stake,
    "try_associate_hotkey": try_associate_hotkey,
    "increase_take": set_take,
    "decrease_take": set_take,
}
CALLS: dict[tuple[str, str], Handler] = {("SubtensorModule", name): call for name, call in _BY_NAME.items()}
