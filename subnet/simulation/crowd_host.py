"""The orchestrator's shell for a crowd: `orchestrator.service` without sockets, journal and tasks.

Law: every envelope goes through `coordination.machine.handle`, in the order of arrival, and `checks` looks at it before
anything follows. As in the service: a tick only where `machine.is_due` says so, exchanges held open until a Deliver, a
newer one or the end of `hold_s`, effects performed one after the other, errands answered by own records after a while,
and what a process that ended had begun is begun again by the next one only if the machine asks. A crash keeps what a
journal would: the state as `decode(encode(state))`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from subnet.coordination import machine
from subnet.coordination.effects import CheckObject, Deliver, DrawSecret, Effect, ReadChain, RecomputeShard, Say
from subnet.coordination.members import is_known, refusal
from subnet.coordination.state import State
from subnet.merging.shards import reduced_range
from subnet.miner.desk import Call
from subnet.orchestrator.service import TICK_S
from subnet.protocol import keys
from subnet.protocol.ids import Epoch, Hotkey
from subnet.protocol.messages import (
    Envelope,
    Exchange,
    ExchangeReply,
    Message,
    ObjectChecked,
    OwnRecord,
    RangeSource,
    Reply,
    RunResumed,
    SecretDrawn,
    ShardRecomputed,
    Tick,
)
from subnet.protocol.reasons import Reason
from subnet.simulation.crowd_checks import Checks
from subnet.simulation.crowd_digests import Digests
from subnet.simulation.crowd_events import Events, Stream
from subnet.simulation.crowd_machine import Machine
from subnet.simulation.crowd_miner import Told

ORCHESTRATOR = Hotkey("orchestrator")
SECRET_S, CHECK_S, RECOMPUTE_S = 0.01, 1.0, 3.0
"""How long the errands take."""


class Chain(Protocol):
    """What a ReadChain asks (`crowd_chain.Chain`)."""

    def read(self, closes: Epoch, above: int, then: Callable[[OwnRecord], None]) -> None: ...


class Waiting:
    """A request under way."""

    __slots__ = ("call", "expires", "life", "machine", "message", "told")

    def __init__(
        self, machine: Machine, life: int, message: Message, told: Told, call: Call | None, expires: float
    ) -> None:
        self.machine, self.life, self.message, self.told, self.call = machine, life, message, told, call
        self.expires = expires


class Host:
    """`state` is the run's, already open."""

    def __init__(
        self, state: State, events: Events, checks: Checks, digests: Digests, secrets: Stream, chain: Chain
    ) -> None:
        self.state, self._events, self._checks = state, events, checks
        self._digests, self._secrets, self._chain = digests, secrets, chain
        self._held: dict[Hotkey, Waiting] = {}
        self._ends: deque[tuple[float, Waiting]] = deque()
        """When each held exchange is answered at the latest, in order."""
        self.process = 1
        """Number of the process that runs; negative while none does."""
        self.envelopes = 0
        self.said = 0
        """Lines for the operator."""

    @property
    def is_up(self) -> bool:
        return self.process > 0

    def start(self) -> None:
        """Ask for the first secret and begin to tick."""
        self.submit(Tick())
        self._events.after(TICK_S, self._tick)

    # ---- the door ----------------------------------------------------------------------------------------------------

    def call(self, machine: Machine, message: Message, told: Told, call: Call | None, timeout_s: float) -> None:
        """A request sets out; `told` hears of the answer, or of none."""
        waiting = Waiting(machine, machine.life, message, told, call, self._events.now + timeout_s)
        way_s = machine.way_s() if machine.in_trouble else machine.latency_s
        if way_s is None:
            self._unanswered(waiting, timeout_s)
        else:
            self._events.after(way_s, self._arrive, waiting)

    def _arrive(self, waiting: Waiting) -> None:
        sender, message = waiting.machine.hotkey, waiting.message
        if not self.is_up:
            self._unanswered(waiting, waiting.machine.latency_s)
        elif not is_known(self.state, sender):
            self._reply(waiting, refusal(Reason.NOT_REGISTERED, "this hotkey is not registered on the subnet"))
        else:
            reply = self._decide(sender, message).reply
            assert reply is not None
            if isinstance(reply, ExchangeReply) and isinstance(message, Exchange) and _worth_holding(message, reply):
                self._held[sender] = waiting
                self._ends.append((self._events.now + self.state.spec.routing.hold_s, waiting))
            else:
                self._reply(waiting, reply)

    def _reply(self, waiting: Waiting, reply: Reply) -> None:
        now, machine = self._events.now, waiting.machine
        way_s = machine.way_s() if machine.in_trouble else machine.latency_s
        if way_s is None or now + way_s > waiting.expires:
            self._unanswered(waiting, waiting.expires - now)
        else:
            machine.later(waiting.life, way_s, waiting.told, waiting.call, reply)

    def _unanswered(self, waiting: Waiting, after_s: float) -> None:
        waiting.machine.later(waiting.life, max(0.0, after_s), waiting.told, waiting.call, None)

    # ---- deciding ----------------------------------------------------------------------------------------------------

    def submit(self, record: OwnRecord) -> None:
        """One of the orchestrator's own records."""
        if self.is_up:
            self._decide(ORCHESTRATOR, record)

    def _decide(self, sender: Hotkey, message: Message | OwnRecord) -> machine.Decision:
        envelope = Envelope(sender=sender, at=self._events.now, message=message)
        decision = machine.handle(self.state, envelope)
        self.envelopes += 1
        self._checks.after(self.state, envelope, decision)
        if type(decision.reply) is ExchangeReply:
            self._wake(sender, False)  # before an effect answers the older call
        for effect in decision.effects:
            if type(effect) is Deliver:
                self._wake(effect.hotkey, True)
            else:
                self._perform(effect)
        return decision

    def _wake(self, hotkey: Hotkey, current: bool) -> None:
        """Answer a held exchange from the state."""
        waiting = self._held.pop(hotkey, None)
        if waiting is not None:
            assert isinstance(waiting.message, Exchange)
            reply = machine.exchange_reply(self.state, hotkey, waiting.message, ())
            self._reply(waiting, reply if current else msgspec.structs.replace(reply, work=(), drop=()))

    def _tick(self) -> None:
        self._events.after(TICK_S, self._tick)
        if not self.is_up:
            return
        now = self._events.now
        while self._ends and self._ends[0][0] <= now:
            waiting = self._ends.popleft()[1]
            if self._held.get(waiting.machine.hotkey) is waiting:
                self._wake(waiting.machine.hotkey, True)
        if machine.is_due(self.state, now):
            self._decide(ORCHESTRATOR, Tick())

    # ---- effects -----------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Say():
                self.said += 1
            case DrawSecret():
                secret = SecretDrawn(epoch=effect.epoch, secret=self._secrets.secret())
                self._events.after(SECRET_S, self._came, self.process, secret)
            case CheckObject():  # whatever was complained of: nobody stores broken objects here
                checked = ObjectChecked(key=effect.source.key, reason=Reason.OK)
                self._events.after(CHECK_S, self._came, self.process, checked)
            case RecomputeShard():
                self._events.after(RECOMPUTE_S, self._came, self.process, self._recomputed(effect))
            case ReadChain():
                process = self.process
                self._chain.read(effect.closes, effect.above, lambda record: self._came(process, record))
            case _:
                pass  # DropEpoch: there are no objects

    def _came(self, process: int, record: OwnRecord) -> None:
        """An errand is done; what another process began is nobody's."""
        if process == self.process:
            self.submit(record)

    def _recomputed(self, asked: RecomputeShard) -> ShardRecomputed:
        shard = asked.assignment.shard
        item = f"orchestrator.{shard.index}.{asked.attempt}"
        key = keys.make(self.state.spec.run_id, asked.epoch, asked.stage, item, keys.Kind.REDUCED)
        offset, size_bytes = reduced_range((shard,), 0)
        digest = self._digests.shard(asked.manifest, shard.index)
        source = RangeSource(key=key, offset=offset, size_bytes=size_bytes, digest=digest)
        return ShardRecomputed(stage=asked.stage, epoch=asked.epoch, shard=shard.index, source=source)

    # ---- a crash -----------------------------------------------------------------------------------------------------

    def crash(self, away_s: float) -> None:
        """The process is gone at once; another one comes back with what a journal keeps."""
        if not self.is_up:
            return
        self.process = -self.process
        held, self._held = list(self._held.values()), {}
        self._ends.clear()
        for waiting in held:
            self._unanswered(waiting, waiting.machine.latency_s)
        self._events.after(away_s, self._resume)

    def _resume(self) -> None:
        before = self.state
        self.state = msgspec.msgpack.decode(msgspec.msgpack.encode(before), type=State)
        self._checks.restored(before, self.state)
        self.process = 1 - self.process
        self.submit(RunResumed(target_epochs=self.state.target_epochs))


def _worth_holding(message: Exchange, reply: ExchangeReply) -> bool:
    """As `orchestrator.service` has it."""
    return not (reply.verdicts or reply.work or reply.drop or reply.finished) and message.free_slots > 0
