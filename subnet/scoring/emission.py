"""From credit to pay: scores, gates and the weights for the chain (ALGORITHMS 6).

    S_m^n    = work units of miner m in epoch n x completion        0 where it is void or forfeited
    I_m      = gate_m x sum_n S_m^n w(t - t_n)                      w = 1 up to the age gamma, then 0
    gate_m   = forfeit (0 or 1) x agreement x CLASP                 multipliers in [0, 1], rounded to 6 decimals
    weight_m = (1 - burn_fraction) x I_m / sum I                    burn_fraction to the owner's uid

Forfeit law: a failure at time f voids every epoch that closed at or before f + gamma: what was earned before it, and
what is earned while the forfeit lasts. Credit of later epochs counts again.

Law: pure, exact, independent of the order of its inputs. Sums are correctly rounded (fsum); weights are whole multiples
of 2^-53, so every validator gets the same bits and they add up to exactly 1 in any order. Each miner's part is rounded
down and what is left goes to the highest score (the lowest uid of equal ones): more work never pays less, and splitting
into several identities gains nothing. Every amount has a reason, zero too; a payslip and a weight come from one sum.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple

from msgspec import Struct, field, structs

from subnet.protocol.ids import Epoch, Hotkey
from subnet.protocol.reasons import REMEDY, Reason
from subnet.protocol.run_spec import ScoreSpec

WEIGHT_UNITS = 2**53
MULTIPLIER_DECIMALS = 6

# ---- what pay depends on ---------------------------------------------------------------------------------------------


class Void(Struct, frozen=True):
    """Why an epoch's credit of one hotkey does not count, for now or for good."""

    reason: Reason
    """AUDIT_PENDING, SKIPPED_MERGE, ..."""
    sentence: str


class EpochCredit(Struct, frozen=True, kw_only=True):
    """The accepted work of one epoch; one stage's or all stages', as long as each credit comes once."""

    epoch: Epoch
    closed_at: float
    """t_n: when its training closed."""
    work_units: Mapping[Hotkey, float]
    completion: Mapping[Hotkey, float] = field(default_factory=dict)
    """Backwards returned / backwards due; 1 where nothing is said."""
    void: Mapping[Hotkey, Void] = field(default_factory=dict)


class Forfeit(Struct, frozen=True, kw_only=True):
    """A failed audit, or another proof: the miner loses every unexpired score."""

    hotkey: Hotkey
    at: float
    reason: Reason
    sentence: str


class Basis(Struct, frozen=True, kw_only=True):
    """Everything pay depends on, at one moment of the journal."""

    at: float
    """Unix time in seconds; later epochs and forfeits are not looked at."""
    rules: ScoreSpec
    epochs: tuple[EpochCredit, ...]
    forfeits: tuple[Forfeit, ...]
    uids: Mapping[Hotkey, int]
    owner_uid: int
    agreement: Mapping[Hotkey, float] = field(default_factory=dict)
    clasp: Mapping[Hotkey, float] = field(default_factory=dict)


# ---- what comes of it ------------------------------------------------------------------------------------------------


class PayLine(NamedTuple):
    """One epoch of one miner."""

    epoch: Epoch
    age_s: float
    work_units: float
    completion: float
    counted: float
    """What goes into the score, before the gate."""
    reason: Reason
    sentence: str


class Gate(NamedTuple):
    """What a score is multiplied with."""

    forfeit: float
    agreement: float
    clasp: float

    @property
    def product(self) -> float:
        return self.forfeit * self.agreement * self.clasp


class Emission(NamedTuple):
    """Every miner's score, and the weights by uid (positive ones only, in the order of uids)."""

    scores: dict[Hotkey, float]
    weights: dict[int, float]


class Payslip(NamedTuple):
    """Why one miner gets what it gets: every part of the formula, and the words for it."""

    hotkey: Hotkey
    uid: int | None
    lines: tuple[PayLine, ...]
    gate: Gate
    score: float
    share: float
    """Of all scores that have a uid."""
    weight: float
    """Of the uid, on the chain; the owner's holds the burnt part too."""
    reason: Reason
    sentence: str
    remedy: str


# ---- scores ----------------------------------------------------------------------------------------------------------


def window(age_s: float, gamma_s: float) -> float:
    """w: step decay."""
    return 1.0 if 0.0 <= age_s <= gamma_s else 0.0


def lines(basis: Basis, hotkey: Hotkey) -> tuple[PayLine, ...]:
    """What each closed epoch brings the miner, oldest first."""
    gamma_s = basis.rules.gamma_s
    failures = _failures(basis, hotkey)
    found = []
    for credit in sorted(basis.epochs, key=lambda credit: (credit.closed_at, credit.epoch)):
        age_s, void = basis.at - credit.closed_at, credit.void.get(hotkey)
        if age_s < 0.0 or (hotkey not in credit.work_units and void is None):
            continue
        units = max(0.0, credit.work_units.get(hotkey, 0.0))
        completion = min(1.0, max(0.0, credit.completion.get(hotkey, 1.0)))
        failure = next((f for f in failures if credit.closed_at <= f.at + gamma_s), None)
        counted = 0.0
        if not window(age_s, gamma_s):
            reason, said = Reason.EXPIRED, f"{age_s:.0f} s old, more than the {gamma_s:.0f} s that pay"
        elif failure is not None:
            reason, said = failure.reason, f"forfeited: {failure.sentence}"
        elif void is not None:
            reason, said = void.reason, void.sentence
        elif not units * completion:
            reason = Reason.NO_COUNTED_WORK
            said = "no backward that was due came back" if units else "no accepted pass"
        else:
            counted = units * completion
            reason, said = Reason.PAID, f"counts for another {gamma_s - age_s:.0f} s"
        found.append(PayLine(credit.epoch, age_s, units, completion, counted, reason, said))
    return tuple(found)


def gate(basis: Basis, hotkey: Hotkey) -> Gate:
    """The miner's multipliers now."""
    failed = any(basis.at <= failure.at + basis.rules.gamma_s for failure in _failures(basis, hotkey))
    return Gate(0.0 if failed else 1.0, _multiplier(basis.agreement, hotkey), _multiplier(basis.clasp, hotkey))


def score(basis: Basis, hotkey: Hotkey) -> float:
    """I_m."""
    return _score(gate(basis, hotkey), lines(basis, hotkey))


def _score(gates: Gate, found: Iterable[PayLine]) -> float:
    return gates.product * math.fsum(line.counted for line in found)


def _failures(basis: Basis, hotkey: Hotkey) -> list[Forfeit]:
    """Newest first: the one that ends last is the one to be told."""
    mine = [failure for failure in basis.forfeits if failure.hotkey == hotkey and failure.at <= basis.at]
    return sorted(mine, key=lambda failure: (-failure.at, failure.reason, failure.sentence))


def _multiplier(values: Mapping[Hotkey, float], hotkey: Hotkey) -> float:
    return round(min(1.0, max(0.0, values.get(hotkey, 1.0))), MULTIPLIER_DECIMALS)


# ---- weights ---------------------------------------------------------------------------------------------------------


def weights(
    scores: Mapping[Hotkey, float], uids: Mapping[Hotkey, int], owner_uid: int, burn_fraction: float
) -> dict[int, float]:
    """Scores as weights by uid: exactly 1 together, only positive ones, in the order of uids.

    A hotkey without uid gets nothing and does not thin out the others. With no score at all everything goes to the
    owner's uid. Raises ValueError for a score that is not finite.
    """
    parts: dict[int, Fraction] = {}
    for hotkey, value in scores.items():
        if not math.isfinite(value):
            raise ValueError(f"the score of {hotkey} is {value}")
        if value > 0.0 and hotkey in uids:
            parts[uids[hotkey]] = parts.get(uids[hotkey], Fraction(0)) + Fraction(value)
    if not parts:
        return {owner_uid: 1.0}
    total = sum(parts.values())
    burnt = round(burn_fraction * WEIGHT_UNITS)
    paid = WEIGHT_UNITS - burnt
    units = {uid: int(paid * part // total) for uid, part in parts.items()}
    units[min(parts, key=lambda uid: (-parts[uid], uid))] += paid - sum(units.values())
    units[owner_uid] = units.get(owner_uid, 0) + burnt
    return {uid: units[uid] / WEIGHT_UNITS for uid in sorted(units) if units[uid]}


def emission(basis: Basis) -> Emission:
    """Scores of all who worked, and the weights."""
    hotkeys = sorted({hotkey for credit in basis.epochs for hotkey in credit.work_units})
    unexpired = tuple(credit for credit in basis.epochs if window(basis.at - credit.closed_at, basis.rules.gamma_s))
    recent = structs.replace(basis, epochs=unexpired)  # the others add zeros, but in a long run most of the time
    scores = {hotkey: score(recent, hotkey) for hotkey in hotkeys}
    return Emission(scores, weights(scores, basis.uids, basis.owner_uid, basis.rules.burn_fraction))


# ---- in words --------------------------------------------------------------------------------------------------------


def explain(basis: Basis, paid: Emission, hotkey: Hotkey) -> Payslip:
    """The payslip of any hotkey, known or not; `paid` is `emission(basis)`."""
    found, gates, uid = lines(basis, hotkey), gate(basis, hotkey), basis.uids.get(hotkey)
    value = _score(gates, found)
    total = math.fsum(part for other, part in paid.scores.items() if other in basis.uids)
    share = value / total if total > 0.0 and uid is not None else 0.0
    weight = paid.weights.get(uid, 0.0) if uid is not None else 0.0
    reason, sentence = _why(basis, hotkey, found, gates, value, weight)
    return Payslip(hotkey, uid, found, gates, value, share, weight, reason, sentence, REMEDY[reason])


def _why(
    basis: Basis, hotkey: Hotkey, found: tuple[PayLine, ...], gates: Gate, value: float, weight: float
) -> tuple[Reason, str]:
    """The first thing that keeps a miner from pay; else what it is paid for."""
    epochs = _counts(found)
    if hotkey not in basis.uids:
        return Reason.NO_UID, f"the hotkey has no uid on the subnet, so its score of {value:.6g} pays nothing"
    if not gates.forfeit:
        failure = _failures(basis, hotkey)[0]
        left_s = failure.at + basis.rules.gamma_s - basis.at
        return failure.reason, f"{failure.sentence}: every unexpired score is forfeited, for another {left_s:.0f} s"
    counted = math.fsum(line.counted for line in found)
    if counted and not gates.agreement:
        return Reason.WRONG_SHARD, "the agreement multiplier is 0: its copies of shards were wrong"
    if counted and not gates.clasp:
        return Reason.AUDIT_FAILED, "the CLASP multiplier is 0: losses rise on its pathways"
    if not value:
        worked = [line for line in found if line.work_units or line.reason is not Reason.NO_COUNTED_WORK]
        reason = worked[-1].reason if worked else Reason.NO_COUNTED_WORK
        return reason, f"nothing counts: {epochs}; {worked[-1].sentence}" if worked else f"nothing counts: {epochs}"
    if not weight and basis.rules.burn_fraction >= 1.0:
        return Reason.PAUSED, "the owner burns all weight: nobody is paid"
    return Reason.PAID, (
        f"{weight:.4%} of the weight for {counted:.6g} work units x gate {gates.product:.6g} = {value:.6g} ({epochs})"
    )


def _counts(found: tuple[PayLine, ...]) -> str:
    """'3 epochs: 2 paid, 1 expired'."""
    if not found:
        return "no accepted work in a closed epoch"
    by_reason = sorted(Counter(line.reason for line in found).items(), key=lambda item: (-item[1], item[0]))
    return f"{len(found)} epochs: {', '.join(f'{count} {reason.value}' for reason, count in by_reason)}"


def payout_correlation(pay: Mapping[Hotkey, float], work: Mapping[Hotkey, float]) -> float:
    """Pearson's r of pay and verified work over the miners in `work`; who is not in `pay` got nothing.

    1 when there is nothing to tell apart (fewer than two miners, or all worked and were paid alike); 0 when only one
    of the two varies.
    """
    hotkeys = sorted(work)
    columns = [[work[hotkey] for hotkey in hotkeys], [pay.get(hotkey, 0.0) for hotkey in hotkeys]]
    flat = [_alike(column) for column in columns]
    if any(flat):
        return 1.0 if all(flat) else 0.0
    return statistics.correlation(*columns)


def _alike(values: list[float]) -> bool:
    """Equal up to rounding."""
    return not values or max(values) - min(values) <= 1e-9 * max(map(abs, values))
