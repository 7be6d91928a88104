"""Who is audited, by whom, and what a replay's figures mean (ALGORITHMS 5, vectors 7 and 9)."""

from __future__ import annotations

import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subnet.protocol.ids import Hotkey, ItemId, RunId, Values
from subnet.protocol.messages import AuditFigures
from subnet.protocol.run_spec import Tolerances
from subnet.scoring import deterrence
from subnet.scoring.audit import (
    choose_validator,
    combine,
    is_drawn,
    judge,
    probability,
    segment_of,
    state_digest,
)

BOUNDS = Tolerances(quantiser_steps=2.0, cosine_min=0.98, cosine_p01=0.999, relative_l2=0.02, loss=0.01, state=0.05)

RUN = RunId("run")
HASH = hashlib.sha256(b"a block from after the close").hexdigest()
A, B, C, V, W, X = (Hotkey(name) for name in "ABCVWX")

# ---- commitments and draws -------------------------------------------------------------------------------------------


def test_different_states_have_different_digests() -> None:
    """1. A miner wants one commitment that fits two states: numbers, parts, their number and their order all count."""
    parts = ["aa" * 32, "bb" * 32]
    states = [(1, 2, 3, parts), (12, 3, 3, parts), (1, 23, 3, parts), (1, 2, 33, parts), (3, 2, 1, parts)]
    states += [(1, 2, 3, parts[::-1]), (1, 2, 3, parts[:1]), (1, 2, 3, ["".join(parts)]), (1, 2, 3, [])]
    assert len({state_digest(*state) for state in states}) == len(states)
    assert state_digest(1, 2, 3, parts) == state_digest(1, 2, 3, tuple(parts))


def test_newcomers_are_always_audited_the_settled_at_the_rate() -> None:
    """2. gamma 10 h, c/R 0.8: 4 % at 15-minute epochs, 16 % at 60-minute ones; a newcomer's first epochs always."""
    assert [probability(0.04, 40, n) for n in (0, 1, 2, 40, 80)] == [1.0, 1.0, 0.8, 0.04, 0.02]
    assert probability(0.16, 10, 10) == 0.16 and probability(0.01, 10, 1) == 0.1
    assert probability(0.0, 40, 0) == probability(0.0, 40, 40) == 0.0, "audits are switched off"
    assert probability(1.0, 25, 25) == 1.0
    # at q_m what a cheat stands to lose is what its work would have cost
    loss = deterrence.expected_loss(probability(0.04, 40, 40), detected=1.0, num_unexpired=40, reward=1.0)
    assert loss == pytest.approx(0.8)


@pytest.mark.parametrize("q", [0.04, 0.16, 0.5])
def test_draws_come_as_often_as_they_should(q: float) -> None:
    """3. Over 4,000 hotkeys the share of audited ones is q within four standard deviations."""
    drawn = sum(is_drawn(HASH, RUN, 1, 3, Hotkey(f"hk{i}"), q) for i in range(4000))
    assert abs(drawn - 4000 * q) < 4 * math.sqrt(4000 * q * (1 - q))


def test_certain_and_impossible_draws_are_just_that() -> None:
    """4. Probability 1 audits everybody, 0 nobody; the same block, epoch and hotkey give the same answer again."""
    hotkeys = [Hotkey(f"hk{i}") for i in range(200)]
    assert all(is_drawn(HASH, RUN, 0, 0, hotkey, 1.0) for hotkey in hotkeys)
    assert not any(is_drawn(HASH, RUN, 0, 0, hotkey, 0.0) for hotkey in hotkeys)
    first = [is_drawn(HASH, RUN, 0, 0, hotkey, 0.5) for hotkey in hotkeys]
    assert first == [is_drawn(HASH, RUN, 0, 0, hotkey, 0.5) for hotkey in hotkeys]
    assert first != [is_drawn(HASH, RUN, 0, 1, hotkey, 0.5) for hotkey in hotkeys], "each epoch draws anew"
    assert first != [is_drawn("00" * 32, RUN, 0, 0, hotkey, 0.5) for hotkey in hotkeys], "nobody knows it before"


def test_every_segment_is_drawn_alike() -> None:
    """5. 9 segments, 3,600 miners: each segment 400 times within four standard deviations; no segment, no draw."""
    counts = [0] * 9
    for i in range(3600):
        counts[segment_of(HASH, RUN, 0, 0, Hotkey(f"hk{i}"), 9)] += 1
    assert max(abs(count - 400) for count in counts) < 4 * math.sqrt(400 * 8 / 9)
    with pytest.raises(ValueError):
        segment_of(HASH, RUN, 0, 0, A, 0)


def test_validators_stand_in_line() -> None:
    """6. The first one does not answer: the next attempt asks another one, until all were asked, then round again."""
    line = [choose_validator(HASH, RUN, 0, 0, A, attempt, [V, W, X]) for attempt in range(6)]
    assert set(line[:3]) == {V, W, X} and line[3:] == line[:3]
    assert line == [choose_validator(HASH, RUN, 0, 0, A, attempt, [X, V, W, V]) for attempt in range(6)]
    without = [choose_validator(HASH, RUN, 0, 0, A, attempt, {V, W, X} - {line[0]}) for attempt in range(2)]
    assert without == line[1:3], "a validator that leaves moves nobody else's place"


def test_nobody_audits_itself() -> None:
    """7. A validator that also mines is never asked to audit its own work; alone it leaves the audit to nobody."""
    assert all(choose_validator(HASH, RUN, 0, epoch, V, 0, [V, W]) == W for epoch in range(20))
    assert choose_validator(HASH, RUN, 0, 0, V, 0, [V]) is None and choose_validator(HASH, RUN, 0, 0, V, 0, []) is None
    chosen = [choose_validator(HASH, RUN, 0, epoch, A, 0, [V, W, X]) for epoch in range(300)]
    assert all(70 < chosen.count(validator) < 130 for validator in (V, W, X))


# ---- verdicts --------------------------------------------------------------------------------------------------------

INT8, BF16 = Values.INT8, Values.BF16


def figures(outputs: int = 12, **values: float) -> AuditFigures:
    return AuditFigures(outputs=outputs, worst_item=ItemId("b5.1.2"), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "values", "broken"),
    [
        (figures(), BF16, []),
        (figures(quantiser_steps=2.0, state=0.05, loss=0.01), INT8, []),  # exactly at the bounds
        (figures(cosine_min=0.98, cosine_p01=0.999, relative_l2=0.02), BF16, []),
        (figures(quantiser_steps=2.01), INT8, ["quantiser steps 2.01, allowed 2"]),
        (figures(quantiser_steps=50.0), BF16, []),  # not measured there
        (figures(cosine_min=0.0, cosine_p01=0.0, relative_l2=9.0), INT8, []),
        (figures(cosine_min=0.97), BF16, ["lowest cosine 0.97, asked 0.98"]),
        (figures(cosine_p01=0.99), BF16, ["1 % cosine 0.99, asked 0.999"]),
        (figures(relative_l2=0.5), BF16, ["relative L2 0.5, allowed 0.02"]),
        (figures(loss=0.2), INT8, ["loss difference 0.2, allowed 0.01"]),
        (figures(state=1.0), INT8, ["state distance 1, allowed 0.05"]),
        (figures(state=1.0, loss=0.2), INT8, ["state distance 1", "loss difference 0.2"]),
        (figures(0), INT8, []),
        (figures(0, quantiser_steps=99.0, loss=9.0), INT8, []),  # nothing was compared
        (figures(0, state=0.06), INT8, ["state distance 0.06"]),
        (figures(state=math.nan), INT8, ["state distance nan"]),
        (figures(quantiser_steps=math.inf), INT8, ["quantiser steps inf"]),
        (figures(loss=-math.inf), INT8, ["loss difference -inf"]),
        (figures(cosine_min=math.nan), BF16, ["lowest cosine nan"]),
        (figures(cosine_p01=math.inf), BF16, ["1 % cosine inf"]),
    ],
)
def test_figures_are_judged_by_the_tolerances(found: AuditFigures, values: Values, broken: list[str]) -> None:
    """8. Each bound by itself, several at once, none; what is no number fails; the sentence says by how much."""
    passed, sentence = judge(found, BOUNDS, values)
    assert passed is not bool(broken), sentence
    assert all(part in sentence for part in broken) and len(sentence) <= 300
    assert passed or "b5.1.2" in sentence


def test_failing_takes_more_than_half_of_the_stake() -> None:
    """9. Two validators of equal stake disagree: the miner passes. A majority of heads with little stake is none."""
    assert combine({}) is None
    assert combine({V: (False, 10.0)}) is False and combine({V: (True, 10.0)}) is True
    assert combine({V: (False, 10.0), W: (True, 10.0)}) is True
    assert combine({V: (False, 10.0), W: (True, 9.999)}) is False
    assert combine({V: (False, 3.0), W: (False, 3.0), X: (True, 7.0)}) is True
    assert combine({V: (False, 0.0), W: (False, 0.0)}) is True, "no stake accuses nobody"
    assert combine({V: (False, math.nan), W: (False, -5.0), X: (False, math.inf)}) is True
    assert combine({V: (False, 1e16), W: (False, 1.0), X: (True, 1e16)}) is False, "one alpha decides"
    assert combine({V: (False, 0.1), W: (False, 0.2), X: (True, 0.3)}) is False, "0.1 + 0.2 is more than 0.3, in floats"


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e18)), min_size=1, max_size=12), st.randoms())
def test_the_order_of_validators_does_not_matter(found: list[tuple[bool, float]], rng: object) -> None:
    """10. Every validator folds the findings in its own order; all come to the same verdict, and more stake for it
    never turns it."""
    findings = {Hotkey(f"v{i}"): one for i, one in enumerate(found)}
    mixed = list(findings.items())
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    verdict = combine(findings)
    assert combine(dict(mixed)) is verdict
    assert combine({**findings, X: (bool(verdict), 5.0)}) is verdict


# ---- what audits are worth -------------------------------------------------------------------------------------------


def test_vector_7_one_cosine_hides_a_fifth_of_the_tokens() -> None:
    """11. Zeroing 19 % of the energy leaves a cosine of 0.9 over the whole tensor."""
    assert deterrence.cosine_after_zeroing(0.19) == pytest.approx(0.9, abs=1e-12)
    whole = [math.sin(i) for i in range(1000)]
    energy, kept = sum(x * x for x in whole), list(whole)
    for i in range(1000):
        if sum(x * x for x in kept) <= 0.81 * energy:
            break
        kept[i] = 0.0
    dot = sum(x * y for x, y in zip(whole, kept, strict=True))
    assert dot / math.sqrt(energy * sum(y * y for y in kept)) == pytest.approx(0.9, abs=2e-3)


def test_vector_9_how_often_a_score_is_audited() -> None:
    """12. V = 10, M = 250, gamma 10 h: E[K] and P(0) at 60, 15 and 5 minutes between syncs."""
    hours = 3600.0
    expected = [(60, 0.4, 0.665), (15, 1.6, 0.195), (5, 4.8, 0.007)]
    for minutes, mean, none in expected:
        assert deterrence.expected_audits(10, 250, 10 * hours, minutes * 60) == pytest.approx(mean)
        assert deterrence.unaudited(10, 250, 10 * hours, minutes * 60) == pytest.approx(none, abs=6e-4)


def test_how_many_items_find_a_cheat() -> None:
    """13. k for 95 %: 299 at 1 %, 59 at 5 %, 29 at 10 %, 5 at 50 %; one item fewer is not enough."""
    for fraction, items in [(0.01, 299), (0.05, 59), (0.1, 29), (0.5, 5)]:
        assert deterrence.detection(fraction, items) >= 0.95 > deterrence.detection(fraction, items - 1)
    assert deterrence.detection(1.0, 1) == 1.0 and deterrence.detection(0.5, 0) == 0.0
