"""Yuma in its plain form: the median clips, the shares are shares, and who agrees earns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from subnet.chain.consensus import OWNER_CUT, U16, Voter, consensus, pay_out
from subnet.chain.local import yuma

KAPPA = 32_767 / U16


def test_the_median_is_the_stake_s() -> None:
    """1. Stakes 50, 30, 20 see one miner at 0.2, 0.6 and 0.9: 0.2 is what half of the stake stands behind; together the
    two smaller ones have as much as the largest, so at kappa just below a half they carry 0.6."""
    weights = np.array([[0.2, 0.8], [0.6, 0.4], [0.9, 0.1]])
    shares = consensus(np.array([50.0, 30.0, 20.0]), weights, KAPPA)
    assert shares.consensus_N.tolist() == [0.6, 0.8]
    assert consensus(np.array([51.0, 30.0, 19.0]), weights, KAPPA).consensus_N.tolist() == [0.2, 0.8]


def test_nobody_votes() -> None:
    """2. A subnet on its first day: no validator, or one without weights, gives shares of nothing."""
    empty = consensus(np.zeros(0), np.zeros((0, 3)), KAPPA)
    silent = consensus(np.ones(2), np.zeros((2, 3)), KAPPA)
    assert empty.incentive_N.tolist() == silent.incentive_N.tolist() == [0, 0, 0]
    assert silent.dividends_V.tolist() == [0, 0]


matrices = st.integers(1, 6).flatmap(
    lambda validators: st.integers(1, 8).flatmap(
        lambda uids: st.tuples(
            arrays(float, validators, elements=st.floats(1e-3, 1e9)),
            arrays(float, (validators, uids), elements=st.floats(0, 1e6).map(lambda w: w if w > 1e-6 else 0.0)),
        )
    )
)


@settings(max_examples=150, deadline=None)
@given(matrices)
def test_shares_are_shares(given_: tuple[np.ndarray, np.ndarray]) -> None:
    """3. Whatever stakes and weights: finite, non-negative, in sum 1 or 0; nobody's weight counts above the median."""
    stake_V, weights_VN = given_
    shares = consensus(stake_V, weights_VN, KAPPA)
    for part in shares:
        assert np.isfinite(part).all() and (part >= 0).all()
    for part in (shares.incentive_N, shares.dividends_V):
        assert part.sum() == pytest.approx(1.0) or part.sum() == 0.0
    assert (shares.consensus_N <= 1.0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), arrays(float, 6, elements=st.floats(0.01, 10)))
def test_who_agrees_is_paid_by_stake(count: int, row: np.ndarray) -> None:
    """4. Honest validators set the same weights: miners get exactly those, validators exactly their stake's share."""
    stake_V = np.arange(1.0, count + 1)
    shares = consensus(stake_V, np.tile(row, (count, 1)), KAPPA)
    assert shares.incentive_N == pytest.approx(row / row.sum())
    assert shares.dividends_V == pytest.approx(stake_V / stake_V.sum())


def test_self_weights_do_not_count() -> None:
    """5. A validator that also mines gives half to itself; only the owner's weight on itself counts, as a burn."""
    selfish = Voter(stake=100, votes=True, weights={0: 1, 1: 1})
    miner = Voter(stake=0, votes=False, weights={})
    paid = pay_out(1_000_000, [selfish, miner], owner_uid=2, kappa=KAPPA)
    assert paid.incentive == [0.0, 1.0]
    assert pay_out(1_000_000, [selfish, miner], owner_uid=0, kappa=KAPPA).incentive == [0.5, 0.5]


def test_rounding_never_pays_more_than_there_is() -> None:
    """6. Seven rao among three equal miners: two each, and the odd one is nobody's."""
    voter = Voter(stake=5, votes=True, weights={1: 1, 2: 1, 3: 1})
    others = [Voter(stake=0, votes=False, weights={}) for _ in range(3)]
    minted = 17
    paid = pay_out(minted, [voter, *others], owner_uid=9, kappa=KAPPA)
    assert paid.owner == minted * OWNER_CUT // U16 == 3
    assert paid.miners == [0, 2, 2, 2] and paid.validators == [7, 0, 0, 0]


@settings(max_examples=100, deadline=None)
@given(matrices)
def test_both_chains_agree(given_: tuple[np.ndarray, np.ndarray]) -> None:
    """7. The local chain's Yuma was written apart from this one; with bonds that have no memory both say the same."""
    stake_V, weights_VN = given_
    validators, uids = weights_VN.shape
    total = validators + uids
    stake_N = np.concatenate([stake_V, np.zeros(uids)])
    weights_NN = np.zeros((total, total))
    weights_NN[:validators, validators:] = weights_VN
    subnet = yuma.Subnet(
        block=100,
        last_epoch=50,
        stake_N=stake_N,
        last_update_N=np.full(total, 90),
        registered_N=np.ones(total, dtype=np.int64),
        permit_N=stake_N > 0,
        weights_VW=weights_NN,
        bonds_VW=np.zeros((total, total)),
    )
    theirs = yuma.epoch(subnet, yuma.Rules(kappa=KAPPA, bonds_moving_average=0.0))
    ours = consensus(stake_V, weights_VN, KAPPA)
    assert ours.incentive_N == pytest.approx(theirs.incentive_N[validators:], abs=1e-9)
    if ours.incentive_N.any():
        assert ours.dividends_V == pytest.approx(theirs.dividends_N[:validators], abs=1e-9)
