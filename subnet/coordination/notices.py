"""Why a miner is in the state it is in. Law: a pure reading of the state; operators, miners and the dashboard read the
same sentence."""

from __future__ import annotations

from subnet.coordination import audits, routing
from subnet.coordination.members import notice
from subnet.coordination.state import State
from subnet.protocol.ids import Hotkey, Phase
from subnet.protocol.messages import Notice
from subnet.protocol.reasons import Reason


def finished(state: State) -> bool:
    """Whether the run has all the epochs that were asked for."""
    for stage in state.stages:  # asked for every record: a loop is quicker than all()
        if stage.phase is not Phase.PAUSED or stage.reason is not Reason.TARGET_REACHED:
            return False
    return audits.are_settled(state)


def notice_for(state: State, hotkey: Hotkey) -> Notice:
    """The miner's state in a code, a sentence and a remedy."""
    miner = state.miners[hotkey]
    if not miner.live:
        return miner.removed or notice(Reason.NOT_JOINED, "not in the run")
    if miner.offers:
        return notice(Reason.BUSY, f"{len(miner.offers)} items in hand")
    stage = state.stages[miner.stage]
    if stage.phase is Phase.PAUSED:
        return notice(stage.reason, stage.sentence)
    if stage.merge is not None:
        return notice(Reason.MERGE_RUNNING, f"stage {stage.stage} merges epoch {stage.epoch}: {stage.sentence}")
    if miner.synced_epoch != stage.epoch:
        return notice(Reason.MERGE_RUNNING, f"waiting to load the parameters of epoch {stage.epoch}")
    refused = routing.opening_refused(state)
    if refused is None:
        return notice(Reason.NO_WORK, f"no item waits for stage {stage.stage} at this moment")
    return notice(*refused)
