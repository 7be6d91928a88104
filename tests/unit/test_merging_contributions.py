"""Who spoilt a merge: the figures against the slow definition, and who is named by them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.merging.contributions import Contribution, Gram, offenders
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason

NAMES = [Hotkey(name) for name in "abcdefghij"]


def look(
    vectors: list[np.ndarray], claimed: dict[int, float] | None = None, whole: bool = True, scale: float = 1.0
) -> dict[Hotkey, str]:
    """Who is named where these vectors were uploaded; all claims are true but for `claimed`."""
    gram = Gram(len(vectors))
    gram.add(vectors)
    found = {}
    for index, figure in enumerate(gram.figures()):
        claim = (claimed or {}).get(index, figure.norm)
        found[NAMES[index]] = Contribution(Reason.OK, figure.norm, figure.cosine, claim, scale)
    return offenders(found, whole)


def honest(count: int, common: float, seed: int = 0, length: int = 3000) -> list[np.ndarray]:
    """Replicas that learn from different data: a common direction, and much of their own."""
    drawn = np.random.default_rng(seed)
    shared = drawn.standard_normal(length)
    return [(common * shared + drawn.standard_normal(length)).astype(np.float32) for _ in range(count)]


@settings(max_examples=40)
@given(st.integers(1, 7), st.integers(0, 2**16), st.floats(-6, 12))
def test_figures_are_what_they_say(count: int, seed: int, exponent: float) -> None:
    """1. Norms and leave-one-out cosines, piece by piece, equal those of whole vectors by the definition."""
    drawn = np.random.default_rng(seed)
    vectors = [(drawn.standard_normal(500) * 10.0**exponent).astype(np.float32) for _ in range(count)]
    gram = Gram(count)
    for part in (slice(0, 123), slice(123, 400), slice(400, 500)):
        gram.add([vector[part] for vector in vectors])
    units = [v.astype(np.float64) / np.linalg.norm(v.astype(np.float64)) for v in vectors]
    for index, figure in enumerate(gram.figures()):
        assert figure.norm == pytest.approx(np.linalg.norm(vectors[index].astype(np.float64)), rel=1e-9)
        if count == 1:
            assert figure.cosine is None
        else:
            others = np.sum([unit for other, unit in enumerate(units) if other != index], axis=0)
            assert figure.cosine == pytest.approx(units[index] @ others / np.linalg.norm(others), abs=1e-9)


@settings(max_examples=40)
@given(st.integers(1, 10), st.floats(0.0, 2.0), st.integers(0, 2**16))
def test_honest_replicas_are_never_named(count: int, common: float, seed: int) -> None:
    """2. Late in a run they have next to nothing in common, and the fastest did six times the slowest's steps."""
    vectors = honest(count, common, seed)
    steps = np.random.default_rng(seed).uniform(1.0, 6.0, count)
    assert look([v * np.float32(s) for v, s in zip(vectors, steps, strict=True)]) == {}


@pytest.mark.parametrize("count", [3, 4, 10])
def test_turned_round(count: int) -> None:
    """3. Same length, opposite direction: among three or more the one stands out. Among two nobody does."""
    vectors = honest(count, 1.0)
    vectors[1] = -vectors[1]
    assert list(look(vectors)) == ["b"]
    assert look(vectors[:2]) == {}


def test_a_lie_about_the_norm() -> None:
    """4. Stretched under an honest claim: the norm tells, even between two; of drawn chunks alone it does not."""
    vectors = honest(2, 1.0)
    size = float(np.linalg.norm(vectors[1]))
    stretched = [vectors[0], vectors[1] * np.float32(50)]
    assert list(look(stretched, claimed={1: size})) == ["b"]
    assert look(stretched, claimed={1: size}, whole=False) == {}
    assert look(vectors, claimed={1: size * 1.01}) == {}


def test_too_long_and_true() -> None:
    """5. A hundredfold upload that says so, in an epoch without a history to clip by."""
    vectors = honest(4, 1.0)
    assert list(look([*vectors[:3], vectors[3] * np.float32(100)])) == ["d"]


def test_a_majority_of_offenders_is_no_outlier() -> None:
    """6. Two of four turned round: whoever is right, the figures cannot say, so nobody is named."""
    vectors = honest(4, 1.0)
    assert look([vectors[0], vectors[1], -vectors[2], -vectors[3]]) == {}


def test_bad_bytes_and_lost_ones() -> None:
    """7. NaN names its maker; an object that is gone names nobody; one of zeros is compared with nobody."""
    found = {
        Hotkey("nan"): Contribution(Reason.NOT_FINITE, 0.0, None, 1.0, 1.0),
        Hotkey("gone"): Contribution(Reason.UNREADABLE, 0.0, None, 1.0, 1.0),
        Hotkey("zero"): Contribution(Reason.OK, 0.0, None, 0.0, 1.0),
        Hotkey("good"): Contribution(Reason.OK, 1.0, 0.2, 1.0, 1.0),
    }
    assert list(offenders(found, True)) == ["nan"]
    assert look([np.zeros(10, np.float32), np.ones(10, np.float32)]) == {}
