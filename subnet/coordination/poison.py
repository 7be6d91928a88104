"""Whether a merge has poisoned the run: from what replicas report, never from one of them alone.

    loss explodes    more than half of the last stage's replicas report mean losses `merge.explosion_nats` above those
                     of before the latest merges, and so do the pathways through more than half of every other stage
    not finite       more than half of a stage's replicas come to no finite number
    overflow         more than half of a stage's replicas cannot apply its merge: its result is not finite

Merges are counted over all stages; a pass belongs to the newest of these generations on its pathway, and a poisoned
merge is first met there. Generations with few losses share a window, and a window is compared with the best one before
it that can still be gone back to: every merge since is suspect. A merge reaches every replica of its stage, so what
only some pathways suffer (one replica that sends noise) is no poisoned merge: audits are for that.

Law: pure reading and bounded sums, O(1) for a result that looks well; one liar among three can neither start a
roll-back nor prevent one. Nothing here acts; see `rolling_back`.
"""

from __future__ import annotations

import math
from statistics import median
from typing import NamedTuple

from subnet.coordination.merge_state import ClosedMerge, Merge
from subnet.coordination.poison_state import HEARD_KEPT, Heard
from subnet.coordination.state import MicroBatch, Miner, StageState, State
from subnet.protocol.ids import Hotkey, Phase
from subnet.protocol.reasons import Reason

FEW = 4
"""Losses from one replica, or failed passes of one stage, below which nothing follows."""
ENOUGH = 8
"""Losses of an epoch below which nothing follows."""


class Finding(NamedTuple):
    since: int
    """The first suspect generation."""
    sentence: str


# ---- hearing ---------------------------------------------------------------------------------------------------------


def _window(state: State, generation: int) -> Heard | None:
    """Where a pass of this generation counts; None where it is older than the newest window."""
    heard = state.poison.heard
    newest = heard[-1] if heard else None
    if newest is not None and generation < newest.first:
        return None
    if newest is None or (generation > newest.last and newest.count >= _enough(state)):
        newest = Heard(first=generation, last=generation)
        state.poison.heard = [*heard, newest][-HEARD_KEPT:]
        newest.reference, newest.since = _before(state, generation)
    newest.last = max(newest.last, generation)
    return newest


def _enough(state: State) -> int:
    return max(ENOUGH, FEW * state.num_replicas(len(state.stages) - 1))


def _before(state: State, generation: int) -> tuple[float | None, int]:
    """The best loss of the windows that can be gone back to, and the first generation after the one it is of."""
    known = []
    for heard in state.poison.heard[:-1]:
        means = [total / count for total, count in heard.losses.values() if count >= FEW]
        if means and heard.count >= ENOUGH and can_go_back(state, heard.first + 1):
            known.append((median(means), heard.first + 1))
    return min(known, default=(None, generation))


def note_loss(state: State, batch: MicroBatch, hotkey: Hotkey, loss: float) -> None:
    """A loss was accepted from a replica of the last stage."""
    nats = state.rules_of(len(state.stages) - 1).merge.explosion_nats
    heard = _window(state, batch.generation) if nats > 0 else None
    if heard is None:
        return
    own = heard.losses.setdefault(hotkey, [0.0, 0.0])
    own[0], own[1], heard.count = own[0] + loss, own[1] + 1, heard.count + 1
    limit = math.inf if heard.reference is None else heard.reference + nats
    for hop in batch.hops[:-1]:
        if hop.forward_by is not None:
            through = heard.through.setdefault(hop.forward_by, [0, 0])
            through[0], through[1] = through[0] + (loss > limit), through[1] + 1
    if loss <= limit:
        state.poison.good = max(state.poison.good, batch.generation)
    if own[1] >= FEW and own[0] / own[1] > limit:
        state.poison.suspected = True


def note_not_finite(state: State, batch: MicroBatch, hotkey: Hotkey, blamed: bool) -> None:
    """A pass came to no finite number at its replica, whose inputs were good; `blamed`: it is counted as its fault."""
    stage = state.stage_of(hotkey)
    heard = _window(state, max(batch.generation, stage.generation))
    if heard is None:
        return
    reports = heard.not_finite.setdefault(stage.stage, {})
    reports[hotkey] = reports.get(hotkey, 0) + 1
    if blamed:
        heard.blamed[hotkey] = heard.blamed.get(hotkey, 0) + 1
    state.poison.suspected = True


def note_overflow(state: State, stage: StageState, merge: Merge, hotkey: Hotkey) -> None:
    """A replica could not apply the merge, though every reduced shard was readable."""
    if hotkey not in merge.overflowed:
        merge.overflowed.append(hotkey)
    state.poison.overflowing = stage.stage


# ---- weighing --------------------------------------------------------------------------------------------------------


def find(state: State) -> Finding | None:
    """What is to be taken back, if anything; called whenever something bad was heard."""
    state.poison.suspected = False
    if not state.poison.heard or any(stage.phase is Phase.PAUSED for stage in state.stages):
        return None
    heard = state.poison.heard[-1]
    said, since = _exploded(state, heard), heard.since
    if said is None:
        said, since = _not_finite(state, heard), min(state.poison.good + 1, state.poison.generation)
    if said is None or can_go_back(state, since):
        return None if said is None else Finding(since, said)
    if state.poison.generation:
        state.incident(Reason.POISONED, f"{said}, and it is too late to take the merges since then back")
    heard.reference, heard.not_finite = None, {}  # said once
    return None


def can_go_back(state: State, since: int) -> bool:
    """Whether every merge since then can be undone: it is kept, and no epoch that it would take back is closed."""
    undone = [undone_of(stage, since) for stage in state.stages]
    bases = [found[0].before if found else stage.generation for stage, found in zip(state.stages, undone, strict=True)]
    epochs = [found[0].epoch for found in undone if found]
    return bool(epochs) and max(bases) < since and min(epochs) + 1 >= len(state.pay.closed_at)


def undone_of(stage: StageState, since: int) -> list[ClosedMerge]:
    """A stage's merges from a generation on, oldest first."""
    return [closed for closed in stage.closed if closed.generation >= since]


def overflows(state: State, stage: StageState) -> bool:
    """Whether most of a stage's replicas cannot apply its merge."""
    merge = stage.merge
    return merge is not None and merge.step == "apply" and _most(state.replicas(stage.stage), set(merge.overflowed))


def _most(replicas: list[Miner], saying: set[Hotkey]) -> bool:
    return 2 * sum(miner.hotkey in saying for miner in replicas) > len(replicas)


def _not_finite(state: State, heard: Heard) -> str | None:
    for stage, reports in sorted(heard.not_finite.items()):
        replicas = state.replicas(stage)
        if replicas and sum(reports.values()) >= FEW and _most(replicas, set(reports)):
            said = sum(miner.hotkey in reports for miner in replicas)
            return f"{said} of {len(replicas)} replicas of stage {stage} come to no finite numbers"
    return None


def _exploded(state: State, heard: Heard) -> str | None:
    last = len(state.stages) - 1
    nats = state.rules_of(last).merge.explosion_nats
    if heard.reference is None or heard.count < ENOUGH:
        return None
    limit = heard.reference + nats
    means = {h: total / count for h, (total, count) in heard.losses.items() if count >= FEW and total / count > limit}
    replicas = state.replicas(last)
    if not replicas or not _most(replicas, set(means)):
        return None
    suffering = {h for h, (high, count) in heard.through.items() if 2 * high > count}
    if not all(_most(state.replicas(stage.stage), suffering) for stage in state.stages[:-1]):
        return None
    after, said = median(means.values()), sum(miner.hotkey in means for miner in replicas)
    return f"{said} of {len(replicas)} replicas report a mean loss of {after:.2f} nats after {heard.reference:.2f}"


# ---- afterwards ------------------------------------------------------------------------------------------------------


def set_aside(state: State, asked: list[Miner]) -> list[Hotkey]:
    """Whose uploads do not count for now, of those who are asked: offenders named within γ, unless all of them are."""
    gamma_s, named_at = state.spec.score.gamma_s, state.poison.named_at
    named = [m.hotkey for m in asked if m.hotkey in named_at and state.at - named_at[m.hotkey] <= gamma_s]
    return sorted(named) if len(named) < len(asked) else []
