"""A merge that ruins the model, in the whole subnet under virtual time: noticed, taken back, done again without its
offender. The loss afterwards is that of a run that was never disturbed; whoever did its work is paid for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from subnet.adversaries.poisoner import Poisoner
from subnet.coordination.settlement import sheet
from subnet.coordination.state import State
from subnet.model.outer import Upload
from subnet.model.trainer import Trainer
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason
from subnet.simulation.world import World

pytestmark = pytest.mark.looptime(end=20_000)

HONEST = [f"m{number}" for number in range(5)]
EPOCHS = 3

MakeWorld = Callable[..., World]


class Overflower(Trainer):
    """Its upload is so large that passes on the merged parameters come to no finite number."""

    def close_epoch(self) -> Upload:
        honest = super().close_epoch()
        assert self._uploaded_P is not None
        theta_P = self._anchor.theta_P
        huge = self._anchor.upload(theta_P - (theta_P - self._uploaded_P) * theta_P.dtype.type(1e22))
        return huge._replace(norm=honest.norm)


async def run(world: World, cheat: type[Trainer] | None) -> None:
    """The second to join is placed in the last stage, where a spoilt merge shows even in a model that knows nothing."""
    for name in (HONEST[0], "bad", *HONEST[1:]):
        await world.start(name, trainer=cheat if cheat is not None and name == "bad" else Trainer)
    await world.finished()


def mean_loss(state: State, epoch: int) -> float:
    total, count = state.epoch_losses[epoch]
    return total / count


def check_replay(world: World) -> None:
    *_, folded = world.fold()
    assert msgspec.msgpack.encode(folded) == msgspec.msgpack.encode(world.state)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(world.state), type=State) == world.state


async def undisturbed(make_world: MakeWorld, lively: dict[str, Any]) -> State:
    async with make_world(2, EPOCHS, name="undisturbed", **lively, rate=0.0) as world:
        await run(world, None)
    assert not world.state.poison.count
    return world.state


@pytest.mark.parametrize("cheat", [Poisoner, Overflower])
async def test_the_run_goes_on_without_the_poisoner(
    make_world: MakeWorld, lively: dict[str, Any], check_credit: Callable[..., None], cheat: type[Trainer]
) -> None:
    """1. One of six ruins the first merge. It is taken back once, the poisoner named and its epoch unpaid; its later
    uploads do not count, so nothing else happens, and the model is as good as without it."""
    async with make_world(2, EPOCHS, **lively, rate=0.0) as world:
        await run(world, cheat)
    state = world.state
    assert [(one.epoch, set(one.offenders)) for one in state.poison.roll_backs] == [(0, {"bad"})]
    calm = await undisturbed(make_world, lively)
    assert mean_loss(state, EPOCHS - 1) == pytest.approx(mean_loss(calm, EPOCHS - 1), abs=0.1)
    check_replay(world)
    check_credit(world)
    assert state.pay.void[0][Hotkey("bad")].reason is Reason.POISONED
    assert {h for by in state.pay.void.values() for h in by} == {"bad"} and not any(state.pay.unlogged.values())
    epochs = {epoch: by for epoch, by in state.ledger.epochs.items() if epoch < EPOCHS}
    for name in HONEST:
        slip = sheet(state).payslip(Hotkey(name))
        assert slip.score == pytest.approx(sum(by[Hotkey(name)].work_units for by in epochs.values() if name in by))
        assert not state.miners[Hotkey(name)].faults
