"""The measurement behind `python -m subnet.calibrate`: honest audits first, then what the tolerances still catch.

Swarm after swarm trains at one thread count; every segment is replayed at another one, and every second segment also in
a way that stands for other hardware (`calibration_arithmetic`). Wire values, thread counts, seeds and the optimizer's
reset take turns.

Law: every verdict is `scoring.audit.judge` on the figures of `model.replay`; a refused replay and a log that is out of
form are accusations too. Equal arguments measure equally on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, product
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from subnet.errors import PeerFault
from subnet.model.replay import Segment
from subnet.protocol.ids import Values
from subnet.protocol.messages import AuditFigures
from subnet.protocol.run_spec import Tolerances
from subnet.runtime import SystemRuntime
from subnet.scoring.audit import judge
from subnet.simulation import calibration_arithmetic as arithmetic
from subnet.simulation import calibration_cheats as cheats
from subnet.simulation.calibration_arithmetic import Setting
from subnet.simulation.calibration_figures import Audit, Row, quantile, recommended, rows
from subnet.simulation.calibration_runs import HonestSwarm, Recorded
from subnet.simulation.calibration_specs import SIZES, Size, Wire, make_spec, tokens_of

BOUNDARIES = (Values.INT8, Values.BF16, Values.FP32)
UPLOADS = (Values.INT8, Values.FP32)
SAMPLES_PER_SWARM = 6
"""Segments of a swarm that are kept for the cheats, as many of each stage."""
SEGMENTS = {"tiny": 2000, "laptop": 40}
"""Audited where the operator does not say how many."""


class Honest(NamedTuple):
    """Everything that honest miners showed."""

    segments: int
    """Different ones; each was audited once or twice."""
    audits: list[Audit]
    forms: list[str]
    """Logs that were found out of form: accusations without a replay."""
    samples: list[Recorded]
    losses: tuple[float, float]
    """Mean training loss of the first swarm's first and last micro-batches, nats: it does learn."""

    @property
    def accusations(self) -> list[str]:
        return [*self.forms, *(audit.accusation for audit in self.audits if audit.accusation)]


class Caught(Struct, frozen=True, kw_only=True):
    """How often a cheat of one kind and amount was caught, given an audit that holds it."""

    cheat: str
    amount: str
    values: str
    """Of the boundary."""
    audits: int
    by_default: int
    by_recommended: int


class Spread(Struct, frozen=True, kw_only=True):
    """State distances of segments that begin and end alike."""

    span: str
    audits: int
    median: float
    p99: float
    worst: float


class Report(Struct, frozen=True, kw_only=True):
    """Everything measured."""

    preset: str
    seed: int
    segments: int
    audits: int
    accusations: list[str]
    """Of somebody honest, all of them."""
    losses: tuple[float, float]
    threads_change_sums: bool
    """Whether torch's thread count changes a long sum on this machine; if so, setting it takes effect ..."""
    threads_change_products: bool
    """... and whether it changes a long product."""
    rows: list[Row]
    """By boundary values, miner's setting, auditor's setting, place of the stage."""
    spreads: list[Spread]
    """Of the audits in other arithmetic."""
    tolerances: Tolerances
    safety: float
    recommended: Tolerances
    cheats: list[Caught]
    took_s: float


def measure(
    preset: str, *, num_segments: int, seed: int, safety: float, audits_per_cheat: int, say: Callable[[str], None]
) -> Report:
    """Everything. `num_segments` 0: the preset's number; `audits_per_cheat` 0: no cheats."""
    now, tolerances = SystemRuntime().now, Tolerances()
    began = now()
    found = honest(SIZES[preset], num_segments or SEGMENTS[preset], seed, tolerances, say)
    strict = recommended(found.audits, safety)
    sums, products = arithmetic.threads_take_effect()
    return Report(
        preset=preset,
        seed=seed,
        segments=found.segments,
        audits=len(found.audits),
        accusations=found.accusations,
        losses=found.losses,
        threads_change_sums=sums,
        threads_change_products=products,
        rows=rows(found.audits, tolerances, "values", "miner", "auditor", "place"),
        spreads=_spreads([audit for audit in found.audits if audit.auditor not in _thread_settings()]),
        tolerances=tolerances,
        safety=safety,
        recommended=strict,
        cheats=detection(found.samples, audits_per_cheat, tolerances, strict, say) if audits_per_cheat else [],
        took_s=now() - began,
    )


def _thread_settings() -> list[str]:
    return [setting.name for setting in arithmetic.honest()[0]]


def _spreads(audits: Sequence[Audit]) -> list[Spread]:
    by_span: dict[str, list[float]] = {}
    for audit in audits:
        if audit.figures is not None:
            by_span.setdefault(audit.span, []).append(audit.figures.state)
    return [
        Spread(span=span, audits=len(x), median=quantile(x, 0.5), p99=quantile(x, 0.99), worst=max(x))
        for span, x in sorted(by_span.items())
    ]


def honest(size: Size, num_segments: int, seed: int, tolerances: Tolerances, say: Callable[[str], None]) -> Honest:
    """Train and audit until at least so many segments were audited."""
    tokens, (threads, others) = tokens_of(size), arithmetic.honest()
    audits: list[Audit] = []
    forms: list[str] = []
    samples: list[Recorded] = []
    segments, losses = 0, (0.0, 0.0)
    for number in count():
        swarm, trained = _swarm(size, tokens, seed, number, threads)
        records, recorded = swarm.records(), list[Recorded]()
        while True:
            with trained.applied():
                batch = next(records, None)
            if batch is None:
                break
            jobs: list[tuple[Setting, Recorded]] = []
            for one in batch:
                jobs.append((threads[(segments + number) % len(threads)], one))
                jobs += [(others[segments // 2 % len(others)], one)] if segments % 2 == 0 else []
                segments += 1
            jobs.sort(key=lambda job: job[0].name)  # few changes of the thread count
            audits += [_audit(one, trained, auditor, tolerances) for auditor, one in jobs]
            recorded += batch[:: max(1, len(batch) // SAMPLES_PER_SWARM)]
        samples += cheats.pick(sorted(recorded, key=lambda one: one.stage), SAMPLES_PER_SWARM)
        forms += swarm.problems
        if number == 0:
            losses = float(np.mean(swarm.losses[:10])), float(np.mean(swarm.losses[-10:]))
        accused = len(forms) + sum(bool(audit.accusation) for audit in audits)
        say(f"swarm {number + 1} trained at {trained.name}: {segments} segments, {accused} false accusations so far")
        if segments >= num_segments:
            break
    return Honest(segments, audits, forms, samples, losses)


def _swarm(
    size: Size, tokens: np.ndarray, seed: int, number: int, threads: Sequence[Setting]
) -> tuple[HonestSwarm, Setting]:
    boundary, upload = list(product(BOUNDARIES, UPLOADS))[number * 5 % 6]  # 5 and 6 share no factor: all take turns
    wire = Wire(boundary, upload)
    trained = threads[(number + number // 6) % len(threads)]
    spec = make_spec(size, wire, seed + number, reset_each_epoch=number % 4 == 3)
    return HonestSwarm(spec, tokens, size, wire), trained


def _audit(one: Recorded, trained: Setting, auditor: Setting, tolerances: Tolerances) -> Audit:
    figures, sentence = measured(one, one.segment, auditor)
    if figures is not None:
        passed, sentence = judge(figures, tolerances, one.wire.boundary)
        sentence = "" if passed else sentence
    return Audit(one.wire.boundary, trained.name, auditor.name, one.place, one.span, figures, sentence)


def measured(one: Recorded, segment: Segment, auditor: Setting) -> tuple[AuditFigures | None, str]:
    """A replay's figures, or the sentence that refuses it."""
    with auditor.applied():
        try:
            return auditor.replay(one.spec, one.stage, auditor.device, one.batches).measure(segment), ""
        except PeerFault as fault:
            return None, f"{fault.code}: {fault.sentence}"


def detection(
    samples: Sequence[Recorded], per_cell: int, default: Tolerances, strict: Tolerances, say: Callable[[str], None]
) -> list[Caught]:
    """Forge each sample in each way and audit it, at other attention than it was computed with."""
    auditor = Setting("math attention", fused_attention=False)
    found = []
    for boundary in BOUNDARIES:
        chosen = cheats.pick([one for one in samples if one.wire.boundary is boundary], per_cell)
        for number, cheat in enumerate(cheats.catalogue()):
            audits = by_default = by_recommended = 0
            for place, one in enumerate(chosen):
                segment = cheat.forge(one, np.random.default_rng((number, place)))
                if segment is None:
                    continue
                figures, _ = measured(one, segment, auditor)
                audits += 1
                by_default += figures is None or not judge(figures, default, boundary)[0]
                by_recommended += figures is None or not judge(figures, strict, boundary)[0]
            found.append(
                Caught(
                    cheat=cheat.name,
                    amount=cheat.amount,
                    values=boundary.value,
                    audits=audits,
                    by_default=by_default,
                    by_recommended=by_recommended,
                )
            )
        say(f"cheats on {len(chosen)} segments with {boundary.value} boundaries are audited")
    return found
