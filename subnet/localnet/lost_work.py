"""Where the passes of a run went: merged, or lost, and to what (issue 5: goodput).

    given out ──► answered and credited ──► part of a replica's progress ──► uploaded with weight ──► merged
        │ gone, overtaken, failed     │ given up     │ its process ended          │ too late, too little

Law: a pure reading of the state before and after each journal record; decides nothing. A credited forward shares the
fate of its micro-batch's backward in the same stage, which is what `State.passes_merged` counts, too. Every pass given
out is in exactly one place, so the counts add up to `State.passes_started`.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from msgspec import Struct, field

from subnet.coordination.merge_state import CLOSED_KEPT, Merge
from subnet.coordination.state import Offer, StageState, State
from subnet.protocol.ids import Hotkey, ItemId, Pass
from subnet.protocol.messages import PassWork


class Fate(StrEnum):
    """What became of a pass that was given out."""

    MERGED = "merged"
    OPEN = "open"
    """In some miner's hands, or progress of an epoch that is not merged yet."""
    MINER_GONE = "miner-gone"
    """Its miner's session ended before it answered."""
    OVERTAKEN = "overtaken"
    """Somebody else's answer came first, or nobody waited any more."""
    FAILED = "failed"
    """Its miner said that it cannot do it, or its answer was refused."""
    GIVEN_UP = "given-up"
    """Its micro-batch never came back to the stage."""
    PROGRESS_GONE = "progress-gone"
    """Credited, but the session that had trained on it ended before its pseudo-gradient was uploaded."""
    LEFT_BEHIND = "left-behind"
    """Credited while the stage merged without this replica: it went on at the merged parameters instead."""
    UPLOAD_LATE = "upload-late"
    """The replica was asked for its pseudo-gradient, and it did not come in time."""
    TOO_LITTLE = "too-little"
    """Uploaded, but with fewer micro-batches than B_min asks for: weight 0."""
    EXCLUDED = "excluded"
    """The upload was taken out of the merge as bad."""
    WITHDRAWN = "withdrawn"
    """Its credit was taken back."""
    UNDONE = "undone"
    """In a merge that poisoned the run: it was taken back, and dropped or done again without this."""


class _Given(Struct):
    hotkey: Hotkey
    session: str
    micro_batch: int
    stage: int
    kind: Pass


class _Merging(Struct):
    """A stage's merge in progress: the state's own object, and the passes behind each upload."""

    merge: Merge
    epoch: int
    asked: dict[Hotkey, list[int]] = field(default_factory=dict)
    sessions: dict[Hotkey, str] = field(default_factory=dict)


class LostWork:
    """Fed with the state after every record, in order."""

    def __init__(self) -> None:
        self.counts: Counter[Fate] = Counter()
        self._given: dict[ItemId, _Given] = {}
        self._forwards: Counter[tuple[int, int]] = Counter()
        """Credited forwards whose backward has not come, by (micro-batch, stage)."""
        self._progress: dict[tuple[int, Hotkey], list[int]] = {}
        """For each micro-batch that counts for a replica, its passes, by (stage, hotkey)."""
        self._gone: dict[tuple[int, Hotkey], list[int]] = {}
        """Progress of a session that ended: counted as lost until its miner goes on from it."""
        self._merging: dict[int, _Merging] = {}
        self._settled: dict[tuple[int, int], dict[Hotkey, tuple[Fate, list[int]]]] = {}
        """What became of the latest merges, by (stage, epoch): a roll-back takes it back."""

    def note(self, state: State) -> None:
        """The state after one more record."""
        for item, given in list(self._given.items()):
            if item not in state.offers:
                del self._given[item]
                self._answered(state, item, given)
        for item, offer in state.offers.items():
            if item not in self._given and isinstance(offer.work, PassWork):
                self._given[item] = _given(state, offer, offer.work)
        for key in [key for key in self._forwards if key[0] not in state.micro_batches]:
            self.counts[Fate.GIVEN_UP] += self._forwards.pop(key)
        for stage in state.stages:
            self._look_at(state, stage)

    def totals(self, state: State) -> dict[str, int]:
        """Passes by fate at the end; `open` holds what nothing has become of yet."""
        settled = sum(self.counts.values())
        return {**{fate.value: self.counts[fate] for fate in Fate}, Fate.OPEN.value: state.passes_started - settled}

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _answered(self, state: State, item: ItemId, given: _Given) -> None:
        """An offer is closed: its result was credited, or it fell away."""
        miner = state.miners[given.hotkey]
        if item in miner.credited:
            key = given.micro_batch, given.stage
            if given.kind is Pass.FORWARD:
                self._forwards[key] += 1
            else:
                passes = 1 + self._forwards.pop(key, 0)
                self._progress.setdefault((given.stage, given.hotkey), []).append(passes)
        elif not miner.live or miner.session != given.session:
            self.counts[Fate.MINER_GONE] += 1
        else:
            batch = state.micro_batches.get(given.micro_batch)
            barred = batch is not None and given.hotkey in batch.barred
            self.counts[Fate.FAILED if barred else Fate.OVERTAKEN] += 1

    def _look_at(self, state: State, stage: StageState) -> None:
        """Follow the stage's contributions: into a merge, out of it, or nowhere."""
        merging = self._merging.get(stage.stage)
        if merging is not None and stage.merge is not merging.merge:
            self._merge_ended(state, stage, self._merging.pop(stage.stage))
        merge = stage.merge
        if merge is not None and merge.weights and stage.stage not in self._merging:
            if merge.redone:
                asked = self._taken_back(stage)
            else:
                asked = {hotkey: self._progress.pop((stage.stage, hotkey), []) for hotkey in merge.weights}
            sessions = {hotkey: state.miners[hotkey].session for hotkey in merge.weights}
            self._merging[stage.stage] = _Merging(merge, stage.epoch, asked, sessions)
        for key in [key for key in {**self._progress, **self._gone} if key[0] == stage.stage]:
            self._compare(state, stage, key)

    def _taken_back(self, stage: StageState) -> dict[Hotkey, list[int]]:
        """A merge is done again: its passes are open once more, those of the merges after it are lost."""
        again: dict[Hotkey, list[int]] = {}
        for key in [key for key in self._settled if key[0] == stage.stage and key[1] >= stage.epoch]:
            for hotkey, (fate, passes) in self._settled.pop(key).items():
                self.counts[fate] -= sum(passes)
                if key[1] == stage.epoch:
                    again[hotkey] = passes
                else:
                    self.counts[Fate.UNDONE] += sum(passes)
        return again

    def _compare(self, state: State, stage: StageState, key: tuple[int, Hotkey]) -> None:
        """What a replica's progress lost since, or found again."""
        passes, kept = self._progress.get(key, []), stage.contributions.get(key[1], 0)
        found = self._gone.get(key, [])[: max(0, kept - len(passes))]
        if found:
            self.counts[Fate.PROGRESS_GONE] -= sum(found)
            self._gone[key] = self._gone[key][len(found) :]
            passes = [*found, *passes]
        lost = passes[kept:]
        if lost:
            cause = self._cause(state, stage, key[1])
            self.counts[cause] += sum(lost)
            if cause is Fate.PROGRESS_GONE:
                self._gone[key] = lost
        self._progress[key] = passes[:kept]

    def _cause(self, state: State, stage: StageState, hotkey: Hotkey) -> Fate:
        miner = state.miners[hotkey]
        if not miner.live or miner.stage != stage.stage or miner.joined_at == state.at:
            return Fate.PROGRESS_GONE
        return Fate.LEFT_BEHIND if hotkey not in stage.contributions else Fate.WITHDRAWN

    def _merge_ended(self, state: State, stage: StageState, merging: _Merging) -> None:
        merge = merging.merge
        counted = {entry.hotkey for entry in merge.manifest} if stage.merges and stage.epoch > 0 else set()
        settled = self._settled[stage.stage, merging.epoch] = dict[Hotkey, tuple[Fate, list[int]]]()
        for key in [key for key in self._settled if key[0] == stage.stage and key[1] < merging.epoch - CLOSED_KEPT]:
            del self._settled[key]
        for hotkey, passes in merging.asked.items():
            if hotkey in counted:
                fate = Fate.MERGED
            elif hotkey in merge.excluded:
                fate = Fate.EXCLUDED
            elif merge.redone:
                fate = Fate.UNDONE
            elif merge.weights.get(hotkey) == 0:
                fate = Fate.TOO_LITTLE
            elif not state.miners[hotkey].live or state.miners[hotkey].session != merging.sessions[hotkey]:
                fate = Fate.PROGRESS_GONE
            else:
                fate = Fate.UPLOAD_LATE
            self.counts[fate] += sum(passes)
            settled[hotkey] = fate, passes


def _given(state: State, offer: Offer, work: PassWork) -> _Given:
    session = state.miners[offer.hotkey].session
    return _Given(offer.hotkey, session, work.micro_batch, work.stage, work.kind)
