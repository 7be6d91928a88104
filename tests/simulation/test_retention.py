"""Objects of old epochs are deleted, and nothing that anybody still needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from subnet.coordination.dossiers import KEPT_EPOCHS
from subnet.coordination.state import State
from subnet.protocol import messages as m
from subnet.protocol.keys import epoch_prefix
from subnet.simulation.world import World

pytestmark = pytest.mark.looptime(end=20_000)


def references(value: object) -> set[str]:
    """Keys of all objects that a part of the state names as readable."""
    if isinstance(value, m.Source | m.RangeSource):
        return {value.key}
    if isinstance(value, msgspec.Struct):
        return references(tuple(getattr(value, name) for name in value.__struct_fields__))
    if isinstance(value, dict):
        return references(tuple(value.values()))
    if isinstance(value, list | tuple):
        return set().union(*(references(part) for part in value))
    return set()


def epoch_of(state: State) -> int:
    return min(stage.epoch for stage in state.stages)


async def test_old_epochs_go_and_what_is_needed_stays(make_world: Callable[..., World], lively: dict[str, Any]) -> None:
    """1. Seven epochs of two stages: whatever the run refers to is in the store at every turn of an epoch, the epochs
    behind the window are gone to the last object, those inside it are there, and a miner that joins in the last epoch
    finds everything it needs."""
    async with make_world(2, 7, b_min=4, **lively) as world:
        for number in range(2):
            await world.start(f"miner{number}")
        for epoch in range(1, 7):
            await world.until(lambda state, epoch=epoch: epoch_of(state) == epoch)
            needed = references(world.state.stages) | references(world.state.micro_batches)
            needed |= {file.key for file in world.spec.data.train}
            missing = [key for key in needed if await world.store.size_bytes(key) is None]
            assert len(needed) > 4 and not missing
        late = await world.start("late")
        await world.finished()
    assert world.state.ledger.total(late.hotkey) > 0 and not any(m.faults for m in world.state.miners.values())
    last = epoch_of(world.state)
    counts = [await world.store.delete_prefix(epoch_prefix(world.spec.run_id, epoch)) for epoch in range(last + 1)]
    dropped = last - KEPT_EPOCHS
    assert counts[:dropped] == [0] * dropped and all(count > 0 for count in counts[dropped:])
