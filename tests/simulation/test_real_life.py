"""What happens to a subnet between its owner's plans: the chain is away, uids change hands, hotkeys are swapped, there
are more miners than uids. Training never stops for any of it; nobody is paid for another's work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from subnet.coordination.settlement import sheet
from subnet.coordination.state import State
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason
from subnet.simulation.world import VALIDATOR, World

AUDITED = {"rate": 1.0, "settled_epochs": 100, "segment_steps": 1, "reveal_deadline_s": 20.0, "replay_deadline_s": 20.0}
PATIENT = AUDITED | {"reveal_deadline_s": 120.0, "replay_deadline_s": 240.0}
MakeWorld = Callable[..., World]
pytestmark = pytest.mark.looptime(end=20_000)


def have_weights(state: State) -> bool:
    return any(report.block for report in state.pay.weights.values())


def reports(world: World) -> list[m.WeightsSet]:
    return [e.message for e in world.envelopes() if isinstance(e.message, m.WeightsSet)]


async def test_the_chain_is_away_for_ten_minutes(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """1. No block, no reading, no weights for ten minutes: epochs go on being trained and merged; then the audits that
    can be drawn still are, the others' work is paid unaudited and said so, nobody is blamed, and weights follow."""
    async with make_world(2, 20, **lively, **PATIENT, b_min=8) as world:
        for name in ("a", "b", "c", "d"):
            await world.start(name, compute_s=3.0)
        validator = world.start_validator()
        await world.until(have_weights)
        before = world.state.stages[0].epoch
        world.ledger.answers = False
        await asyncio.sleep(600)
        during = world.state.stages[0].epoch
        assert during > before + 5 and world.state.pay.drawn <= before
        world.ledger.answers = True
        await world.until(lambda state: state.pay.drawn >= during - 1)
        await world.finished()
        await validator.finished.wait()
    standing = world.state.pay.standing.values()
    assert not any(one.failed or one.not_revealed for one in standing)
    lost = [one for one in world.state.incidents if one.reason is Reason.CHAIN_AWAY]
    assert lost and all("paid unaudited" in one.sentence for one in lost)
    final = sheet(world.state).emission.weights
    assert reports(world)[-1].weights == tuple(sorted(final.items())) and world.ledger.weights()
    away = [one for one in reports(world) if "chain epoch" in one.sentence]
    assert away, "the first weights after it say what they came too late for"


async def test_a_uid_changes_hands_while_its_miner_works(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """2. A subnet of four uids is full; a fifth hotkey registers and takes the uid of a miner at work. That miner hears
    which hotkey has its uid and leaves; its score pays nobody, least of all the newcomer, who starts from nothing."""
    async with make_world(2, 6, **lively, **AUDITED, b_min=16) as world:
        for name in ("a", "b", "c"):
            await world.start(name, compute_s=0.2)
        validator = world.start_validator()
        world.ledger.set_hyperparameter("max_allowed_uids", world.ledger.subnet().neurons[-1].uid + 1)
        world.ledger.set_hyperparameter("immunity_period", 0)
        await world.until(lambda state: have_weights(state) and state.pay.drawn >= 1)
        world.ledger.register(Hotkey("new"))
        held = {neuron.hotkey: neuron.uid for neuron in world.ledger.subnet().neurons}
        (victim,) = {"a", "b", "c", VALIDATOR} - set(held)
        uid = held[Hotkey("new")]
        await world.until(lambda state: Hotkey("new") in state.pay.chain.uids)
        earned = world.state.ledger.total(Hotkey(victim))
        at = world.ledger.number()
        await world.finished()
        await validator.finished.wait()
        paid = world.ledger.subnet().pay[uid]
    assert victim != VALIDATOR and earned > 0
    ending = world.miners[Hotkey(victim)].task.result()  # type: ignore[union-attr]
    assert ending.reason is Reason.DEREGISTERED and "new" in ending.sentence
    assert sheet(world.state).emission.weights.get(uid, 0.0) == 0.0 and paid.incentive == 0.0
    assert all(dict(one.weights).get(uid, 0.0) == 0.0 for one in reports(world) if one.block > at)


async def test_a_hotkey_is_swapped(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """3. A miner's operator swaps its hotkey: the uid stays, the old process is told whose it is now, and the new
    hotkey joins and is paid for its own work from then on."""
    async with make_world(2, 8, **lively, **AUDITED, b_min=16) as world:
        for name in ("a", "b", "c", "d"):
            await world.start(name, compute_s=0.2)
        validator = world.start_validator()
        await world.until(lambda state: have_weights(state) and state.pay.drawn >= 1)
        uid = world.state.pay.chain.uids[Hotkey("a")]
        world.ledger.swap_hotkey(Hotkey("a"), Hotkey("a2"))
        await world.until(lambda state: Hotkey("a2") in state.pay.chain.uids)
        assert world.state.pay.chain.uids[Hotkey("a2")] == uid
        await asyncio.wait([world.miners[Hotkey("a")].task])  # type: ignore[list-item]
        await world.start("a2", compute_s=0.2)
        await world.finished()
        await validator.finished.wait()
    slip = sheet(world.state).payslip(Hotkey("a2"))
    assert slip.uid == uid and 0 < slip.weight < 1
    assert sheet(world.state).payslip(Hotkey("a")).reason is Reason.NO_UID
    assert world.miners[Hotkey("a")].task.result().reason is Reason.DEREGISTERED  # type: ignore[union-attr]


async def test_the_owner_changes_the_chain_while_it_runs(make_world: MakeWorld, lively: dict[str, Any]) -> None:
    """4. Tempo and rate limit are changed on chain: the journal and the operator hear of it, and weights keep to it."""
    async with make_world(2, 6, **lively, **AUDITED, b_min=16) as world:
        for name in ("a", "b"):
            await world.start(name, compute_s=0.2)
        validator = world.start_validator()
        await world.until(have_weights)
        world.ledger.set_hyperparameter("weights_rate_limit", 7)
        world.ledger.set_hyperparameter("tempo", 9)
        await world.until(lambda state: state.pay.chain.tempo == 9)
        since = world.ledger.number()
        await world.finished()
        await validator.finished.wait()
    assert any("weights_rate_limit 1 → 7" in said and "tempo" in said for said in world.said)
    told = [one.block for one in reports(world) if one.block > since]
    assert told and all(b - a >= 7 for a, b in zip(told, told[1:], strict=False))
