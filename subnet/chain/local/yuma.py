"""One Yuma epoch: who earns what, from stake and weights.

Law: pure; numpy arrays in, numpy arrays out, no storage and no clock. Letters: N uids of the subnet; V, the rows, are
validators and W, the columns, are those they weigh (V and W both run over all N uids).

Follows Subtensor's published epoch (docs/consensus.md there; https://docs.learnbittensor.org/learn/yuma-consensus):
permits to the largest stakes, consensus as the stake-weighted median at kappa, clipping, incentive, bonds as a moving
average (Yuma3: of clipped weights, each in 0..1; classic: of stake-weighted ones, normalised by column), dividends.
Numbers here are float64, there fixed-point: expect equality to about 1e-4, not to the last digit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Rules(NamedTuple):
    """The hyperparameters that consensus reads; fractions in 0..1."""

    kappa: float = 0.5
    bonds_penalty: float = 1.0
    bonds_moving_average: float = 0.9
    yuma3: bool = True
    liquid_alpha: bool = False
    alpha_low: float = 0.7
    alpha_high: float = 0.9
    sigmoid_steepness: float = 10.0
    max_validators: int = 64
    min_stake: float = 0.0
    activity_cutoff: int = 5000
    """Blocks without new weights after which a validator does not count."""


class Subnet(NamedTuple):
    """What consensus sees at `block`."""

    block: int
    last_epoch: int
    """Block of the epoch before; bonds to uids registered since then are void."""
    stake_N: Floats
    last_update_N: Ints
    registered_N: Ints
    permit_N: Bools
    weights_VW: Floats
    """Any non-negative scale; rows are normalised here."""
    bonds_VW: Floats
    """0..1."""
    owner_uid: int | None = None


class Result(NamedTuple):
    active_N: Bools
    permit_N: Bools
    stake_N: Floats
    """Shares of the whole stake."""
    consensus_N: Floats
    trust_V: Floats
    """How much of a validator's weights survived clipping."""
    incentive_N: Floats
    """Sums to 1, or to 0 when nobody is weighed."""
    dividends_N: Floats
    bonds_VW: Floats
    combined_N: Floats
    """Share of the whole emission."""


def epoch(subnet: Subnet, rules: Rules) -> Result:
    owner = subnet.owner_uid
    enough_N = subnet.stake_N >= rules.min_stake
    permit_N = subnet.permit_N.copy()
    if owner is not None:
        enough_N[owner] = permit_N[owner] = True
    stake_N = normalise(np.where(enough_N, subnet.stake_N, 0.0))
    active_N = subnet.last_update_N + rules.activity_cutoff >= subnet.block
    new_permit_N = top_permits(stake_N, rules.max_validators)
    if owner is not None:
        new_permit_N[owner] = True

    voting_V = normalise(np.where(active_N & permit_N, stake_N, 0.0))
    weights_VW = admitted_weights(subnet, permit_N)
    consensus_N = weighted_median(voting_V, weights_VW, rules.kappa)
    clipped_VW = np.minimum(weights_VW, consensus_N)
    incentive_N = normalise(voting_V @ clipped_VW)

    for_bonds_VW = weights_VW + (clipped_VW - weights_VW) * rules.bonds_penalty
    is_fresh_W = subnet.registered_N >= subnet.last_epoch
    old_bonds_VW = np.where(is_fresh_W, 0.0, subnet.bonds_VW)
    if rules.yuma3:
        bonds_VW = _moving_average(old_bonds_VW, for_bonds_VW, _alpha(old_bonds_VW, for_bonds_VW, consensus_N, rules))
        dividends_N = normalise(voting_V * (by_column(bonds_VW) @ incentive_N))
    else:
        bought_VW = by_column(for_bonds_VW * voting_V[:, None])
        held_VW = by_column(_moving_average(by_column(old_bonds_VW), bought_VW, 1.0 - rules.bonds_moving_average))
        dividends_N = normalise(held_VW @ incentive_N)
        bonds_VW = _up_to_one(held_VW)

    combined_N = normalise(incentive_N + dividends_N)
    if not combined_N.any():  # nobody is weighed: validators are paid by stake alone
        combined_N = dividends_N = voting_V if voting_V.any() else stake_N
    return Result(
        active_N=active_N,
        permit_N=new_permit_N,
        stake_N=stake_N,
        consensus_N=consensus_N,
        trust_V=clipped_VW.sum(axis=1),
        incentive_N=incentive_N,
        dividends_N=dividends_N,
        bonds_VW=np.where(new_permit_N[:, None], bonds_VW, 0.0),
        combined_N=combined_N,
    )


def normalise(values: Floats) -> Floats:
    """Sums to 1; all zeros stay zeros."""
    total = values.sum()
    return values / total if total > 0 else np.zeros_like(values)


def by_column(values_VW: Floats) -> Floats:
    totals_W = values_VW.sum(axis=0)
    return _divide(values_VW, totals_W)


def top_permits(stake_N: Floats, max_validators: int) -> Bools:
    """The largest stakes; of equal ones the lower uid."""
    order = np.argsort(-stake_N, kind="stable")[:max_validators]
    permits_N = np.zeros(len(stake_N), dtype=np.bool_)
    permits_N[order] = stake_N[order] > 0
    return permits_N


def admitted_weights(subnet: Subnet, permit_N: Bools) -> Floats:
    """Rows of permitted validators that sum to 1, without self-weights (the owner's counts) and without weights that
    were set before their target was registered."""
    weights_VW = np.where(permit_N[:, None], subnet.weights_VW, 0.0)
    diagonal = np.arange(len(permit_N))
    kept = diagonal == subnet.owner_uid
    weights_VW[diagonal[~kept], diagonal[~kept]] = 0.0
    weights_VW[subnet.last_update_N[:, None] <= subnet.registered_N[None, :]] = 0.0
    totals_V = weights_VW.sum(axis=1, keepdims=True)
    return _divide(weights_VW, totals_V)


def weighted_median(stake_V: Floats, scores_VW: Floats, kappa: float) -> Floats:
    """Of each column: the largest score that validators with more than `kappa` of the stake reach or exceed.

    Sorted upwards, it is the first score at which the stake up to it exceeds 1 - kappa of the whole.
    """
    voters = np.flatnonzero(stake_V > 0)
    if not len(voters):
        return np.zeros(scores_VW.shape[1])
    scores_VW, stake_V = scores_VW[voters], stake_V[voters]
    order_VW = np.argsort(scores_VW, axis=0, kind="stable")
    below_VW = np.cumsum(stake_V[order_VW], axis=0)
    reached_VW = below_VW > (1.0 - kappa) * stake_V.sum()
    reached_VW[-1] = True
    pivot_W = reached_VW.argmax(axis=0)
    medians_W: Floats = np.take_along_axis(scores_VW, order_VW, axis=0)[pivot_W, np.arange(scores_VW.shape[1])]
    return medians_W


def _alpha(old_VW: Floats, new_VW: Floats, consensus_W: Floats, rules: Rules) -> Floats | float:
    """How fast each bond follows: fixed, or between alpha_low and alpha_high by the distance from consensus.

    Liquid alpha: a purchase counts by how far the weight lies above consensus, a sale by how far below the bond.
    """
    if not (rules.liquid_alpha and consensus_W.any()):
        return 1.0 - rules.bonds_moving_average
    bought_VW = np.clip(new_VW - consensus_W, 0.0, 1.0)
    sold_VW = np.clip(old_VW - new_VW, 0.0, 1.0)
    distance_VW = np.where(new_VW >= old_VW, bought_VW, sold_VW)
    exponent_VW = np.clip(-rules.sigmoid_steepness * (distance_VW - 0.5), -700.0, 700.0)
    spread = rules.alpha_high - rules.alpha_low
    alpha_VW: Floats = np.clip(
        rules.alpha_low + spread / (1.0 + np.exp(exponent_VW)), rules.alpha_low, rules.alpha_high
    )
    return alpha_VW


def _moving_average(old: Floats, new: Floats, alpha: Floats | float) -> Floats:
    return old + alpha * (new - old)


def _up_to_one(values_VW: Floats) -> Floats:
    """Scaled so that each column's largest is 1, as classic bonds are kept."""
    largest_W = values_VW.max(axis=0, initial=0.0)
    return _divide(values_VW, largest_W)


def _divide(values: Floats, by: Floats) -> Floats:
    """0 where there is nothing to divide by."""
    quotients: Floats = np.divide(values, by, out=np.zeros_like(values), where=by > 0)
    return quotients
