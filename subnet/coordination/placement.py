"""Where a newcomer goes, and who should move. Law: pure; returns the choice and the sentence that explains it.

The stage with the least throughput for its size gets the newcomer, an empty one before all others (DESIGN 6).
A replica counts 1 until its speed is known; then by its speed relative to the median of all.

A move takes from a stage that is `factor` times better supplied, raises the weaker of the two strictly, and leaves the
receiver at most √factor above the giver: so the least supply never falls, moves come to an end, and none calls for its
own undoing, even when speeds are measured a little differently the next time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from subnet.protocol.ids import Hotkey, Stage

BALANCED_SHARE = 0.75
"""Moves that leave at least this share of the best balance count as equally good: then who loses least goes."""


class Load(NamedTuple):
    """How well one stage is provisioned."""

    stage: Stage
    replicas: int
    strength: float
    """Sum of relative speeds of its live replicas."""
    flops_per_token: int


class Candidate(NamedTuple):
    """A replica that might move."""

    hotkey: Hotkey
    stage: Stage
    speed: float
    """Relative to the typical one; 1 while it is not known."""
    joined_at: float
    moved_lately: bool = False
    cost: int = 0
    """Micro-batches and pieces of work that its leaving would undo."""


class Move(NamedTuple):
    hotkey: Hotkey
    giver: Stage
    receiver: Stage
    sentence: str


def place(loads: Sequence[Load]) -> tuple[int, str]:
    """The stage with the least strength per FLOP, lowest index first among equals."""
    best = _weakest(loads, supplies(loads))
    have = "no replica" if best.replicas == 0 else f"{best.replicas} replicas, the least for its size"
    return best.stage, f"stage {best.stage} has {have}"


def supplies(loads: Sequence[Load]) -> dict[int, float]:
    """Strength per FLOP by stage; 1 is one typical replica in a stage of mean size."""
    mean = sum(load.flops_per_token for load in loads) / len(loads)
    return {load.stage: load.strength * mean / load.flops_per_token for load in loads}


def _weakest(loads: Sequence[Load], supply: Mapping[int, float]) -> Load:
    return min(loads, key=lambda load: (load.replicas > 0, supply[load.stage], load.stage))


def best_move(loads: Sequence[Load], candidates: Iterable[Candidate], factor: float) -> Move | None:
    """The move that helps the weakest stage most for what it undoes; None when nobody should move.

    Among moves of about equal balance: not who moved lately, then who loses least, then one of the richest stage, there
    the newest, then the slowest.
    """
    supply, by_stage = supplies(loads), {load.stage: load for load in loads}
    needy = _weakest(loads, supply)
    possible: list[tuple[float, Candidate]] = []
    for one in candidates:
        giver = by_stage[one.stage]
        if giver.replicas < 2 or supply[giver.stage] <= factor * supply[needy.stage]:
            continue
        given = supply[giver.stage] * (1.0 - one.speed / giver.strength)
        received = supply[needy.stage] + supply[giver.stage] * one.speed / giver.strength * _size(giver, needy)
        undoes_itself = needy.replicas > 0 and received > math.sqrt(factor) * given
        if min(given, received) > supply[needy.stage] and not undoes_itself:
            possible.append((min(given, received), one))
    if not possible:
        return None
    enough = BALANCED_SHARE * max(balance for balance, _ in possible)
    able = (one for balance, one in possible if balance >= enough)
    mover = min(
        able, key=lambda one: (one.moved_lately, one.cost, -supply[one.stage], -one.joined_at, one.speed, one.hotkey)
    )
    has, gives = supply[needy.stage], supply[mover.stage]
    said = f"stage {needy.stage} has no replica, and yours has others"
    if needy.replicas:
        said = f"stage {needy.stage} has {has:.2f} replicas' strength for its size, stage {mover.stage} {gives:.2f}"
    return Move(mover.hotkey, mover.stage, needy.stage, said)


def _size(giver: Load, receiver: Load) -> float:
    return giver.flops_per_token / receiver.flops_per_token
