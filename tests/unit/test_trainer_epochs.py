"""One miner's trainer at the turn of an epoch: upload, merge bit by bit, drift, resync.

Where two results must be equal they are compared exactly: same operations in the same order.
"""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.data.sampling import Batches
from subnet.errors import PeerFault
from subnet.merging import compression, reduction
from subnet.model import wire
from subnet.model.initial import initial_parameters
from subnet.model.trainer import Trainer
from subnet.protocol.ids import Digest, Epoch, MicroBatchId, RunId, Stage, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec

FILE = DataFile(key=ObjectKey("run/0/0/text/data"), digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=2, seq_len=16)
TOKENS = np.random.default_rng(0).integers(0, 256, 5_000).astype(np.uint16)


def make_spec(num_stages: int = 2, k: int = 2, values: Values = Values.FP32, **merge: object) -> RunSpec:
    preset = presets.equivalence(presets.Size(num_stages, num_stages, 2), width=8)
    preset = preset._replace(
        inner=msgspec.structs.replace(preset.inner, micro_batches_per_step=k),
        boundary=msgspec.structs.replace(preset.boundary, values=values),
        merge=msgspec.structs.replace(preset.merge, **merge),
    )
    return presets.run_spec(preset, run_id=RunId("run"), seed=7, num_stages=num_stages, data=DATA)


def make_trainer(spec: RunSpec, stage: int) -> Trainer:
    trainer = Trainer(spec, Stage(stage), "cpu", Batches(TOKENS, spec.seed, 2, 16))
    parameters_P = initial_parameters(spec, Stage(stage))
    trainer.load(Epoch(0), parameters_P, np.zeros_like(parameters_P))
    return trainer


def mb(number: int) -> MicroBatchId:
    return MicroBatchId(number)


def some_gradient(spec: RunSpec, number: int) -> bytes:
    shape = (2, 16, spec.boundary.width)
    z_BTK = np.random.default_rng(number).normal(size=shape).astype(np.float32) * 1e-2
    return wire.encode(spec, z_BTK, wire.rounding_seed(spec, number, 1))


def bare_merge(trainer: Trainer, g: np.ndarray | None) -> object:
    return trainer.apply_merge([(0, trainer.num_params, g)])


def state(trainer: Trainer) -> tuple[object, ...]:
    return trainer.param_version, trainer.accumulated, trainer.local_parameters().tobytes()


def trained(spec: RunSpec, stage: int = 0, count: int = 3) -> Trainer:
    trainer = make_trainer(spec, stage)
    for number in range(count):
        trainer.forward(mb(number), None)
        trainer.backward(mb(number), None, some_gradient(spec, number))
    return trainer


@pytest.mark.parametrize("values", [Values.FP32, Values.INT8])
def test_the_upload_is_anchor_minus_local(values: Values) -> None:
    """1. Three micro-batches at k = 2: the third is stepped at the close; size, digest, norm and chunks all fit."""
    spec = make_spec(upload_values=values)
    trainer = trained(spec)
    assert trainer.accumulated == 1
    upload = trainer.close_epoch()
    assert trainer.accumulated == 0
    delta_P = compression.decode(upload.data, values, trainer.num_params)
    exact_P = initial_parameters(spec, Stage(0)) - trainer.local_parameters()
    step = np.abs(exact_P).max() / 127 if values is Values.INT8 else 0
    assert np.abs(delta_P - exact_P).max() <= step
    assert upload.digest == hashlib.sha256(upload.data).hexdigest()
    assert upload.norm == pytest.approx(np.linalg.norm(delta_P.astype(np.float64)))
    assert upload.chunk_digests == compression.chunk_digests(upload.data, values, trainer.num_params)
    assert len(upload.data) == compression.encoded_size(values, spec.stages[0].num_params)


def test_a_merge_is_bit_exact_on_every_replica_and_published_whole() -> None:
    """2. Two replicas with different work apply the same shards: same bytes, same digests, equal to the formula."""
    spec = make_spec(outer_lr=0.7, outer_momentum=0.9, outer_momentum_first=0.5, momentum_warmup_epochs=1)
    one, two = trained(spec, count=3), trained(spec, count=1)
    g_P = compression.decode(one.close_epoch().data, Values.FP32, one.num_params)
    two.close_epoch()
    cut = compression.BLOCK_VALUES * 3
    shards = [(cut, one.num_params - cut, g_P[cut:]), (0, cut, g_P[:cut])]
    anchor, same = one.apply_merge(shards), two.apply_merge(shards)
    assert anchor == same
    assert np.array_equal(one.local_parameters(), two.local_parameters())
    theta_P = initial_parameters(spec, Stage(0))
    theta_next_P, v_next_P = reduction.outer_step(theta_P, np.zeros_like(theta_P), g_P, 0.7, 0.5)
    assert np.array_equal(compression.decode(anchor.parameters, Values.FP32, one.num_params), theta_next_P)
    assert np.array_equal(compression.decode(anchor.momentum, Values.FP32, one.num_params), v_next_P)
    assert anchor.parameters_digest == hashlib.sha256(anchor.parameters).hexdigest()
    assert (one.epoch, two.epoch) == (1, 1)

    joiner = Trainer(spec, Stage(0), "cpu", Batches(TOKENS, spec.seed, 2, 16))
    joiner.load(Epoch(1), theta_next_P, v_next_P)
    assert np.array_equal(joiner.local_parameters(), one.local_parameters())
    next_g_P = np.full(one.num_params, 1e-3, np.float32)
    one.close_epoch()
    assert bare_merge(one, next_g_P) == bare_merge(joiner, next_g_P), "momentum and its warm-up travel with the anchor"


def test_a_lost_shard_keeps_parameters_and_momentum() -> None:
    """3. Both owners of a shard died: that range stays at the anchor, for everybody."""
    spec = make_spec()
    trainer = trained(spec)
    g_P = compression.decode(trainer.close_epoch().data, Values.FP32, trainer.num_params)
    cut = compression.BLOCK_VALUES
    anchor = trainer.apply_merge([(0, cut, None), (cut, trainer.num_params - cut, g_P[cut:])])
    theta_P = compression.decode(anchor.parameters, Values.FP32, trainer.num_params)
    start_P = initial_parameters(spec, Stage(0))
    assert np.array_equal(theta_P[:cut], start_P[:cut])
    assert (theta_P[cut:] != start_P[cut:]).any()


def test_training_during_a_merge_is_carried_over() -> None:
    """4. Work in the grace window: local = new anchor + what was trained since the upload; old graphs stay valid."""
    spec = make_spec()
    trainer = trained(spec)
    trainer.forward(mb(10), None)
    g_P = compression.decode(trainer.close_epoch().data, Values.FP32, trainer.num_params)
    uploaded_P = trainer.local_parameters()
    for number in (11, 12):
        trainer.backward(mb(number), None, some_gradient(spec, number))
    drift_P = trainer.local_parameters() - uploaded_P
    assert np.abs(drift_P).max() > 0
    anchor = bare_merge(trainer, g_P)
    theta_P = compression.decode(anchor.parameters, Values.FP32, trainer.num_params)
    assert np.array_equal(trainer.local_parameters(), drift_P + theta_P)
    assert trainer.backward(mb(10), None, some_gradient(spec, 10)) is None, "recomputed: two versions went by"


def test_a_replica_that_did_not_upload_starts_at_the_anchor() -> None:
    """5. Too slow for the upload: what it trained is in nobody's merge and is not counted on top of the others'."""
    spec = make_spec()
    late, other = trained(spec, count=2), trained(spec, count=4)
    g_P = compression.decode(other.close_epoch().data, Values.FP32, other.num_params)
    assert bare_merge(late, g_P) == bare_merge(other, g_P)
    assert np.array_equal(late.local_parameters(), other.local_parameters())


@pytest.mark.parametrize(
    "ranges",
    [[(0, 256)], [(0, 512), (256, -1)], [(256, -1)], [], [(0, -1), (0, 0), (5, 5)]],
    ids=["short", "overlap", "hole", "none", "beyond"],
)
def test_shards_that_do_not_tile_the_vector_change_nothing(ranges: list[tuple[int, int]]) -> None:
    """6. A list of shards with a hole, an overlap or an end too early: refused before the anchor moves."""
    spec = make_spec()
    trainer = trained(spec)
    trainer.close_epoch()
    before = state(trainer)
    rest = trainer.num_params
    shards = [(start, length if length >= 0 else rest - start, None) for start, length in ranges]
    with pytest.raises(PeerFault) as caught:
        trainer.apply_merge(shards)
    assert caught.value.code == Reason.BAD_OBJECT
    assert state(trainer) == before and trainer.epoch == 0


def test_a_merge_that_leaves_the_numbers_changes_nothing() -> None:
    """7. Reduced values near the limit push the parameters out of range: refused, the epoch goes on."""
    spec = make_spec(outer_lr=100.0)
    trainer = trained(spec)
    trainer.close_epoch()
    before = state(trainer)
    with pytest.raises(PeerFault) as caught:
        bare_merge(trainer, np.full(trainer.num_params, 1e30, np.float32))
    assert caught.value.code == Reason.NOT_FINITE
    assert state(trainer) == before and trainer.epoch == 0


def test_a_load_drops_everything_local() -> None:
    """8. The orchestrator orders a resync in the middle of accumulation: afterwards it is as if newly joined."""
    spec = make_spec()
    trainer, fresh = trained(spec, count=3), make_trainer(spec, 0)
    trainer.forward(mb(8), None)
    start_P = initial_parameters(spec, Stage(0))
    trainer.load(Epoch(0), start_P, np.zeros_like(start_P))
    assert trainer.accumulated == 0
    for number in range(2):
        for each in (trainer, fresh):
            each.backward(mb(number), None, some_gradient(spec, number))
    assert np.array_equal(trainer.local_parameters(), fresh.local_parameters())


def test_a_trainer_refuses_a_runspec_that_contradicts_itself() -> None:
    """9. The RunSpec a joiner was sent is not what it derives to."""
    spec = msgspec.structs.replace(make_spec(), boundary_size_bytes=5)
    with pytest.raises(PeerFault, match="bytes"):
        Trainer(spec, Stage(0), "cpu", Batches(TOKENS, 7, 2, 16))
