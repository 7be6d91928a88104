"""Runtime APIs about accounts, stake, prices and fees.

Law: read only. Every function takes the storage of the block that was asked about and returns what the codec encodes.
`node.subnet_answers` has those about subnets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from subnet.chain.local.ledger import neurons, pool, stake, subnets
from subnet.chain.local.ledger.pool import ROOT
from subnet.chain.local.ledger.storage import Storage

Answer = Callable[..., Any]
"""`answer(storage, *inputs)`."""
PRICE_ONE = 10**9
U16_MAX = 65_535


def netuids(storage: Storage) -> list[int]:
    return [netuid for netuid, is_there in storage.pairs("SubtensorModule", "NetworksAdded") if is_there]


# ---- prices


def alpha_price(storage: Storage, netuid: int) -> int:
    return int(pool.price(storage, netuid) * PRICE_ONE)


def alpha_prices(storage: Storage) -> list[dict[str, int]]:
    return [{"netuid": netuid, "price": alpha_price(storage, netuid)} for netuid in netuids(storage)]


def sim_buy(storage: Storage, netuid: int, tao: int) -> dict[str, int]:
    alpha = pool.quote_buy(storage, netuid, tao)
    ideal = int(tao / pool.price(storage, netuid))
    slippage = {"tao_slippage": 0, "alpha_slippage": max(0, ideal - alpha)}
    return {"tao_amount": tao, "alpha_amount": alpha, "tao_fee": 0, "alpha_fee": 0} | slippage


def sim_sell(storage: Storage, netuid: int, alpha: int) -> dict[str, int]:
    tao = pool.quote_sell(storage, netuid, alpha)
    ideal = int(alpha * pool.price(storage, netuid))
    slippage = {"tao_slippage": max(0, ideal - tao), "alpha_slippage": 0}
    return {"tao_amount": tao, "alpha_amount": alpha, "tao_fee": 0, "alpha_fee": 0} | slippage


def registration_cost(storage: Storage) -> int:
    return subnets.lock_cost(storage, int(storage.get("System", "Number")))


# ---- stake


def stake_info(storage: Storage, hotkey: str, coldkey: str, netuid: int) -> dict[str, Any]:
    uid = neurons.uid_of(storage, netuid, hotkey)
    emission = storage.row("Emission", netuid)[uid] if uid is not None and netuid != ROOT else 0
    return {
        "hotkey": hotkey,
        "coldkey": coldkey,
        "netuid": netuid,
        "stake": stake.stake_of(storage, hotkey, coldkey, netuid),
        "locked": 0,
        "emission": emission,
        "tao_emission": 0,
        "drain": 0,
        "is_registered": uid is not None,
    }


def stake_of_coldkey(storage: Storage, coldkey: str) -> list[dict[str, Any]]:
    return [
        stake_info(storage, hotkey, coldkey, netuid)
        for hotkey in storage.row("StakingHotkeys", coldkey)
        for netuid in netuids(storage)
        if stake.stake_of(storage, hotkey, coldkey, netuid)
    ]


def stake_of_coldkeys(storage: Storage, coldkeys: list[str]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(coldkey, stake_of_coldkey(storage, coldkey)) for coldkey in coldkeys]


def stake_availability(storage: Storage, coldkeys: list[str], wanted: list[int] | None) -> dict[str, Any]:
    """By coldkey and netuid. Nothing is ever locked here."""
    answer: dict[str, Any] = {}
    for coldkey in coldkeys:
        totals = dict.fromkeys(netuids(storage) if wanted is None else wanted, 0)
        for one in stake_of_coldkey(storage, coldkey):
            if one["netuid"] in totals:
                totals[one["netuid"]] += one["stake"]
        answer[coldkey] = {
            netuid: {"total": total, "locked": 0, "available": total} for netuid, total in totals.items() if total
        }
    return answer


# ---- delegates


def delegate(storage: Storage, hotkey: str) -> dict[str, Any] | None:
    if not storage.has("Owner", hotkey):
        return None
    everywhere = netuids(storage)
    registered = [netuid for netuid in everywhere if neurons.uid_of(storage, netuid, hotkey) is not None]
    nominators: dict[str, list[tuple[int, int]]] = {}
    for netuid in everywhere:
        for coldkey, alpha in stake.holders(storage, hotkey, netuid):
            if alpha:
                nominators.setdefault(coldkey, []).append((netuid, alpha))
    return {
        "delegate_ss58": hotkey,
        "take": storage.number("Delegates", hotkey),
        "nominators": list(nominators.items()),
        "owner_ss58": storage.account("Owner", hotkey),
        "registrations": registered,
        "validator_permits": [netuid for netuid in registered if _has_permit(storage, netuid, hotkey)],
        "return_per_1000": 0,
        "total_daily_return": 0,
    }


def delegates(storage: Storage) -> list[dict[str, Any] | None]:
    """Every hotkey that holds stake."""
    staked = {key[0] for key, alpha in storage.pairs("SubtensorModule", "TotalHotkeyAlpha") if alpha}
    return [delegate(storage, hotkey) for hotkey in sorted(staked)]


def delegated(storage: Storage, coldkey: str) -> list[Any]:
    return [
        (delegate(storage, one["hotkey"]), (one["netuid"], one["stake"])) for one in stake_of_coldkey(storage, coldkey)
    ]


def _has_permit(storage: Storage, netuid: int, hotkey: str) -> bool:
    uid = neurons.uid_of(storage, netuid, hotkey)
    permits = storage.row("ValidatorPermit", netuid)
    return uid is not None and bool(permits[uid])


def nothing(value: Any) -> Answer:
    """Always the same: for what does not exist here, such as locks and root baskets."""

    def answer(storage: Storage, *inputs: Any) -> Any:
        del storage, inputs
        return value

    return answer


ANSWERS: dict[tuple[str, str], Answer] = {
    ("SwapRuntimeApi", "current_alpha_price"): alpha_price,
    ("SwapRuntimeApi", "current_alpha_price_all"): alpha_prices,
    ("SwapRuntimeApi", "sim_swap_tao_for_alpha"): sim_buy,
    ("SwapRuntimeApi", "sim_swap_alpha_for_tao"): sim_sell,
    ("SubnetRegistrationRuntimeApi", "get_network_registration_cost"): registration_cost,
    ("StakeInfoRuntimeApi", "get_stake_info_for_coldkey"): stake_of_coldkey,
    ("StakeInfoRuntimeApi", "get_stake_info_for_coldkeys"): stake_of_coldkeys,
    ("StakeInfoRuntimeApi", "get_stake_info_for_hotkey_coldkey_netuid"): stake_info,
    ("StakeInfoRuntimeApi", "get_stake_availability_for_coldkeys"): stake_availability,
    ("StakeInfoRuntimeApi", "get_stake_fee"): nothing(0),
    ("StakeInfoRuntimeApi", "get_coldkey_lock"): nothing(None),
    ("StakeInfoRuntimeApi", "get_hotkey_conviction"): nothing({"bits": 0}),
    ("StakeInfoRuntimeApi", "get_most_convicted_hotkey_on_subnet"): nothing(None),
    ("DelegateInfoRuntimeApi", "get_delegates"): delegates,
    ("DelegateInfoRuntimeApi", "get_delegate"): delegate,
    ("DelegateInfoRuntimeApi", "get_delegated"): delegated,
    ("BetaBasketRuntimeApi", "get_root_basket_owed"): nothing(0),
    ("BetaBasketRuntimeApi", "get_root_basket_total_nav"): nothing(0),
    ("BetaBasketRuntimeApi", "get_root_basket_positions"): nothing([]),
    ("BetaBasketRuntimeApi", "get_root_basket_portfolio"): nothing([]),
    ("BetaBasketRuntimeApi", "get_basket_position"): nothing(None),
    ("BetaBasketRuntimeApi", "get_basket_payout"): nothing(0),
    ("BetaBasketRuntimeApi", "get_validator_basket_nav"): nothing(0),
    ("BetaBasketRuntimeApi", "get_validator_basket"): nothing([]),
}
