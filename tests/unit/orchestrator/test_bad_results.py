"""Results for work that was not given, twice, late, or not what was asked: through the real door, judged by the real
machine. Each is ignored or rejected with its reason, is in the journal, and changes nothing but counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from subnet.protocol import messages as m
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import Door


async def judged(door: Door, name: str, result: m.Result) -> tuple[str, Reason]:
    """The verdict on one result; nothing but counters changes, and the journal tells the same."""
    await door.exchange(name)
    before = door.frozen()
    (verdict,) = (await door.exchange(name, result)).verdicts
    assert door.frozen() == before and door.run.folded() == door.run.state_bytes()
    assert door.state.outcomes[f"{verdict.outcome}/{verdict.reason.value}"] >= 1
    return verdict.outcome, verdict.reason


async def test_results_for_work_that_was_not_given(door: Door) -> None:
    """1. An item that never existed, one of somebody else, and names that only look like items."""
    _, other, work = await door.first_work()
    assert await judged(door, other, door.done(work.item)) == ("rejected", Reason.NOT_YOURS)
    for item in ("f99.0.0", "l0.9.0", "u0.0.0", "../../etc", "f0.0.0 "):
        assert await judged(door, "One", door.done(item)) == ("rejected", Reason.NEVER_GIVEN)
    assert [i.reason for i in door.state.incidents] == [Reason.NOT_YOURS, *[Reason.NEVER_GIVEN] * 5]
    assert door.miner(other).faults == 1 and door.miner("One").faults == 5


async def test_a_result_that_comes_twice(door: Door) -> None:
    """2. The answer was lost and the miner sends the result again, three times: credited once, and it hears for how
    much, so that its receipts agree with the ledger. Not a fault."""
    name, _, work = await door.first_work()
    (verdict,) = (await door.exchange(name, door.done(work.item))).verdicts
    assert (verdict.outcome, verdict.reason) == ("applied", Reason.OK) and verdict.work_units > 0
    for _ in range(3):
        assert await judged(door, name, door.done(work.item)) == ("ignored", Reason.DUPLICATE)
    (again,) = (await door.exchange(name, door.done(work.item))).verdicts
    assert again.work_units == verdict.work_units == door.state.ledger.total(door.hotkey(name))
    assert door.miner(name).faults == 0


async def test_a_result_that_comes_late(door: Door) -> None:
    """3. A miner sleeps past its deadline, another replica does the piece, then the first one wakes up: ignored, not a
    fault; the credit is the other's."""
    name, other, work = await door.first_work()
    while work.item in door.state.offers and not door.state.offers[work.item].expired:
        await door.clock.advance(10.0)
        for each in door.names:
            await door.exchange(each)
    (again,) = (await door.exchange(other, free_slots=1)).work
    assert isinstance(again, m.PassWork) and again.micro_batch == work.micro_batch
    await door.exchange(other, door.done(again.item))
    assert await judged(door, name, door.done(work.item)) == ("ignored", Reason.LATE)
    assert door.miner(name).faults == 0 and door.state.ledger.total(door.hotkey(name)) == 0.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"digest": None}, Reason.MALFORMED),
        ({"loss": 5.0}, Reason.MALFORMED),
    ],
)
async def test_a_result_that_is_not_what_was_asked(door: Door, change: dict[str, Any], reason: Reason) -> None:
    """4. A forward without a digest, or with a loss: rejected, uncredited; the piece is due again, for whoever."""
    name, _, work = await door.first_work()
    (verdict,) = (await door.exchange(name, door.done(work.item, **change))).verdicts
    assert (verdict.outcome, verdict.reason) == ("rejected", reason)
    (batch,) = door.state.micro_batches.values()
    assert work.item not in door.state.offers and batch.hops[0].forward_epoch == -1
    assert not door.state.ledger.epochs and door.miner(name).faults == 1
    assert door.run.folded() == door.run.state_bytes()
