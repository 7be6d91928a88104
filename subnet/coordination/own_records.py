"""What the orchestrator's own records mean: what it saw, drew, looked at, and what its owner decided.

Law: a record changes the state as it says and no further; whether it answers what the rules had asked is for whoever
verifies the journal (`answers`).
"""

from __future__ import annotations

from typing import assert_never

from subnet.coordination import audits, inspecting, members, merge_results, passes, resuming, tuning
from subnet.coordination.effects import Effect, Say
from subnet.coordination.state import StageState, State
from subnet.errors import InvariantViolation
from subnet.protocol import keys
from subnet.protocol.messages import (
    Anchored,
    ChainSeen,
    MergeInspected,
    ObjectChecked,
    OwnRecord,
    Refused,
    Registered,
    RunOpened,
    RunResumed,
    SecretDrawn,
    ShardRecomputed,
    Tick,
    Tuned,
)


def note(state: State, record: OwnRecord, at: float) -> list[Effect]:
    """Take one own record into the state."""
    match record:
        case Tick():
            return []
        case Registered():
            return members.register(state, record.hotkeys)
        case ChainSeen():
            return audits.chain_seen(state, record, at)
        case SecretDrawn():
            if state.secret_due and record.epoch == state.secret_asked:
                state.secret_due, state.secrets = False, {record.epoch: record.secret}
            return []
        case ShardRecomputed():
            return _recomputed(state, record)
        case ObjectChecked():
            return _object_checked(state, record)
        case MergeInspected():
            return inspecting.inspected(state, record)
        case Refused():
            state.refusals[record.reason] = state.refusals.get(record.reason, 0) + record.times
            return []
        case RunResumed():
            return resuming.resume(state, record, at)
        case Tuned():
            return tuning.retune(state, record)
        case Anchored():
            state.pay.chain.anchor = record
            return [Say(f"epoch {record.epoch}: the head of record {record.index} is anchored in block {record.block}")]
        case RunOpened():
            raise InvariantViolation("run-opened in the middle of a journal")
        case _:
            assert_never(record)


def _recomputed(state: State, message: ShardRecomputed) -> list[Effect]:
    stage: StageState = state.stages[message.stage]
    merge = stage.merge
    if merge is None or stage.epoch != message.epoch or message.shard not in merge.recomputing:
        return []
    number = str(merge.recomputing[message.shard])
    if message.source is not None and keys.parse(message.source.key).item.rpartition(".")[2] != number:
        return []  # the answer to a question about a manifest of before
    merge.recomputed[message.shard] = message.source
    return [Say(f"stage {stage.stage} epoch {stage.epoch}: shard {message.shard} was reduced by the orchestrator")]


def _object_checked(state: State, message: ObjectChecked) -> list[Effect]:
    for batch in list(state.micro_batches.values()):
        if batch.accused is not None and batch.accused.key == message.key:
            return [Say(passes.checked(state, batch, message.key, message.reason))]
    return [Say(merge_results.checked(state, message.key, message.reason))]
