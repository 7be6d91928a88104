"""The miner's line to the orchestrator: makes the calls that the desk decides on and passes on what they bring.

Law: waits on events and on the desk's own times, never in a polling loop. Every answered call's verdicts are in the
receipts before its work is begun. A refusal either leads to joining again, or is waited out, or ends the miner; an
outside that is away is waited out with jittered back-off and loses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from loguru import logger

from subnet.errors import PeerFault, Unavailable
from subnet.miner.desk import Call, Desk, Taken
from subnet.miner.receipts import ReceiptBook
from subnet.protocol.ids import Digest, Epoch, Stage
from subnet.protocol.messages import ExchangeReply, Message, Notice, Refusal, Reply
from subnet.protocol.reasons import REMEDY, Reason
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import Runtime
from subnet.transport.backoff import CAP_S, backoff_s
from subnet.transport.base import ControlClient

ANSWER_MARGIN_S = 10.0
"""Waited for an answer beyond the time an exchange is held open."""
SHORTEST_WAIT_S = 0.001
"""What is due sooner is waited for so long, or a rounding error of the clock would be waited for again and again."""
LAST_WORDS_S = 3.0
"""Time to hand in what is finished once the run is over."""
_JOIN_AGAIN = frozenset({Reason.NOT_JOINED, Reason.WRONG_SPEC, Reason.SILENT})
_WAIT = frozenset({Reason.RATE_LIMITED, Reason.STALE, Reason.REPLAYED, Reason.BUSY, Reason.PAUSED, Reason.STAGE_EMPTY})
_PASSING = frozenset({Reason.OK, Reason.BUSY, Reason.NO_WORK, Reason.PIPELINE_FULL})
"""What a working miner hears several times a second: worth a line only when it lasts."""


class Ending(NamedTuple):
    """Why the miner ends, and what its operator can do about it."""

    reason: Reason
    sentence: str
    remedy: str


def meaning(notice: Notice) -> Ending | str:
    """What a refusal means: an ending, "wait" or "join"."""
    if notice.reason in _JOIN_AGAIN:
        return "join"
    if notice.reason in _WAIT:
        return "wait"
    return Ending(notice.reason, notice.sentence, notice.remedy)


@dataclass(frozen=True)
class Membership:
    """What the last Join settled."""

    spec: RunSpec
    spec_digest: Digest
    stage: Stage


class Line:
    """`on_taken` gets what each reply brings; `epoch` says which epoch the miner is in, for the receipts.

    `spec_digest` says which rules the miner goes by now; None: those it joined under.
    """

    def __init__(
        self,
        control: ControlClient,
        runtime: Runtime,
        desk: Desk,
        receipts: ReceiptBook,
        on_taken: Callable[[Taken], None],
        epoch: Callable[[], Epoch],
        spec_digest: Callable[[], Digest | None] = lambda: None,
    ) -> None:
        self._control, self._runtime, self._desk, self._receipts = control, runtime, desk, receipts
        self._on_taken, self._epoch, self._spec_digest = on_taken, epoch, spec_digest
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._pause_max_s = CAP_S
        self._noted: str | None = None
        self._join_again = False
        self._ending: Ending | None = None
        self._finished_at: float | None = None

    def changed(self) -> None:
        """The desk changed: look whether a call is due."""
        self._changed.set()

    def join_again(self) -> None:
        """The present membership is of no use: `run` returns None."""
        self._join_again = True
        self._changed.set()

    async def run(self, membership: Membership, group: asyncio.TaskGroup) -> Ending | None:
        """Exchange until the run is over (the ending) or the miner must join again (None)."""
        self._join_again = False
        heartbeat_s = membership.spec.routing.heartbeat_s
        self._pause_max_s = min(CAP_S, heartbeat_s)
        while True:
            self._changed.clear()
            if self._ending is not None:
                return self._ending
            if self._join_again:
                return None
            if self._finished_at is not None and self._said_all(self._finished_at):
                return Ending(Reason.TARGET_REACHED, "the run has all its epochs", REMEDY[Reason.TARGET_REACHED])
            due = self._desk.next_call(self._runtime.monotonic(), heartbeat_s)
            if isinstance(due, Call):
                task = group.create_task(self._call(due, membership, group))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                continue
            await self._wait(due)

    def close(self) -> None:
        """End all calls under way."""
        for task in self._tasks:
            task.cancel()

    def _said_all(self, finished_at: float) -> bool:
        desk = self._desk
        owed = desk.ready or any(call.exchange.results for call in desk.calls)
        return not owed or self._runtime.monotonic() >= finished_at + LAST_WORDS_S

    async def _wait(self, seconds: float | None) -> None:
        if self._finished_at is not None:
            seconds = min(LAST_WORDS_S, LAST_WORDS_S if seconds is None else seconds)
        if seconds is not None:
            seconds = max(seconds, SHORTEST_WAIT_S)
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    # ---- one call ----------------------------------------------------------------------------------------------------

    async def _call(self, call: Call, membership: Membership, group: asyncio.TaskGroup) -> None:
        timeout_s = membership.spec.routing.hold_s + ANSWER_MARGIN_S
        reply = await self.ask(call.exchange, self._spec_digest() or membership.spec_digest, timeout_s)
        if isinstance(reply, ExchangeReply):
            self._answered(call, reply, membership)
        elif not isinstance(reply, Refusal):
            self._desk.unanswered(call, self._runtime.monotonic() + self.pause_s())
        elif call.membership == self._desk.membership:
            self._refused(call, reply.notice)
        else:
            self._desk.unanswered(call, self._runtime.monotonic())
        self._changed.set()

    async def ask(self, message: Message, spec_digest: Digest | None, timeout_s: float) -> Reply | None:
        """One request; None when there was no answer that can be trusted, which is logged once."""
        try:
            reply = await self._control.call(message, spec_digest, timeout_s)
        except Unavailable as error:
            self._note("unavailable", f"the orchestrator does not answer: {error}", "nothing to do: it is tried again")
        except PeerFault as fault:
            self._note(str(fault.code), f"no answer of the orchestrator: {fault.sentence}", "check --orchestrator")
        else:
            self._failures = self._failures + 1 if isinstance(reply, Refusal) else 0
            return reply
        self._failures += 1
        return None

    def pause_s(self) -> float:
        """Jittered back-off after the failures and refusals since the last good answer."""
        return backoff_s(max(1, self._failures), self._runtime.random_bytes(2), self._pause_max_s)

    def _answered(self, call: Call, reply: ExchangeReply, membership: Membership) -> None:
        run_id = membership.spec.run_id
        self._receipts.append(run_id, membership.stage, self._epoch(), reply.verdicts, reply.receipt)
        for verdict in reply.verdicts:
            if verdict.outcome == "rejected":
                logger.warning("{} was rejected: {} ({})", verdict.item, verdict.sentence, verdict.reason.value)
        now = self._runtime.monotonic()
        lasting = not reply.work and now - call.opened_at >= membership.spec.routing.heartbeat_s / 2
        if lasting or reply.notice.reason not in _PASSING:
            self.note(reply.notice)
        else:
            self._noted = None
        taken = self._desk.replied(call, reply, now)
        if reply.finished and self._finished_at is None:
            self._finished_at = now
            self._desk.slots = 0
        self._on_taken(taken)

    def _refused(self, call: Call, notice: Notice) -> None:
        self._desk.unanswered(call, self._runtime.monotonic())
        verdict = self.judge(notice)
        if isinstance(verdict, Ending):
            self._ending = verdict
        elif verdict == "wait":
            self._desk.not_before = self._runtime.monotonic() + self.pause_s()
        else:
            self._join_again = True

    def judge(self, notice: Notice) -> Ending | str:
        """What a refusal means: an ending, "wait" or "join"."""
        self.note(notice)
        return meaning(notice)

    def note(self, notice: Notice) -> None:
        """One log line per change of the miner's state."""
        self._note(notice.reason.value, notice.sentence, notice.remedy)

    def _note(self, reason: str, sentence: str, remedy: str) -> None:
        if reason != self._noted:
            self._noted = reason
            logger.info("{}: {} ({})", reason, sentence, remedy)
