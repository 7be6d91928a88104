"""From scores to weights for the chain: exact, order-free, nothing to gain by splitting (ALGORITHMS 6)."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.protocol.ids import Epoch, Hotkey
from subnet.protocol.run_spec import ScoreSpec
from subnet.scoring.emission import Basis, EpochCredit, emission, weights

OWNER = 0
A, B, D = (Hotkey(name) for name in "ABD")
UIDS = {A: 1, B: 2}


def test_shares_follow_scores_and_the_rest_is_burnt() -> None:
    """1. Scores 30, 10 and a quarter burnt: 9/16, 3/16, and 1/4 to the owner's uid."""
    assert weights({A: 30.0, B: 10.0}, UIDS, OWNER, 0.25) == {0: 0.25, 1: 0.5625, 2: 0.1875}
    assert weights({B: 10.0, A: 30.0}, UIDS, OWNER, 0.0) == {1: 0.75, 2: 0.25}
    assert list(weights({B: 10.0, A: 30.0}, {A: 9, B: 2}, OWNER, 0.25)) == [0, 2, 9], "in the order of uids"
    assert weights({A: 10.0, B: 10.0}, UIDS, 1, 0.5) == {1: 0.75, 2: 0.25}, "the owner's uid mines too"


def test_without_any_score_the_owner_gets_everything() -> None:
    """2. Nobody worked; only zeros; only hotkeys without uid; all is burnt."""
    for scores in ({}, {A: 0.0, B: 0.0}, {D: 5.0}):
        assert weights(scores, UIDS, OWNER, 0.0) == weights(scores, UIDS, OWNER, 0.5) == {OWNER: 1.0}
    assert weights({A: 3.0}, UIDS, OWNER, 1.0) == {OWNER: 1.0}


def test_a_score_that_is_no_number_stops_everything() -> None:
    """3. An infinite score can only be a mistake of ours: better no weights than wrong ones."""
    for value in (math.inf, math.nan):
        with pytest.raises(ValueError, match="score of A"):
            weights({A: value}, UIDS, OWNER, 0.0)


SCORES = st.dictionaries(
    st.integers(1, 255).map(lambda uid: Hotkey(f"hk{uid}")), st.floats(0, 1e12, allow_subnormal=True), max_size=40
)
BURN = st.one_of(st.sampled_from([0.0, 1.0, 0.1, 0.5]), st.floats(0, 1))


def uids_of(scores: Mapping[Hotkey, float]) -> dict[Hotkey, int]:
    return {hotkey: int(hotkey[2:]) for hotkey in scores}


@settings(max_examples=200, deadline=None)
@given(scores=SCORES, burn=BURN, rng=st.randoms(use_true_random=False))
def test_weights_are_a_distribution_to_the_last_bit(
    scores: dict[Hotkey, float], burn: float, rng: random.Random
) -> None:
    """4. Whatever the scores: finite, positive, exactly 1 together in any order of adding; the order of the inputs
    does not matter, to the last bit."""
    found = weights(scores, uids_of(scores), OWNER, burn)
    values = list(found.values())
    assert all(0.0 < value <= 1.0 for value in values) and list(found) == sorted(found)
    assert sum(values) == sum(reversed(values)) == 1.0
    mixed = list(scores.items())
    rng.shuffle(mixed)
    again = weights(dict(mixed), uids_of(dict(mixed)), OWNER, burn)
    assert list(again.items()) == list(found.items())
    total = sum(scores.values())
    if total:
        assert found.get(OWNER, 0.0) == round(burn * 2**53) / 2**53, "nothing that was rounded off falls to the owner"
    if total > 1e-9:
        for hotkey, value in scores.items():
            expected = (1 - burn) * value / total
            assert found.get(int(hotkey[2:]), 0.0) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(scores=SCORES, own=st.floats(0, 1e9), more=st.floats(0, 1e9), burn=BURN)
def test_more_work_never_pays_less(scores: dict[Hotkey, float], own: float, more: float, burn: float) -> None:
    """5. The same rivals, the same miner with more verified work: never less weight, not even in the last bit."""
    uids = uids_of(scores) | {A: 256}
    before = weights(scores | {A: own}, uids, OWNER, burn).get(256, 0.0)
    after = weights(scores | {A: own + more}, uids, OWNER, burn).get(256, 0.0)
    assert after >= before


def paid_for(epochs: list[dict[Hotkey, float]], uids: Mapping[Hotkey, int], burn: float) -> dict[int, float]:
    credits = [EpochCredit(epoch=Epoch(i), closed_at=float(i), work_units=units) for i, units in enumerate(epochs)]
    rules = ScoreSpec(gamma_s=100.0, burn_fraction=burn)
    on = Basis(at=50.0, rules=rules, epochs=tuple(credits), forfeits=(), uids=uids, owner_uid=OWNER)
    return emission(on).weights


@settings(max_examples=100, deadline=None)
@given(
    units=st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=6),
    parts=st.integers(1, 8),
    rivals=SCORES,
    burn=BURN,
)
def test_splitting_gains_nothing(units: list[float], parts: int, rivals: dict[Hotkey, float], burn: float) -> None:
    """6. One machine registers k hotkeys and spreads its epochs' work over them: together they get what one got."""
    sybils = [Hotkey(f"sybil{i}") for i in range(parts)]
    uids = uids_of(rivals) | {A: 300} | {sybil: 301 + i for i, sybil in enumerate(sybils)}
    whole, split = [], []
    for epoch, work in enumerate(units):
        others = rivals if epoch == 0 else {}
        whole.append({**others, A: work})
        split.append({**others, **dict.fromkeys(sybils, work / parts)})
    alone, together = paid_for(whole, uids, burn), paid_for(split, uids, burn)
    assert math.fsum(together.get(uids[sybil], 0.0) for sybil in sybils) == pytest.approx(
        alone.get(300, 0.0), abs=1e-12, rel=1e-12
    )


def test_an_exact_split_gains_not_one_bit() -> None:
    """7. Halves and quarters are exact in floats: the identities never get more than the one had."""
    rng = random.Random(5)
    for _ in range(300):
        rivals = {Hotkey(f"hk{i}"): rng.random() for i in range(1, rng.randint(2, 9))}
        whole, parts = rng.random() * 3, rng.choice([2, 4, 8])
        uids = uids_of(rivals) | {A: 100} | {Hotkey(f"s{i}"): 101 + i for i in range(parts)}
        alone = weights(rivals | {A: whole}, uids, OWNER, 0.1)[100]
        together = weights(rivals | {Hotkey(f"s{i}"): whole / parts for i in range(parts)}, uids, OWNER, 0.1)
        assert sum(weight for uid, weight in together.items() if uid > 100) <= alone
