"""Audits from end to end in one process: drawn by a block, revealed, replayed, judged, paid for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from subnet.adversaries.catalogue import CATALOGUE
from subnet.adversaries.names import Name
from subnet.coordination.settlement import sheet
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason
from subnet.simulation.world import World

AUDITED = {"rate": 1.0, "settled_epochs": 100, "segment_steps": 1, "reveal_deadline_s": 20.0, "replay_deadline_s": 20.0}

MakeWorld = Callable[..., World]
pytestmark = pytest.mark.looptime(end=20_000)


async def test_honest_miners_pass_every_audit_and_are_paid_by_their_work(
    make_world: MakeWorld, lively: dict[str, Any]
) -> None:
    """1. Four honest miners, every epoch of each audited: all pass, and weights follow the work."""
    async with make_world(2, 3, **lively, **AUDITED) as world:
        for name in ("a", "b", "c", "d"):
            await world.start(name)
        validator = world.start_validator()
        await world.finished()
        await validator.finished.wait()
    standing = world.state.pay.standing
    assert {h: (s.failed, s.not_revealed, s.unreadable) for h, s in standing.items()} == {
        h: (0, 0, 0) for h in "abcd"
    }
    assert all(s.passed == 3 for s in standing.values())
    # with every audit settled nobody can ask for a state any more, and none is left on a miner's disk
    assert not any(list(miner.folder.glob("snapshots/*/*")) for miner in world.miners.values())
    final = sheet(world.state)
    work = {Hotkey(h): world.state.ledger.total(Hotkey(h)) for h in "abcd"}
    total = sum(work.values())
    uids = world.state.pay.chain.uids
    assert {h: round(final.emission.weights[uids[h]], 12) for h in work} == {
        h: round(units / total, 12) for h, units in work.items()
    }


@pytest.mark.parametrize("name", [Name.FREELOADER, Name.LAZY_BACKWARD, Name.UPDATE_SKIPPER])
async def test_a_cheat_fails_its_first_audit_and_earns_nothing(
    make_world: MakeWorld, lively: dict[str, Any], name: str
) -> None:
    """2. One of four miners cheats: the replay shows it, its session ends, its weight is 0; the honest ones pass."""
    async with make_world(2, 3, **lively, **AUDITED) as world:
        for honest in ("a", "b", "c"):
            await world.start(honest)
        await world.start("cheat", trainer=CATALOGUE[name].trainer)
        validator = world.start_validator()
        await world.finished()
        await validator.finished.wait()
    standing = world.state.pay.standing
    assert standing[Hotkey("cheat")].failed >= 1 and "outside the tolerances" in standing[Hotkey("cheat")].sentence
    assert all(standing[Hotkey(h)].failed == 0 for h in "abc")
    uids, final = world.state.pay.chain.uids, sheet(world.state)
    assert uids[Hotkey("cheat")] not in final.emission.weights
    slip = final.payslip(Hotkey("cheat"))
    assert slip.reason is Reason.AUDIT_FAILED and slip.score == 0.0 and slip.remedy


async def test_a_wrong_merger_is_named_by_the_recomputed_shard(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """3. It trains honestly and reduces wrongly: the copies differ, the orchestrator recomputes, its pay is gone."""
    async with make_world(1, 3, **lively, **AUDITED) as world:
        for honest in ("a", "b", "c"):
            await world.start(honest)
        await world.start("cheat", reduction=CATALOGUE[Name.WRONG_MERGER].reduction)
        world.start_validator()
        await world.finished()
    final = sheet(world.state)
    assert {h for record in world.state.stages[0].merges for h in record.faulty} == {"cheat"}
    assert world.state.pay.chain.uids[Hotkey("cheat")] not in final.emission.weights
    assert final.payslip(Hotkey("cheat")).reason is Reason.WRONG_SHARD
    assert len(final.emission.weights) == 3


async def test_two_validators_get_the_same_weights_from_the_same_journal(
    make_world: MakeWorld, lively: dict[str, Any]
) -> None:
    """4. Each folds the public journal for itself: bit-identical weights, and both tell the journal."""
    async with make_world(1, 2, **lively, **AUDITED) as world:
        second = world.start_validator("second", stake=500.0)
        first = world.start_validator()
        for honest in ("a", "b"):
            await world.start(honest)
        await world.finished()
        await asyncio.wait_for(first.finished.wait(), 600)
        await asyncio.wait_for(second.finished.wait(), 600)
    reports = world.state.pay.weights
    assert set(reports) == {"validator", "second"}
    assert reports[Hotkey("validator")].weights == reports[Hotkey("second")].weights
    assert dict(reports[Hotkey("second")].weights) == sheet(world.state).emission.weights
