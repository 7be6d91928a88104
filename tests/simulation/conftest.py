"""Worlds small enough to take a second or two: D = 32, V = 256, sequences of 16 tokens, virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from loguru import logger

from subnet import presets
from subnet.protocol.run_spec import RunSpec
from subnet.simulation.opening import text_spec
from subnet.simulation.world import World

# some tokens are much likelier than others, so that there is something to learn at once
TOKENS = np.minimum(np.random.default_rng(0).geometric(0.05, 20_000), 255).astype(np.uint16)


def changed(struct: Any, change: dict[str, Any]) -> Any:
    """The fields of `change` that the struct has are replaced, and taken out of `change`."""
    return msgspec.structs.replace(struct, **{n: change.pop(n) for n in struct.__struct_fields__ if n in change})


def make_spec(
    num_stages: int, epochs: int, *, width: int | None = None, b_min: int = 8, **change: Any
) -> tuple[RunSpec, bytes]:
    """The equivalence preset with fields of its inner, merge and routing specs replaced."""
    preset = presets.equivalence(presets.Size(num_stages, num_stages, epochs, b_min), width=width)
    preset = preset._replace(
        inner=changed(preset.inner, change),
        merge=changed(preset.merge, change),
        routing=changed(preset.routing, change),
        audit=changed(preset.audit, change),
        score=changed(preset.score, change),
    )
    assert not change, f"no such fields: {change}"
    return text_spec(preset, TOKENS, num_stages=num_stages, micro_batch_size=2, seq_len=16)


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., World]:
    """A world to enter; `seed` is its own, `name` tells two of one test apart."""

    def make(num_stages: int, epochs: int, *, seed: int = 7, name: str = "world", **change: Any) -> World:
        spec, text = make_spec(num_stages, epochs, **change)
        return World(spec, text, tmp_path / name, target_epochs=epochs, seed=seed)

    return make


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A miner says many lines in a virtual minute; pytest would keep them all."""
    logger.disable("subnet")
    yield
    logger.enable("subnet")


@pytest.fixture
def tokens() -> np.ndarray:
    return TOKENS


LIVELY = {
    "flush": False,
    "in_flight_per_replica": 2,
    "heartbeat_s": 2.0,
    "dead_after_s": 10.0,
    "deadline_floor_s": 5.0,
    "relax_after_s": 60.0,
}


@pytest.fixture
def lively() -> dict[str, Any]:
    """Asynchronous, with a death noticed after ten seconds."""
    return dict(LIVELY)


@pytest.fixture
def check_credit() -> Callable[..., None]:
    """Every receipt's credit is in the ledger, once, and the ledger holds nothing that has no receipt. `without` names
    miners that were killed: the ledger may know of a pass whose answer they did not live to read."""

    def check(world: World, without: tuple[str, ...] = ()) -> None:
        for hotkey, miner in world.miners.items():
            ledger, receipts = world.state.ledger.total(hotkey), sum(miner.credited.values())
            assert receipts <= ledger + 1e-9
            if hotkey in without:
                continue
            assert receipts == pytest.approx(ledger, abs=1e-9)
            credits = [by[hotkey] for by in world.state.ledger.epochs.values() if hotkey in by]
            counted = sum(credit.forwards + credit.backwards + credit.losses for credit in credits)
            assert counted == len(miner.credited), "a pass was credited twice, or never"

    return check
