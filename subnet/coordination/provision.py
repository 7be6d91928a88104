"""How well each stage is provisioned, by what its replicas were measured to do (DESIGN 6).

Law: a pure reading of the state. Speeds are compared across stages as FLOPs per second; they count relative to the
median of all live replicas, and 1 while nothing is known.
"""

from __future__ import annotations

from statistics import median

from subnet.coordination.placement import Load
from subnet.coordination.state import Miner, State
from subnet.protocol.ids import Hotkey, Pass
from subnet.scoring.ledger import SHARE


def relative_speeds(state: State) -> dict[Hotkey, float]:
    """Of every live miner."""
    live = [m for m in state.miners.values() if m.live]
    known = {m.hotkey: speed for m in live if (speed := _speed(state, m)) is not None}
    typical = median(known.values()) if known else 1.0
    return {m.hotkey: known.get(m.hotkey, typical) / typical for m in live}


def loads(state: State, speeds: dict[Hotkey, float] | None = None) -> list[Load]:
    """Every stage's; `speeds` saves measuring them again."""
    speeds = relative_speeds(state) if speeds is None else speeds
    found = []
    for stage in state.stages:
        replicas = state.replicas(stage.stage)
        strength = sum(speeds[m.hotkey] for m in replicas)
        found.append(Load(stage.stage, len(replicas), strength, state.spec.stages[stage.stage].flops_per_token))
    return found


def _speed(state: State, miner: Miner) -> float | None:
    """FLOPs per second and token in the pass that ends a micro-batch in its stage; None while nothing is known."""
    for kind in (Pass.BACKWARD, Pass.LOSS):
        if miner.mean_s.get(kind, 0.0) > 0:
            return SHARE[kind] * state.spec.stages[miner.stage].flops_per_token / miner.mean_s[kind]
    return None
