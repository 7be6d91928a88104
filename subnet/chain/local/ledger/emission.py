"""What happens in every block before its extrinsics: prices fall back, alpha is made, and epochs are run.

Law: a started subnet gets alpha each block, halving with its issuance, and TAO by its price. The alpha waits until the
subnet's epoch and is then paid: 18 % to the owner, the rest half to miners by incentive and half to validators by
dividends (41/41/18), of which a validator keeps its take and shares the rest with those who stake on it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from subnet.chain.local import yuma
from subnet.chain.local.ledger import neurons, pool, stake, weights
from subnet.chain.local.ledger.book import U16_MAX, Book
from subnet.chain.local.ledger.pool import ROOT
from subnet.chain.local.ledger.storage import Storage

RAO = 10**9
HALF_SUPPLY = 10_500_000 * RAO
"""The first halving; each further one at half of what is left."""
PENDING = ("PendingServerEmission", "PendingValidatorEmission", "PendingOwnerCut")


def begin_block(book: Book) -> None:
    storage = book.storage
    netuids = [netuid for netuid, is_there in storage.pairs("SubtensorModule", "NetworksAdded") if is_there]
    subnets = [netuid for netuid in netuids if netuid != ROOT]
    for netuid in subnets:
        _cool_burn(storage, netuid)
        storage.write("RegistrationsThisBlock", [netuid], 0)
    _inject(storage, [netuid for netuid in subnets if storage.flag("SubtokenEnabled", netuid)])
    for netuid in subnets:
        storage.add("BlocksSinceLastStep", [netuid], 1)
        if is_due(storage, netuid, book.number):
            run_epoch(book, netuid)


def is_due(storage: Storage, netuid: int, block: int) -> bool:
    tempo, asked = storage.number("Tempo", netuid), storage.number("PendingEpochAt", netuid)
    on_time = tempo and block - storage.number("LastEpochBlock", netuid) >= tempo
    return bool(on_time or (asked and block >= asked))


def next_epoch_block(storage: Storage, netuid: int) -> int | None:
    tempo, asked = storage.number("Tempo", netuid), storage.number("PendingEpochAt", netuid)
    if not tempo:
        return None
    regular = storage.number("LastEpochBlock", netuid) + tempo
    return min(regular, asked) if asked else regular


def block_emission(issuance_rao: int) -> int:
    """Rao per block: 1 TAO, halved each time that half of the rest has been issued."""
    left = 1.0 - issuance_rao / (2 * HALF_SUPPLY)
    return int(RAO / 2 ** math.floor(-math.log2(left))) if left > 0 else 0


def _cool_burn(storage: Storage, netuid: int) -> None:
    """The registration price halves every half-life, down to its floor."""
    price, half_life = storage.number("Burn", netuid), storage.number("BurnHalfLife", netuid)
    cooled = int(price * 0.5 ** (1 / half_life)) if half_life else price
    least, most = storage.number("MinBurn", netuid), storage.number("MaxBurn", netuid)
    storage.write("Burn", [netuid], max(least, min(cooled, most)))


def _inject(storage: Storage, netuids: list[int]) -> None:
    """New TAO into the pools by price, new alpha for pools and pending emission."""
    issuance = storage.number("TotalIssuance")
    whole = block_emission(issuance)
    paid = [netuid for netuid in netuids if storage.flag("SubnetEmissionEnabled", netuid)]
    prices = {netuid: pool.price(storage, netuid) for netuid in paid}
    total = sum(prices.values()) or 1.0
    for netuid in netuids:
        tao = int(whole * prices.get(netuid, 0.0) / total)
        alpha = block_emission(storage.number("SubnetAlphaIn", netuid) + storage.number("SubnetAlphaOut", netuid))
        into_pool = min(int(tao / prices[netuid]), alpha) if tao else 0
        storage.add("SubnetTAO", [netuid], tao)
        storage.add("SubnetAlphaIn", [netuid], into_pool)
        storage.write("SubnetTaoInEmission", [netuid], tao)
        storage.write("SubnetAlphaInEmission", [netuid], into_pool)
        storage.write("SubnetAlphaOutEmission", [netuid], alpha)
        issuance += tao
        cut = alpha * storage.number("SubnetOwnerCut") // U16_MAX if storage.flag("OwnerCutEnabled", netuid) else 0
        servers = (alpha - cut) // 2
        for name, amount in zip(PENDING, (servers, alpha - cut - servers, cut), strict=True):
            storage.add(name, [netuid], amount)
        moving = {"bits": int(pool.price(storage, netuid) * 2**32)}
        storage.write("SubnetMovingPrice", [netuid], moving)
    storage.write("TotalIssuance", [], issuance)


# ---- the epoch


def run_epoch(book: Book, netuid: int) -> None:
    storage = book.storage
    servers, validators, cut = (storage.number(name, netuid) for name in PENDING)
    for name in PENDING:
        storage.write(name, [netuid], 0)
    if storage.number("SubnetworkN", netuid):
        result = yuma.epoch(gather(storage, netuid, book.number), rules(storage, netuid))
        _pay_owner(storage, netuid, cut)
        _pay(book, netuid, result, servers, validators)
        _record(storage, netuid, result, servers + validators)
    storage.write("BlocksSinceLastStep", [netuid], 0)
    storage.write("LastMechansimStepBlock", [netuid], book.number)
    storage.write("LastEpochBlock", [netuid], book.number)
    storage.write("PendingEpochAt", [netuid], 0)
    storage.add("SubnetEpochIndex", [netuid], 1)
    weights.drop_expired(storage, netuid)


def rules(storage: Storage, netuid: int) -> yuma.Rules:
    low, high = storage.value("AlphaValues", netuid)
    return yuma.Rules(
        kappa=storage.number("Kappa", netuid) / U16_MAX,
        bonds_penalty=storage.number("BondsPenalty", netuid) / U16_MAX,
        bonds_moving_average=storage.number("BondsMovingAverage", netuid) / 1_000_000,
        yuma3=storage.flag("Yuma3On", netuid),
        liquid_alpha=storage.flag("LiquidAlphaOn", netuid),
        alpha_low=low / U16_MAX,
        alpha_high=high / U16_MAX,
        sigmoid_steepness=storage.number("AlphaSigmoidSteepness", netuid) / 100,
        max_validators=storage.number("MaxAllowedValidators", netuid),
        min_stake=storage.number("StakeThreshold"),
        activity_cutoff=activity_cutoff(storage, netuid),
    )


def activity_cutoff(storage: Storage, netuid: int) -> int:
    """Blocks."""
    return max(1, storage.number("ActivityCutoffFactorMilli", netuid) * storage.number("Tempo", netuid) // 1000)


def gather(storage: Storage, netuid: int, block: int) -> yuma.Subnet:
    """What consensus sees of a subnet."""
    hotkeys = neurons.hotkeys(storage, netuid)
    count = len(hotkeys)
    last_epoch = storage.number("LastMechansimStepBlock", netuid)
    registered = [storage.number("BlockAtRegistration", netuid, uid) for uid in range(count)]
    stakes = [float(stake.total_stake(storage, hotkey, netuid)) for hotkey in hotkeys]
    return yuma.Subnet(
        block=block,
        last_epoch=last_epoch,
        stake_N=np.array(stakes),
        last_update_N=np.array(storage.row("LastUpdate", netuid), dtype=np.int64),
        registered_N=np.array(registered, dtype=np.int64),
        permit_N=np.array(storage.row("ValidatorPermit", netuid), dtype=np.bool_),
        weights_VW=_dense(storage, "Weights", netuid, count),
        bonds_VW=_dense(storage, "Bonds", netuid, count) / U16_MAX,
        owner_uid=neurons.uid_of(storage, netuid, storage.account("SubnetOwnerHotkey", netuid)),
    )


def _dense(storage: Storage, name: str, netuid: int, count: int) -> yuma.Floats:
    rows_VW = np.zeros((count, count))
    for uid, row in storage.pairs("SubtensorModule", name, netuid):
        for other, value in row:
            if uid < count and other < count:
                rows_VW[uid, other] = value
    return rows_VW


def _pay_owner(storage: Storage, netuid: int, cut: int) -> None:
    owner_hotkey = storage.account("SubnetOwnerHotkey", netuid)
    stake.add_alpha(storage, owner_hotkey, storage.account("SubnetOwner", netuid), netuid, cut)


def _pay(book: Book, netuid: int, result: yuma.Result, servers: int, validators: int) -> None:
    """Miners get their incentive as stake on themselves; what the owner's hotkeys would get is burned."""
    storage = book.storage
    owner = storage.account("SubnetOwner", netuid)
    hotkeys = neurons.hotkeys(storage, netuid)
    is_weighed = bool(result.incentive_N.any())
    miners = [int(share * servers) for share in result.incentive_N]
    for hotkey, alpha in zip(hotkeys, miners, strict=True):
        coldkey = storage.account("Owner", hotkey)
        if alpha and coldkey != owner:
            stake.add_alpha(storage, hotkey, coldkey, netuid, alpha)
    for hotkey, share in zip(hotkeys, result.dividends_N, strict=True):
        alpha = int(share * (validators if is_weighed else servers + validators))
        storage.write("AlphaDividendsPerSubnet", [netuid, hotkey], alpha)
        if not alpha:
            continue
        take = alpha * storage.number("Delegates", hotkey) // U16_MAX
        stake.add_to_heap(storage, hotkey, netuid, alpha - take)
        stake.add_alpha(storage, hotkey, storage.account("Owner", hotkey), netuid, take)
    event = {"netuid": netuid, "emissions": miners}
    book.emit("SubtensorModule", "IncentiveAlphaEmittedToMiners", event)


def _record(storage: Storage, netuid: int, result: yuma.Result, alpha: int) -> None:
    vectors: dict[str, Any] = {
        "Active": result.active_N.tolist(),
        "ValidatorPermit": result.permit_N.tolist(),
        "Consensus": out_of_u16(result.consensus_N),
        "Incentive": out_of_u16(result.incentive_N),
        "Dividends": out_of_u16(result.dividends_N),
        "ValidatorTrust": out_of_u16(result.trust_V),
        "StakeWeight": out_of_u16(result.stake_N),
        "Emission": [int(share * alpha) for share in result.combined_N],
    }
    for name, row in vectors.items():
        storage.write(name, [netuid], row)
    bonds_VW = np.clip(result.bonds_VW * U16_MAX, 0, U16_MAX).astype(np.int64)
    for uid, bonds_W in enumerate(bonds_VW):
        held = [(int(other), int(bonds_W[other])) for other in np.flatnonzero(bonds_W)]
        if held:
            storage.write("Bonds", [netuid, uid], held)
        else:
            storage.remove("Bonds", [netuid, uid])


def out_of_u16(shares_N: yuma.Floats) -> list[int]:
    """0..1 as the chain stores it."""
    return [int(value) for value in np.clip(shares_N, 0.0, 1.0) * U16_MAX]
