"""Honest swarms whose every pass is written down, so that each segment of each miner can be audited again and again.

Two replicas a stage train on text with the miner's own parts: `Replica`, `Trainer`, `WorkLog`, snapshots. Micro-batches
wander through the stages a few at a time in a drawn order, so backwards meet newer parameters than their forwards, and
everything that happens to honest miners happens here: work taken over and work done twice, uploads that came to nothing
and are made again, passes between an upload and its merge, an upload that did not count, a replica that loads anew.

Law: honest. Equal arguments give equal passes; all drawing is by one seed. Letters: P flat parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from subnet.coordination.audit_state import Dossier
from subnet.coordination.dossiers import drawable
from subnet.data.sampling import Batches
from subnet.merging import compression, reduction
from subnet.miner.replica import Replica
from subnet.miner.snapshots import MemorySnapshots
from subnet.miner.worklog import Told
from subnet.model.initial import initial_parameters
from subnet.model.outer import Upload
from subnet.model.replay import ReplayPass, Segment
from subnet.model.trainer import Trainer
from subnet.model.training_state import TrainingState
from subnet.protocol.ids import Epoch, ItemId, MicroBatchId, Pass, Stage, Values
from subnet.protocol.messages import Commitment, PassWork, Source, Target
from subnet.protocol.run_spec import RunSpec
from subnet.scoring.audit import check_log
from subnet.simulation.calibration_specs import FILE, NUM_STAGES, Size, Wire

IN_FLIGHT = 6
TAKEN_OVER, DONE_TWICE = 0.05, 0.03
"""Of the backwards; of the forwards."""
SECOND_ROUND, NOT_COUNTED, LOADS_ANEW = 0.2, 0.1, 0.1
"""Of a stage's uploads; of a replica's epochs."""
BETWEEN_MAX = 8
"""Passes of a stage between its uploads and its merge, at most."""

_SOURCE = Source(key=FILE.key, digest=FILE.digest, size_bytes=1)


class Recorded(NamedTuple):
    """One honest segment with all that an audit of it needs."""

    spec: RunSpec
    batches: Batches
    stage: Stage
    wire: Wire
    segment: Segment

    @property
    def place(self) -> str:
        """Of the stage."""
        return "first" if self.stage == 0 else "last" if self.stage == NUM_STAGES - 1 else "middle"

    @property
    def span(self) -> str:
        """From what to what it goes."""
        merged = self.segment.applies_after is not None
        begins = "loaded" if self.segment.start is None else "merge" if merged else "commitment"
        ends = "commitment" if self.segment.upload_P is None else f"{self.wire.upload.value} upload"
        return f"{begins} to {ends}"


class _Flight:
    """A micro-batch on its way: what is next, and what was stored for it."""

    def __init__(self, number: int) -> None:
        self.number = MicroBatchId(number)
        self.stage, self.returns = 0, False
        self.pathway: list[int] = []
        self.inputs: list[bytes | None] = [None]
        self.gradient: bytes | None = None


class Miner:
    """One replica, and all it did since its log began."""

    def __init__(self, spec: RunSpec, stage: Stage, batches: Batches) -> None:
        self.snapshots = MemorySnapshots()
        self.replica = Replica(spec, stage, Trainer(spec, stage, "cpu", batches), self.snapshots)
        self.passes: dict[ItemId, ReplayPass] = {}


class HonestSwarm:
    """`records` trains it, and gives a stage's segments as soon as it has closed an epoch."""

    def __init__(self, spec: RunSpec, tokens: np.ndarray, size: Size, wire: Wire) -> None:
        self.losses: list[float] = []
        self.problems: list[str] = []
        """What would be said about a log without any replay: each accuses somebody honest."""
        self._spec, self._size, self._wire = spec, size, wire
        self._drawn = np.random.default_rng(spec.seed)
        self._batches = Batches(tokens, spec.seed, spec.data.micro_batch_size, spec.data.seq_len)
        stages = [Stage(stage) for stage in range(NUM_STAGES)]
        self._miners = [[Miner(spec, stage, self._batches) for _ in range(size.replicas)] for stage in stages]
        self._anchors = [initial_parameters(spec, stage) for stage in stages]
        self._flights: list[_Flight] = []
        self._opened = self._items = 0
        for stage in stages:
            for miner in self._miners[stage]:
                self._load(miner, stage, Epoch(0), np.zeros_like(self._anchors[stage]))

    def records(self) -> Iterator[list[Recorded]]:
        for epoch in range(self._size.epochs):
            target = len(self.losses) + self._size.micro_batches * self._size.replicas
            while len(self.losses) < target:
                self._go_on()
            for stage in self._drawn.permutation(NUM_STAGES):
                yield from self._close(Stage(int(stage)), Epoch(epoch))

    # ---- training ----------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """The next pass of a drawn micro-batch."""
        while len(self._flights) < IN_FLIGHT:
            self._flights.append(_Flight(self._opened))
            self._opened += 1
        flight = self._flights[self._drawn.integers(len(self._flights))]
        stage = flight.stage
        if flight.returns:
            other = self._drawn.random() < TAKEN_OVER
            replica = (flight.pathway[stage] + other) % self._size.replicas
            gradient = self._run(Pass.BACKWARD, flight, replica).output
            flight.gradient, flight.stage = gradient, stage - 1
            if stage == 0:
                self._flights.remove(flight)
            return
        replica = int(self._drawn.integers(self._size.replicas))
        flight.pathway.append(replica)
        if stage == NUM_STAGES - 1:
            done = self._run(Pass.LOSS, flight, replica)
            assert done.loss is not None
            self.losses.append(done.loss)
            flight.gradient, flight.stage, flight.returns = done.output, stage - 1, True
            return
        if self._drawn.random() < DONE_TWICE:
            self._run(Pass.FORWARD, flight, (replica + 1) % self._size.replicas)
        flight.inputs.append(self._run(Pass.FORWARD, flight, replica).output)
        flight.stage += 1

    def _run(self, kind: Pass, flight: _Flight, number: int) -> ReplayPass:
        stage = Stage(flight.stage)
        miner = self._miners[stage][number]
        stage_input = flight.inputs[stage]
        gradient = flight.gradient if kind is Pass.BACKWARD else None
        self._items += 1
        work = PassWork(
            item=ItemId(f"{kind.value[0]}{flight.number}.{stage}.{self._items}"),
            kind=kind,
            micro_batch=flight.number,
            stage=stage,
            epoch=miner.replica.epoch,
            stage_input=_SOURCE if stage else None,
            gradient=_SOURCE if gradient is not None else None,
            output=Target(key=FILE.key, size_bytes=1) if stage or kind is Pass.FORWARD else None,
            deadline_s=1.0,
        )
        done = miner.replica.run_pass(work, stage_input, gradient)
        one = ReplayPass(
            work.item, kind, work.micro_batch, done.param_version, stage_input, gradient, done.output, done.loss
        )
        miner.passes[work.item] = one
        return one

    # ---- the epoch's end ---------------------------------------------------------------------------------------------

    def _close(self, stage: Stage, epoch: Epoch) -> Iterator[list[Recorded]]:
        """Uploads, passes that go on meanwhile, the merge; before it all that was done up to the uploads is given."""
        miners, anchor_P = self._miners[stage], self._anchors[stage]
        rounds = 1 + (self._drawn.random() < SECOND_ROUND)
        for number in range(rounds):
            uploads = [miner.replica.close_epoch(epoch) for miner in miners]
            tolds = [miner.replica.told() for miner in miners]
            if number == rounds - 1:
                shown = zip(miners, uploads, tolds, strict=True)
                yield [
                    one
                    for miner, upload, told in shown
                    for one in self._segments(stage, epoch, anchor_P, miner, upload, told, rounds)
                ]
            for _ in range(int(self._drawn.integers(BETWEEN_MAX + 1))):
                self._go_on()
        sent = [self._sent(upload, len(anchor_P)) for upload in uploads]
        g_P = reduction.reduce_shard(sent, [1.0] * len(sent), [1.0] * len(sent))
        for miner, told in zip(miners, tolds, strict=True):
            over = {logged.item for logged in told.log}
            miner.passes = {item: one for item, one in miner.passes.items() if item not in over}
            counted = self._drawn.random() >= NOT_COUNTED
            anchor = miner.replica.apply_merge(epoch, [(0, len(g_P), g_P)], counted)
            parameters_P = compression.decode(anchor.parameters, Values.FP32, len(g_P))
            if self._drawn.random() < LOADS_ANEW:
                momentum_P = compression.decode(anchor.momentum, Values.FP32, len(g_P))
                self._anchors[stage] = parameters_P
                self._load(miner, stage, Epoch(epoch + 1), momentum_P)
        self._anchors[stage] = parameters_P

    def _load(self, miner: Miner, stage: Stage, epoch: Epoch, momentum_P: np.ndarray) -> None:
        vectors = self._anchors[stage], momentum_P
        parameters, momentum = (compression.encode(Values.FP32, vector_P) for vector_P in vectors)
        miner.replica.load(epoch, (_SOURCE, _SOURCE), (parameters, momentum))

    def _sent(self, upload: Upload, count: int) -> np.ndarray:
        return compression.decode(upload.data, self._wire.upload, count)

    def _segments(
        self, stage: Stage, epoch: Epoch, anchor_P: np.ndarray, miner: Miner, upload: Upload, told: Told, rounds: int
    ) -> Iterator[Recorded]:
        """As `coordination.reviews.work_of` and `validator.auditor` put them together."""
        said = self._form_problem(told, rounds)
        if said is not None:
            self.problems.append(said)
        dossier = Dossier(
            stage=stage, rules=0, anchor=_SOURCE, commitments=told.commitments, applied_at=told.applied_at
        )
        first, count = drawable(dossier)
        pairs = list(pairwise(told.commitments))
        for number in range(first, first + count):
            begins, ends = pairs[number]
            is_last = number == len(pairs) - 1
            segment = Segment(
                epoch=epoch,
                anchor_P=anchor_P,
                start=None if number == 0 and told.loaded else self._state(miner, begins, len(anchor_P)),
                start_version=begins.version,
                # where the merge lies in a later segment, neither that one nor those before it are drawn
                applies_after=told.applied_at if number == 0 else None,
                passes=[miner.passes[one.item] for one in told.log[begins.position : ends.position]],
                end_step=ends.step,
                end=self._state(miner, ends, len(anchor_P)),
                upload_P=self._sent(upload, len(anchor_P)) if is_last else None,
            )
            yield Recorded(self._spec, self._batches, stage, self._wire, segment)

    def _form_problem(self, told: Told, rounds: int) -> str | None:
        return check_log(
            told.log,
            told.commitments,
            told.applied_at or 0,
            self._spec.inner.micro_batches_per_step,
            self._spec.audit.segment_steps,
            loaded=told.loaded,
            merged=told.applied_at is not None,
            reset_each_epoch=self._spec.inner.reset_each_epoch,
            uploads=rounds,
        )

    def _state(self, miner: Miner, one: Commitment, count: int) -> TrainingState:
        parts = miner.snapshots.parts(one.digest)
        assert parts is not None, "committed lately"
        vectors = tuple(compression.decode(part, Values.FP32, count) for part in parts)
        return TrainingState(one.version, one.step, one.optimizer_steps, vectors)
