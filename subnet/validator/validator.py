"""The validator role: audits drawn segments, measures the merged model, sets the weights that follow from the journal.

Law: two loops in one TaskGroup, and one computation at a time. The review loop is also the heartbeat: an audit stays
ours until it is answered, and an answer goes out again until it was heard. Weights come from our own fold of the public
journal and from nothing else (`settler`); a journal that breaks ends the validator with the index of the break. One
without permit or uid waits for it, and sees from the journal when the run is over.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from loguru import logger

from subnet.coordination.notices import finished
from subnet.data.sampling import Batches
from subnet.data.token_shards import open_file
from subnet.errors import PeerFault, Unavailable
from subnet.model.replay import Replay
from subnet.protocol.ids import Digest, ItemId
from subnet.protocol.messages import (
    AuditDone,
    AuditWork,
    EvaluateWork,
    Message,
    Noted,
    Refusal,
    Reply,
    Review,
    Reviewed,
)
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import Runtime
from subnet.scoring.audit import judge
from subnet.transport.base import ControlClient, ObjectClient
from subnet.transport.transfer import Transfer
from subnet.validator.anchors import ANCHORS_FILE, AnchorWatch
from subnet.validator.auditor import Auditor
from subnet.validator.evaluation import TOKENS_MAX, evaluate
from subnet.validator.follower import Follower, JournalBroken
from subnet.validator.settler import Settler
from subnet.validator.weight_setter import WeightSetter

LOOK_EVERY_S = 1.0
REFUSED_EVERY_S = 5.0
"""Heartbeats of a validator that the orchestrator refuses: without permit, or not registered any more."""
CALL_TIMEOUT_S = 20.0
FIRST_RECORD_EVERY_S = 1.0
FOUND_MAX = 64


class Validator:
    """One hotkey's process. `work_dir` holds the training text and the anchors seen; `finished` is set when the run is
    over and its last weights stand.

    Of `audits_at_once` one is replayed while the others are fetched.
    """

    def __init__(
        self,
        *,
        control: ControlClient,
        objects: ObjectClient,
        follower: Follower,
        weights: WeightSetter,
        runtime: Runtime,
        work_dir: Path,
        device: str = "cpu",
        audits_at_once: int = 2,
        tokens_max: int = TOKENS_MAX,
        replay: type[Replay] = Replay,
    ) -> None:
        self._control, self._runtime, self._follower = control, runtime, follower
        anchors = AnchorWatch(weights.chain, work_dir / ANCHORS_FILE, follower)
        self._settler = Settler(follower, weights, anchors, self._call, runtime)
        self._transfer = Transfer(objects, runtime)
        self._work_dir, self._device, self._free = work_dir, device, audits_at_once
        self._tokens_max, self._replay = tokens_max, replay
        self._spec: RunSpec | None = None
        self._digest: Digest | None = None
        self._auditor: Auditor | None = None
        self._validation: list[bytes] = []
        self._turn = asyncio.Lock()
        self._found: dict[ItemId, AuditDone] = {}
        self._busy: dict[ItemId, asyncio.Task[None]] = {}
        self._evaluating: asyncio.Task[None] | None = None
        self._evaluated: EvaluateWork | None = None
        self._told = asyncio.Event()
        self.finished = asyncio.Event()
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        """Until the run is over and its last weights are set. Raises JournalBroken."""
        await self._first_record()
        try:
            async with asyncio.TaskGroup() as group:
                reviews = group.create_task(self._review(group))
                await self._settler.run(reviews.done)
                self.finished.set()
        except BaseExceptionGroup as failures:
            if len(failures.exceptions) > 1:
                raise
            raise failures.exceptions[0] from None

    async def _first_record(self) -> None:
        """The RunSpec is the journal's first record."""
        while self._follower.state is None:
            try:
                await self._follower.catch_up()
            except JournalBroken:
                raise
            except (Unavailable, PeerFault) as error:
                self._say("journal", f"waiting for the journal: {error}")
            if self._follower.state is None:
                await self._runtime.sleep(FIRST_RECORD_EVERY_S)
        self._spec = self._follower.state.spec
        self._digest = self._spec.digest()

    # ---- audits and evaluations --------------------------------------------------------------------------------------

    async def _review(self, group: asyncio.TaskGroup) -> None:
        """Findings in, audits out, until the run is over."""
        while True:
            done = dict(list(self._found.items())[:FOUND_MAX])
            message = Review(
                free=max(0, self._free - len(self._busy)),
                holding=tuple(self._busy),
                found=tuple(done.values()),
                with_data=self._auditor is None,
            )
            reply = await self._call(message)
            if isinstance(reply, Reviewed):
                for item in done:
                    del self._found[item]
                await self._reviewed(reply, group)
                if reply.finished and not self._found and not self._busy and self._idle():
                    return
            elif isinstance(reply, Refusal) and not self._busy and self._idle() and self._is_over():
                return
            await self._news(REFUSED_EVERY_S if isinstance(reply, Refusal) else LOOK_EVERY_S)

    def _is_over(self) -> bool:
        """As the journal says, for one whom the orchestrator does not talk to."""
        return self._follower.caught_up and finished(self._follower.run)

    async def _news(self, pause_s: float) -> None:
        """Until it is time to look again, or a finding is there to be told."""
        self._told.clear()
        try:
            async with asyncio.timeout(pause_s):
                await self._told.wait()
        except TimeoutError:
            pass

    def _idle(self) -> bool:
        return self._evaluating is None or self._evaluating.done()

    async def _reviewed(self, reply: Reviewed, group: asyncio.TaskGroup) -> None:
        if self._auditor is None:
            await self._load(reply)
        if self._auditor is None:
            return
        for audit in reply.audits:
            if audit.item not in self._busy and audit.item not in self._found:
                self._busy[audit.item] = group.create_task(self._audit(self._auditor, audit), name=audit.item)
        work = reply.evaluate
        if work is not None and not self._is_measured(work) and self._idle():
            self._evaluating = group.create_task(self._evaluate(work), name=f"evaluate {work.epoch}")

    def _is_measured(self, work: EvaluateWork) -> bool:
        """Whether these very parameters were measured: after a roll-back an epoch starts with others."""
        known = self._evaluated
        return known is not None and [s.digest for s in known.parameters] == [s.digest for s in work.parameters]

    async def _load(self, reply: Reviewed) -> None:
        """The text: what audits replay and evaluations measure on."""
        assert self._spec is not None
        data, deadline = self._spec.data, self._runtime.monotonic() + 600.0
        granted = {source.key: source for source in reply.data}
        try:
            paths = []
            for file in data.train:
                paths.append(self._work_dir / "data" / file.digest)
                await self._transfer.fetch_file(granted[file.key], paths[-1], deadline)
            self._validation = [await self._transfer.fetch(granted[file.key], deadline) for file in data.validation]
        except (PeerFault, Unavailable, KeyError) as error:
            self._say("text", f"the text could not be loaded, trying again: {error}")
            return
        parts = [open_file(path, self._spec.model.vocab_size) for path in paths]
        tokens_N = parts[0] if len(parts) == 1 else np.concatenate(parts)
        batches = Batches(tokens_N, self._spec.seed, data.micro_batch_size, data.seq_len)
        parts_of = self._spec, batches, self._transfer, self._runtime, self._device, self._turn
        self._auditor = Auditor(*parts_of, self._replay)
        logger.info("ready to audit run {}", self._spec.run_id)

    async def _audit(self, auditor: Auditor, work: AuditWork) -> None:
        about = f"{work.hotkey[:8]}, stage {work.stage} epoch {work.epoch} segment {work.segment}"
        try:
            done = self._found[work.item] = await auditor.audit(work)
            self._told.set()
        finally:
            del self._busy[work.item]
        said, spec = done.sentence, work.spec or auditor.spec
        if done.figures is not None:
            said = judge(done.figures, spec.audit.tolerances, spec.boundary.values)[1]
        logger.info("audit of {}: {} passes, {}", about, len(work.passes), said)

    async def _evaluate(self, work: EvaluateWork) -> None:
        assert self._spec is not None
        try:
            async with self._turn:
                deadline = self._runtime.monotonic() + 120.0
                blobs = [await self._transfer.fetch(source, deadline) for source in work.parameters]
                digests = tuple(source.digest for source in work.parameters)
                report = await evaluate(
                    self._spec,
                    work.epoch,
                    blobs,
                    digests,
                    self._validation,
                    self._tokens_max,
                    self._device,
                    self._runtime,
                )
        except (PeerFault, Unavailable) as error:
            self._say("evaluation", f"epoch {work.epoch} could not be evaluated: {error}")
            return
        reply = await self._call(report)
        if isinstance(reply, Noted):
            self._evaluated = work
            logger.info("epoch {}: validation loss {:.4f} over {} tokens", work.epoch, report.loss, report.num_tokens)

    # ---- the line ----------------------------------------------------------------------------------------------------

    async def _call(self, message: Message) -> Reply | None:
        """None when there was no answer. What is refused is logged once."""
        about = type(message).__name__
        try:
            reply = await self._control.call(message, self._digest, CALL_TIMEOUT_S)
        except (Unavailable, PeerFault) as error:
            self._say(about, f"no answer: {error}")
            return None
        if reply.receipt is not None:
            self._follower.expect(reply.receipt)  # the public journal must be the one that was signed to us
        if reply.notice.reason in (Reason.OK, Reason.NO_WORK):
            self._said.pop(about, None)
        else:
            self._say(about, f"{reply.notice.reason.value}: {reply.notice.sentence}; {reply.notice.remedy}")
        return reply

    def _say(self, about: str, line: str) -> None:
        """Once for each thing, until another line is to be said of it."""
        if self._said.get(about) != line:
            self._said[about] = line
            logger.warning("{}", line)
