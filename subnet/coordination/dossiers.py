"""What each miner was given and what it said about it, kept as long as an audit may ask (DESIGN 7).

Law: filled as things happen, from the journal alone; nothing here decides. With audits switched off nothing is kept.
"""

from __future__ import annotations

import math

import msgspec

from subnet.coordination.audit_state import Dossier, Given
from subnet.coordination.merge_state import Merge
from subnet.coordination.state import StageState, State
from subnet.protocol.ids import Hotkey, ItemId
from subnet.protocol.messages import Commitment, PassDone, PassWork, Source, UploadDone
from subnet.scoring.audit import check_log, match_log
from subnet.scoring.ledger import work_units

KEPT_EPOCHS = 3
"""Behind the oldest running one: how long objects, states and dossiers are kept, and so how long an audit may ask."""


def are_kept(state: State) -> bool:
    return state.spec.audit.rate > 0


def gave(state: State, hotkey: Hotkey, work: PassWork) -> None:
    """A pass was given out."""
    if are_kept(state):
        _dossier(state, state.stages[work.stage], hotkey).given[work.item] = Given(work=work)


def _dossier(state: State, stage: StageState, hotkey: Hotkey) -> Dossier:
    epoch = state.pay.dossiers.setdefault(stage.epoch, {})
    old = epoch.get(hotkey)
    if old is None or old.stage != stage.stage:  # whoever moved within an epoch is audited for its new stage
        left = 0.0 if old is None else unlogged_units(state, old)
        epoch[hotkey] = Dossier(stage=stage.stage, rules=stage.rules, anchor=stage.parameters, left_unlogged=left)
    return epoch[hotkey]


def _holding(state: State, hotkey: Hotkey, item: ItemId) -> Dossier | None:
    """The dossier of the epoch in which a miner was given a pass, if it is kept."""
    for epoch in reversed(state.pay.dossiers):
        dossier = state.pay.dossiers[epoch].get(hotkey)
        if dossier is not None and item in dossier.given:
            return dossier
    return None


def answered(state: State, hotkey: Hotkey, done: PassDone, credited: bool) -> None:
    """A result came, late ones too: what the miner stored is what it is audited for."""
    dossier = _holding(state, hotkey, done.item)
    if dossier is None or (given := dossier.given[done.item]).answered:
        return
    given.answered, given.credited = True, credited
    given.late = dossier.upload is not None
    given.output, given.loss = done.digest, done.loss  # type: ignore[assignment]


def withdrawn(state: State, hotkey: Hotkey, item: ItemId) -> None:
    """A pass lost its credit."""
    dossier = _holding(state, hotkey, item)
    if dossier is not None:
        dossier.given[item].credited = False


def restarted(state: State, hotkey: Hotkey) -> None:
    """A miner's process began anew, or loads parameters: what it did in this epoch before may be in no log."""
    if not are_kept(state):
        return
    state.pay.fresh.add(hotkey)
    mine = [epoch[hotkey] for _, epoch in sorted(state.pay.dossiers.items()) if hotkey in epoch]
    logged = {one.item for dossier in mine[-2:] for one in dossier.log}
    for dossier in mine[-2:]:
        for item, given in dossier.given.items():
            given.forgotten = given.forgotten or item not in logged


def asked(state: State, stage: StageState, merge: Merge) -> None:
    """The stage closed its epoch: who is to upload."""
    if are_kept(state):
        for hotkey in merge.weights:
            _dossier(state, stage, hotkey).asked += 1


def problem(state: State, stage: StageState, hotkey: Hotkey, done: UploadDone) -> str | None:
    """What is wrong with the work log of an upload; None when it fits itself and the journal."""
    if not are_kept(state):
        return None
    dossier = _dossier(state, stage, hotkey)
    before = state.pay.dossiers.get(stage.epoch - 1, {}).get(hotkey)
    inner, audit = state.spec.inner, state.spec.audit
    again = dossier.upload is not None and dossier.loaded  # a second round of this epoch: its log begins there too
    if done.loaded and not again and hotkey not in state.pay.fresh:
        return "the log begins with loaded parameters, which this miner had no reason to load"
    said = check_log(
        done.log,
        done.commitments,
        done.applied_at or 0,
        inner.micro_batches_per_step,
        audit.segment_steps,
        loaded=done.loaded,
        merged=done.applied_at is not None,
        reset_each_epoch=inner.reset_each_epoch,
        uploads=dossier.asked,
    )
    if said is not None:
        return said
    if not done.loaded:
        if before is None or not before.commitments:
            return "the log goes on from an upload that is not known"
        if not goes_on(before, done.commitments[0]):
            return "the log does not begin where the upload before ended"
    logged_before = {one.item for one in before.log} if before else set()
    earlier = {item: given for item, given in before.given.items() if item not in logged_before} if before else {}
    known = {**earlier, **dossier.given}
    # results that were accepted after the upload had been computed are in the next log
    owed = [i for i, g in before.given.items() if g.credited and not g.forgotten] if before and not done.loaded else []
    return match_log(done.log, known, [item for item in owed if item not in logged_before])


def goes_on(before: Dossier, first: Commitment) -> bool:
    """Whether a log that begins at this state goes on from the upload of the epoch before."""
    return bool(before.commitments) and msgspec.structs.replace(before.commitments[-1], position=0) == first


def uploaded(state: State, stage: StageState, hotkey: Hotkey, source: Source, done: UploadDone) -> None:
    """An upload was accepted, and its log with it."""
    if are_kept(state):
        dossier = _dossier(state, stage, hotkey)
        for one in dossier.log:  # of an earlier upload in this epoch, by a process that is gone: no later log has it
            if one.item in dossier.given:
                dossier.given[one.item].forgotten = True
        dossier.upload, dossier.log, dossier.commitments = source, done.log, done.commitments
        dossier.applied_at, dossier.loaded = done.applied_at, done.loaded
        for one in done.log:
            if one.item in dossier.given:
                dossier.given[one.item].forgotten = False
        state.pay.fresh.discard(hotkey)


def excuse(state: State, stage: StageState, epoch: int, *, running: bool = False) -> None:
    """The stage goes back to the end of `epoch`: what its replicas did since is in no log that counts, by no fault of
    theirs. `running`: back to the start of `epoch` itself, which has no merge yet."""
    for later in sorted(e for e in state.pay.dossiers if e > epoch):
        moved = {h: dossier for h, dossier in state.pay.dossiers[later].items() if dossier.stage == stage.stage}
        for hotkey, dossier in moved.items():
            del state.pay.dossiers[later][hotkey]
            for given in dossier.given.values():
                _excuse(given)
            # the next log follows the one of `epoch`, and may know these passes still
            empty = Dossier(stage=stage.stage, rules=dossier.rules, anchor=dossier.anchor)
            state.pay.dossiers.setdefault(epoch, {}).setdefault(hotkey, empty).given.update(dossier.given)
    for dossier in state.pay.dossiers.get(epoch, {}).values():
        for given in dossier.given.values() if dossier.stage == stage.stage else ():
            if running or given.late:
                _excuse(given)


def _excuse(given: Given) -> None:
    given.excused = given.excused or not given.forgotten
    given.forgotten = True


def unlogged_units(state: State, dossier: Dossier) -> float:
    """Work units of credited passes that are in no accepted log: whoever could be paid for them could not be audited.

    What came in after the upload is owed to the next log, without which the next upload is refused.
    """
    logged = {one.item for one in dossier.log}
    flops = [stage.flops_per_token for stage in state.spec.stages]
    return dossier.left_unlogged + math.fsum(
        work_units(given.work.kind, given.work.stage, flops)
        for item, given in dossier.given.items()
        if given.credited and item not in logged and not given.excused and not (given.late and not given.forgotten)
    )


def drawable(dossier: Dossier) -> tuple[int, int]:
    """The first segment that may be drawn, and how many there are.

    Where commitments were made between the upload and the merge, what lies before the merge belongs to the epoch before
    and cannot be replayed from this one's start: such rare steps are not drawn.
    """
    num_segments = len(dossier.commitments) - 1
    if dossier.applied_at is None or num_segments < 1:
        return 0, num_segments
    merged_in = max(i for i, c in enumerate(dossier.commitments[:-1]) if c.position <= dossier.applied_at)
    return (0, num_segments) if merged_in == 0 else (merged_in + 1, num_segments - merged_in - 1)


def drop_old(state: State) -> None:
    """Forget what no audit can ask for any more."""
    oldest = state.oldest_epoch()
    # one more than audits ask for: a log may hold a pass that was given in the epoch before
    for epoch in [e for e in state.pay.dossiers if e < oldest - KEPT_EPOCHS - 1]:
        if epoch > state.pay.drawn:
            note_unlogged(state, epoch)
        del state.pay.dossiers[epoch]


def note_unlogged(state: State, epoch: int) -> None:
    """What of the credit of an epoch is in no accepted log."""
    for hotkey, dossier in sorted(state.pay.dossiers.get(epoch, {}).items()):
        unlogged = unlogged_units(state, dossier)
        if unlogged > 0:
            state.pay.unlogged.setdefault(epoch, {})[hotkey] = unlogged
