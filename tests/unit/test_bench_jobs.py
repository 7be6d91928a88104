"""What the benchmark's references train, and what its jobs answer."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.data import token_shards
from subnet.model.optimizer import learning_rate
from subnet.model.split import check_spec
from subnet.model.wire import encoded_size
from subnet.presets import Size
from subnet.protocol import keys
from subnet.protocol.ids import Digest, RunId, Values
from subnet.protocol.keys import Kind as ObjectKind
from subnet.protocol.keys import ObjectKey
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.simulation.bench_figures import in_one_go, joint_batch, uncut, with_boundary, zeroed
from subnet.simulation.bench_jobs import Job, Kind, Shown, measure
from subnet.simulation.bench_swarm import stored, total_params
from subnet.storage.files import FileObjectStore

FILE = DataFile(key=ObjectKey("run/0/0/file/data"), digest=Digest("0" * 64), size_bytes=1)


def spec(name: str = "bench", batch: int = 8, seq_len: int = 128) -> RunSpec:
    data = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=batch, seq_len=seq_len)
    preset = presets.choose(name, Size(6, 3, 3))
    return presets.run_spec(preset, run_id=RunId("run"), seed=7, num_stages=3, data=data)


def test_the_uncut_model_is_the_model_without_boundaries() -> None:
    """1. The baselines' model: every party would accept its RunSpec, and only what boundaries add is gone."""
    for name in ("bench", "laptop"):
        whole = uncut(spec(name))
        check_spec(whole)
        assert (whole.num_stages, whole.stages[0].end_layer) == (1, 6)
        assert whole.boundary.values is Values.FP32 and not whole.boundary.token_table
        assert 2.1e6 < total_params(whole) < total_params(spec("bench")) < 2.2e6 < total_params(spec("laptop"))


def test_the_control_sends_a_header_and_keeps_the_side_information() -> None:
    """2. Nothing crosses, but the token table stays where the run has one."""
    control = zeroed(spec("laptop"))
    check_spec(control)
    assert encoded_size(control) == 32 and control.boundary.token_table
    assert control.num_stages == 3


@pytest.mark.parametrize(("count", "per_step"), [(480, 2), (481, 4), (6, 2), (1, 2)])
def test_a_reference_runs_through_the_whole_course_of_the_rate(count: int, per_step: int) -> None:
    """3. However many steps it takes, the rate begins with the warm-up and is at its end with the last step."""
    made = in_one_go(spec(), count, per_step)
    steps = -(-count // per_step)
    assert made.inner.micro_batches_per_step == per_step
    assert learning_rate(made.inner, 0, 0) <= made.inner.lr_peak
    if steps > made.inner.warmup_steps:
        assert learning_rate(made.inner, 0, steps) == pytest.approx(made.inner.lr_final)
        assert learning_rate(made.inner, 0, steps // 2) > made.inner.lr_final


def test_replicas_step_together() -> None:
    """4. Six miners on three stages: two replicas, each stepping every k micro-batches, see 2 k at once."""
    made = spec()
    k = made.inner.micro_batches_per_step
    assert [joint_batch(made, miners) for miners in (3, 6, 7, 9, 2)] == [k, 2 * k, 2 * k, 3 * k, k]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A text in which some tokens are much likelier than others."""
    values = np.minimum(np.random.default_rng(0).geometric(0.05, 4_000), 255).astype(np.uint32)
    path = tmp_path / "text.tokens"
    path.write_bytes(token_shards.encode(values, 256))
    return path


@pytest.mark.parametrize("name", ["as it is", "control", "uncut"])
def test_a_reference_learns_in_its_job(tokens: Path, name: str) -> None:
    """5. Every kind of reference trains, even when nothing crosses the boundaries, and is judged on held-out text."""
    tiny = spec("equivalence", 2, 16)
    narrow = msgspec.structs.replace(tiny.boundary, width=8, values=Values.INT8, token_table=True)
    tiny = with_boundary(tiny, narrow, 3)
    made = {"as it is": tiny, "control": zeroed(tiny), "uncut": uncut(tiny)}[name]

    def loss(micro_batches: int) -> float:
        job = Job(
            kind=Kind.LOSS, spec=in_one_go(made, micro_batches, 2), train=str(tokens), validation=str(tokens),
            micro_batches=micro_batches,
        )  # fmt: skip
        answer = measure(msgspec.json.decode(msgspec.json.encode(job), type=Job))
        assert answer.validation_loss is not None and answer.tokens_per_s > 0
        return answer.validation_loss

    assert loss(30) < loss(2) - 0.15


def test_a_baseline_warms_up_before_its_clock(tokens: Path) -> None:
    """6. The first micro-batches build threads and caches; only the others count."""
    tiny = spec("equivalence", 2, 16)
    job = Job(
        kind=Kind.ONE_PROCESS, spec=tiny, train=str(tokens), validation=str(tokens), micro_batches=4, warm_up=4
    )  # fmt: skip
    answer = measure(job)
    assert answer.tokens_per_s > 0 and answer.validation_loss is None


def test_long_work_tells_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """7. The operator sees every few seconds that a reference is still at work."""
    shown = Shown(3, say_every_s=0.0)
    assert list(shown) == [0, 1, 2] and len(shown) == 3 and shown[-1] == 2
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 3 micro-batches"
    assert list(Shown(3, say_every_s=1e9)) == [0, 1, 2] and capsys.readouterr().out == ""


async def test_stored_objects_are_counted_by_kind(tmp_path: Path) -> None:
    """8. The ratio of a link is measured on the objects that really lie there, whatever was planned."""
    store = FileObjectStore(tmp_path / "objects", "http://unused", b"secret" * 6, lambda: 0.0)
    written = [
        (0, "mb1.0", ObjectKind.BOUNDARY, 7),
        (1, "mb2.1", ObjectKind.BOUNDARY, 8),
        (1, "5Aaa.1", ObjectKind.PARAMETERS, 9),
    ]
    try:
        for epoch, item, kind, size in written:
            await store.put(keys.make(RunId("run"), epoch, 0, item, kind), b"x" * size)
    finally:
        store.close()
    sizes, counts = stored(tmp_path / "objects")
    assert (sizes, counts) == ({"boundary": 15, "parameters": 9}, {"boundary": 2, "parameters": 1})
