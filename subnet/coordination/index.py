"""What can be looked up beside the state, so that a decision costs the same with ten miners and with ten thousand.

Law: everything here follows from the state alone and is never encoded: an index built afresh from a state is the one
that was kept up to date, so nothing that is decided depends on which of the two it was. It lies in the state's
`__dict__`. Whoever changes what is filed here files it anew at once; `machine.handle` builds it before that.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import defaultdict
from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING

from subnet.coordination.buckets import Buckets, remove
from subnet.protocol.ids import Hotkey, ItemId, MicroBatchId, Pass
from subnet.protocol.messages import PassWork, Work
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from subnet.coordination.state import MicroBatch, Miner, Offer, State

NEVER = 1e18
"""A time that does not come."""


class StageIndex:
    """One stage's part."""

    def __init__(self) -> None:
        self.live: dict[Hotkey, Miner] = {}
        """Its live replicas in the order of joining."""
        self.free = Buckets()
        """Who holds the epoch's parameters and has a free slot."""
        self.roomy = Buckets()
        """Those of them that may take a forward: the last free slot is kept for a backward (`routing`)."""
        self.unbound: list[MicroBatchId] = []
        """Waiting backwards that any replica may do, by number."""
        self.waiting_for: dict[Hotkey, list[MicroBatchId]] = {}
        """Waiting backwards that are for the replica that did the forward."""
        self.called: set[Hotkey] = set()
        """Free replicas for which such a backward waits."""
        self.kept: list[tuple[float, MicroBatchId]] = []
        """A heap: until when such a backward is kept for its replica."""
        self.speeds: dict[Pass, list[float]] = defaultdict(list)
        """Mean seconds of its live replicas, sorted."""
        self.undone = 0
        """Micro-batches in flight whose backward it has still to do."""
        self.given: dict[type[Work], dict[ItemId, Offer]] = defaultdict(dict)
        """Open merge work."""
        self.changed = True
        """Whether something happened since its merge was last looked at."""
        self.next_at = -NEVER
        """When time alone could move its merge."""

    def median_s(self, kind: Pass) -> float | None:
        """The median replica's mean seconds for a pass; None while nothing is known."""
        known = self.speeds[kind]
        half = len(known) // 2
        return (known[half] if len(known) % 2 else median(known[half - 1 : half + 1])) if known else None


class Index:
    def __init__(self, state: State) -> None:
        self.stages = [StageIndex() for _ in state.stages]
        self.queued: dict[MicroBatchId, tuple[int, bool]] = {}
        """Where a micro-batch waits: (stage, whether for its backward)."""
        self._filed_for: dict[MicroBatchId, Hotkey | None] = {}
        self._bound_to: dict[Hotkey, set[MicroBatchId]] = {}
        self._deadlines: list[tuple[float, ItemId]] = []
        self._heard: list[tuple[float, Hotkey]] = []
        self._listed: set[Hotkey] = set()
        self.audits_changed = True
        self.audits_at = -NEVER
        """When the first audit is overdue."""
        self.touched = True
        """Whether any stage has changed since merges were last looked at."""
        self.next_at = -NEVER
        """When time alone could move a merge."""
        self.kept_at = -NEVER
        """Before this no backward has been kept for its replica for too long."""
        self.is_any_empty = False
        """Whether a stage has no live replica."""
        self.gate: tuple[tuple[Reason, str] | None, int] | None = None
        """What phases and replicas say about opening micro-batches, and the weakest stage's replicas; None: look."""
        for miner in sorted((m for m in state.miners.values() if m.live), key=lambda m: m.number):
            self.arrived(state, miner)
        self._count_empty()
        for offer in state.offers.values():
            self.gave(offer)
        for batch in state.micro_batches.values():
            self.opened(batch)
            for hop in batch.hops:
                if hop.bound and hop.forward_by is not None:
                    self._bound_to.setdefault(hop.forward_by, set()).add(batch.id)
        for stage in state.stages:
            for queue in (stage.forward_ready, stage.backward_ready):
                for micro_batch in queue:
                    self.queued[micro_batch] = stage.stage, queue is stage.backward_ready
                    self.file_batch(state, state.micro_batches[micro_batch])

    # ---- miners ------------------------------------------------------------------------------------------------------

    def arrived(self, state: State, miner: Miner) -> None:
        """A session began."""
        stage = self.stages[miner.stage]
        stage.live[miner.hotkey] = miner
        self._count_empty()
        self.touch(stage)
        self.audits_changed = True
        for kind, mean_s in miner.mean_s.items():
            insort(stage.speeds[kind], mean_s)
        if miner.hotkey not in self._listed:
            self._listed.add(miner.hotkey)
            heapq.heappush(self._heard, (miner.last_seen, miner.hotkey))
        self.file_miner(state, miner)

    def left(self, state: State, miner: Miner) -> None:
        """A session ended; `miner` is the struct that was filed."""
        stage = self.stages[miner.stage]
        if stage.live.pop(miner.hotkey, None) is not None:
            for kind, mean_s in miner.mean_s.items():
                remove(stage.speeds[kind], mean_s)
        self._count_empty()
        self.touch(stage)
        self.audits_changed = True
        self.file_miner(state, miner)

    def file_miner(self, state: State, miner: Miner) -> None:
        """Its slots, its items or its parameters changed."""
        stage, hotkey = self.stages[miner.stage], miner.hotkey
        able = miner.live and miner.free_slots >= 1 and miner.synced_epoch == state.stages[miner.stage].epoch
        count = len(miner.offers) if able else None
        stage.free.file(hotkey, count)
        roomy = miner.free_slots > 1 or not miner.offers or miner.stage == len(self.stages) - 1
        stage.roomy.file(hotkey, count if roomy else None)
        if able and hotkey in stage.waiting_for:
            stage.called.add(hotkey)
        else:
            stage.called.discard(hotkey)

    def file_stage(self, state: State, stage: int) -> None:
        """The stage's epoch turned."""
        for miner in self.stages[stage].live.values():
            self.file_miner(state, miner)

    def note_speed(self, miner: Miner, kind: Pass, before_s: float | None) -> None:
        speeds = self.stages[miner.stage].speeds[kind]
        if before_s is not None:
            remove(speeds, before_s)
        insort(speeds, miner.mean_s[kind])

    def silent_longest(self, state: State) -> Miner | None:
        """The live miner that was not heard of for the longest time."""
        while self._heard:
            at, hotkey = self._heard[0]
            miner = state.miners[hotkey]
            if not miner.live:
                heapq.heappop(self._heard)
                self._listed.discard(hotkey)
            elif miner.last_seen > at:
                heapq.heapreplace(self._heard, (miner.last_seen, hotkey))
            else:
                return miner
        return None

    # ---- offers ------------------------------------------------------------------------------------------------------

    def gave(self, offer: Offer) -> None:
        if isinstance(offer.work, PassWork):
            if not offer.expired:
                heapq.heappush(self._deadlines, (offer.deadline, offer.item))
        else:
            self.stages[offer.work.stage].given[type(offer.work)][offer.item] = offer

    def withdrew(self, offer: Offer) -> None:
        if not isinstance(offer.work, PassWork):
            stage = self.stages[offer.work.stage]
            stage.given[type(offer.work)].pop(offer.item, None)
            self.touch(stage)
            self.audits_changed = True

    def late(self, state: State, at: float) -> Iterator[Offer]:
        """Passes whose deadline is over, the oldest first; each is named once, for the caller marks it."""
        while self.is_any_late(state, at):
            yield state.offers[heapq.heappop(self._deadlines)[1]]

    def is_any_late(self, state: State, at: float) -> bool:
        while self._deadlines and self._deadlines[0][0] <= at:
            offer = state.offers.get(self._deadlines[0][1])
            if offer is not None and not offer.expired:
                return True
            heapq.heappop(self._deadlines)
        return False

    # ---- micro-batches -----------------------------------------------------------------------------------------------

    def opened(self, batch: MicroBatch) -> None:
        for hop, stage in zip(batch.hops, self.stages, strict=True):
            stage.undone += hop.backward_epoch < 0

    def closed(self, batch: MicroBatch) -> None:
        """It is complete, or nobody works on it any more."""
        for hop, stage in zip(batch.hops, self.stages, strict=True):
            self.lost_graph(batch, hop.forward_by)
            if hop.backward_epoch < 0:
                stage.undone -= 1
                self.touch(stage)

    def keeps_graph(self, batch: MicroBatch, hotkey: Hotkey) -> None:
        self._bound_to.setdefault(hotkey, set()).add(batch.id)

    def lost_graph(self, batch: MicroBatch, hotkey: Hotkey | None) -> None:
        if hotkey is not None and hotkey in self._bound_to:
            self._bound_to[hotkey].discard(batch.id)
            if not self._bound_to[hotkey]:
                del self._bound_to[hotkey]

    def graphs_of(self, hotkey: Hotkey) -> list[MicroBatchId]:
        """Micro-batches whose graphs a miner holds."""
        return sorted(self._bound_to.get(hotkey, ()))

    def file_batch(self, state: State, batch: MicroBatch) -> None:
        """A micro-batch was queued, or who may do its backward changed."""
        place = self.queued.get(batch.id)
        if place is None or not place[1]:
            return
        self._unfile(state, batch.id, place[0])
        stage, hop = self.stages[place[0]], batch.hops[place[0]]
        owner = hop.forward_by if hop.bound and hop.forward_by not in batch.barred else None
        self._filed_for[batch.id] = owner
        insort(stage.unbound if owner is None else stage.waiting_for.setdefault(owner, []), batch.id)
        if owner is not None:
            while stage.kept and self._filed_for.get(stage.kept[0][1]) is None:
                heapq.heappop(stage.kept)  # it was done meanwhile
            heapq.heappush(stage.kept, (batch.waits_until, batch.id))
            self.kept_at = min(self.kept_at, batch.waits_until)
            if owner in stage.free:
                stage.called.add(owner)

    def kept_too_long(self, state: State, stage_index: int, now: float) -> MicroBatch | None:
        """A waiting backward that has been kept for its replica until now."""
        stage = self.stages[stage_index]
        while stage.kept and stage.kept[0][0] <= now:
            until, number = stage.kept[0]
            is_filed = self._filed_for.get(number) is not None and self.queued[number] == (stage_index, True)
            if is_filed and state.micro_batches[number].waits_until == until:
                return state.micro_batches[number]
            heapq.heappop(stage.kept)
        return None

    def unqueue(self, state: State, micro_batch: MicroBatchId) -> tuple[int, bool] | None:
        """Forget where a micro-batch waits; returns where it was."""
        place = self.queued.pop(micro_batch, None)
        if place is not None and place[1]:
            self._unfile(state, micro_batch, place[0])
        return place

    def _unfile(self, state: State, micro_batch: MicroBatchId, stage_index: int) -> None:
        if micro_batch not in self._filed_for:
            return
        stage, owner = self.stages[stage_index], self._filed_for.pop(micro_batch)
        if owner is None:
            remove(stage.unbound, micro_batch)
            return
        remove(stage.waiting_for[owner], micro_batch)
        if not stage.waiting_for[owner]:
            del stage.waiting_for[owner]
            stage.called.discard(owner)

    # ---- what is looked at again -------------------------------------------------------------------------------------

    def touch(self, stage: StageIndex) -> None:
        """Something happened that its merge may wait for."""
        stage.changed = self.touched = True

    def all_changed(self) -> None:
        """Something happened that may concern every stage."""
        self.audits_changed, self.gate = True, None
        for stage in self.stages:
            self.touch(stage)

    def _count_empty(self) -> None:
        self.is_any_empty, self.gate = not all(stage.live for stage in self.stages), None


def index_of(state: State) -> Index:
    """The state's index, built where there is none."""
    try:
        return state.__dict__["index"]  # type: ignore[no-any-return]
    except KeyError:
        index = state.__dict__["index"] = Index(state)
        return index


def rebuild(state: State) -> None:
    """Make it anew: times were changed all over the state."""
    state.__dict__["index"] = Index(state)
