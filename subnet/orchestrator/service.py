"""The orchestrator's shell: journal the envelope, call the machine, perform the effects, reply.

Law: nothing takes effect before it is in the journal. One writer appends whole batches in arrival order and folds them
into the state; everybody else only reads the state. All decisions are the machine's; here are the waiting, the URLs
and the looking at objects. Miners' exchanges are held open here until work lies ready for them. When the service ends,
whoever waits hears Unavailable: what he asked may be asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, NoReturn

import msgspec
from loguru import logger

from subnet.chain.base import Chain
from subnet.coordination import machine
from subnet.coordination.effects import Deliver, Effect, Say
from subnet.coordination.members import is_known
from subnet.coordination.notices import finished
from subnet.coordination.state import State
from subnet.coordination.status import status
from subnet.errors import InvariantViolation, Unavailable
from subnet.orchestrator import errands, grants
from subnet.orchestrator.publication import Publication, live_secret
from subnet.orchestrator.restoring import SNAPSHOT_EVERY, Restored, Snapshooter
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import (
    Envelope,
    Exchange,
    ExchangeReply,
    Join,
    Message,
    Notice,
    OwnRecord,
    Receipt,
    Refusal,
    Refused,
    Reply,
    Request,
    RunOpened,
    Tick,
)
from subnet.protocol.reasons import REMEDY, Reason
from subnet.runtime import Runtime
from subnet.storage.base import Journal, JournalRecord, ObjectStore, Snapshots

TICK_S = 0.25
REFUSALS_FLUSHED_EVERY = 4
"""Ticks between two records of refusals: a flood becomes one record a second and reason."""
QUEUE_MAX = 10_000


class _Pending(NamedTuple):
    sender: Hotkey
    message: Message | OwnRecord
    at: float
    """When it arrived: what waits for a slow journal was said in time."""
    done: asyncio.Future[tuple[machine.Decision | None, JournalRecord]]


class _Held(NamedTuple):
    """An exchange held open."""

    answered: asyncio.Future[bool]
    """True: answer from the state; False: a newer exchange of the same hotkey took its place."""


class Service:
    """The run's `ControlHandler`. `hotkey` is the orchestrator's own; `restored` None: the run is new."""

    def __init__(
        self,
        journal: Journal,
        store: ObjectStore,
        runtime: Runtime,
        hotkey: Hotkey,
        restored: Restored | None = None,
        on_said: Callable[[str], None] | None = None,
        chain: Chain | None = None,
        snapshots: Snapshots | None = None,
        snapshot_every: int = SNAPSHOT_EVERY,
    ) -> None:
        self._journal, self._store, self._runtime, self._hotkey = journal, store, runtime, hotkey
        self._chain = chain
        self._state = restored.state if restored is not None else None
        self._publication = restored.publication if restored is not None else Publication()
        at = restored.snapshot_index if restored is not None else -1
        self._snapshooter = Snapshooter(snapshots, runtime, snapshot_every, at) if snapshots is not None else None
        self._is_whole = True
        """Whether the state is that after the last record of the publication: not in the middle of a decision."""
        self._queue: asyncio.Queue[_Pending] = asyncio.Queue(QUEUE_MAX)
        self._writing: list[_Pending] = []
        self._ended = False
        self._held: dict[Hotkey, _Held] = {}
        self._refusals: dict[Reason, Refused] = {}
        self._group: asyncio.TaskGroup | None = None
        self._status: tuple[int, bytes] = (-1, b"")
        self.newest: JournalRecord | None = None
        """The last record that this process has written."""
        self._said = on_said or (lambda line: logger.info("{}", line))

    @property
    def state(self) -> State:
        if self._state is None:
            raise InvariantViolation("the run is not open")
        return self._state

    # ---- life --------------------------------------------------------------------------------------------------------

    async def run(self, begin: Callable[[], Awaitable[None]]) -> NoReturn:
        """Serve until cancelled. `begin` submits the first records; requests are answered after it only."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._write())
                await begin()
                await self._tick()
        finally:
            self._end()
        raise InvariantViolation("the service ended by itself")

    def _end(self) -> None:
        self._ended = True
        while not self._queue.empty():
            self._writing.append(self._queue.get_nowait())
        waiting = [pending.done for pending in self._writing] + [held.answered for held in self._held.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(Unavailable("the orchestrator stops"))

    async def open(self, opening: RunOpened) -> None:
        """Begin a new run."""
        await self.submit(opening)
        await self.submit(Tick())  # the machine asks for the first secret

    async def submit(self, message: OwnRecord) -> None:
        """Journal one of the orchestrator's own records and do what follows from it."""
        await self._enter(self._hotkey, message)

    async def _enter(
        self, sender: Hotkey, message: Message | OwnRecord
    ) -> tuple[machine.Decision | None, JournalRecord]:
        done: asyncio.Future[tuple[machine.Decision | None, JournalRecord]] = asyncio.get_running_loop().create_future()
        await self._queue.put(_Pending(sender, message, self._runtime.now(), done))
        if self._ended:
            raise Unavailable("the orchestrator stops")
        return await done

    async def _write(self) -> NoReturn:
        """The one writer: whatever waits is appended together, then decided in order."""
        encode = msgspec.json.Encoder().encode
        while True:
            self._writing = batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            at, envelopes = self._state.at if self._state is not None else 0.0, []
            for pending in batch:
                at = max(at, pending.at)
                envelopes.append(Envelope(sender=pending.sender, at=at, message=pending.message))
            records = await self._journal.append([encode(envelope) for envelope in envelopes])
            for pending, envelope, record in zip(batch, envelopes, records, strict=True):
                self.newest, self._is_whole = record, False
                decision = self._decide(envelope)
                self._publication.note(record, envelope.message, live_secret(self.state), finished(self.state))
                self._is_whole = True
                if not pending.done.done():
                    pending.done.set_result((decision, record))
            if self._state is not None and finished(self._state):
                for hotkey in list(self._held):
                    self._wake(hotkey, True)
            if self._snapshooter is not None and self._snapshooter.is_due(records[-1].index) and self._group:
                self._group.create_task(self._snapshooter.take(self.state, self._publication))

    async def snapshot(self) -> None:
        """A last one, once `run` was cancelled: the next process has nothing to fold."""
        if self._snapshooter is not None and self._state is not None and self._is_whole:
            await self._snapshooter.take(self._state, self._publication)

    def _decide(self, envelope: Envelope) -> machine.Decision | None:
        if self._state is None:
            self._state = machine.open_run(envelope)
            return None
        decision = machine.handle(self._state, envelope)
        if isinstance(decision.reply, ExchangeReply):
            self._wake(envelope.sender, False)  # before an effect answers the older call
        for effect in decision.effects:
            self._perform(effect)
        return decision

    async def _tick(self) -> None:
        count = 0
        while True:
            await self._runtime.sleep(TICK_S)
            count += 1
            if machine.is_due(self.state, self._runtime.now()):
                await self.submit(Tick())
            if self._refusals and count % REFUSALS_FLUSHED_EVERY == 0:
                waiting, self._refusals = list(self._refusals.values()), {}
                for refused in waiting:
                    await self.submit(refused)

    # ---- effects -----------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Deliver():
                self._wake(effect.hotkey, True)
            case Say():
                self._said(effect.sentence)
            case _:
                if self._group is None:
                    raise InvariantViolation("an effect before the service runs")
                self._group.create_task(self._errand(effect))

    async def _errand(self, errand: errands.Errand) -> None:
        record = await errands.carry_out(errand, self.state.spec, self._store, self._chain, self._runtime)
        if record is not None:
            await self.submit(record)

    # ---- the door ----------------------------------------------------------------------------------------------------

    async def handle(self, sender: Hotkey, request: Request) -> Reply:
        """One authenticated request."""
        state, message = self.state, request.message
        if request.run_id != state.spec.run_id:
            said = f"this orchestrator hosts {state.spec.run_id}, not {request.run_id}"
            return await self.refuse(Refused(reason=Reason.WRONG_RUN, claimed=sender, sentence=said[:300]))
        joins = isinstance(message, Join) and request.spec_digest is None
        if not joins and request.spec_digest not in state.digests:
            said = f"the run's RunSpec has digest {state.digests[-1]}"
            return await self.refuse(Refused(reason=Reason.WRONG_SPEC, claimed=sender, sentence=said))
        if not is_known(state, sender):
            said = "this hotkey is not registered on the subnet"
            return await self.refuse(Refused(reason=Reason.NOT_REGISTERED, claimed=sender, sentence=said))
        decision, record = await self._enter(sender, message)
        if decision is None or decision.reply is None:
            raise InvariantViolation("a request got no reply from the machine")
        reply = decision.reply
        if isinstance(message, Exchange) and isinstance(reply, ExchangeReply):
            self._wake(sender, False)
            # what was decided for others in the same batch may already have brought work for this one
            reply = machine.exchange_reply(state, sender, message, reply.verdicts)
            if self._worth_holding(message, reply):
                reply = await self._hold(sender, message)
        receipt = Receipt(journal_index=record.index, head=record.head)
        return grants.granted(reply, receipt, self._store, self._runtime.now())

    def _worth_holding(self, message: Exchange, reply: ExchangeReply) -> bool:
        return not (reply.verdicts or reply.work or reply.drop or reply.finished) and message.free_slots > 0

    async def _hold(self, sender: Hotkey, message: Exchange) -> ExchangeReply:
        """Wait for work, a newer exchange, or the end of the time that a call is held."""
        held = _Held(asyncio.get_running_loop().create_future())
        self._held[sender] = held
        current = True
        try:
            async with asyncio.timeout(self.state.spec.routing.hold_s):
                current = await held.answered
        except TimeoutError:
            pass
        finally:
            if self._held.get(sender) is held:
                del self._held[sender]
        reply = machine.exchange_reply(self.state, sender, message, ())
        return reply if current else msgspec.structs.replace(reply, work=(), drop=())

    def _wake(self, hotkey: Hotkey, current: bool) -> None:
        held = self._held.pop(hotkey, None)
        if held is not None and not held.answered.done():
            held.answered.set_result(current)

    async def refuse(self, refused: Refused) -> Reply:
        """Count the refusal for the journal and tell the sender why."""
        before = self._refusals.get(refused.reason)
        times = refused.times + (before.times if before is not None else 0)
        self._refusals[refused.reason] = msgspec.structs.replace(before or refused, times=times)
        remedy = REMEDY[refused.reason]
        return Refusal(notice=Notice(reason=refused.reason, sentence=refused.sentence, remedy=remedy))

    async def journal(self, start: int, limit: int) -> bytes:
        """A page of the public journal."""
        return msgspec.json.encode(await self._publication.page(self._journal, start, limit))

    def status(self) -> bytes:
        """The public view, made anew when the journal has grown."""
        index = self.newest.index if self.newest is not None else -1
        if self._status[0] != index:
            view = status(self.state)
            view["orchestrator"] = self._hotkey
            view["journal"] = {"index": index, "head": self.newest.head if self.newest else ""}
            self._status = (index, msgspec.json.encode(view))
        return self._status[1]
