"""Yuma consensus in its plain form: validators' weights and stake in, shares of pay out. Pure arithmetic.

Law: every weight counts only up to the stake-weighted median of that miner's column (a minority cannot lift anyone),
and a validator earns by how much of the paid weight it stood behind. Shares are finite, non-negative and sum to 1 or,
when nobody set weights, to 0. V validators, N uids.

Simplified against the chain: bonds have no memory (the chain's are a moving average, alpha 0.1, or liquid), so the
dividends of an epoch follow from that epoch's weights alone; arithmetic is in float64, not in fixed point.
https://docs.learnbittensor.org/learn/yuma-consensus
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Shares(NamedTuple):
    consensus_N: Floats
    """The stake-weighted median of what validators gave each uid."""
    incentive_N: Floats
    """Shares of the miners' part."""
    dividends_V: Floats
    """Shares of the validators' part."""


def normalised(values: Floats) -> Floats:
    """Divided by the last axis's sum; rows without weight stay zero."""
    total = values.sum(axis=-1, keepdims=True)
    shares: Floats = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    return shares


def consensus(stake_V: Floats, weights_VN: Floats, kappa: float) -> Shares:
    """Shares of one chain epoch. `stake_V`: who may vote, with how much; `kappa`: share that may be outvoted."""
    if not len(stake_V) or not weights_VN.shape[1]:
        return Shares(*(np.zeros(n) for n in (weights_VN.shape[1], weights_VN.shape[1], len(stake_V))))
    stake_V, weights_VN = normalised(stake_V), normalised(weights_VN)
    median_N = _median(stake_V, weights_VN, kappa)
    clipped_VN = np.minimum(weights_VN, median_N)
    incentive_N = normalised(stake_V @ clipped_VN)
    bonds_NV = normalised(clipped_VN.T)
    return Shares(median_N, incentive_N, normalised(stake_V * (incentive_N @ bonds_NV)))


def _median(stake_V: Floats, weights_VN: Floats, kappa: float) -> Floats:
    """The largest weight in each column that at least `kappa` of the stake gave or exceeded."""
    order_VN = np.argsort(-weights_VN, axis=0, kind="stable")
    support_VN = np.cumsum(stake_V[order_VN], axis=0)
    first_N = np.argmax(support_VN >= min(kappa, 1 - 1e-9), axis=0)
    columns = np.arange(weights_VN.shape[1])
    median_N: Floats = weights_VN[order_VN[first_N, columns], columns]
    return median_N


# ---- one chain epoch's pay -------------------------------------------------------------------------------------------

OWNER_CUT, U16 = 11_796, 65_535
"""18 % of what is minted goes to the owner; the rest half to miners, half to validators."""


class Voter(NamedTuple):
    """One uid as a chain epoch finds it."""

    stake: int
    """Rao."""
    votes: bool
    """Holds a permit and was active lately."""
    weights: Mapping[int, int]
    """By uid; without those given to a uid before its holder was registered."""


class Payout(NamedTuple):
    """By uid, in rao. What is minted and not listed here is burnt: rounding, and pay that nobody can take."""

    incentive: list[float]
    dividends: list[float]
    miners: list[int]
    """The owner's is shown and burnt."""
    validators: list[int]
    owner: int


def pay_out(minted: int, voters: Sequence[Voter], owner_uid: int, kappa: float) -> Payout:
    """Split what one chain epoch minted. Without weights there is no incentive, and the miners' part goes to stake."""
    voting = [uid for uid, voter in enumerate(voters) if voter.votes and voter.stake > 0]
    weights_VN = np.zeros((len(voting), len(voters)))
    for row, uid in enumerate(voting):
        for to, weight in voters[uid].weights.items():
            weights_VN[row, to] = weight if to != uid or uid == owner_uid else 0
    shares = consensus(np.array([float(voters[uid].stake) for uid in voting]), weights_VN, kappa)
    dividends_N = np.zeros(len(voters))
    dividends_N[voting] = shares.dividends_V
    owner = minted * OWNER_CUT // U16
    for_miners = (minted - owner) // 2
    for_validators = minted - owner - for_miners
    if not shares.incentive_N.any():
        basis_N = np.array([float(voter.stake if voter.votes or not voting else 0) for voter in voters])
        dividends_N, for_miners, for_validators = normalised(basis_N), 0, minted - owner
    return Payout(
        incentive=shares.incentive_N.tolist(),
        dividends=dividends_N.tolist(),
        miners=_split(for_miners, shares.incentive_N),
        validators=_split(for_validators, dividends_N),
        owner=owner,
    )


def _split(amount: int, shares_N: Floats) -> list[int]:
    """Whole rao, never more than `amount` in sum."""
    parts = [int(amount * share) for share in shares_N.tolist()]
    while (excess := sum(parts) - amount) > 0:
        parts[parts.index(max(parts))] -= excess
    return parts


class Account(NamedTuple):
    """Where everything went, in rao: minted = miners + validators + owner + burnt + pending."""

    minted: int
    miners: int
    validators: int
    owner: int
    burnt: int
    pending: int
