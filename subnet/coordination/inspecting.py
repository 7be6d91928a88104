"""The orchestrator looks at the uploads of a merge that is taken back: what is asked, and what follows from the answer.

Law: asked once for each merge, under a number of its own, and again after a restart; while it looks, nothing else moves
the merge. Who is to blame is for `merging.contributions`; nothing here acts on it.
"""

from __future__ import annotations

from collections.abc import Mapping

from subnet.coordination.effects import Effect, Say
from subnet.coordination.merge_state import Inspection, InspectMerge, Merge
from subnet.coordination.merge_work import next_number
from subnet.coordination.state import StageState, State
from subnet.merging import compression, contributions, reduction
from subnet.protocol.draw import shuffled
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import MergeInspected

INSPECTED_VALUES_MAX = 2**28
"""Read of one merge's uploads at most: beyond it drawn chunks stand for the whole."""


def inspect(state: State, stage: StageState, merge: Merge, at: float) -> list[Effect]:
    count = state.spec.stages[stage.stage].num_params
    chunks, uploads = compression.num_chunks(count), len(counted(merge))
    allowed = max(1, INSPECTED_VALUES_MAX // (compression.CHUNK_VALUES * max(1, uploads)))
    drawn: tuple[int, ...] = ()
    number = next_number(state)
    if chunks > allowed:
        drawn = tuple(sorted(shuffled(state.secret(), range(chunks), "inspected", stage.stage, number)[:allowed]))
    merge.step, merge.inspection = "inspect", Inspection(number, drawn)
    put_off(state, stage, merge, at)
    return unanswered(stage, merge)


def counted(merge: Merge) -> list[Hotkey]:
    return [h for h, upload in sorted(merge.uploads.items()) if upload.weight > 0 and h not in merge.excluded]


def unanswered(stage: StageState, merge: Merge) -> list[Effect]:
    """What the orchestrator still has to look at: what a restart makes it look at again."""
    asked = merge.inspection
    if asked is None or asked.contributions is not None:
        return []
    uploads = {hotkey: merge.uploads[hotkey] for hotkey in counted(merge)}
    return [InspectMerge(stage.stage, stage.epoch, asked.number, uploads, asked.chunks)]


def inspected(state: State, message: MergeInspected) -> list[Effect]:
    """The answer; `advance` follows when every stage has one."""
    stage = state.stages[message.stage]
    asked = stage.merge.inspection if stage.merge is not None else None
    if asked is None or asked.number != message.number:
        return []
    asked.contributions = message.uploads
    return [Say(f"stage {stage.stage} epoch {stage.epoch}: {len(message.uploads)} uploads were looked at")]


def put_off(state: State, stage: StageState, merge: Merge, at: float) -> None:
    merge.deadline = at + state.rules_of(stage.stage).merge.apply_deadline_s
    stage.sentence = f"the orchestrator looks at the uploads of epoch {stage.epoch}, replicas load its start"


def offenders(state: State, stage: StageState) -> Mapping[Hotkey, str]:
    merge = stage.merge
    assert merge is not None and merge.inspection is not None and merge.inspection.contributions is not None
    history = [norm for epoch in stage.norms for norm in epoch]
    factor = state.rules_of(stage.stage).merge.clip_factor
    seen = {
        one.hotkey: contributions.Contribution(
            reason=one.reason,
            norm=one.norm,
            cosine=one.cosine,
            claimed=merge.uploads[one.hotkey].norm,
            scale=reduction.clip_scale(merge.uploads[one.hotkey].norm, history, factor),
        )
        for one in merge.inspection.contributions
        if one.hotkey in merge.uploads
    }
    return contributions.offenders(seen, whole=not merge.inspection.chunks)
