"""The pool that prices a subnet's alpha in TAO.

Law: a constant product of TAO and alpha; root, netuid 0, trades one for one. Its fees are ignored. What is bought or
sold here belongs to nobody yet: `stake` says whose it becomes.
"""

from __future__ import annotations

from subnet.chain.local.ledger.storage import Storage

ROOT = 0


def price(storage: Storage, netuid: int) -> float:
    """TAO for one alpha."""
    alpha = storage.number("SubnetAlphaIn", netuid)
    return storage.number("SubnetTAO", netuid) / alpha if netuid != ROOT and alpha else 1.0


def quote_buy(storage: Storage, netuid: int, tao: int) -> int:
    """Alpha that so much TAO buys."""
    pool_tao, pool_alpha = storage.number("SubnetTAO", netuid), storage.number("SubnetAlphaIn", netuid)
    if netuid == ROOT or not pool_tao:
        return tao
    return pool_alpha - -(-pool_tao * pool_alpha // (pool_tao + tao))


def quote_sell(storage: Storage, netuid: int, alpha: int) -> int:
    """TAO that so much alpha brings."""
    pool_tao, pool_alpha = storage.number("SubnetTAO", netuid), storage.number("SubnetAlphaIn", netuid)
    if netuid == ROOT or not pool_alpha:
        return alpha
    return pool_tao - -(-pool_tao * pool_alpha // (pool_alpha + alpha))


def buy(storage: Storage, netuid: int, tao: int) -> int:
    """TAO goes into the pool; the alpha that comes out belongs to whoever asked."""
    alpha = quote_buy(storage, netuid, tao)
    storage.add("SubnetTAO", [netuid], tao)
    if netuid != ROOT:
        storage.add("SubnetAlphaIn", [netuid], -alpha)
    storage.add("SubnetVolume", [netuid], tao)
    return alpha


def sell(storage: Storage, netuid: int, alpha: int) -> int:
    tao = quote_sell(storage, netuid, alpha)
    storage.add("SubnetTAO", [netuid], -tao)
    if netuid != ROOT:
        storage.add("SubnetAlphaIn", [netuid], alpha)
    storage.add("SubnetVolume", [netuid], tao)
    return tao
