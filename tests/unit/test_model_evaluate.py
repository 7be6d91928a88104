"""The merged model in use: validation loss and continued text, one stage in memory at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.data.sampling import validation_batches
from subnet.model.evaluate import continue_tokens, validation_loss
from subnet.model.initial import initial_parameters
from subnet.protocol.ids import Digest, RunId, Stage, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec

FILE = DataFile(key=ObjectKey("run/0/0/text/data"), digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=2, seq_len=16)
TOKENS = np.random.default_rng(0).integers(0, 256, 200).astype(np.uint16)


def make_spec(num_stages: int, values: Values = Values.FP32, width: int | None = None) -> RunSpec:
    preset = presets.equivalence(presets.Size(num_stages, num_stages, 1), width=width)
    preset = preset._replace(boundary=msgspec.structs.replace(preset.boundary, values=values))
    return presets.run_spec(preset, run_id=RunId("run"), seed=7, num_stages=num_stages, data=DATA)


def parameters(spec: RunSpec) -> list[np.ndarray]:
    return [initial_parameters(spec, Stage(stage)) for stage in range(spec.num_stages)]


def test_a_streamed_loss_is_the_whole_models() -> None:
    """1. Cut or not, the held-out loss is the same; every predicted token counts once, the smaller batch included."""
    whole, cut = make_spec(1), make_spec(3)
    batches = [*validation_batches(TOKENS, 5, 16), *validation_batches(TOKENS[:40], 5, 16)]
    expected, counted = validation_loss(whole, parameters(whole), batches)
    assert counted == sum(targets_BT.size for _, targets_BT in batches) == 192
    assert validation_loss(cut, parameters(cut), batches) == (pytest.approx(expected, abs=1e-6), counted)
    assert expected == pytest.approx(np.log(256), abs=0.3), "an untrained model knows nothing"


def test_what_is_evaluated_is_what_crosses_the_wire() -> None:
    """2. At int8 the loss is close to the exact one and not the same: the rounding of training is in it."""
    batches = list(validation_batches(TOKENS, 2, 16))
    exact = validation_loss(make_spec(2, width=8), parameters(make_spec(2, width=8)), batches)[0]
    rounded = validation_loss(make_spec(2, Values.INT8, 8), parameters(make_spec(2, width=8)), batches)[0]
    assert rounded != exact and rounded == pytest.approx(exact, abs=0.01)


def test_only_one_stage_is_held() -> None:
    """3. Stages come from the store one by one: the one before is gone when the next but one is asked for."""
    spec = make_spec(4)
    given: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[np.ndarray]:
        for stage in range(4):
            assert all(reference() is None for reference in given[:-1])
            vector_P = initial_parameters(spec, Stage(stage))
            given.append(weakref.ref(vector_P))
            yield vector_P
            del vector_P

    validation_loss(spec, stream(), validation_batches(TOKENS, 2, 16))
    assert len(given) == 4


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_text_is_continued_the_same_way_by_everyone(temperature: float) -> None:
    """4. `--sample`: the prompt stays, the seed decides, the cut does not; longer than T sees the last T tokens."""
    whole, cut = make_spec(1), make_spec(3)
    options = {"temperature": temperature, "seed": 5}
    text = continue_tokens(whole, parameters(whole), [1, 2, 3], 20, **options)
    assert text[:3] == [1, 2, 3] and len(text) == 23 and all(0 <= token < 256 for token in text)
    assert continue_tokens(cut, parameters(cut), [1, 2, 3], 20, **options) == text
    long = continue_tokens(whole, parameters(whole), [9] * 10 + text[:16], 4, **options)
    assert long[-4:] == continue_tokens(whole, parameters(whole), text[:16], 4, **options)[-4:]
    other = continue_tokens(whole, parameters(whole), [1, 2, 3], 20, temperature=temperature, seed=6)
    assert (other == text) == (temperature == 0)


def test_nothing_cannot_be_continued() -> None:
    """5. An empty prompt has no last token."""
    with pytest.raises(ValueError, match="token"):
        continue_tokens(make_spec(1), parameters(make_spec(1)), [], 3, temperature=1.0, seed=0)
