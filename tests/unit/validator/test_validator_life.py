"""A validator that the orchestrator does not talk to: it waits, says what to do once, and ends with the run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason
from subnet.simulation.opening import text_spec
from subnet.simulation.world import World

pytestmark = pytest.mark.looptime(end=20_000)


def make_world(folder: Path, epochs: int) -> World:
    tokens_N = np.minimum(np.random.default_rng(0).geometric(0.05, 20_000), 255).astype(np.uint16)
    preset = presets.equivalence(presets.Size(1, 1, epochs, 4))
    routing = msgspec.structs.replace(preset.routing, flush=False, in_flight_per_replica=2, heartbeat_s=2.0)
    audit = msgspec.structs.replace(preset.audit, rate=1.0, settled_epochs=100, segment_steps=1)
    preset = preset._replace(routing=routing, audit=audit)
    spec, text = text_spec(preset, tokens_N, num_stages=1, micro_batch_size=2, seq_len=16)
    return World(spec, text, folder, target_epochs=epochs)


async def test_without_permit_until_the_end(tmp_path: Path, lines: list[str]) -> None:
    """1. One of two validators has no stake: it is refused, asks seldom, hears what to do, and its process ends when
    the run does, as it sees in the journal."""
    async with make_world(tmp_path, 2) as world:
        await world.start("a", compute_s=1.0)
        good, poor = world.start_validator(), world.start_validator("poor", stake=0.0)
        await world.finished()
        await asyncio.wait_for(good.finished.wait(), 600)
        await asyncio.wait_for(poor.finished.wait(), 600)
    asked = [e for e in world.envelopes() if e.sender == "poor" and isinstance(e.message, m.Review)]
    others = [e for e in world.envelopes() if e.sender == "validator" and isinstance(e.message, m.Review)]
    assert asked and len(asked) < len(others) / 2
    assert len([line for line in lines if line.startswith(f"WARNING: {Reason.NOT_ALLOWED.value}")]) <= 2
    (no_permit,) = [line for line in lines if "no weights are set: no-permit: uid 3 " in line]
    assert "btcli stake add" in no_permit
    assert set(world.state.pay.weights) == {"validator"}


async def test_deregistered_while_it_runs(tmp_path: Path, lines: list[str]) -> None:
    """2. A validator's uid goes to somebody else in the middle of the run: it goes on waiting, tells its operator once,
    and ends with the run; the other one sets the weights."""
    async with make_world(tmp_path, 3) as world:
        await world.start("a", compute_s=1.0)
        good, gone = world.start_validator(), world.start_validator("second", stake=500.0)
        await world.until(lambda state: len(state.pay.closed_at) >= 1)
        world.ledger.swap_hotkey(Hotkey("second"), Hotkey("thief"))
        await world.finished()
        await asyncio.wait_for(good.finished.wait(), 600)
        await asyncio.wait_for(gone.finished.wait(), 600)
    assert len([line for line in lines if "no weights are set: deregistered: " in line]) == 1
    weights = [e for e in world.envelopes() if isinstance(e.message, m.WeightsSet) and e.sender == "validator"]
    assert weights[-1].message.block > 0
