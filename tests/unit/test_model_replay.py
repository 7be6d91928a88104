"""Replays of what a real replica logged: honest ones to the last bit, and each lie where it was told.

The replica trains two epochs of one stage with a merge between them and passes between upload and merge; every segment
is then replayed as a validator would. On one machine in fp32 an honest replay is equal, not close.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.data.sampling import Batches
from subnet.errors import PeerFault
from subnet.merging import compression
from subnet.miner.replica import Replica
from subnet.miner.snapshots import MemorySnapshots
from subnet.model import compare, wire
from subnet.model.initial import initial_parameters
from subnet.model.replay import Replay, ReplayPass, Segment
from subnet.model.trainer import Trainer
from subnet.model.training_state import TrainingState
from subnet.protocol import tuning
from subnet.protocol.ids import Digest, Epoch, ItemId, MicroBatchId, Pass, RunId, Stage, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import AuditFigures, Commitment, PassWork, Source, Target
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.scoring.audit import check_log

KEY = ObjectKey("run/0/0/text/data")
FILE = DataFile(key=KEY, digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=2, seq_len=16)
TOKENS = np.random.default_rng(0).integers(0, 256, 5_000).astype(np.uint16)
SOURCE = Source(key=KEY, digest=Digest("0" * 64), size_bytes=1)


def make_spec(values: Values, reset: bool) -> RunSpec:
    preset = presets.equivalence(presets.Size(3, 3, 3), width=8)
    preset = preset._replace(
        boundary=msgspec.structs.replace(preset.boundary, values=values),
        inner=msgspec.structs.replace(preset.inner, micro_batches_per_step=2, reset_each_epoch=reset),
        merge=msgspec.structs.replace(preset.merge, outer_lr=0.7, outer_momentum=0.5, outer_momentum_first=0.5),
        audit=msgspec.structs.replace(preset.audit, rate=1.0, segment_steps=2),
    )
    return presets.run_spec(preset, run_id=RunId("run"), seed=7, num_stages=3, data=DATA)


class Miner:
    """One replica over two epochs, and all that a validator would be given of it."""

    def __init__(self, stage: int, values: Values, reset: bool, rules: str = "") -> None:
        """`rules`: what the owner tunes for the second epoch."""
        self.spec, self.stage = make_spec(values, reset), Stage(stage)
        self.tuned = tuning.tuned(self.spec, tuning.parse(rules.encode()), 2) if rules else self.spec
        self.batches = Batches(TOKENS, self.spec.seed, 2, 16)
        self.snapshots = MemorySnapshots()
        trainer = Trainer(self.spec, self.stage, "cpu", self.batches)
        self.replica = Replica(self.spec, self.stage, trainer, self.snapshots)
        self.passes: dict[ItemId, ReplayPass] = {}
        self.segments: list[Segment] = []
        self.count = 0
        anchor_P = initial_parameters(self.spec, self.stage)
        zeros_P = np.zeros_like(anchor_P)
        encoded = compression.encode(Values.FP32, anchor_P), compression.encode(Values.FP32, zeros_P)
        self.replica.load(Epoch(0), (SOURCE, SOURCE), encoded)
        self.train(7)
        upload_P = self.close(Epoch(0), anchor_P)
        self.train(2)
        merged = self.replica.apply_merge(Epoch(0), [(0, len(upload_P), upload_P)], spec=self.tuned)
        self.train(6)
        self.close(Epoch(1), compression.decode(merged.parameters, Values.FP32, len(anchor_P)))

    def train(self, count: int) -> None:
        """So many micro-batches; one is always on its way when the next one comes."""
        last_stage = self.stage == 2
        for number in range(self.count, self.count + count):
            self.run(Pass.LOSS if last_stage else Pass.FORWARD, number)
            if number > 0 and not last_stage:
                self.run(Pass.BACKWARD, number - 1)
        self.count += count

    def run(self, kind: Pass, number: int) -> None:
        stage_input = self.tensor(number, 1.0) if self.stage else None
        gradient = self.tensor(1_000 + number, 1e-3) if kind is Pass.BACKWARD else None
        item = ItemId(f"{kind.value[0]}{number}.{self.stage}.0")
        has_output = kind is Pass.FORWARD or self.stage > 0
        work = PassWork(
            item=item, kind=kind, micro_batch=MicroBatchId(number), stage=self.stage, epoch=Epoch(0),
            stage_input=SOURCE if self.stage else None, gradient=SOURCE if gradient else None,
            output=Target(key=KEY, size_bytes=1) if has_output else None, deadline_s=1.0,
        )  # fmt: skip
        done = self.replica.run_pass(work, stage_input, gradient)
        self.passes[item] = ReplayPass(
            item, kind, work.micro_batch, done.param_version, stage_input, gradient, done.output, done.loss
        )

    def tensor(self, seed: int, scale: float) -> bytes:
        z_BTK = np.random.default_rng(seed).standard_normal((2, 16, self.spec.boundary.width)) * scale
        return wire.encode(self.spec, z_BTK.astype(np.float32), None)

    def close(self, epoch: Epoch, anchor_P: np.ndarray) -> np.ndarray:
        """End the epoch; its segments. Returns the pseudo-gradient."""
        upload = self.replica.close_epoch(epoch)
        told, inner = self.replica.told(), self.spec.inner
        said = check_log(
            told.log, told.commitments, told.applied_at or 0, inner.micro_batches_per_step, 2, loaded=told.loaded,
            reset_each_epoch=inner.reset_each_epoch,
        )  # fmt: skip
        assert said is None, said
        sent_P = compression.decode(upload.data, self.spec.merge.upload_values, len(anchor_P))
        for number, (begins, ends) in enumerate(pairwise(told.commitments)):
            is_last = number == len(told.commitments) - 2
            segment = Segment(
                epoch=epoch,
                anchor_P=anchor_P,
                start=None if number == 0 and told.loaded else self.state(begins),
                start_version=begins.version,
                applies_after=told.applied_at if number == 0 else None,
                passes=[self.passes[one.item] for one in told.log[begins.position : ends.position]],
                end_step=ends.step,
                end=self.state(ends),
                upload_P=sent_P if is_last else None,
            )
            self.segments.append(segment)
        return sent_P

    def state(self, one: Commitment) -> TrainingState:
        parts = self.snapshots.parts(one.digest)
        assert parts is not None
        count = self.spec.stages[self.stage].num_params
        vectors = tuple(compression.decode(part, Values.FP32, count) for part in parts)
        return TrainingState(one.version, one.step, one.optimizer_steps, vectors)

    def measure(self, segment: Segment, before: RunSpec | None = None) -> AuditFigures:
        """By the rules of its epoch, and by `before` (those of the one before) as long as the merge is to come."""
        rules = self.tuned if segment.epoch else self.spec
        before = (before or self.spec) if segment.applies_after is not None else rules
        return Replay(rules, self.stage, "cpu", self.batches, before).measure(segment)


@cache
def miner(stage: int, values: Values = Values.FP32, reset: bool = True, rules: str = "") -> Miner:
    return Miner(stage, values, reset, rules)


def with_part(state: TrainingState, part: int, factor: float) -> TrainingState:
    parts = list(state.parts)
    parts[part] = parts[part] * np.float32(factor)
    return state._replace(parts=tuple(parts))


# ---- honest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "values", "reset"),
    [(0, Values.FP32, True), (1, Values.FP32, False), (2, Values.FP32, True), (1, Values.INT8, True)],
)
def test_an_honest_segment_is_repeated_to_the_last_bit(stage: int, values: Values, reset: bool) -> None:
    """1. From the load, from a commitment, over a merge with passes before it, up to the upload: no figure is off."""
    played = miner(stage, values, reset)
    spans = [(s.start is None, bool(s.applies_after), s.upload_P is not None) for s in played.segments]
    assert spans[0] == (True, False, False) and sum(over for _, over, _ in spans) == 1 and len(spans) >= 4
    for segment in played.segments:
        figures = played.measure(segment)
        compared = [p for p in segment.passes if p.output is not None or p.loss is not None]
        outputs = sum((p.output is not None) + (p.loss is not None) for p in compared)
        assert figures == AuditFigures(outputs=outputs)


def test_the_owner_tuned_the_rules_between_two_epochs() -> None:
    """1b. Another learning rate, clipping and weight decay from the second epoch on: what came after the upload and
    before the merge was applied was still stepped by the old rules, the rest by the new ones, to the last bit. By the
    wrong rules the replay shows a difference, so a miner that ignores the owner is found."""
    rules = "[inner]\nlr_peak = 0.02\nlr_final = 0.02\nclip_norm = 0.5\nweight_decay = 0.1"
    played = miner(1, reset=False, rules=rules)
    assert played.replica.spec_digest == played.tuned.digest() != played.spec.digest()
    for segment in played.segments:
        assert played.measure(segment).state == 0.0
        other = played.spec if segment.epoch else played.tuned
        assert Replay(other, played.stage, "cpu", played.batches).measure(segment).state > 0.01
    over = next(segment for segment in played.segments if segment.applies_after)
    assert played.measure(over, before=played.tuned).state > 0.0


def test_one_validator_replays_many() -> None:
    """2. The same Replay in any order gives the same figures: nothing is left of the segment before."""
    played = miner(1)
    replay = Replay(played.spec, played.stage, "cpu", played.batches)
    for segment in (*reversed(played.segments), *played.segments):
        figures = replay.measure(segment)
        assert (figures.state, figures.relative_l2, figures.worst_item) == (0.0, 0.0, "")


# ---- lies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("part", range(4))
def test_every_part_of_the_end_counts(number: int, part: int) -> None:
    """3. Parameters, older parameters, both moments: one of them off by a little, in any segment."""
    played = miner(1)
    segment = played.segments[number]
    off = played.measure(segment._replace(end=with_part(segment.end, part, 1.1)))
    assert off.state > played.spec.audit.tolerances.state
    assert off.state == pytest.approx(0.1, rel=1e-3) or part < 2


def test_another_upload_than_the_committed_end() -> None:
    """4. The end is right, the pseudo-gradient is another one: scaled, or somebody else's."""
    played = miner(1)
    segment = played.segments[-1]
    assert segment.upload_P is not None
    for lie_P in (segment.upload_P * 1.2, np.zeros_like(segment.upload_P), segment.upload_P[::-1].copy()):
        assert played.measure(segment._replace(upload_P=lie_P)).state > 0.1


@pytest.mark.parametrize("values", [Values.FP32, Values.INT8])
def test_a_made_up_output_is_found_and_named(values: Values) -> None:
    """5. One boundary of the segment is noise: the figures are its, and they name it. What was not stored is not
    compared, but still computed."""
    played = miner(1, values)
    segment = played.segments[1]
    lied = segment.passes[2]._replace(output=played.tensor(99, 1.0))
    passes = [*segment.passes[:2], lied, *segment.passes[3:]]
    figures = played.measure(segment._replace(passes=passes))
    assert figures.worst_item == lied.item and figures.outputs == len(passes) and figures.state == 0.0
    if values is Values.INT8:
        assert figures.quantiser_steps > 2.0 and figures.cosine_min == 1.0
    else:
        assert figures.relative_l2 > 0.5 and figures.cosine_min < 0.9 and figures.quantiser_steps == 0.0
    passes[2] = lied._replace(output=None)
    hidden = played.measure(segment._replace(passes=passes))
    assert hidden == AuditFigures(outputs=len(passes) - 1)


def test_a_made_up_loss() -> None:
    """6. The last stage says less than it lost."""
    played = miner(2)
    segment = played.segments[1]
    lied = segment.passes[1]._replace(loss=segment.passes[1].loss - 0.5)  # type: ignore[operator]
    figures = played.measure(segment._replace(passes=[segment.passes[0], lied, *segment.passes[2:]]))
    assert figures.loss == pytest.approx(0.5) and figures.state == 0.0


@pytest.mark.parametrize("lie", ["skipped", "another start", "another anchor", "merge left out", "versions"])
def test_a_course_that_was_not_run(lie: str) -> None:
    """7. A pass that was logged and not computed, a start or an anchor that is another one, a merge at another place:
    the end shows it, or the log itself cannot be."""
    played = miner(1)
    over = next(s for s in played.segments if s.applies_after)
    first = played.segments[1]
    backward = max(i for i, one in enumerate(first.passes) if one.kind is Pass.BACKWARD)
    forward = next(i for i, one in enumerate(first.passes) if one.kind is Pass.FORWARD)
    moved = first.passes[forward]._replace(version=first.passes[forward].version + 1)
    assert first.start is not None
    lies = {
        "skipped": first._replace(passes=[p for i, p in enumerate(first.passes) if i != backward]),
        "another start": first._replace(start=with_part(first.start, 2, 1.5)),
        "another anchor": over._replace(anchor_P=over.anchor_P * np.float32(1.01)),
        "merge left out": over._replace(applies_after=None),
        "versions": first._replace(passes=[*first.passes[:forward], moved, *first.passes[forward + 1 :]]),
    }
    try:
        figures = played.measure(lies[lie])
    except PeerFault as fault:
        assert fault.code is Reason.MALFORMED and lie in ("merge left out", "versions")
    else:
        assert figures.state > played.spec.audit.tolerances.state and lie != "versions"


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_int8_is_compared_in_steps_of_its_own_group() -> None:
    """8. A scale for every 16 tokens: a step off in a quiet group is a step, though a loud group has larger ones."""
    spec = make_spec(Values.INT8, True)
    assert spec.boundary.scale_group_tokens == 16
    z_NK = np.full((32, 8), 127.0, np.float32)
    z_NK[16:] = 1.27
    sent_NK = z_NK.copy()
    sent_NK[20, 3] -= 0.03
    sent, ours = (wire.encode(spec, x.reshape(2, 16, 8), None) for x in (sent_NK, z_NK))
    off = compare.outputs(spec, sent, ours)
    assert off.quantiser_steps == pytest.approx(3.0, abs=0.6) and off[1:] == (1.0, 1.0, 0.0)
    assert compare.outputs(spec, ours, ours) == compare.NONE


def test_a_single_token_shows_in_the_cosines() -> None:
    """9. One token of 32 is turned round: the lowest cosine is -1, and so is nearly the 1 % quantile."""
    spec = make_spec(Values.FP32, True)
    z_NK = np.random.default_rng(3).standard_normal((32, 8)).astype(np.float32)
    sent_NK = z_NK.copy()
    sent_NK[7] *= -1
    sent, ours = (wire.encode(spec, x.reshape(2, 16, 8), None) for x in (sent_NK, z_NK))
    off = compare.outputs(spec, sent, ours)
    assert off.cosine_min == pytest.approx(-1.0) and off.cosine_p01 < 0.5
    assert off.relative_l2 == pytest.approx(2 * np.linalg.norm(z_NK[7]) / np.linalg.norm(z_NK), rel=1e-5)
    sent_NK[7] = 0.0
    blank = compare.outputs(spec, wire.encode(spec, sent_NK.reshape(2, 16, 8), None), ours)
    assert blank.cosine_min == 0.0


def test_distances_are_numbers() -> None:
    """10. Equal is 0 whatever the scale; no scale, NaN and infinity are HUGE: JSON has no infinity."""
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    assert compare.relative_l2(one, one, zero) == 0.0
    assert compare.relative_l2(one, zero, zero) == compare.HUGE
    assert compare.relative_l2(one * np.float32(np.nan), zero, one) == compare.HUGE
    assert compare.relative_l2(one * np.float32(np.inf), zero, one) == compare.HUGE
    assert compare.relative_l2(one, zero, 2 * one) == pytest.approx(0.5)
    with pytest.raises(PeerFault):
        compare.outputs(make_spec(Values.FP32, True), b"nothing", b"else")
