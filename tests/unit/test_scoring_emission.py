"""From credit to weights, and why: ALGORITHMS 6, vector 2."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.protocol.ids import Epoch, Hotkey, Pass
from subnet.protocol.reasons import REMEDY, Reason
from subnet.protocol.run_spec import ScoreSpec
from subnet.scoring.emission import (
    Basis,
    EpochCredit,
    Forfeit,
    Payslip,
    Void,
    emission,
    explain,
    gate,
    payout_correlation,
    score,
    window,
)
from subnet.scoring.ledger import Credit, Ledger

HOUR = 3600.0
GAMMA_S = 10 * HOUR
OWNER = 0
A, B, C, D = (Hotkey(name) for name in "ABCD")
UIDS = {A: 1, B: 2, C: 3}


def credit(closed_h: float, units: Mapping[Hotkey, float], epoch: int = 0, **more: object) -> EpochCredit:
    return EpochCredit(epoch=Epoch(epoch), closed_at=closed_h * HOUR, work_units=units, **more)  # type: ignore[arg-type]


def basis(*epochs: EpochCredit, at_h: float = 9.0, burn: float = 0.0, **more: object) -> Basis:
    told: dict[str, object] = {"forfeits": (), "uids": UIDS, "owner_uid": OWNER, "at": at_h * HOUR, "epochs": epochs}
    return Basis(rules=ScoreSpec(gamma_s=GAMMA_S, burn_fraction=burn), **(told | more))  # type: ignore[arg-type]


def slip(on: Basis, hotkey: Hotkey = A) -> Payslip:
    return explain(on, emission(on), hotkey)


# ---- scores ----------------------------------------------------------------------------------------------------------

VECTOR_2 = (credit(0, {A: 100.0}), credit(6, {A: 50.0}, 1), credit(9, {A: 70.0}, 2))


@pytest.mark.parametrize(("at_h", "expected"), [(9.0, 220.0), (10.0, 220.0), (10.5, 120.0), (16.5, 70.0), (19.5, 0.0)])
def test_vector_2_scores_expire_at_gamma(at_h: float, expected: float) -> None:
    """1. Scores 100, 50, 70 at 0, 6, 9 h, gamma 10 h: at 9 h 220; at 10 h 220 still (<=); at 10.5 h 120."""
    assert score(basis(*VECTOR_2, at_h=at_h), A) == expected
    assert score(basis(*VECTOR_2[::-1], at_h=at_h), A) == expected


def test_what_is_still_to_come_does_not_count() -> None:
    """2. Weights of 5 h ago are recomputed from today's journal: only the epochs of then are in them."""
    assert score(basis(*VECTOR_2, at_h=4.0), A) == 100.0
    late = Forfeit(hotkey=A, at=5 * HOUR, reason=Reason.AUDIT_FAILED, sentence="noise")
    assert score(basis(*VECTOR_2, at_h=4.0, forfeits=(late,)), A) == 100.0
    assert score(basis(*[credit(h / 2, {A: 0.1}) for h in range(10)]), A) == 1.0, "sums are rounded once"
    assert [window(age_s, 10.0) for age_s in (-0.1, 0.0, 10.0, 10.1)] == [0.0, 1.0, 1.0, 0.0]


def test_completion_scales_an_epochs_credit() -> None:
    """3. A miner brought 3 of 4 backwards back; another took forwards only and gets nothing, though it did work."""
    on = basis(credit(8, {A: 40.0, B: 10.0, C: 40.0}, completion={A: 0.75, B: 0.0}))
    assert emission(on).scores == {A: 30.0, B: 0.0, C: 40.0}
    assert slip(on, B).reason is Reason.NO_COUNTED_WORK and "no backward that was due" in slip(on, B).sentence


def test_credit_waits_for_its_audits() -> None:
    """4. The newest epoch's audits are not settled: it does not count yet, older ones do."""
    pending = {hotkey: Void(Reason.AUDIT_PENDING, "its audits are not settled") for hotkey in (A, B)}
    on = basis(VECTOR_2[0], credit(9, {A: 70.0, B: 5.0}, 1, void=pending))
    assert emission(on).scores == {A: 100.0, B: 0.0}
    assert slip(on).reason is Reason.PAID and "1 audit-pending" in slip(on).sentence
    waiting = slip(on, B)
    assert waiting.reason is Reason.AUDIT_PENDING and "not settled" in waiting.sentence
    assert waiting.remedy == REMEDY[Reason.AUDIT_PENDING]


def failed(at_h: float, hotkey: Hotkey = A) -> Forfeit:
    return Forfeit(hotkey=hotkey, at=at_h * HOUR, reason=Reason.AUDIT_FAILED, sentence="epoch 1: state distance 1")


def test_a_failed_audit_forfeits_what_was_and_what_comes() -> None:
    """5. Failed at 7 h, gamma 10 h: nothing until 17 h, whatever it does; work of epochs that close later counts."""
    epochs = [credit(float(hour), {A: 1.0, B: 1.0}, hour) for hour in range(0, 30)]
    for hour in range(7, 18):
        assert emission(basis(*epochs, at_h=hour, forfeits=(failed(7),))).scores[A] == 0.0
    paid = [score(basis(*epochs, at_h=hour, forfeits=(failed(7),)), A) for hour in (6, 17, 17.5, 18, 20, 28)]
    assert paid == [7.0, 0.0, 0.0, 1.0, 3.0, 11.0]
    on = basis(*epochs, at_h=8, forfeits=(failed(7),))
    assert score(on, B) == 9.0, "nobody else is touched"
    assert slip(on).reason is Reason.AUDIT_FAILED and slip(on).gate.forfeit == 0.0
    assert "state distance 1" in slip(on).sentence and "another 32400 s" in slip(on).sentence
    # when the forfeit is over, its lines still say why they are void
    after = slip(basis(*epochs, at_h=18, forfeits=(failed(7),)))
    assert [line.counted for line in after.lines if line.age_s <= GAMMA_S] == [0.0] * 10 + [1.0]
    assert after.lines[-2].reason is Reason.AUDIT_FAILED and after.reason is Reason.PAID


def test_two_failures_last_as_long_as_the_later_one() -> None:
    """6. Failed at 2 h and at 7 h, told in any order: until 17 h, to the second; the words are those of the later."""
    epochs = [credit(float(hour), {A: 1.0}, hour) for hour in range(0, 20)]
    first = Forfeit(hotkey=A, at=2 * HOUR, reason=Reason.WRONG_SHARD, sentence="shard 3 was wrong")
    for forfeits in [(first, failed(7)), (failed(7), first)]:
        told = slip(basis(*epochs, at_h=17, forfeits=forfeits))
        assert (told.gate.forfeit, told.reason) == (0.0, Reason.AUDIT_FAILED) and told.lines[-1].reason is told.reason
        assert [score(basis(*epochs, at_h=hour, forfeits=forfeits), A) for hour in (13, 17, 18)] == [0.0, 0.0, 1.0]


def test_multipliers_are_rounded_before_use() -> None:
    """7. Two validators' CLASP estimates differ in the last bits: rounded to six decimals, their scores are equal."""
    one = basis(credit(8, {A: 10.0}), clasp={A: 0.1 + 0.2}, agreement={A: 0.5000000004})
    other = basis(credit(8, {A: 10.0}), clasp={A: 0.3}, agreement={A: 0.5})
    assert score(one, A) == score(other, A) == pytest.approx(1.5)
    wild = basis(credit(8, {A: 10.0}), clasp={A: math.nan}, agreement={A: 7.0})
    assert gate(wild, A) == (1.0, 1.0, 0.0) and gate(wild, B) == (1.0, 1.0, 1.0)


def test_a_withdrawn_pass_leaves_no_negative_credit() -> None:
    """8. Credit was booked and taken back: what rounding left below zero is nothing."""
    on = basis(credit(8, {A: -1e-17, B: 1.0}))
    assert emission(on) == ({A: 0.0, B: 1.0}, {2: 1.0})


def test_who_has_no_uid_thins_out_nobody() -> None:
    """9. D was deregistered: its share goes to the others by their scores, and D is told to register."""
    on = basis(credit(8, {A: 30.0, B: 10.0, D: 1000.0}))
    assert emission(on).weights == {1: 0.75, 2: 0.25}
    gone = slip(on, D)
    assert (gone.uid, gone.share, gone.weight, gone.reason) == (None, 0.0, 0.0, Reason.NO_UID)
    assert gone.score == 1000.0 and "btcli" in gone.remedy


# ---- payslips --------------------------------------------------------------------------------------------------------

BURN = st.one_of(st.sampled_from([0.0, 1.0, 0.1, 0.5]), st.floats(0, 1))
HISTORY = st.lists(
    st.tuples(
        st.floats(0, 20),
        st.dictionaries(st.sampled_from([A, B, C, D]), st.floats(0, 100), max_size=4),
        st.dictionaries(st.sampled_from([A, B, C, D]), st.floats(0, 1), max_size=4),
        st.sets(st.sampled_from([A, B, C, D]), max_size=2),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(
    history=HISTORY,
    failures=st.lists(st.tuples(st.sampled_from([A, B, D]), st.floats(0, 20)), max_size=3),
    multipliers=st.dictionaries(st.sampled_from([A, B, C, D]), st.floats(0, 1), max_size=4),
    at_h=st.floats(0, 25),
    burn=BURN,
    rng=st.randoms(use_true_random=False),
)
def test_every_payslip_adds_up_and_every_zero_has_a_reason(
    history: list[tuple[float, dict[Hotkey, float], dict[Hotkey, float], set[Hotkey]]],
    failures: list[tuple[Hotkey, float]],
    multipliers: dict[Hotkey, float],
    at_h: float,
    burn: float,
    rng: random.Random,
) -> None:
    """10. Any run, any moment: score = gate x what the lines count, weight = share of what is not burnt, the same from
    inputs in another order; who gets nothing is told why and what to do."""
    pending = Void(Reason.AUDIT_PENDING, "waits")
    epochs = [
        credit(hour, units, epoch, completion=done, void=dict.fromkeys(waits, pending))
        for epoch, (hour, units, done, waits) in enumerate(history)
    ]
    forfeits = [failed(hour, hotkey) for hotkey, hour in failures]
    on = basis(*epochs, at_h=at_h, burn=burn, forfeits=tuple(forfeits), agreement=multipliers)
    paid = emission(on)
    rng.shuffle(epochs)
    rng.shuffle(forfeits)
    mixed = msgspec.structs.replace(on, epochs=tuple(epochs), forfeits=tuple(forfeits))
    assert emission(mixed) == paid
    for hotkey in (A, B, C, D):
        told = explain(on, paid, hotkey)
        assert told == explain(mixed, paid, hotkey)
        assert told.score == told.gate.product * math.fsum(line.counted for line in told.lines)
        assert told.score == paid.scores.get(hotkey, 0.0) and told.weight == paid.weights.get(told.uid or -1, 0.0)
        assert told.weight == pytest.approx((1 - round(burn * 2**53) / 2**53) * told.share, abs=1e-12)
        assert told.sentence and told.remedy == REMEDY[told.reason] and len(told.sentence) <= 300
        assert (told.reason is Reason.PAID) == (told.uid is not None and told.score > 0.0 and burn < 1.0)
        assert all((line.reason is Reason.PAID) == (line.counted > 0.0) and line.sentence for line in told.lines)


ZEROS: list[tuple[Basis, Reason, str]] = [
    (basis(), Reason.NO_COUNTED_WORK, "no accepted work in a closed epoch"),
    (basis(credit(8, {B: 1.0})), Reason.NO_COUNTED_WORK, "no accepted work"),
    (basis(credit(8, {A: 0.0, B: 1.0})), Reason.NO_COUNTED_WORK, "1 no-counted-work"),
    (basis(*VECTOR_2[:2], at_h=17.0), Reason.EXPIRED, "2 expired"),
    (
        basis(credit(8, {A: 1.0}, void={A: Void(Reason.SKIPPED_MERGE, "it did not upload")})),
        Reason.SKIPPED_MERGE,
        "it did",
    ),
    (basis(credit(8, {A: 1.0}, void={A: Void(Reason.NOT_REVEALED, "disk lost")})), Reason.NOT_REVEALED, "disk lost"),
    (
        basis(VECTOR_2[0], credit(8, {}, 1, void={A: Void(Reason.NOT_REVEALED, "x")}), at_h=12.0),
        Reason.NOT_REVEALED,
        "x",
    ),
    (basis(*VECTOR_2, forfeits=(failed(8),)), Reason.AUDIT_FAILED, "state distance 1"),
    (basis(forfeits=(failed(8),)), Reason.AUDIT_FAILED, "state distance 1"),  # and nothing else to its name
    (basis(*VECTOR_2, agreement={A: 0.0}), Reason.WRONG_SHARD, "agreement multiplier is 0"),
    (basis(*VECTOR_2, clasp={A: 1e-9}), Reason.AUDIT_FAILED, "CLASP multiplier is 0"),
    (basis(*VECTOR_2, uids={B: 2}), Reason.NO_UID, "score of 220"),
    (basis(*VECTOR_2, burn=1.0), Reason.PAUSED, "burns all weight"),
]


@pytest.mark.parametrize(("on", "reason", "said"), ZEROS, ids=[f"{i} {zero[1]}" for i, zero in enumerate(ZEROS)])
def test_every_zero_is_explained(on: Basis, reason: Reason, said: str) -> None:
    """11. A miner asks why it gets nothing: one reason, the figures behind it, and what it can do."""
    told = slip(on)
    assert told.weight == 0.0 and told.reason is reason and said in told.sentence, told.sentence
    assert told.remedy == REMEDY[reason]


def test_a_payslip_in_words() -> None:
    """12. What is paid is told with its parts."""
    told = slip(basis(*VECTOR_2, credit(8, {B: 110.0}, 3), at_h=10.5, burn=0.5, clasp={A: 0.5}))
    assert told.sentence == "17.6471% of the weight for 120 work units x gate 0.5 = 60 (3 epochs: 2 paid, 1 expired)"
    assert [line.reason for line in told.lines] == [Reason.EXPIRED, Reason.PAID, Reason.PAID]
    assert told.share == pytest.approx(60 / 170) and told.uid == 1


# ---- pay and work ----------------------------------------------------------------------------------------------------


def test_pay_is_compared_with_work() -> None:
    """13. Pay in proportion to work is r = 1; equal pay for unequal work is not; who was not paid counts as 0."""
    work = {A: 1.0, B: 1.0, C: 2.0, D: 4.0}
    assert payout_correlation({h: 0.1 * w for h, w in work.items()}, work) == pytest.approx(1.0)
    assert payout_correlation(dict.fromkeys(work, 0.25), work) == 0.0
    assert payout_correlation(work, dict.fromkeys(work, 2.0)) == 0.0
    assert payout_correlation({A: 0.1, B: 0.1 + 1e-13}, {A: 2.0 + 1e-12, B: 2.0}) == 1.0, "equal but for rounding"
    assert payout_correlation({}, {A: 1.0}) == payout_correlation({}, {}) == 1.0
    assert payout_correlation({A: 1.0, B: 1.0, C: 2.0}, work) < 0.0
    assert payout_correlation({A: 1.0, B: 1.0, C: 2.0, D: 3.9}, work) > 0.99


def test_pay_follows_verified_work_at_different_speeds() -> None:
    """14. --speeds 1,1,2,4 over eight epochs with noise in each: r >= 0.99 between work and weight."""
    rng = random.Random(7)
    speeds = {A: 1.0, B: 1.0, C: 2.0, D: 4.0}
    epochs = [credit(h, {m: v * rng.uniform(0.8, 1.2) for m, v in speeds.items()}, h) for h in range(8)]
    on = basis(*epochs, uids=UIDS | {D: 4}, burn=0.1)
    work = {m: math.fsum(epoch.work_units[m] for epoch in epochs) for m in speeds}
    paid = {m: emission(on).weights[on.uids[m]] for m in speeds}
    assert payout_correlation(paid, work) >= 0.99


# ---- the ledger's part -----------------------------------------------------------------------------------------------


def test_completion_counts_backwards_that_anybody_did() -> None:
    """15. A did three forwards: one backward by itself, one taken over by B, one never done by anyone."""
    ledger = Ledger()
    for _ in range(3):
        ledger.credit(0, A, Pass.FORWARD, 0.5)
    assert ledger.epochs[0][A].completion == 1.0, "nothing is due yet"
    ledger.settle(0, A, A)
    ledger.settle(0, A, B)
    assert (ledger.epochs[0][A].due, ledger.epochs[0][A].returned) == (2, 1)
    assert ledger.epochs[0][A].completion == 0.5 and B not in ledger.epochs[0], "a take-over owes nothing"
    ledger.settle(0, A, B, -1)
    assert ledger.epochs[0][A].completion == 1.0, "B's gradient was bad: the backward is open again"
    ledger.settle(0, A, A, -1)
    assert ledger.epochs[0][A].completion == 1.0 and ledger.epochs[0][A].due == 0
    assert Credit(due=-1, returned=-1).completion == 1.0 and Credit(due=2, returned=-1).completion == 0.0


def test_an_older_journals_ledger_still_loads() -> None:
    """16. A snapshot of step 1 has no such counters."""
    old = b'{"epochs":{"0":{"A":{"work_units":2.5,"forwards":3,"backwards":1,"losses":0}}}}'
    ledger = msgspec.json.decode(old, type=Ledger)
    assert ledger.total(A) == 2.5 and ledger.epochs[0][A].completion == 1.0
    assert msgspec.json.decode(msgspec.json.encode(ledger), type=Ledger) == ledger
