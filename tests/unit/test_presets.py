"""Presets: what a run agrees on, before it begins."""

from __future__ import annotations

import msgspec
import pytest

from subnet import presets
from subnet.errors import ConfigError
from subnet.model.split import check_spec
from subnet.presets import Size
from subnet.protocol.ids import Digest, RunId, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec

FILE = DataFile(key=ObjectKey("run/0/0/file/data"), digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=8, seq_len=128)


def spec(name: str, size: Size) -> RunSpec:
    preset = presets.choose(name, size)
    return presets.run_spec(preset, run_id=RunId("run"), seed=7, num_stages=size.num_stages, data=DATA)


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_a_preset_gives_a_spec_everybody_accepts(name: str, num_stages: int) -> None:
    """1. Each party checks the derived numbers of the RunSpec; and it survives being sent."""
    made = spec(name, Size(2 * num_stages, num_stages, 3))
    check_spec(made)
    assert msgspec.json.decode(msgspec.json.encode(made), type=RunSpec) == made


def test_an_epoch_is_as_long_whatever_the_replicas() -> None:
    """2. Ten miners over two stages share an epoch's work instead of doing five times as much."""
    for miners, stages in ((6, 3), (10, 2), (3, 3), (2, 1)):
        replicas = miners // stages
        per_epoch = replicas * spec("laptop", Size(miners, stages, 3)).merge.num_microbatches_min
        assert presets.EPOCH_MICRO_BATCHES <= per_epoch < presets.EPOCH_MICRO_BATCHES + replicas


def test_the_operator_may_shorten_the_epochs() -> None:
    """3. A demonstration wants merges every few seconds; the learning-rate schedule follows."""
    made = spec("laptop", Size(6, 3, 2, num_microbatches_min=10))
    assert (made.merge.num_microbatches_min, made.inner.steps_per_epoch) == (10, 5)
    assert made.inner.warmup_steps + made.inner.decay_steps == 2 * 5


def test_equivalence_loses_nothing_on_the_way() -> None:
    """4. The comparison with the reference leaves no room for rounding, clipping or relaxing."""
    made = spec("equivalence", Size(2, 2, 3))
    assert made.boundary.values is made.merge.upload_values is Values.FP32
    assert made.boundary.width == made.model.d_model and not made.boundary.token_table
    assert (made.merge.outer_lr, made.merge.outer_momentum, made.routing.flush) == (1.0, 0.0, True)
    assert made.routing.in_flight_per_replica >= 3


def test_unknown_presets_and_too_many_stages_are_told() -> None:
    """5. Seven stages of a six-layer model, or a preset that nobody wrote."""
    with pytest.raises(ConfigError, match="--preset: 'huge' is not known; choose one of laptop, equivalence"):
        presets.choose("huge", Size(6, 3, 3))
    with pytest.raises(ConfigError, match="--stages"):
        spec("laptop", Size(7, 7, 3))
