"""One miner's trainer against its law: versions, take-overs, faults that change nothing.

Where two gradients must be equal they are compared exactly: same operations in the same order. Where only the order of
sums differs the tolerance is 1e-6 of values of order one.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.data.sampling import Batches
from subnet.errors import PeerFault
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


def some_input(spec: RunSpec, number: int) -> bytes:
    return wire.encode(spec, np.random.default_rng(number).normal(size=(2, 16, spec.boundary.width)), None)


# ---- versions --------------------------------------------------------------------------------------------------------


def test_a_step_after_every_kth_micro_batch() -> None:
    """1. k = 2: the version grows with the second and the fourth backward, and only then do the parameters move."""
    spec = make_spec()
    trainer = make_trainer(spec, 0)
    first, seen = trainer.param_version, []
    start_P = trainer.local_parameters()
    for number in range(4):
        trainer.forward(mb(number), None)
        trainer.backward(mb(number), None, some_gradient(spec, number))
        seen.append((trainer.param_version - first, bool((trainer.local_parameters() != start_P).any())))
    assert seen == [(0, False), (1, True), (1, True), (2, True)]
    assert trainer.accumulated == 0


def test_backward_uses_its_forwards_parameters() -> None:
    """2. Three micro-batches are in flight when the first two make a step; the third's gradient is of the old version.

    It equals the gradient of a trainer that has not stepped at all.
    """
    spec, patient = make_spec(num_stages=3), make_spec(num_stages=3, k=9)
    trainer, witness = make_trainer(spec, 1), make_trainer(patient, 1)
    for number in range(3):
        trainer.forward(mb(number), some_input(spec, number))
    witness.forward(mb(2), some_input(spec, 2))
    for number in range(2):
        trainer.backward(mb(number), some_input(spec, number), some_gradient(spec, number))
    old = trainer.param_version - 1
    ours = trainer.backward(mb(2), some_input(spec, 2), some_gradient(spec, 2))
    assert ours == witness.backward(mb(2), some_input(spec, 2), some_gradient(spec, 2))
    assert trainer.pass_version == old


def test_a_graph_two_versions_old_is_recomputed_under_the_present_one() -> None:
    """3. A micro-batch comes back after two steps: its graph is gone, and the result is that of a fresh forward."""
    spec = make_spec(num_stages=3, k=1)
    slow, fresh = make_trainer(spec, 1), make_trainer(spec, 1)
    slow.forward(mb(9), some_input(spec, 9))
    for trainer in (slow, fresh):
        for number in range(2):
            trainer.forward(mb(number), some_input(spec, number))
            trainer.backward(mb(number), some_input(spec, number), some_gradient(spec, number))
    present = slow.param_version
    late = slow.backward(mb(9), some_input(spec, 9), some_gradient(spec, 9))
    assert slow.pass_version == present
    fresh.forward(mb(9), some_input(spec, 9))
    assert late == fresh.backward(mb(9), some_input(spec, 9), some_gradient(spec, 9))


@pytest.mark.parametrize("steps_between", [0, 1])
def test_at_most_two_versions_are_alive(steps_between: int) -> None:
    """4. A graph survives one step and not two; what it leads to is the same as with its own version kept apart."""
    spec = make_spec(num_stages=3, k=1)
    trainer = make_trainer(spec, 1)
    trainer.forward(mb(50), some_input(spec, 50))
    version = trainer.param_version
    for number in range(steps_between):
        trainer.forward(mb(number), some_input(spec, number))
        trainer.backward(mb(number), some_input(spec, number), some_gradient(spec, number))
    untouched = make_trainer(spec, 1)
    untouched.forward(mb(50), some_input(spec, 50))
    expected = untouched.backward(mb(50), some_input(spec, 50), some_gradient(spec, 50))
    assert trainer.backward(mb(50), some_input(spec, 50), some_gradient(spec, 50)) == expected
    assert trainer.pass_version == version


def test_graphs_are_bounded_whatever_the_neighbours_do() -> None:
    """5. The stages ahead stall and forwards pile up: no third graph is kept, all gradients are right."""
    spec = make_spec(num_stages=3, k=9)
    trainer = Trainer(spec, Stage(1), "cpu", Batches(TOKENS, spec.seed, 2, 16), graphs_max=2)
    parameters_P = initial_parameters(spec, Stage(1))
    trainer.load(Epoch(0), parameters_P, np.zeros_like(parameters_P))
    witness = make_trainer(spec, 1)
    for number in range(5):
        trainer.forward(mb(number), some_input(spec, number))
        witness.forward(mb(number), some_input(spec, number))
        assert len(trainer._kept) <= 2
    for number in range(5):
        given = some_input(spec, number), some_gradient(spec, number)
        assert trainer.backward(mb(number), *given) == witness.backward(mb(number), *given)


def test_a_taken_over_item_gives_the_same_gradient_under_the_same_version() -> None:
    """6. A replica dies after its forward; another one, at the same parameters, recomputes from the stage input."""
    spec = make_spec(num_stages=3)
    dead, heir = make_trainer(spec, 1), make_trainer(spec, 1)
    dead.forward(mb(4), some_input(spec, 4))
    expected = dead.backward(mb(4), some_input(spec, 4), some_gradient(spec, 4))
    assert heir.backward(mb(4), some_input(spec, 4), some_gradient(spec, 4)) == expected
    assert heir.accumulated == dead.accumulated == 1


def test_a_forgotten_item_leaves_no_graph_but_can_still_be_done() -> None:
    """7. `drop` names an item twice, and then it is offered again after all."""
    spec = make_spec()
    trainer = make_trainer(spec, 0)
    trainer.forward(mb(1), None)
    trainer.forget(mb(1))
    trainer.forget(mb(1))
    assert trainer.backward(mb(1), None, some_gradient(spec, 1)) is None
    assert trainer.accumulated == 1


def test_the_same_calls_give_the_same_bytes() -> None:
    """8. An auditor replays a miner's log: every object and the upload come out bit for bit, int8 rounding included."""
    spec = make_spec(num_stages=3, values=Values.INT8, upload_values=Values.INT8)

    def replay() -> list[bytes | None]:
        trainer, objects = make_trainer(spec, 1), []
        for number in range(5):
            objects.append(trainer.forward(mb(number), some_input(spec, number)))
        for number in (3, 0, 4, 1, 2):
            objects.append(trainer.backward(mb(number), some_input(spec, number), some_gradient(spec, number)))
        return [*objects, trainer.close_epoch().data]

    assert replay() == replay()


# ---- faults change nothing -------------------------------------------------------------------------------------------


def state(trainer: Trainer) -> tuple[object, ...]:
    return trainer.param_version, trainer.accumulated, trainer.local_parameters().tobytes()


@pytest.mark.parametrize("bad", [b"", b"junk", b"\0" * 1056], ids=["empty", "short", "right size, no header"])
def test_bad_bytes_from_a_neighbour(bad: bytes) -> None:
    """9. Stage input or gradient is garbage: a PeerFault that says which, nothing is changed, and a good copy works."""
    spec = make_spec(num_stages=3)
    assert wire.encoded_size(spec) == 1056
    middle, last = make_trainer(spec, 1), make_trainer(spec, 2)
    before = state(middle), state(last)
    attempts: list[tuple[Callable[[], object], str]] = [
        (lambda: middle.forward(mb(0), bad), "stage_input"),
        (lambda: last.loss(mb(0), bad), "stage_input"),
        (lambda: middle.backward(mb(0), some_input(spec, 0), bad), "gradient"),
        (lambda: middle.backward(mb(0), bad, some_gradient(spec, 0)), "stage_input"),
        (lambda: middle.forward(mb(0), None), "stage_input"),
    ]
    for attempt, blamed in attempts:
        with pytest.raises(PeerFault) as caught:
            attempt()
        assert caught.value.evidence == blamed
        assert caught.value.code in (Reason.BAD_SIZE, Reason.BAD_OBJECT)
    assert (state(middle), state(last)) == before
    middle.forward(mb(0), some_input(spec, 0))
    with pytest.raises(PeerFault):
        middle.backward(mb(0), some_input(spec, 0), bad)
    assert middle.backward(mb(0), some_input(spec, 0), some_gradient(spec, 0)) is not None


def poison(trainer: Trainer, spec: RunSpec) -> None:
    """A device that computes wrongly: the parameters turn to NaN."""
    broken_P = initial_parameters(spec, Stage(1))
    broken_P[-5:] = np.nan
    trainer.load(Epoch(0), broken_P, np.zeros_like(broken_P))


@pytest.mark.parametrize("num_stages", [2, 3])
def test_a_nan_inside_is_never_stepped_and_never_sent(num_stages: int) -> None:
    """10. A miner's own numbers leave the range: "own" is to blame, no gradient is accumulated, no object leaves."""
    spec = make_spec(num_stages=num_stages, k=1)
    trainer = make_trainer(spec, 1)
    poison(trainer, spec)
    before = state(trainer)
    with pytest.raises(PeerFault) as caught:
        trainer.loss(mb(0), some_input(spec, 0)) if num_stages == 2 else trainer.forward(mb(0), some_input(spec, 0))
    assert (caught.value.code, caught.value.evidence) == (Reason.NOT_FINITE, "own")
    assert state(trainer) == before
    with pytest.raises(PeerFault) as caught:
        trainer.close_epoch()
    assert caught.value.code == Reason.NOT_FINITE


def test_a_gradient_that_overflows_is_not_accumulated() -> None:
    """11. A neighbour's gradient is finite but enormous; the parameter gradient's norm is not finite any more."""
    spec = make_spec(k=1)
    trainer = make_trainer(spec, 0)
    huge_P = initial_parameters(spec, Stage(0)) * np.float32(1e12)
    trainer.load(Epoch(0), huge_P, np.zeros_like(huge_P))
    gradient = wire.encode(spec, np.full((2, 16, 8), 1e15, np.float32), None)
    before = state(trainer)
    with pytest.raises(PeerFault) as caught:
        trainer.backward(mb(0), None, gradient)
    assert (caught.value.code, caught.value.evidence) == (Reason.NOT_FINITE, "own")
    assert state(trainer) == before
