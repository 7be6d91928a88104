"""Audits as rules: who is drawn, what a work log must look like, what a replay's figures mean (DESIGN 7, ALGORITHMS 5).

Law: pure; from the same journal and block hash everybody gets the same answers, in any order of evaluation. Whatever
is a problem comes back as the sentence that says so; what these functions cannot see is no accusation. A miner is
failed by figures outside the RunSpec's tolerances and by more than half of the reporting stake, by nothing less.

How a work log runs, as `model.trainer` has it:

    start      nothing is accumulated: parameters were loaded, or the log goes on from the upload before
    pass       a forward or loss runs on the present version; a backward on the present one or the one before
    step       backwards and losses accumulate; the k-th makes an inner step, which is the next version
    merge      after `applied_at` passes: one more version, step 0 again; what is accumulated stays
    upload     what is accumulated makes a step. The log ends here; it goes on where that upload came to nothing

A miner commits its state at the start, then as often as s inner steps were made since the commitment before (a merge
does not restart that count), and at an upload, unless that very state is committed already. It may not commit more
often either: empty segments would thin out the ones worth drawing.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

from subnet.protocol.draw import draw_below, draw_bytes
from subnet.protocol.ids import Digest, Hotkey, ItemId, Pass, RunId, Values
from subnet.protocol.messages import AuditFigures, Commitment, Logged
from subnet.protocol.run_spec import Tolerances

# ---- commitments -----------------------------------------------------------------------------------------------------


def state_digest(version: int, step: int, optimizer_steps: int, parts: Sequence[str]) -> Digest:
    """What a Commitment holds: SHA-256 over its numbers and the hex digests of the state's parts, in their order.

    No number and no hex digest holds the separator, so different states have different texts.
    """
    text = "\x1f".join(["iota-state", str(version), str(step), str(optimizer_steps), *parts])
    return Digest(hashlib.sha256(text.encode()).hexdigest())


# ---- draws -----------------------------------------------------------------------------------------------------------

_RESOLUTION = 2**53
"""Draws are compared with a probability as multiples of 2^-53: exact, and the same float on every machine."""


def probability(rate: float, settled_epochs: int, num_unexpired: int) -> float:
    """q_m, the probability that one epoch of a miner is audited: min(1, rate x settled_epochs / n).

    ALGORITHMS 5 has q_m = min(1, 2c / (n_m R)): what a failed audit takes away grows with the n_m unexpired epochs, on
    average half their pay, so q_m n_m R / 2 >= c deters. Here rate x settled_epochs stands for 2c / R, since a miner
    with settled_epochs = N_scores = gamma / T_s unexpired epochs is to be audited at `rate`: 2c / (N_scores R).
    A newcomer (n = 0) has nothing to lose and is audited always. Rate 0 switches audits off.
    """
    if rate <= 0.0:
        return 0.0
    return min(1.0, rate * settled_epochs / num_unexpired) if num_unexpired > 0 else 1.0


def is_drawn(block_hash: str, run_id: RunId, stage: int, epoch: int, hotkey: Hotkey, probability: float) -> bool:
    """Whether this miner's epoch is audited. `block_hash` is hex, of a block from after the epoch's close."""
    drawn = draw_below(bytes.fromhex(block_hash), _RESOLUTION, "audit", run_id, stage, epoch, hotkey)
    return drawn / _RESOLUTION < probability


def segment_of(block_hash: str, run_id: RunId, stage: int, epoch: int, hotkey: Hotkey, num_segments: int) -> int:
    """Which segment of an audited epoch is replayed. Raises ValueError when there is none."""
    return draw_below(bytes.fromhex(block_hash), num_segments, "segment", run_id, stage, epoch, hotkey)


def choose_validator(
    block_hash: str, run_id: RunId, stage: int, epoch: int, hotkey: Hotkey, attempt: int, validators: Iterable[Hotkey]
) -> Hotkey | None:
    """Who replays it: every validator has a drawn place in line, attempt after attempt goes down the line, then round.

    A validator that comes or goes moves nobody else's place. Nobody audits itself; None when nobody else is there.
    """
    secret = bytes.fromhex(block_hash)

    def place(validator: Hotkey) -> bytes:
        return draw_bytes(secret, "auditor", run_id, stage, epoch, hotkey, validator)

    line = sorted(set(validators) - {hotkey}, key=place)
    return line[attempt % len(line)] if line else None


# ---- the work log ----------------------------------------------------------------------------------------------------

_ITEM = re.compile(r"([fbl])(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)")
_KIND = {kind.value[0]: kind for kind in Pass}


class Moment(NamedTuple):
    """A state that has to be committed: a Commitment without its digest."""

    position: int
    version: int
    step: int
    optimizer_steps: int


class Course(NamedTuple):
    """What a log means."""

    present: list[int]
    """The present version at each pass."""
    due: list[Moment]
    """Every state that has to be committed, the first one included."""


def kind_of(item: ItemId) -> Pass | None:
    """Which pass an item's id names; None when it names none."""
    match = _ITEM.fullmatch(item)
    return _KIND[match[1]] if match else None


def course(
    log: Sequence[Logged],
    first: Commitment,
    applied_at: int | None,
    micro_batches_per_step: int,
    segment_steps: int,
    reset_each_epoch: bool,
    uploaded_at: Collection[int] = (),
) -> Course:
    """Walk a log of passes by the rules at the top of this file, from its first commitment on.

    `applied_at` None: no merge in it. `uploaded_at`: where uploads were that came to nothing.
    """
    now = _moment(first)
    present, due = list[int](), [now]
    accumulated = steps = 0
    for position in range(len(log) + 1):
        now = now._replace(position=position)
        if accumulated == micro_batches_per_step:
            now, accumulated, steps = _stepped(now), 0, steps + 1
            if steps == segment_steps:
                due.append(now)
                steps = 0
        if position == applied_at:
            kept_steps = 0 if reset_each_epoch else now.optimizer_steps
            now = Moment(position, now.version + 1, 0, kept_steps)
        if position == len(log) or position in uploaded_at:
            now, accumulated, steps = _stepped(now) if accumulated else now, 0, 0
            if now != due[-1]:
                due.append(now)
        if position < len(log):
            present.append(now.version)
            accumulated += kind_of(log[position].item) is not Pass.FORWARD
    return Course(present, due)


def _stepped(now: Moment) -> Moment:
    return Moment(now.position, now.version + 1, now.step + 1, now.optimizer_steps + 1)


def check_log(
    log: Sequence[Logged],
    commitments: Sequence[Commitment],
    applied_at: int,
    micro_batches_per_step: int,
    segment_steps: int,
    *,
    loaded: bool = False,
    merged: bool | None = None,
    reset_each_epoch: bool = True,
    uploads: int = 1,
) -> str | None:
    """Whether a log and its commitments can be what an honest miner did; the sentence of the first problem if not.

    A log begins with parameters that were `loaded`, or a merge was applied in it (`merged`), after `applied_at` passes.
    `uploads`: how often the miner was asked to upload within it; what an upload that came to nothing committed shows
    where it was. After a merge the first commitment is taken as it is: it must be the last one of the upload before.
    """
    if merged is not None and merged == loaded:
        return "the log begins with both, or neither, of a load and a merge"
    if not commitments:
        return "no training state was committed"
    first = commitments[0]
    if first.position != 0:
        return f"the first commitment comes after {first.position} passes, not before the first one"
    if loaded and (first.step, first.optimizer_steps) != (0, 0):
        return f"the log begins with loaded parameters, but at inner step {first.step}"
    if not loaded and applied_at > len(log):
        return f"the merge is said to be applied after {applied_at} passes, the log has {len(log)}"
    for logged in log:
        if kind_of(logged.item) is None:
            return f"{logged.item[:60]!r} is no pass"
    applied, uploaded_at = None if loaded else applied_at, set[int]()
    while True:
        walked = course(log, first, applied, micro_batches_per_step, segment_steps, reset_each_epoch, uploaded_at)
        odd = _first_odd(commitments, walked.due)
        if odd is None:
            return _check_versions(log, walked.present)
        if len(uploaded_at) >= uploads - 1 or odd >= len(commitments) or commitments[odd].position in uploaded_at:
            return _odd_sentence(odd, commitments, walked.due)
        uploaded_at.add(commitments[odd].position)


def _check_versions(log: Sequence[Logged], present: Sequence[int]) -> str | None:
    for position, (logged, version) in enumerate(zip(log, present, strict=True)):
        older = version - (kind_of(logged.item) is Pass.BACKWARD)
        if not older <= logged.version <= version:
            said = f"pass {position} ({logged.item}) is said to have run on version {logged.version}"
            return f"{said}, when version {version} was the present one"
    return None


def _first_odd(commitments: Sequence[Commitment], due: Sequence[Moment]) -> int | None:
    """Number of the first commitment that is not the one that is due, or is one too few or too many."""
    for number, (commitment, moment) in enumerate(zip(commitments, due, strict=False)):
        if _moment(commitment) != moment:
            return number
    return None if len(commitments) == len(due) else min(len(commitments), len(due))


def _odd_sentence(number: int, commitments: Sequence[Commitment], due: Sequence[Moment]) -> str:
    if number < min(len(commitments), len(due)):
        committed, moment = _moment(commitments[number]), due[number]
        return f"commitment {number} is for {_spoken(committed)}; due is one for {_spoken(moment)}"
    return f"{len(commitments)} states were committed; the log makes {len(due)} due"


def _moment(commitment: Commitment) -> Moment:
    return Moment(commitment.position, commitment.version, commitment.step, commitment.optimizer_steps)


def _spoken(moment: Moment) -> str:
    after = f"after {moment.position} passes, version {moment.version}"
    return f"{after}, inner step {moment.step} ({moment.optimizer_steps} of the optimizer)"


def match_log(log: Sequence[Logged], given: Container[ItemId], credited: Collection[ItemId]) -> str | None:
    """Whether a log fits the journal: all its items were `given` to this miner, none comes twice, and everything that
    was `credited` in it is there: what is left out of the log cannot be drawn. The sentence of the first problem."""
    seen: set[ItemId] = set()
    for logged in log:
        if logged.item not in given:
            return f"{logged.item[:60]!r} is in the log, but was never given to this miner"
        if logged.item in seen:
            return f"{logged.item} is in the log twice"
        seen.add(logged.item)
    missing = sorted(item for item in credited if item not in seen)
    if missing:
        return f"{missing[0]} was credited, but is not in the log ({len(missing)} such)"
    return None


# ---- verdicts --------------------------------------------------------------------------------------------------------


def judge(figures: AuditFigures, tolerances: Tolerances, values: Values) -> tuple[bool, str]:
    """Whether a replay passed, and every bound that was broken with its figures. `values`: of the boundary.

    Nothing compared (no output of the segment had arrived) is allowed: then the state alone counts. What is not finite
    is outside every bound.
    """
    bounds = [("state distance", figures.state, tolerances.state)]
    floors: list[tuple[str, float, float]] = []
    if figures.outputs:
        bounds.append(("loss difference", figures.loss, tolerances.loss))
        if values is Values.INT8:
            bounds.append(("quantiser steps", figures.quantiser_steps, tolerances.quantiser_steps))
        else:
            bounds.append(("relative L2", figures.relative_l2, tolerances.relative_l2))
            floors.append(("lowest cosine", figures.cosine_min, tolerances.cosine_min))
            floors.append(("1 % cosine", figures.cosine_p01, tolerances.cosine_p01))
    broken = [f"{name} {x:.6g}, allowed {bound:.6g}" for name, x, bound in bounds if not -math.inf < x <= bound]
    broken += [f"{name} {x:.6g}, asked {bound:.6g}" for name, x, bound in floors if not bound <= x < math.inf]
    compared = f"{figures.outputs} outputs compared"
    if not broken:
        return True, f"within the tolerances: {compared}, state distance {figures.state:.6g}"
    worst = f"; worst pass {figures.worst_item[:60]}" if figures.worst_item else ""
    return False, f"outside the tolerances: {'; '.join(broken)} ({compared}{worst})"


def combine(findings: Mapping[Hotkey, tuple[bool, float]]) -> bool | None:
    """The verdict of several validators, each (passed, stake): failed if more than half of the reporting stake says so.

    None when nobody reported. A tie favours the miner, and so does having no stake at all. The sum is correctly
    rounded (fsum), so its sign does not depend on the order. A stake that is no positive number counts for nothing.
    """
    if not findings:
        return None
    sides = [(-stake if passed else stake) for passed, stake in findings.values() if 0.0 < stake < math.inf]
    return math.fsum(sides) <= 0.0
