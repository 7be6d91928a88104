"""The owner's rules file: what it may change, what it may not, and what its mistakes are told."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subnet import presets
from subnet.errors import ConfigError
from subnet.protocol import tuning
from subnet.protocol.ids import Digest, RunId
from subnet.protocol.keys import ObjectKey
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec

FILE = DataFile(key=ObjectKey("run/0/0/text/data"), digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=8, seq_len=128)
SPEC = presets.run_spec(presets.laptop(presets.Size(6, 3, 6)), run_id=RunId("run"), seed=7, num_stages=3, data=DATA)


def tuned(text: str, spec: RunSpec = SPEC, version: int = 2) -> RunSpec:
    return tuning.tuned(spec, tuning.parse(text.encode()), version)


def test_a_file_changes_what_it_names_and_nothing_else() -> None:
    """1. Quorum, burn and a tolerance are changed; whole numbers will do for seconds; everything else is as before."""
    spec = tuned("[merge]\nquorum = 0.5\ngrace_s = 3\n[score]\nburn_fraction = 0.1\n[audit.tolerances]\nloss = 0.01\n")
    assert (spec.merge.quorum, spec.merge.grace_s, spec.score.burn_fraction) == (0.5, 3.0, 0.1)
    assert spec.audit.tolerances.loss == 0.01 and isinstance(spec.merge.grace_s, float)
    restored = msgspec.structs.replace(spec, version=1, merge=SPEC.merge, score=SPEC.score, audit=SPEC.audit)
    assert restored == SPEC and spec.version == 2 and spec.digest() != SPEC.digest()
    assert tuning.differences(SPEC, spec) == [
        "merge.quorum 0.75 → 0.5",
        "merge.grace_s 5 → 3",
        "audit.tolerances.loss 0.001 → 0.01",
        "score.burn_fraction 0 → 0.1",
    ]
    assert tuning.is_tuned_from(SPEC, spec)


def test_a_line_that_is_taken_out_restores_what_the_run_began_with() -> None:
    """2. The file is always read against the first RunSpec: emptied, it means the first rules again."""
    assert msgspec.structs.replace(tuned("", version=3), version=1) == SPEC
    assert tuning.differences(tuned("[score]\ngamma_s = 9"), tuned("", version=3)) == ["score.gamma_s 9 → 500"]


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("[merge]\nquorom = 0.5", "merge.quorom", "quorum"),
        ("[merge]\ncopies = 3", "merge.copies", "fixed for the whole run"),
        ("[inner]\nmicro_batches_per_step = 4", "inner.micro_batches_per_step", "fixed"),
        ("[merge]\nquorum = 2", "merge.quorum", "1.0"),
        ("[merge]\nnum_microbatches_min = 1" + 400 * "0", "merge.num_microbatches_min", "<="),
        ("[score]\ngamma_s = 0", "score.gamma_s", "> 0"),
        ("[score]\ngamma_s = inf", "score.gamma_s", "<="),
        ("[inner]\nlr_peak = nan", "inner.lr_peak", ""),
        ("[inner]\nlr_peak = 'fast'", "inner.lr_peak", "float"),
        ("[model]\nd_model = 4", "model", "inner, merge, routing, audit, score"),
        ("[audit.tolerances]\nluck = 1", "audit.tolerances.luck", "quantiser_steps"),
        ("[audit]\nrate = 0", "audit.rate", "above 0"),
        ("[inner]\nlr_final = 1.0", "inner.lr_final", "lr_peak"),
        ("[routing]\ndead_after_s = 6", "routing.dead_after_s", "heartbeats"),
        ("merge = 3", "merge", "object"),
        ("quorum 0.5", "--config", "TOML"),
    ],
)
def test_a_mistake_names_the_field_and_the_remedy(text: str, field: str, words: str) -> None:
    """3. Misspelt, fixed for the run, beyond its limits, no number, no TOML: one line each, and it says which."""
    with pytest.raises(ConfigError) as caught:
        tuned(text)
    assert caught.value.field == field and words in str(caught.value) and "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_rules_are_a_mistake_of_the_operator(data: bytes) -> None:
    """4. Whatever the file holds, it is rules or a ConfigError."""
    try:
        tuning.parse(data)
    except ConfigError as error:
        assert error.field and error.remedy


def test_what_is_no_tuning_is_known() -> None:
    """5. Another model, seed, text, accumulation or number of owners is another run."""
    for change in (
        {"seed": 8},
        {"model": msgspec.structs.replace(SPEC.model, d_ff=64)},
        {"merge": msgspec.structs.replace(SPEC.merge, copies=3)},
        {"inner": msgspec.structs.replace(SPEC.inner, micro_batches_per_step=4)},
        {"audit": msgspec.structs.replace(SPEC.audit, segment_steps=1)},
        {"routing": msgspec.structs.replace(SPEC.routing, heartbeat_s=1.0)},
    ):
        assert not tuning.is_tuned_from(SPEC, msgspec.structs.replace(SPEC, version=2, **change))
