"""The arithmetic of a merge, held against exact rational arithmetic and against every way to cut it (ALGORITHMS 3)."""

from __future__ import annotations

from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.merging.reduction import (
    clip_scale,
    effective_batch,
    outer_momentum,
    outer_step,
    outer_step_shards,
    reduce_shard,
    weights,
)
from subnet.protocol.run_spec import MergeSpec

MERGE = MergeSpec(
    num_microbatches_min=10,
    quorum=0.5,
    relax_after_s=60.0,
    grace_s=5.0,
    upload_deadline_s=30.0,
    reduce_deadline_s=30.0,
    apply_deadline_s=30.0,
)


def f32(exact: Fraction) -> Fraction:
    """One IEEE rounding of an exact number to float32, ties to even, without any float arithmetic."""
    if exact == 0:
        return Fraction(0)
    exponent = max(-149, abs(exact.numerator).bit_length() - exact.denominator.bit_length() - 25)
    while abs(exact) / Fraction(2) ** exponent >= 2**24:
        exponent += 1
    scaled = exact / Fraction(2) ** exponent
    return round(scaled) * Fraction(2) ** exponent  # Python's round of a Fraction is half-to-even


def vectors(seed: int, num_parts: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal(count) * 10.0 ** rng.uniform(-9, 3, count)).astype(np.float32) for _ in range(num_parts)
    ]


def test_effective_batch() -> None:
    """1. Vector 1: a replica below B_min does not count; B_eff([12, 9, 10, 0], 10) = 22."""
    assert weights([12, 9, 10, 0], 10) == (12.0, 0.0, 10.0, 0.0)
    assert effective_batch([12, 9, 10, 0], 10) == 22


@given(st.integers(0, 2**32), st.lists(st.integers(1, 1_000), min_size=1, max_size=6), st.data())
@settings(max_examples=20, deadline=None)
def test_reduction_is_the_documented_formula(seed: int, counts: list[int], data: st.DataObject) -> None:
    """2. An independent implementation in exact arithmetic that rounds where the docstring says so: equal bits."""
    parts = vectors(seed, len(counts), 12)
    scales = [float(np.float32(data.draw(st.floats(0.001, 1)))) for _ in counts]
    g_S = reduce_shard(parts, [float(count) for count in counts], scales)
    for i in range(12):
        acc = Fraction(0)
        for part, count, scale in zip(parts, counts, scales, strict=True):
            coefficient = f32(Fraction(count) * Fraction(scale))  # the fp64 product of these is exact
            acc = f32(acc + f32(coefficient * Fraction(float(part[i]))))
        assert Fraction(float(g_S[i])) == f32(acc / sum(counts))


@given(st.integers(0, 2**32), st.lists(st.integers(0, 999), max_size=8))
@settings(max_examples=40, deadline=None)
def test_reduction_does_not_depend_on_the_cut(seed: int, cuts: list[int]) -> None:
    """3. Owners with other shard borders, or the orchestrator recomputing one range: the same bits everywhere."""
    parts, parts_weights, scales = vectors(seed, 5, 1_000), [3.0, 17.0, 1.0, 9.0, 11.0], [1.0, 0.3, 1.0, 0.77, 1.0]
    whole = reduce_shard(parts, parts_weights, scales)
    edges = sorted({0, 1_000, *cuts})
    pieces = [
        reduce_shard((part[a:b] for part in parts), parts_weights, scales)
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
    # nor on how the memory lies: a strided view is another code path in numpy
    spread = [np.repeat(part, 3)[::3] for part in parts]
    assert reduce_shard(spread, parts_weights, scales).tobytes() == whole.tobytes()


def test_order_is_the_manifests() -> None:
    """4. Floating-point sums depend on their order: the manifest fixes it, and another order is another result."""
    parts = [np.array([x], np.float32) for x in (1e8, 1.0, -1e8, 1.0)]
    assert reduce_shard(parts, [1.0] * 4, [1.0] * 4)[0] == 0.25
    assert reduce_shard([parts[i] for i in (0, 2, 1, 3)], [1.0] * 4, [1.0] * 4)[0] == 0.5


def test_one_replica_gets_its_own_back() -> None:
    """5. N = 1 with a weight that is a power of two: the merge is the replica's own pseudo-gradient, bit for bit."""
    (part,) = vectors(1, 1, 500)
    assert np.array_equal(reduce_shard([part], [16.0], [1.0]), part)


def test_a_replica_without_weight_changes_nothing() -> None:
    """6. Below B_min a pseudo-gradient may be anything finite: the others' result stands."""
    one, two = vectors(2, 2, 500)
    assert np.array_equal(reduce_shard([one, two], [8.0, 0.0], [1.0, 1.0]), reduce_shard([one], [8.0], [1.0]))


@pytest.mark.parametrize("bad_weights", [[], [0.0, 0.0], [1.0], [2.0, -1.0], [float("nan"), 1.0]])
def test_weights_that_mean_nothing_are_refused(bad_weights: list[float]) -> None:
    """7. Nothing to average, or a weight missing: never a silent NaN."""
    with pytest.raises(ValueError):
        reduce_shard(vectors(3, 2, 4), bad_weights, [1.0, 1.0])


def test_outer_step_is_the_documented_formula() -> None:
    """8. θ and v after one outer step, against exact arithmetic that rounds where the docstring says so."""
    theta_P, v_P, g_P = vectors(4, 3, 50)
    theta_next_P, v_next_P = outer_step(theta_P, v_P, g_P, 0.7, 0.9)
    lr, mu = Fraction(float(np.float32(0.7))), Fraction(float(np.float32(0.9)))
    for theta, v, g, theta_next, v_next in zip(theta_P, v_P, g_P, theta_next_P, v_next_P, strict=True):
        want_v = f32(f32(mu * Fraction(float(v))) + Fraction(float(g)))
        step = f32(lr * f32(f32(mu * want_v) + Fraction(float(g))))
        assert Fraction(float(v_next)) == want_v
        assert Fraction(float(theta_next)) == f32(Fraction(float(theta)) - step)


def test_plain_average_at_lr_1_mu_0() -> None:
    """9. The local preset: θ' = θ - g, the mean of the replicas' parameters; the momentum is g."""
    theta_P, v_P, g_P = vectors(5, 3, 50)
    theta_next_P, v_next_P = outer_step(theta_P, v_P, g_P, 1.0, 0.0)
    assert np.array_equal(theta_next_P, theta_P - g_P) and np.array_equal(v_next_P, g_P)


def test_steady_gradients_are_amplified_seven_fold() -> None:
    """10. η 0.7, μ 0.9 moves 7x a constant pseudo-gradient in the long run (ALGORITHMS 3 warns of it)."""
    theta_P, v_P, g_P = np.zeros(1, np.float32), np.zeros(1, np.float32), np.ones(1, np.float32)
    for _ in range(200):
        before_P = theta_P
        theta_P, v_P = outer_step(theta_P, v_P, g_P, 0.7, 0.9)
    assert before_P - theta_P == pytest.approx(7.0, rel=1e-4)


@given(st.integers(0, 2**32), st.sets(st.integers(0, 9)))
@settings(max_examples=30, deadline=None)
def test_a_lost_shard_leaves_parameters_and_momentum(seed: int, lost: set[int]) -> None:
    """11. Both owners of some shards died: there θ and v stay as they were, elsewhere the step is the whole one's."""
    theta_P, v_P, g_P = vectors(seed, 3, 1_000)
    shards = [(i * 100, 100, None if i in lost else g_P[i * 100 : i * 100 + 100]) for i in range(10)]
    theta_next_P, v_next_P = outer_step_shards(theta_P, v_P, shards, 0.7, 0.9)
    all_theta_P, all_v_P = outer_step(theta_P, v_P, g_P, 0.7, 0.9)
    for i in range(10):
        part = slice(i * 100, i * 100 + 100)
        want_theta_P, want_v_P = (theta_P, v_P) if i in lost else (all_theta_P, all_v_P)
        assert np.array_equal(theta_next_P[part], want_theta_P[part])
        assert np.array_equal(v_next_P[part], want_v_P[part])


def test_momentum_warms_up() -> None:
    """12. μ goes linearly from 0.5 at epoch 0 to 0.9 at epoch 4 and stays; without warm-up it is 0.9 at once."""
    warm = msgspec.structs.replace(MERGE, momentum_warmup_epochs=4)
    assert [outer_momentum(warm, e) for e in (0, 1, 2, 4, 9)] == pytest.approx([0.5, 0.6, 0.7, 0.9, 0.9])
    assert outer_momentum(MERGE, 0) == 0.9


@pytest.mark.parametrize(
    ("norm", "history", "expected"),
    [
        (1e9, [], 1.0),  # the first epoch has nothing to compare with
        (0.0, [1.0, 2.0], 1.0),
        (6.0, [1.0, 2.0, 3.0], 1.0),  # exactly at 3 x median
        (12.0, [1.0, 2.0, 3.0], 0.5),
        (12.0, [900.0, 2.0, 2.0, 2.0, 2.0, 2.0], 0.5),  # one outlier in the history moves no median
        (5.0, [0.0, 0.0], 1.0),
    ],
)
def test_clipping(norm: float, history: list[float], expected: float) -> None:
    """13. A replica's pseudo-gradient is scaled to at most three times what its stage is used to."""
    assert clip_scale(norm, history, 3.0) == expected


@given(st.floats(0, 1e300), st.lists(st.floats(0, 1e300), max_size=8), st.floats(0.1, 100))
def test_a_scale_is_always_a_usable_float32(norm: float, history: list[float], factor: float) -> None:
    """14. Whatever norm a replica claims, the scale is in (0, 1] and the same number in fp32."""
    scale = clip_scale(norm, history, factor)
    assert 0 < scale <= 1 and float(np.float32(scale)) == scale


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1.0])
def test_an_impossible_norm_is_refused(norm: float) -> None:
    """15. NaN never becomes a scale."""
    with pytest.raises(ValueError):
        clip_scale(norm, [1.0], 3.0)
