"""From a piece of work to its result: fetch, wait for the turn, compute, store, report.

Law: one task per held item, so inputs are fetched and outputs stored while another item computes; computing happens in
the turn only, off the event loop. An item is done when its object is stored. A fault of another party becomes a Failed
that names the object; a deadline that passes before the computing drops the item silently; anything else is a bug and
ends the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, assert_never

from loguru import logger

from subnet.errors import InvariantViolation, PeerFault
from subnet.merging.shards import ShardReduction
from subnet.miner import merger
from subnet.miner.replica import Replica
from subnet.miner.turn import BACKWARD, FORWARD, MERGE, Turn
from subnet.protocol.ids import Digest, ItemId, Pass
from subnet.protocol.messages import (
    ApplyDone,
    ApplyWork,
    Failed,
    PassDone,
    PassWork,
    ReduceWork,
    Result,
    RevealDone,
    RevealWork,
    Source,
    SyncDone,
    SyncWork,
    Target,
    UploadDone,
    UploadWork,
    Work,
)
from subnet.protocol.reasons import Reason
from subnet.runtime import Runtime
from subnet.transport.base import ObjectClient
from subnet.transport.transfer import ABOUT_THE_GRANT, Expired, Transfer, digest_of

T = TypeVar("T")

PARALLEL_READS = 4
"""Ranged reads of one piece of merge work under way at once."""
SENTENCE_MAX = 300


@dataclass(eq=False)
class _Entry:
    """An item under way."""

    work: Work
    deadline: float
    task: asyncio.Task[None] | None = None
    computing: bool = False


class Pipeline:
    """Carries out work with one replica. `hand_in` takes each result, `give_up` each item that ends without one."""

    def __init__(
        self,
        runtime: Runtime,
        objects: ObjectClient,
        turn: Turn,
        hand_in: Callable[[Result], None],
        give_up: Callable[[ItemId], None],
        reduction: type[ShardReduction] = ShardReduction,
    ) -> None:
        self._runtime, self._objects, self._turn, self._reduction = runtime, objects, turn, reduction
        self._transfer = Transfer(objects, runtime)
        self._hand_in, self._give_up = hand_in, give_up
        self._entries: dict[ItemId, _Entry] = {}
        self.replica: Replica | None = None
        """None until the first parameters are loaded; the turn is held until then."""

    def take(self, work: Work, group: asyncio.TaskGroup) -> None:
        """Begin an item that is not under way."""
        assert work.item not in self._entries
        self._entries[work.item] = entry = _Entry(work, self._runtime.monotonic() + work.deadline_s)
        entry.task = group.create_task(self._carry_out(entry), name=work.item)

    def drop(self, items: Iterable[ItemId]) -> None:
        """Nobody waits for these any more. A computation under way ends first: torch cannot be interrupted."""
        for item in items:
            entry = self._entries.pop(item, None)
            if entry is not None and entry.task is not None and not entry.computing:
                entry.task.cancel()
                self._forget_graph(entry.work)

    def drop_all(self) -> list[ItemId]:
        items = list(self._entries)
        self.drop(items)
        return items

    def _forget_graph(self, work: Work) -> None:
        """A dropped backward's graph is of no use, unless another offer of the same micro-batch is here."""
        if not isinstance(work, PassWork) or work.kind is not Pass.BACKWARD or self.replica is None:
            return
        others = [entry.work for entry in self._entries.values()]
        if not any(isinstance(other, PassWork) and other.micro_batch == work.micro_batch for other in others):
            self.replica.forget_later(work.micro_batch)

    async def _carry_out(self, entry: _Entry) -> None:
        work, result = entry.work, None
        try:
            result = await self._result(entry)
        except Expired as expired:
            logger.debug("{} is given up: {}", work.item, expired)
        except PeerFault as fault:
            logger.debug("{} failed: {} ({})", work.item, fault.sentence, fault.code)
            blamed = fault.evidence if fault.evidence in _inputs(work) and fault.code not in ABOUT_THE_GRANT else None
            sentence = fault.sentence[:SENTENCE_MAX]
            result = Failed(item=work.item, reason=Reason(fault.code), sentence=sentence, object_key=blamed)
        if self._entries.get(work.item) is not entry:
            return  # dropped while it computed
        del self._entries[work.item]
        if result is None:
            self._give_up(work.item)
        else:
            self._hand_in(result)

    async def _result(self, entry: _Entry) -> Result:
        match entry.work:
            case PassWork() as work:
                return await self._pass(work, entry)
            case UploadWork() as work:
                return await self._upload(work, entry)
            case ReduceWork() as work:
                return await self._reduce(work, entry)
            case ApplyWork() as work:
                return await self._apply(work, entry)
            case SyncWork() as work:
                return await self._sync(work, entry)
            case RevealWork() as work:
                return await self._reveal(work, entry)
            case _ as never:
                assert_never(never)

    # ---- one kind each -----------------------------------------------------------------------------------------------

    async def _pass(self, work: PassWork, entry: _Entry) -> PassDone:
        if (work.gradient is None) == (work.kind is Pass.BACKWARD):
            article = "with" if work.gradient else "without"
            raise PeerFault(Reason.MALFORMED, f"a {work.kind.value} pass {article} a gradient")
        wanted = None if self.replica is not None and self.replica.has_graph(work) else work.stage_input
        stage_input, gradient = await self._fetch(wanted, entry), await self._fetch(work.gradient, entry)
        urgency = BACKWARD if work.kind is Pass.BACKWARD else FORWARD
        while True:
            async with self._turn.hold(urgency):
                replica = self._mine(work)
                if stage_input is not None or work.stage_input is None or replica.has_graph(work):
                    run = partial(replica.run_pass, work, stage_input, gradient)
                    computed, compute_s = await self._compute(entry, run)
                    break
            # the graph that made this input unnecessary is gone with its parameter version
            stage_input = await self._fetch(work.stage_input, entry)
        if work.output is not None and computed.output is not None:
            await self._store(work.output, computed.output)
        return PassDone(
            item=work.item,
            digest=computed.digest,
            loss=computed.loss,
            param_version=computed.param_version,
            compute_s=compute_s,
        )

    async def _upload(self, work: UploadWork, entry: _Entry) -> UploadDone:
        async with self._turn.hold(MERGE):
            replica = self._mine(work)
            (upload, told), _ = await self._compute(entry, lambda: (replica.close_epoch(work.epoch), replica.told()))
        await self._store(work.output, upload.data)
        return UploadDone(
            item=work.item,
            digest=upload.digest,
            norm=upload.norm,
            chunk_digests=tuple(upload.chunk_digests),
            log=told.log,
            commitments=told.commitments,
            applied_at=told.applied_at,
            loaded=told.loaded,
        )

    async def _reduce(self, work: ReduceWork, entry: _Entry) -> Result:
        async with self._turn.hold(MERGE):  # only to know the replica: numpy work waits for no turn
            spec = self._mine(work).spec
        data, done = await self._transfer.patiently(
            work.item,
            entry.deadline,
            lambda: merger.reduce(
                work, self._objects, PARALLEL_READS, spec=spec, runtime=self._runtime, reduction=self._reduction
            ),
        )
        await self._store(work.output, data)
        return done

    async def _apply(self, work: ApplyWork, entry: _Entry) -> ApplyDone:
        merged = await self._transfer.patiently(
            work.item,
            entry.deadline,
            lambda: merger.fetch_merged(work, self._objects, PARALLEL_READS, runtime=self._runtime),
        )
        async with self._turn.hold(MERGE):
            replica = self._mine(work)
            merge = partial(replica.apply_merge, work.epoch, merged, work.counted, work.spec)
            anchor, _ = await self._compute(entry, merge)
        for target, data in (work.publish_parameters, anchor.parameters), (work.publish_momentum, anchor.momentum):
            if target is not None:
                await self._store(target, data)
        *_, parameters, momentum = anchor
        return ApplyDone(item=work.item, parameters_digest=parameters, momentum_digest=momentum)

    async def _sync(self, work: SyncWork, entry: _Entry) -> SyncDone:
        anchor = work.parameters, work.momentum
        encoded = await self.fetch_anchor(anchor, entry.deadline)
        async with self._turn.hold(MERGE):
            replica = self._mine(work)
            await self._compute(entry, lambda: replica.load(work.epoch, anchor, encoded, work.spec))
        return SyncDone(item=work.item, parameters_digest=work.parameters.digest)

    async def _reveal(self, work: RevealWork, entry: _Entry) -> Result:
        """Show committed states part by part: a part is as large as the parameters, all at once would be four times."""
        async with self._turn.hold(MERGE):  # who loads is not asked in vain
            snapshots = self._mine(work).snapshots
        shown: list[tuple[Digest, ...]] = []
        for digest, targets in (work.start_digest, work.start), (work.end_digest, work.end):
            parts: tuple[bytes, ...] | None = ()
            if targets:
                parts = await self._runtime.run_blocking(partial(snapshots.parts, digest))
            if parts is None:
                said = f"state {digest[:12]} is not here any more"
                return Failed(item=work.item, reason=Reason.NOT_REVEALED, sentence=said)
            for target, part in zip(targets, parts, strict=True):
                await self._store(target, part)
            shown.append(tuple(digest_of(part) for part in parts))
        return RevealDone(item=work.item, start=shown[0], end=shown[1])

    # ---- shared ------------------------------------------------------------------------------------------------------

    async def fetch_anchor(self, anchor: tuple[Source, Source], deadline: float) -> tuple[bytes, bytes]:
        """Parameters and momentum, still encoded. Raises PeerFault or Expired."""
        parameters, momentum = anchor
        return await self._transfer.fetch(parameters, deadline), await self._transfer.fetch(momentum, deadline)

    def _mine(self, work: Work) -> Replica:
        """The replica, in the turn. PeerFault when the work is for another stage; Expired when the loader has failed
        and joins again: the item is given again after that."""
        if self.replica is None:
            raise Expired("the parameters could not be loaded")
        if work.stage != self.replica.stage and not isinstance(work, RevealWork):  # states of before may be shown
            raise PeerFault(Reason.WRONG_ANCHOR, f"this miner trains stage {self.replica.stage}, not {work.stage}")
        return self.replica

    async def _compute(self, entry: _Entry, work: Callable[[], T]) -> tuple[T, float]:
        """Run in the turn, off the event loop: the result and the seconds it took."""

        def timed() -> tuple[T, float]:
            started = self._runtime.monotonic()
            return work(), max(0.0, self._runtime.monotonic() - started)

        entry.computing = True
        try:
            outcome = await self._runtime.run_blocking(timed)
        finally:
            entry.computing = False
        if self._entries.get(entry.work.item) is not entry:
            raise Expired("nobody waits for it any more")
        return outcome

    async def _fetch(self, source: Source | None, entry: _Entry) -> bytes | None:
        return None if source is None else await self._transfer.fetch(source, entry.deadline)

    async def _store(self, target: Target, data: bytes) -> None:
        if len(data) != target.size_bytes:
            raise InvariantViolation(f"{target.key} has room for {target.size_bytes} bytes, the result has {len(data)}")
        await self._transfer.store(target, data)


def _inputs(work: Work) -> set[str]:
    """Keys of the objects a piece of work reads: what its miner may blame."""
    match work:
        case PassWork():
            return {source.key for source in (work.stage_input, work.gradient) if source is not None}
        case ReduceWork():
            return {entry.source.key for entry in work.manifest}
        case ApplyWork():
            return {part.source.key for part in work.shards if part.source is not None}
        case SyncWork():
            return {work.parameters.key, work.momentum.key}
        case UploadWork() | RevealWork():
            return set()
        case _ as never:
            assert_never(never)
