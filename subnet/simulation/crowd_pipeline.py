"""From a piece of work to its result, as `miner.pipeline` goes about it: fetch, wait for the turn, compute, store.

Law: the order of things is that of the asynchronous original (one computation at a time, merge work before backwards
before forwards, transfers beside it, a dropped item's result is nobody's); only their durations are modelled and their
objects do not exist. Work for another stage or epoch is Failed as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any

from subnet.merging import compression
from subnet.miner.turn import BACKWARD, FORWARD, MERGE
from subnet.protocol.ids import Digest, ItemId, Pass, Values
from subnet.protocol.messages import (
    ApplyDone,
    ApplyWork,
    Failed,
    PassDone,
    PassWork,
    ReduceDone,
    ReduceWork,
    Result,
    RevealDone,
    RevealWork,
    SyncDone,
    SyncWork,
    UploadDone,
    UploadWork,
    Work,
)
from subnet.protocol.reasons import Reason
from subnet.simulation.crowd_digests import Digests
from subnet.simulation.crowd_machine import Machine
from subnet.simulation.crowd_replica import Replica, WrongEpoch
from subnet.simulation.crowd_spec import digest_of
from subnet.transport.transfer import digest_of as digest_of_bytes


class Entry:
    """An item under way."""

    __slots__ = ("deadline", "has_input", "work")

    def __init__(self, work: Work, deadline: float) -> None:
        self.work, self.deadline, self.has_input = work, deadline, False


class Pipeline:
    """Of one process. `hand_in` takes each result, `give_up` each item that ends without one."""

    def __init__(
        self,
        machine: Machine,
        digests: Digests,
        hand_in: Callable[[Result], None],
        give_up: Callable[[ItemId], None],
    ) -> None:
        self._machine, self._digests, self._hand_in, self._give_up = machine, digests, hand_in, give_up
        self._life = machine.life
        self._entries: dict[ItemId, Entry] = {}
        self._waiting: list[tuple[int, int, Entry]] = []
        self._arrivals = 0
        self.busy_until = 0.0
        """When the present computation ends, but for pauses."""
        self._busy = False
        self.loading = False
        """Nothing computes meanwhile."""
        self.replica: Replica | None = None

    # ---- items -------------------------------------------------------------------------------------------------------

    def take(self, work: Work) -> None:
        """Begin an item."""
        entry = self._entries[work.item] = Entry(work, self._machine.events.now + work.deadline_s)
        match work:
            case PassWork():
                self._fetch(entry, work)
            case UploadWork():
                self._want_turn(MERGE, entry)
            case ReduceWork():
                share = sum(shard.length for shard in work.shards)
                size_bytes = len(work.manifest) * compression.body_size(Values.INT8, share)
                self._later(self._machine.down_s(size_bytes) + self._machine.merge_s(), self._fetched, entry)
            case ApplyWork():
                size_bytes = sum(part.source.size_bytes for part in work.shards if part.source is not None)
                self._later(self._machine.down_s(size_bytes), self._fetched, entry)
            case SyncWork():
                size_bytes = work.parameters.size_bytes + work.momentum.size_bytes
                self._later(self._machine.down_s(size_bytes), self._fetched, entry)
            case RevealWork():
                size_bytes = sum(target.size_bytes for target in (*work.start, *work.end))
                self._later(self._machine.up_s(size_bytes), self._stored, entry, self._revealed(work))

    def drop(self, items: Iterable[ItemId]) -> None:
        """Nobody waits for these any more. A computation under way ends first."""
        for item in items:
            entry = self._entries.pop(item, None)
            if entry is not None and self.replica is not None:
                work = entry.work
                if isinstance(work, PassWork) and work.kind is Pass.BACKWARD and not self._has(work.micro_batch):
                    self.replica.forget(work.micro_batch)

    def drop_all(self) -> list[ItemId]:
        items = list(self._entries)
        self.drop(items)
        return items

    def _has(self, micro_batch: int) -> bool:
        works = (entry.work for entry in self._entries.values())
        return any(isinstance(work, PassWork) and work.micro_batch == micro_batch for work in works)

    def _later(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        self._machine.later(self._life, delay_s, action, *arguments)

    def _is_open(self, entry: Entry) -> bool:
        return self._entries.get(entry.work.item) is entry

    # ---- fetching and the turn ---------------------------------------------------------------------------------------

    def _fetch(self, entry: Entry, work: PassWork) -> None:
        needs_input = not (self.replica is not None and self.replica.has_graph(work))
        entry.has_input = needs_input
        size_bytes = work.gradient.size_bytes if work.gradient is not None else 0
        if needs_input and work.stage_input is not None:
            size_bytes += work.stage_input.size_bytes
        if size_bytes:
            self._later(self._machine.down_s(size_bytes), self._fetched, entry)
        else:
            self._want_turn(FORWARD if work.kind is not Pass.BACKWARD else BACKWARD, entry)

    def _fetched(self, entry: Entry) -> None:
        if not self._is_open(entry):
            return
        if self._machine.events.now > entry.deadline:
            del self._entries[entry.work.item]
            self._give_up(entry.work.item)
        elif isinstance(entry.work, PassWork):
            self._want_turn(BACKWARD if entry.work.kind is Pass.BACKWARD else FORWARD, entry)
        else:
            self._want_turn(MERGE, entry)

    def _want_turn(self, urgency: int, entry: Entry) -> None:
        self._arrivals += 1
        heappush(self._waiting, (urgency, self._arrivals, entry))
        if not self._busy:
            self.pass_on()

    def pass_on(self) -> None:
        """Give the turn to the most urgent one."""
        self._busy = False
        while self._waiting and not self.loading and not self._busy:
            entry = heappop(self._waiting)[2]
            if self._is_open(entry):
                self._compute(entry)

    # ---- computing and storing ---------------------------------------------------------------------------------------

    def _compute(self, entry: Entry) -> None:
        work, replica = entry.work, self.replica
        assert replica is not None, "nothing computes before the parameters are loaded"
        if work.stage != replica.stage:
            self._fail(entry, f"this miner trains stage {replica.stage}, not {work.stage}")
            return
        if isinstance(work, ReduceWork):  # numpy work waits for no turn
            self._later(self._machine.up_s(work.output.size_bytes), self._stored, entry, self._reduced(work))
            return
        duration_s = self._machine.merge_s()
        if isinstance(work, PassWork):
            without_graph = work.kind is Pass.BACKWARD and not replica.has_graph(work)
            if without_graph and not entry.has_input and work.stage_input is not None:
                self._fetch(entry, work)  # the graph that made the input unnecessary is gone with its version
                return
            duration_s = self._machine.pass_s(work.kind, without_graph)
        self._busy = True
        self.busy_until = self._machine.events.now + duration_s
        self._later(duration_s, self._computed, entry, replica, duration_s)

    def _computed(self, entry: Entry, replica: Replica, duration_s: float) -> None:
        try:
            result, size_bytes = self._result(entry.work, replica, duration_s)
        except WrongEpoch as wrong:
            self._fail(entry, str(wrong))
        else:
            if size_bytes:
                self._later(self._machine.up_s(size_bytes), self._stored, entry, result)
            else:
                self._stored(entry, result)
        self.pass_on()

    def _stored(self, entry: Entry, result: Result) -> None:
        if self._is_open(entry):
            del self._entries[entry.work.item]
            self._hand_in(result)

    def _fail(self, entry: Entry, sentence: str) -> None:
        if self._is_open(entry):
            del self._entries[entry.work.item]
            self._hand_in(Failed(item=entry.work.item, reason=Reason.WRONG_ANCHOR, sentence=sentence))

    # ---- one kind each -----------------------------------------------------------------------------------------------

    def _result(self, work: Work, replica: Replica, duration_s: float) -> tuple[Result, int]:
        """What comes of a computation, and the bytes to store before it is handed in."""
        match work:
            case PassWork():
                output = work.output
                done = PassDone(
                    item=work.item,
                    digest=digest_of(work.item) if output is not None else None,
                    loss=2.0 + 3.0 / (1.0 + replica.epoch) if work.kind is Pass.LOSS else None,
                    param_version=replica.run_pass(work),
                    compute_s=duration_s,
                )
                return done, output.size_bytes if output is not None else 0
            case UploadWork():
                told = replica.close_epoch(work.epoch)
                digest = digest_of(work.item)
                upload = UploadDone(
                    item=work.item,
                    digest=digest,
                    norm=self._machine.draws.factor(0.2),
                    chunk_digests=(digest,) * compression.num_chunks(replica.spec.stages[work.stage].num_params),
                    log=told.log,
                    commitments=told.commitments,
                    applied_at=told.applied_at,
                    loaded=told.loaded,
                )
                return upload, work.output.size_bytes
            case ApplyWork():
                parameters = replica.apply_merge(work)
                momentum = digest_of(f"momentum {parameters}")
                applied = ApplyDone(item=work.item, parameters_digest=parameters, momentum_digest=momentum)
                targets = work.publish_parameters, work.publish_momentum
                return applied, sum(target.size_bytes for target in targets if target is not None)
            case SyncWork():
                replica.load(work.epoch, work.parameters.digest)
                return SyncDone(item=work.item, parameters_digest=work.parameters.digest), 0
            case _:
                raise AssertionError(f"{work.item} is not computed in the turn")

    def _reduced(self, work: ReduceWork) -> ReduceDone:
        digests = [self._digests.shard(work.manifest, shard.index) for shard in work.shards]
        if self._machine.cheats_reducing:
            digests = [digest_of(f"of one upload alone {digest}") for digest in digests]
        return ReduceDone(item=work.item, digest=digest_of(work.item), shard_digests=tuple(digests))

    def _revealed(self, work: RevealWork) -> Result:
        shown: list[tuple[Digest, ...]] = []
        for digest, targets in (work.start_digest, work.start), (work.end_digest, work.end):
            parts = self._machine.snapshots.parts(digest) if targets else ()
            if parts is None:
                said = f"state {digest[:12]} is not here any more"
                return Failed(item=work.item, reason=Reason.NOT_REVEALED, sentence=said)
            shown.append(tuple(map(digest_of_bytes, parts)))
        return RevealDone(item=work.item, start=shown[0], end=shown[1])
