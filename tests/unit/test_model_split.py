"""Layouts, costs, cuts and first values: what every party must derive alike before anything is computed."""

from __future__ import annotations

from math import prod

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet import presets
from subnet.errors import ConfigError, PeerFault
from subnet.model.initial import initial_parameters
from subnet.model.spec import flops_per_token, num_params, shapes_of, stage_shapes
from subnet.model.split import check_spec, split
from subnet.protocol.ids import Digest, RunId, Stage, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import BoundarySpec, DataFile, DataSpec, ModelSpec, RunSpec

FILE = DataFile(key=ObjectKey("run/0/0/text/data"), digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=2, seq_len=16)
LAPTOP = presets.laptop(presets.Size(6, 3, 3))


def make_spec(num_stages: int, preset: presets.Preset = LAPTOP, seed: int = 7) -> RunSpec:
    return presets.run_spec(preset, run_id=RunId("run"), seed=seed, num_stages=num_stages, data=DATA)


def test_the_laptop_model_has_its_advertised_size() -> None:
    """1. The README says 2.2M parameters; token tables and bottlenecks come on top of the whole model's count."""
    whole = make_spec(1)
    assert whole.stages[0].num_params == 2_156_160
    assert whole.stages[0].first_layer == 0 and whole.stages[0].end_layer == 6


def test_flops_are_counted_from_the_formula() -> None:
    """2. One layer by hand: two FLOPs a weight, plus causal attention: 2 x T x D. The head is one more matrix."""
    model, boundary = LAPTOP.model, LAPTOP.boundary
    layer = 2 * (128 * 256 + 128 * 128 + 128 * 704 + 352 * 128) + 2 * 128 * 128
    assert flops_per_token(model, boundary, 2, 3, True, True, 128) == layer + 2 * 128 * 4096
    encoder, decoder = 2 * (128 * 64 + 64 * 16), 2 * (16 * 64 + 64 * 128)
    assert flops_per_token(model, boundary, 2, 3, False, False, 128) == layer + encoder + decoder


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 24), vocab=st.sampled_from([64, 4_096, 50_000]), width=st.sampled_from([0, 2, 32]),
    share=st.floats(0.0, 1.0), table=st.booleans(),
)
def test_cuts_are_contiguous_complete_and_balanced(
    layers: int, vocab: int, width: int, share: float, table: bool
) -> None:
    """3. Whatever the model, each layer is in one stage, none is empty, and no single move of a layer helps."""
    model = ModelSpec(vocab_size=vocab, d_model=32, num_layers=layers, num_heads=4, num_kv_heads=2, d_ff=64)
    boundary = BoundarySpec(width=width, hidden=8, values=Values.INT8, scale_group_tokens=16, token_table=table)
    num_stages = 1 + int(share * (layers - 1))
    stages = split(model, boundary, num_stages, 16)
    assert [stage.first_layer for stage in stages] == [0] + [stage.end_layer for stage in stages[:-1]]
    assert stages[-1].end_layer == layers
    assert all(stage.end_layer > stage.first_layer for stage in stages)
    layer = flops_per_token(model, boundary, 0, 2, True, False, 16) - flops_per_token(
        model, boundary, 0, 1, True, False, 16
    )
    heaviest = max(stages, key=lambda stage: stage.flops_per_token)
    lightest = min(stage.flops_per_token for stage in stages)
    can_give = heaviest.end_layer - heaviest.first_layer > 1
    assert not can_give or lightest + layer >= heaviest.flops_per_token
    for number, stage in enumerate(stages):
        ends = number == 0, number == num_stages - 1
        shapes = stage_shapes(model, boundary, stage.first_layer, stage.end_layer, *ends)
        assert stage.num_params == num_params(shapes) == sum(prod(shape) for _, shape in shapes)


@pytest.mark.parametrize("num_stages", [0, 7])
def test_more_stages_than_layers_is_the_operators_mistake(num_stages: int) -> None:
    """4. `--stages 7` for six layers: one line that names the flag."""
    with pytest.raises(ConfigError, match="--stages"):
        split(LAPTOP.model, LAPTOP.boundary, num_stages, 128)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"num_heads": 3}, "num_heads"), ({"num_kv_heads": 3}, "num_kv_heads"), ({"num_heads": 128}, "num_heads")],
)
def test_impossible_models_are_refused(change: dict[str, int], field: str) -> None:
    """5. Heads that do not divide, and head widths that cannot be rotated in pairs."""
    with pytest.raises(ConfigError, match=field):
        split(msgspec.structs.replace(LAPTOP.model, **change), LAPTOP.boundary, 2, 128)


def test_a_boundary_wider_than_the_model_is_refused() -> None:
    """6. K > D has no meaning."""
    with pytest.raises(ConfigError, match="boundary.width"):
        split(LAPTOP.model, msgspec.structs.replace(LAPTOP.boundary, width=129), 2, 128)


def test_a_runspec_that_contradicts_itself_is_refused() -> None:
    """7. A joiner is sent a RunSpec whose stage sizes or boundary size were tampered with."""
    spec = make_spec(3)
    check_spec(spec)
    bad_stage = msgspec.structs.replace(spec.stages[1], num_params=spec.stages[1].num_params + 1)
    bad = [
        msgspec.structs.replace(spec, stages=(spec.stages[0], bad_stage, spec.stages[2])),
        msgspec.structs.replace(spec, boundary_size_bytes=spec.boundary_size_bytes - 1),
    ]
    for tampered in bad:
        with pytest.raises(PeerFault) as caught:
            check_spec(tampered)
        assert caught.value.code == Reason.WRONG_SPEC


def test_first_values_do_not_depend_on_the_cut() -> None:
    """8. Two operators cut the same seed's model differently: layers, embedding and head start equal."""
    def named(spec: RunSpec) -> dict[str, np.ndarray]:
        found = {}
        for stage in range(spec.num_stages):
            shapes = shapes_of(spec, stage)
            ends = np.cumsum([prod(shape) for _, shape in shapes])
            parts = np.split(initial_parameters(spec, Stage(stage)), ends[:-1])
            found |= {name: part for (name, _), part in zip(shapes, parts, strict=True)}
        return found

    whole, cut = named(make_spec(1)), named(make_spec(3))
    assert whole.keys() < cut.keys()
    assert all(np.array_equal(whole[name], cut[name]) for name in whole)


def test_first_values_follow_the_seed() -> None:
    """9. Same seed, same bytes; another seed, another model; the two ends of different boundaries differ."""
    one, again, other = (initial_parameters(make_spec(3, seed=seed), Stage(1)) for seed in (1, 1, 2))
    assert one.dtype == np.float32 and np.array_equal(one, again) and not np.array_equal(one, other)
    assert len(one) == make_spec(3).stages[1].num_params
