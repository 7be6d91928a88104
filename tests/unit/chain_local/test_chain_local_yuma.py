"""Consensus against a plain re-telling of it, uid by uid, and its laws."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from subnet.chain.local import yuma
from subnet.chain.local.yuma import Result, Rules, Subnet

N_MAX = 7


def norm(values: list[float]) -> list[float]:
    total = sum(values)
    return [value / total for value in values] if total > 0 else [0.0] * len(values)


def told_plainly(s: Subnet, r: Rules) -> dict[str, list[float]]:
    """The same epoch in lists and loops, in the order in which the documentation tells it."""
    n = len(s.stake_N)
    stake = norm([float(x) if x >= r.min_stake or i == s.owner_uid else 0.0 for i, x in enumerate(s.stake_N)])
    permit = [bool(x) or i == s.owner_uid for i, x in enumerate(s.permit_N)]
    counts = [permit[i] and s.last_update_N[i] + r.activity_cutoff >= s.block for i in range(n)]
    voting = norm([stake[i] if counts[i] else 0.0 for i in range(n)])
    weights = []
    for i in range(n):
        row = [float(x) if permit[i] else 0.0 for x in s.weights_VW[i]]
        for j in range(n):
            if (i == j and i != s.owner_uid) or s.last_update_N[i] <= s.registered_N[j]:
                row[j] = 0.0
        weights.append(norm(row))
    consensus = []
    for j in range(n):
        votes = sorted((weights[i][j], voting[i]) for i in range(n) if voting[i] > 0)
        below, median = 0.0, votes[-1][0] if votes else 0.0
        for score, part in votes:
            below += part
            if below > (1 - r.kappa) * sum(part for _, part in votes):
                median = score
                break
        consensus.append(median)
    clipped = [[min(weights[i][j], consensus[j]) for j in range(n)] for i in range(n)]
    incentive = norm([sum(voting[i] * clipped[i][j] for i in range(n)) for j in range(n)])
    bonds = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            new = weights[i][j] + (clipped[i][j] - weights[i][j]) * r.bonds_penalty
            old = 0.0 if s.registered_N[j] >= s.last_epoch else float(s.bonds_VW[i][j])
            alpha = 1 - r.bonds_moving_average
            if r.liquid_alpha and any(consensus):
                distance = new - consensus[j] if new >= old else old - new
                steep = exp(min(700.0, -r.sigmoid_steepness * (min(max(distance, 0.0), 1.0) - 0.5)))
                alpha = r.alpha_low + (r.alpha_high - r.alpha_low) / (1 + steep)
            bonds[i][j] = old + alpha * (new - old)
    columns = [sum(bonds[i][j] for i in range(n)) for j in range(n)]
    shares = [[bonds[i][j] / columns[j] if columns[j] > 0 else 0.0 for j in range(n)] for i in range(n)]
    dividends = norm([voting[i] * sum(shares[i][j] * incentive[j] for j in range(n)) for i in range(n)])
    return {"consensus_N": consensus, "incentive_N": incentive, "dividends_N": dividends, "bonds_VW": bonds}


@st.composite
def subnets(draw: st.DrawFn) -> Subnet:
    n = draw(st.integers(1, N_MAX))
    positive = st.floats(0, 1e6).map(lambda x: 0.0 if x < 1e-3 else x)
    blocks = st.integers(0, 100)
    return Subnet(
        block=draw(st.integers(100, 150)),
        last_epoch=draw(blocks),
        stake_N=draw(arrays(float, n, elements=positive)),
        last_update_N=draw(arrays(np.int64, n, elements=blocks)),
        registered_N=draw(arrays(np.int64, n, elements=blocks)),
        permit_N=draw(arrays(np.bool_, n)),
        weights_VW=draw(arrays(float, (n, n), elements=positive)),
        bonds_VW=draw(arrays(float, (n, n), elements=st.floats(0, 1).map(lambda x: 0.0 if x < 1e-6 else x))),
        owner_uid=draw(st.none() | st.integers(0, n - 1)),
    )


rules = st.builds(
    Rules,
    kappa=st.floats(0.05, 0.95),
    bonds_penalty=st.floats(0, 1),
    bonds_moving_average=st.floats(0, 1),
    yuma3=st.booleans(),
    liquid_alpha=st.booleans(),
    alpha_low=st.floats(0, 0.7),
    alpha_high=st.floats(0.7, 1),
    sigmoid_steepness=st.floats(0, 300),
    max_validators=st.integers(1, N_MAX),
    min_stake=st.sampled_from([0.0, 10.0]),
    activity_cutoff=st.integers(1, 200),
)


@settings(max_examples=100, deadline=None)
@given(subnets(), rules)
def test_it_is_what_the_plain_telling_gives(subnet: Subnet, given_rules: Rules) -> None:
    """1. Whatever the subnet: consensus, incentive, bonds and dividends of Yuma3 agree with the loops."""
    given_rules = given_rules._replace(yuma3=True)
    result, plain = yuma.epoch(subnet, given_rules), told_plainly(subnet, given_rules)
    for name in ("consensus_N", "incentive_N"):
        np.testing.assert_allclose(getattr(result, name), plain[name], rtol=1e-9, atol=1e-12)
    if result.incentive_N.any():
        np.testing.assert_allclose(result.dividends_N, plain["dividends_N"], rtol=1e-9, atol=1e-12)
    kept = np.array(plain["bonds_VW"]) * result.permit_N[:, None]
    np.testing.assert_allclose(result.bonds_VW, kept, rtol=1e-9, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(subnets(), rules)
def test_shares_are_shares(subnet: Subnet, given_rules: Rules) -> None:
    """2. Nothing is negative, nothing exceeds one, sums are one or nothing, permits are few; the input is untouched."""
    copies = [np.copy(part) for part in subnet if isinstance(part, np.ndarray)]
    result = yuma.epoch(subnet, given_rules)
    for name, part in result._asdict().items():
        if part.dtype != np.bool_:
            assert np.isfinite(part).all() and (part >= 0).all() and (part <= 1 + 1e-9).all(), name
    for part in (result.incentive_N, result.dividends_N, result.combined_N, result.stake_N):
        assert part.sum() == pytest.approx(1) or part.sum() == 0
    assert result.permit_N.sum() <= given_rules.max_validators + 1
    for before, after in zip(copies, (part for part in subnet if isinstance(part, np.ndarray)), strict=True):
        np.testing.assert_array_equal(before, after)


def town(
    weights: dict[int, dict[int, float]], stakes: list[float], bonds: dict[int, dict[int, float]] | None = None
) -> Subnet:
    n = len(stakes)
    matrix, old = np.zeros((n, n)), np.zeros((n, n))
    for target, rows in ((matrix, weights), (old, bonds or {})):
        for voter, row in rows.items():
            for uid, value in row.items():
                target[voter, uid] = value
    return Subnet(
        block=1000,
        last_epoch=900,
        stake_N=np.array(stakes, dtype=float),
        last_update_N=np.full(n, 950),
        registered_N=np.zeros(n, dtype=np.int64),
        permit_N=np.array(stakes) > 0,
        weights_VW=matrix,
        bonds_VW=old,
    )


def test_a_liar_is_clipped() -> None:
    """3. Two validators with 60 % say 1:1 about miners 3 and 4; one with 40 % puts all on its friend, miner 5. The
    friend gets nothing, the liar's trust is nothing, and the liar earns no dividends."""
    fair = {3: 1.0, 4: 1.0}
    result = yuma.epoch(town({0: fair, 1: fair, 2: {5: 1.0}}, [30, 30, 40, 0, 0, 0]), Rules())
    np.testing.assert_allclose(result.incentive_N, [0, 0, 0, 0.5, 0.5, 0])
    np.testing.assert_allclose(result.trust_V[:3], [1, 1, 0])
    np.testing.assert_allclose(result.dividends_N[:3], [0.5, 0.5, 0])


def test_more_than_half_decides() -> None:
    """4. The same with 51 % behind the liar: it is the majority, and the others are clipped."""
    fair = {3: 1.0, 4: 1.0}
    result = yuma.epoch(town({0: fair, 1: fair, 2: {5: 1.0}}, [24, 25, 51, 0, 0, 0]), Rules())
    np.testing.assert_allclose(result.incentive_N, [0, 0, 0, 0, 0, 1])


@pytest.mark.parametrize("yuma3", [True, False], ids=["yuma3", "classic"])
def test_bonds_grow_slowly(yuma3: bool) -> None:
    """5. A validator that was first at a good miner holds more of it than one that follows with the same stake, and so
    earns more; the advantage shrinks epoch by epoch."""
    rules = Rules(yuma3=yuma3)
    bonds: dict[int, dict[int, float]] = {0: {2: 1.0}}
    gaps = []
    for _ in range(5):
        result: Result = yuma.epoch(town({0: {2: 1.0}, 1: {2: 1.0}}, [50, 50, 0], bonds), rules)
        gaps.append(result.dividends_N[0] - result.dividends_N[1])
        bonds = {voter: {2: float(result.bonds_VW[voter, 2])} for voter in (0, 1)}
    assert all(earlier > later > 0 for earlier, later in zip(gaps, gaps[1:], strict=False))
    assert gaps[0] == pytest.approx(0.9 / 1.1 if yuma3 else 0.9, rel=1e-6)


def test_liquid_alpha_follows_faster() -> None:
    """6. With liquid alpha a newcomer's bond moves by at least alpha_low instead of a tenth."""
    slow = yuma.epoch(town({0: {2: 1.0}, 1: {2: 1.0}}, [50, 50, 0]), Rules())
    fast = yuma.epoch(town({0: {2: 1.0}, 1: {2: 1.0}}, [50, 50, 0]), Rules(liquid_alpha=True))
    assert slow.bonds_VW[0, 2] == pytest.approx(0.1)
    assert 0.7 <= fast.bonds_VW[0, 2] <= 0.9


def test_a_newcomer_owes_nothing_to_the_old_bonds() -> None:
    """7. Uid 2 was registered after the last epoch: bonds to its predecessor are void, and weights from before too."""
    old = town({0: {2: 1.0, 3: 1.0}}, [50, 0, 0, 0], {0: {2: 1.0, 3: 1.0}})
    late = old._replace(registered_N=np.array([0, 0, 960, 0]))
    result = yuma.epoch(late, Rules())
    assert result.incentive_N.tolist() == [0, 0, 0, 1]
    assert result.bonds_VW[0].tolist() == [0, 0, 0, 1.0]


def test_the_silent_do_not_count() -> None:
    """8. The largest validator set weights for the last time 60 blocks ago, the cutoff is 50: the others decide."""
    subnet = town({0: {2: 1.0}, 1: {3: 1.0}}, [90, 10, 0, 0])
    subnet = subnet._replace(last_update_N=np.array([940, 990, 0, 0]))
    result = yuma.epoch(subnet, Rules(activity_cutoff=50))
    assert result.incentive_N.tolist() == [0, 0, 0, 1]
    assert result.active_N.tolist() == [False, True, False, False]


def test_permits_go_to_the_largest() -> None:
    """9. Two permits for four stakes; of equal ones the lower uid."""
    assert yuma.top_permits(np.array([0.1, 0.4, 0.4, 0.1]), 2).tolist() == [False, True, True, False]
    assert yuma.top_permits(np.array([0.25, 0.25, 0.5, 0.0]), 2).tolist() == [True, False, True, False]
    assert yuma.top_permits(np.zeros(3), 2).tolist() == [False] * 3
