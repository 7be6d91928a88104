"""Trainers side by side against the living definition: same micro-batches, same losses.

Tolerance. The reference sums gradients in another order, uses torch's AdamW and a clip of its own; everything else is
the same arithmetic in fp32. One rounding is 6e-8 of a value; a loss near 5.5 has a spacing of 4.8e-7. AdamW divides by
the gradient's own size, so where a gradient is nearly zero a rounding may move a parameter by a part of the learning
rate (3e-3), which the loss hardly feels. Measured over the runs below: losses at most 2e-6 apart; allowed: 1e-5. A
mistake in accumulation, clip, learning rate or merge moves the losses by about 1e-3 and more: test 4 plants them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.data.sampling import Batches, validation_batches
from subnet.errors import ConfigError
from subnet.merging import compression
from subnet.model.initial import initial_parameters
from subnet.model.trainer import Trainer
from subnet.protocol.ids import Digest, Epoch, MicroBatchId, RunId, Stage, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.simulation.data_parallel import train_data_parallel
from subnet.simulation.reference import ReferenceRun, train_reference, uncompressed

FILE = DataFile(key=ObjectKey("run/0/0/text/data"), digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=2, seq_len=16)
# some tokens are much likelier than others, so that there is something to learn at once
TOKENS = np.minimum(np.random.default_rng(0).geometric(0.05, 20_000), 255).astype(np.uint16)
TOLERANCE = 1e-5


def make_spec(num_stages: int = 3, width: int | None = 8, **merge: object) -> RunSpec:
    preset = presets.equivalence(presets.Size(num_stages, num_stages, 3), width=width)
    preset = preset._replace(merge=msgspec.structs.replace(preset.merge, **merge))
    return presets.run_spec(preset, run_id=RunId("run"), seed=7, num_stages=num_stages, data=DATA)


def replace_inner(spec: RunSpec, **change: object) -> RunSpec:
    return msgspec.structs.replace(spec, inner=msgspec.structs.replace(spec.inner, **change))


def batches_of(spec: RunSpec) -> Batches:
    return Batches(TOKENS, spec.seed, 2, 16)


def reference(spec: RunSpec, micro_batches: Sequence[int], epoch_ends: Sequence[int] = ()) -> ReferenceRun:
    ticks = iter(range(100))
    return train_reference(
        spec, batches_of(spec), micro_batches, now=lambda: float(next(ticks)), epoch_ends=set(epoch_ends)
    )


class Chain:
    """One replica per stage, and the objects that would lie in the store."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.trainers = [Trainer(spec, Stage(stage), "cpu", batches_of(spec)) for stage in range(spec.num_stages)]
        for stage, trainer in enumerate(self.trainers):
            parameters_P = initial_parameters(spec, Stage(stage))
            trainer.load(Epoch(0), parameters_P, np.zeros_like(parameters_P))

    def train(self, together: Sequence[int], order: random.Random | None) -> dict[int, float]:
        """All these micro-batches are in flight at once; every stage takes them in an order of its own."""

        def taken() -> Sequence[int]:
            return order.sample(together, len(together)) if order else together

        sent: dict[tuple[int, int], bytes | None] = {(-1, number): None for number in together}
        back: dict[int, bytes | None] = {}
        losses = {}
        *before, last = self.trainers
        for stage, trainer in enumerate(before):
            for number in taken():
                sent[stage, number] = trainer.forward(MicroBatchId(number), sent[stage - 1, number])
        for number in taken():
            losses[number], back[number] = last.loss(MicroBatchId(number), sent[len(before) - 1, number])
        for stage, trainer in reversed(list(enumerate(before))):
            for number in taken():
                gradient = back[number]
                assert gradient is not None
                back[number] = trainer.backward(MicroBatchId(number), sent[stage - 1, number], gradient)
        assert all(gradient is None for gradient in back.values())
        return losses

    def merge(self) -> None:
        for trainer in self.trainers:
            values, count = self.spec.merge.upload_values, trainer.num_params
            g_P = compression.decode(trainer.close_epoch().data, values, count)
            trainer.apply_merge([(0, count, g_P)])


def run_chain(
    spec: RunSpec,
    num_micro_batches: int,
    epoch_ends: Sequence[int],
    spoil: Callable[[Chain], None] | None = None,
    order: random.Random | None = None,
) -> tuple[list[float], Chain]:
    chain, losses = Chain(spec), {}
    if spoil is not None:
        spoil(chain)
    per_step = spec.inner.micro_batches_per_step
    for start in range(0, num_micro_batches, per_step):
        losses |= chain.train(list(range(start, start + per_step)), order)
        if start + per_step in epoch_ends:
            chain.merge()
    return [losses[number] for number in range(num_micro_batches)], chain


@pytest.mark.parametrize(
    ("num_stages", "width", "merge"),
    [
        (3, None, {}),
        (3, 8, {}),
        (2, 8, {"outer_lr": 0.7, "outer_momentum": 0.9, "outer_momentum_first": 0.5, "momentum_warmup_epochs": 2}),
        (1, None, {"outer_lr": 0.7, "outer_momentum": 0.9, "outer_momentum_first": 0.9}),
    ],
    ids=["x crosses", "bottleneck", "outer momentum", "one stage"],
)
def test_the_chain_follows_the_reference(num_stages: int, width: int | None, merge: dict[str, object]) -> None:
    """1. Four micro-batches in flight, flushed at each of nine steps, two merges: loss by loss, then the parameters."""
    spec = make_spec(num_stages, width, **merge)
    assert spec.inner.micro_batches_per_step >= 3 and spec.inner.reset_each_epoch
    ends = (12, 24)
    losses, chain = run_chain(spec, 36, ends, order=random.Random(1))
    expected = reference(spec, range(36), ends)
    assert np.abs(np.array(losses) - expected.losses).max() <= TOLERANCE
    assert expected.losses[0] - np.mean(expected.losses[-4:]) > 0.3, "a model that stands still follows anything"
    for trainer, parameters_P in zip(chain.trainers, expected.parameters, strict=True):
        assert trainer.epoch == 2
        # a handful of values have no gradient to speak of: what AdamW makes of it is rounding's choice
        off_P = np.abs(trainer.local_parameters() - parameters_P)
        assert np.quantile(off_P, 0.999) <= TOLERANCE and off_P.max() <= spec.inner.lr_peak


def test_the_compressed_chain_follows_the_compressed_reference() -> None:
    """2. int8 boundaries, seeded gradients and int8 uploads: the same codes, until a sum falls on the edge of one.

    The first two steps, forward and back, agree to fp32 rounding. Later a rare code flips (1/127 of its group's largest
    value): on the whole the runs stay much closer to each other than to the run without any rounding.
    """
    spec = make_spec(3, 8, upload_values=Values.INT8)
    boundary = msgspec.structs.replace(spec.boundary, values=Values.INT8)
    spec = msgspec.structs.replace(spec, boundary=boundary, boundary_size_bytes=32 + 2 * 2 + 2 * 16 * 8)
    losses, _ = run_chain(spec, 24, (12,), order=random.Random(1))
    compressed = reference(spec, range(24), (12,))
    off = np.abs(np.array(losses) - compressed.losses)
    assert off[:8].max() <= TOLERANCE
    plain = reference(uncompressed(spec), range(24), (12,))
    rounding = np.abs(np.array(plain.losses) - compressed.losses)
    assert off.mean() < rounding.mean() / 2 and rounding[:8].min() > TOLERANCE
    assert uncompressed(spec).boundary_size_bytes == 32 + 4 * 2 * 16 * 8


def test_an_epoch_that_ends_inside_a_step_steps_what_it_has() -> None:
    """3. Six micro-batches at k = 4: the last two make a step of their own, as `close_epoch` does."""
    spec = make_spec(2)
    chain, order = Chain(spec), random.Random(2)
    losses = chain.train([0, 1, 2, 3], order) | chain.train([4, 5], order)
    chain.merge()
    losses |= chain.train([6, 7, 8, 9], order)
    expected = reference(spec, range(10), (6,))
    assert [losses[number] for number in range(10)] == pytest.approx(expected.losses, abs=TOLERANCE)


def _no_clip(chain: Chain) -> None:
    chain.trainers[1]._spec = replace_inner(chain.spec, clip_norm=1e9)


def _other_rate(chain: Chain) -> None:
    chain.trainers[1]._spec = replace_inner(chain.spec, lr_peak=chain.spec.inner.lr_peak * 1.1)


def _other_k(chain: Chain) -> None:
    chain.trainers[1]._spec = replace_inner(chain.spec, micro_batches_per_step=2)


def _other_outer_rate(chain: Chain) -> None:
    merge = msgspec.structs.replace(chain.spec.merge, outer_lr=0.9)
    for trainer in chain.trainers:
        trainer._anchor._merge = merge


@pytest.mark.parametrize("spoil", [_no_clip, _other_rate, _other_k, _other_outer_rate])
def test_a_planted_mistake_is_seen(spoil: Callable[[Chain], None]) -> None:
    """4. One stage forgets to clip, has another rate, steps too early, or merges otherwise: ten times the tolerance."""
    spec = replace_inner(make_spec(3), clip_norm=1e-5)  # so low that AdamW's eps feels it
    losses, _ = run_chain(spec, 24, (12,), spoil)
    expected = reference(spec, range(24), (12,))
    assert np.abs(np.array(losses) - expected.losses).max() > 10 * TOLERANCE


def test_the_clip_of_pseudo_gradients_is_in_the_definition() -> None:
    """5. A tight clip factor shortens the third epoch's merge, and only from there on the runs differ."""
    loose, tight = make_spec(2), make_spec(2, clip_factor=0.1)
    one, other = (reference(spec, range(16), (4, 8, 12)) for spec in (loose, tight))
    assert one.losses[:8] == other.losses[:8]
    assert one.losses[8:] != other.losses[8:]


def test_the_reference_reports_speed_and_validation() -> None:
    """6. What `make bench` reads: tokens over the loop's own time, and a held-out loss that training lowered."""
    spec = make_spec(2)
    run = reference(spec, range(24))
    assert (run.tokens, run.duration_s, run.tokens_per_s) == (24 * 32, 1.0, 768.0)
    held_out = list(validation_batches(TOKENS[-1_000:], 2, 16))
    start = ReferenceRun([], [initial_parameters(spec, Stage(stage)) for stage in range(2)], 0, 0.0)
    assert run.validation_loss(spec, held_out) < start.validation_loss(spec, held_out) - 0.1


def test_two_processes_are_one_reference() -> None:
    """7. The data-parallel baseline does the same steps: same losses up to the order of sums, warm-up not timed."""
    spec = make_spec(2)
    run = train_data_parallel(spec, batches_of(spec), range(8), num_processes=2, warm_up=1)
    expected = reference(spec, range(8))
    assert run.losses == pytest.approx(expected.losses, abs=TOLERANCE)
    assert run.tokens == 4 * 32 and run.duration_s > 0


def test_processes_that_cannot_share_a_step_are_refused() -> None:
    """8. Four micro-batches a step do not divide among three."""
    spec = make_spec(2)
    with pytest.raises(ConfigError, match="micro_batches_per_step"):
        train_data_parallel(spec, batches_of(spec), range(12), num_processes=3)
