"""Replicas move to the stage that starves (DESIGN 6).

Law: whom to move is `placement`'s choice; here is when. An empty stage gets a replica as soon as nobody came back to it
for `dead_after_s`. One that is merely weak gets it after it has starved for `rebalance_after_s`, one in such a time, in
a moment in which the mover's stage turns its epoch: what it did is merged, and its dossier of the old stage is
complete. A mover's session ends; it joins again, there, with its identity and its credit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from subnet.coordination import members, placement, provision
from subnet.coordination.effects import Deliver, Effect
from subnet.coordination.index import index_of
from subnet.coordination.state import Miner, StageState, State
from subnet.protocol.ids import Hotkey, Phase, Stage
from subnet.protocol.reasons import Reason

LOOKS = 8
"""Times within `rebalance_after_s` that the stages are compared."""


# ---- a stage without any replica -------------------------------------------------------------------------------------


def starving(state: State, now: float) -> StageState | None:
    """A stage that was without replica for so long that one of another stage must move; None if none can."""
    limit = state.spec.routing.dead_after_s
    for stage in state.stages if index_of(state).is_any_empty else ():
        if stage.empty_since is None:
            continue
        if now - stage.empty_since >= limit and stage.phase is not Phase.PAUSED:
            can_give = any(state.num_replicas(other.stage) > 1 for other in state.stages)
            return stage if can_give else None
    return None


def fill_empty(state: State, at: float) -> list[Effect]:
    """Where a stage is empty, end the session of a replica that is needed least: it joins again, there."""
    if not index_of(state).is_any_empty:
        return []
    for stage in state.stages:
        if stage.empty_since is None and not state.num_replicas(stage.stage):
            stage.empty_since = at
    needy = starving(state, at)
    if needy is None:
        return []
    needy.empty_since = at  # the next one is asked only if this one does not come
    speeds = provision.relative_speeds(state)
    loads = [one for one in provision.loads(state, speeds) if one.replicas or one.stage == needy.stage]
    move = placement.best_move(loads, _candidates(state, speeds, at), state.spec.routing.rebalance_factor)
    if move is None:
        return []
    state.balance.moved_at[move.hotkey] = at
    gone = members.remove(state, state.miners[move.hotkey], Reason.STAGE_EMPTY, move.sentence)
    return [*gone, Deliver(move.hotkey)]


# ---- a stage that is weak --------------------------------------------------------------------------------------------


def watch(state: State, at: float) -> None:
    """Compare the stages now and then: since when does one starve beside a rich one?"""
    balance, rules = state.balance, state.spec.routing
    if at < balance.look_at:
        return
    balance.look_at = at + rules.rebalance_after_s / LOOKS
    balance.moved_at = {h: moved for h, moved in balance.moved_at.items() if at - moved < rules.rebalance_after_s}
    if _wanted(state, at) is None:
        balance.starving_since = None
    elif balance.starving_since is None:
        balance.starving_since = at


def strengthen(state: State, at: float) -> list[Effect]:
    """When an epoch turns and a stage has starved for long beside a rich one, move one replica there."""
    balance, rules = state.balance, state.spec.routing
    if balance.starving_since is None or at - balance.starving_since < rules.rebalance_after_s:
        return []
    turned = {stage.stage for stage in state.stages if stage.merges and stage.merges[-1].done_at == at}
    if not turned:
        return []
    if any(at - moved < rules.rebalance_after_s for moved in balance.moved_at.values()):
        return []
    move = _wanted(state, at, turned)
    if move is None or (state.target_epochs and state.stages[move.receiver].epoch >= state.target_epochs):
        return []
    balance.starving_since, balance.moved_at[move.hotkey] = None, at
    miner = state.miners[move.hotkey]
    gone = members.remove(state, miner, Reason.MOVED, move.sentence)
    miner.stage = move.receiver
    return [*gone, Deliver(move.hotkey)]


def _wanted(state: State, at: float, turned: Collection[Stage] | None = None) -> placement.Move | None:
    """The move that would help; with `turned`, the stages whose epoch turns now: one that undoes nothing now."""
    speeds = provision.relative_speeds(state)
    loads = provision.loads(state, speeds)
    if any(load.replicas == 0 for load in loads):
        return None  # that stage is filled first
    able = _candidates(state, speeds, at)
    if turned is not None:
        # no later than the receiver: an epoch in which it trained two stages would have one dossier only
        epoch = state.stages[placement.place(loads)[0]].epoch
        able = [one for one in able if state.stages[one.stage].epoch <= epoch and _loses_nothing(state, one, turned)]
    return placement.best_move(loads, able, state.spec.routing.rebalance_factor)


def _loses_nothing(state: State, one: placement.Candidate, turned: Collection[Stage]) -> bool:
    """What was late for the merge that has just ended is lost by everybody who leaves then; it is little."""
    stage = state.stages[one.stage]
    is_in = stage.phase is Phase.TRAINING and state.miners[one.hotkey].synced_epoch == stage.epoch
    return is_in and (one.stage in turned or one.cost == 0)


# ---- who may move ----------------------------------------------------------------------------------------------------


def _candidates(state: State, speeds: dict[Hotkey, float], at: float) -> list[placement.Candidate]:
    """Every replica that was heard of lately; all, where none was."""
    graphs = Counter(
        hop.forward_by for batch in state.micro_batches.values() for hop in batch.hops if hop.bound and hop.forward_by
    )
    live = [miner for miner in state.miners.values() if miner.live]
    heard = [miner for miner in live if at - miner.last_seen <= state.spec.routing.heartbeat_s]
    return [
        placement.Candidate(
            hotkey=miner.hotkey,
            stage=miner.stage,
            speed=speeds[miner.hotkey],
            joined_at=miner.joined_at,
            moved_lately=miner.hotkey in state.balance.moved_at,
            cost=_at_stake(state, miner) + graphs[miner.hotkey],
        )
        for miner in heard or live
    ]


def _at_stake(state: State, miner: Miner) -> int:
    """Micro-batches that are in no merge yet, and pieces of work in hand."""
    stage = state.stages[miner.stage]
    unmerged = stage.contributions.get(miner.hotkey, 0)
    if stage.merge is not None and miner.hotkey not in stage.merge.uploads:
        unmerged += stage.merge.weights.get(miner.hotkey, 0)
    return unmerged + len(miner.offers)
