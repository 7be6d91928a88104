"""The miner role: joins, loads its stage's parameters, and works until the run is over.

Law: one TaskGroup holds everything that runs. The exchange goes on while parameters are loaded, and nothing computes
before they are: the loader holds the turn. Joining again (the orchestrator restarted, or the RunSpec changed) keeps
finished results in hand, and keeps what was trained when stage, epoch and RunSpec are still the same. Every way in
which a miner ends has a reason, a sentence and a remedy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from loguru import logger

from subnet import __version__
from subnet.errors import PeerFault
from subnet.merging.shards import ShardReduction
from subnet.miner import disk
from subnet.miner.desk import SLOTS_MAX, Desk, Taken
from subnet.miner.line import Ending, Line, Membership
from subnet.miner.pipeline import Pipeline
from subnet.miner.receipts import RECEIPTS_FILE, ReceiptBook
from subnet.miner.replica import Replica
from subnet.miner.snapshots import FolderSnapshots, Found, Snapshots, found, progress_notes
from subnet.miner.turn import LOADING, Turn
from subnet.model.trainer import Trainer
from subnet.protocol.ids import Digest, Epoch, ItemId, Stage
from subnet.protocol.messages import Join, Joined, Refusal, Result
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import DataFile, RunSpec
from subnet.runtime import Runtime
from subnet.transport.backoff import backoff_s
from subnet.transport.base import ControlClient, ObjectClient
from subnet.transport.transfer import Expired, Transfer

JOIN_TIMEOUT_S = 8.0
"""A join is answered at once; who has joined and does not know it is soon taken for dead."""
LOAD_DEADLINE_S = 3600.0
"""Time for the first downloads before the miner joins afresh."""

SNAPSHOTS = "snapshots"
"""Folder of the committed states in the work folder."""

TrainerFactory = Callable[[RunSpec, Stage], Trainer]
"""Called off the event loop, once the training files lie at `data_path(work_dir, file)`."""


def data_path(work_dir: Path, file: DataFile) -> Path:
    """Where a file of the RunSpec lies: by its digest, so runs that share files share them on disk too."""
    return work_dir / "data" / file.digest


class Miner:
    """One hotkey's process. `device` is told to the orchestrator; `slots` None takes what the RunSpec allows."""

    def __init__(
        self,
        *,
        control: ControlClient,
        objects: ObjectClient,
        runtime: Runtime,
        trainer_factory: TrainerFactory,
        work_dir: Path,
        device: str = "cpu",
        slots: int | None = None,
        reduction: type[ShardReduction] = ShardReduction,
        receipts: ReceiptBook | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._runtime, self._trainer_factory = runtime, trainer_factory
        self._work_dir, self._device, self._slots = work_dir, device, slots
        self._turn = Turn()
        self._desk = Desk(session=runtime.random_bytes(8).hex())
        self._receipts = receipts or ReceiptBook(work_dir / RECEIPTS_FILE)
        self._snapshots = snapshots
        self._transfer = Transfer(objects, runtime)
        self._pipeline = Pipeline(runtime, objects, self._turn, self._hand_in, self._give_up, reduction)
        self._line = Line(control, runtime, self._desk, self._receipts, self._take, self._epoch, self._rules)
        self._loader: asyncio.Task[None] | None = None
        self._load_failures = 0
        self._found: Found | None = None
        """What an earlier process left, until it is known whether this one goes on from it."""
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> Ending:
        """Work until the run is over or the miner is refused for good. Cancel it to stop: nothing more is handed in.

        Raises ConfigError, also for a disk that cannot be written, and InvariantViolation as they are.
        """
        try:
            async with asyncio.TaskGroup() as self._group:
                ending = await self._live(self._group)
                self._stop()
        except BaseExceptionGroup as failures:
            if (full := disk.failure(failures, self._work_dir)) is not None:
                raise full from None
            if len(failures.exceptions) > 1:
                raise
            raise failures.exceptions[0] from None
        finally:
            self._receipts.close()
        if ending.reason is Reason.TARGET_REACHED and self._pipeline.replica is not None:
            self._pipeline.replica.snapshots.drop()
        logger.info("ended: {} ({})", ending.sentence, ending.reason.value)
        return ending

    async def _live(self, group: asyncio.TaskGroup) -> Ending:
        if notes := progress_notes(self._work_dir / SNAPSHOTS):
            self._found = await self._runtime.run_blocking(lambda: found(notes[-1]))
        while True:
            joined = await self._join()
            if isinstance(joined, Ending):
                return joined
            with logger.contextualize(stage=joined.stage):
                membership = self._settle(joined, group)
                ending = await self._line.run(membership, group)
            if ending is not None:
                return ending

    def _stop(self) -> None:
        self._line.close()
        self._pipeline.drop_all()
        if self._loader is not None:
            self._loader.cancel()

    # ---- joining -----------------------------------------------------------------------------------------------------

    async def _join(self) -> Joined | Ending:
        resumes = None if self._found is None else self._found.progress
        software = f"iota-miner {__version__}"
        message = Join(session=self._desk.session, device=self._device, software=software, resumes=resumes)
        while True:
            reply = await self._line.ask(message, None, JOIN_TIMEOUT_S)
            if isinstance(reply, Joined):
                return reply
            if isinstance(reply, Refusal):
                verdict = self._line.judge(reply.notice)
                if isinstance(verdict, Ending):
                    return verdict
            await self._runtime.sleep(self._line.pause_s())

    def _settle(self, joined: Joined, group: asyncio.TaskGroup) -> Membership:
        """Take up the membership: go on with what we have if it is still that, else load what it names."""
        spec_digest = joined.spec.digest()
        place = f"stage {joined.stage} of {joined.spec.num_stages} in epoch {joined.epoch}"
        logger.info("joined {}: {}", place, joined.notice.sentence)
        if not joined.resumed:
            self._found = None
        if self._loader is not None:
            self._loader.cancel()
        if self._still_fits(joined, spec_digest):
            self._desk.joined(self._runtime.monotonic())
        else:
            self._desk.slots = 0
            self._desk.abandon([*self._pipeline.drop_all(), *self._desk.held])
            # a quick load is over before the first exchange; a long one is not taken for a death
            self._desk.joined(self._runtime.monotonic() + joined.spec.routing.dead_after_s / 3)
            self._loader = group.create_task(self._load(joined), name="load")
        return Membership(joined.spec, spec_digest, joined.stage)

    def _still_fits(self, joined: Joined, spec_digest: Digest) -> bool:
        """Whether the replica is what was joined, or one merge ahead of it (applied; the stage has not turned yet)."""
        replica = self._pipeline.replica
        if replica is None or self._desk.slots == 0:
            return False
        return replica.stage == joined.stage and replica.fits(joined.epoch, spec_digest, joined.parameters.digest)

    async def _load(self, joined: Joined) -> None:
        """Data, parameters, trainer: then the slots are open."""
        spec, deadline = joined.spec, self._runtime.monotonic() + LOAD_DEADLINE_S
        granted = {source.key: source for source in joined.data}
        try:
            async with self._turn.hold(LOADING):
                for file in spec.data.train:
                    if file.key not in granted:
                        raise PeerFault(Reason.MALFORMED, f"the orchestrator gave no URL for {file.key}", file.key)
                    await self._transfer.fetch_file(granted[file.key], data_path(self._work_dir, file), deadline)
                anchor = joined.parameters, joined.momentum
                encoded = await self._pipeline.fetch_anchor(anchor, deadline)
                replica = await self._runtime.run_blocking(lambda: self._build(joined))
                await self._runtime.run_blocking(lambda: replica.load(joined.epoch, anchor, encoded))
                if (earlier := self._found) is not None:
                    await self._runtime.run_blocking(lambda: replica.resume(earlier))
                    logger.info("goes on after {} passes of an earlier process", len(earlier.progress.log))
                self._pipeline.replica, self._found = replica, None
        except (PeerFault, Expired) as error:
            self._load_failures += 1
            logger.warning("loading failed, joining again: {}", error)
            await self._runtime.sleep(backoff_s(self._load_failures, self._runtime.random_bytes(2)))
            self._line.join_again()
            return
        self._load_failures = 0
        self._desk.slots = min(self._slots or SLOTS_MAX, spec.routing.slots_max)
        logger.info("loaded epoch {}: {} parameters", joined.epoch, spec.stages[joined.stage].num_params)
        self._line.changed()

    def _build(self, joined: Joined) -> Replica:
        trainer = self._trainer_factory(joined.spec, joined.stage)
        snapshots = self._snapshots or FolderSnapshots(self._work_dir / SNAPSHOTS, joined.spec.run_id)
        return Replica(joined.spec, joined.stage, trainer, snapshots)

    # ---- between line, desk and pipeline -----------------------------------------------------------------------------

    def _take(self, taken: Taken) -> None:
        assert self._group is not None
        self._pipeline.drop(taken.dropped)
        for work in taken.work:
            self._pipeline.take(work, self._group)

    def _hand_in(self, result: Result) -> None:
        self._desk.finish(result)
        self._line.changed()

    def _give_up(self, item: ItemId) -> None:
        self._desk.abandon([item])
        self._line.changed()

    def _rules(self) -> Digest | None:
        replica = self._pipeline.replica
        return None if replica is None else replica.spec_digest

    def _epoch(self) -> Epoch:
        replica = self._pipeline.replica
        return Epoch(0) if replica is None else replica.epoch
