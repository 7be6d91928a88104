"""A miner's process in a crowd: the production desk between a modelled line and a modelled pipeline.

Law: what is said when is decided by `miner.desk.Desk` and what a refusal means by `miner.line.meaning`. The waiting of
`miner.line` and `miner.miner`, which is asynchronous there, is planned here: join, load, exchange, back off, join
again, with their deadlines and pauses. What two of its calls overtake each other in is left to the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from subnet.miner.desk import SLOTS_MAX, Call, Desk
from subnet.miner.line import ANSWER_MARGIN_S, Ending, meaning
from subnet.protocol.ids import ItemId
from subnet.protocol.messages import Exchange, ExchangeReply, Join, Joined, Refusal, Reply, Result
from subnet.simulation.crowd_digests import Digests
from subnet.simulation.crowd_events import Stream
from subnet.simulation.crowd_machine import Machine
from subnet.simulation.crowd_pipeline import Pipeline
from subnet.simulation.crowd_replica import Replica
from subnet.transport.backoff import CAP_S, backoff_s

JOIN_TIMEOUT_S = 30.0
"""As `miner.miner` has it, whose import would load torch."""
BUILD_S = 5.0
"""From loaded bytes to a replica that can compute."""


class Told(Protocol):
    """What a caller does with the answer; None: there was none."""

    def __call__(self, call: Call | None, reply: Reply | None) -> None: ...


class Network(Protocol):
    """The way to the orchestrator (`crowd_host.Host`)."""

    def call(
        self, machine: Machine, message: Exchange | Join, told: Told, call: Call | None, timeout_s: float
    ) -> None: ...


class Miner:
    """One process; it begins with `start` and ends with its machine's `ends`, or by itself (`ending`)."""

    def __init__(self, machine: Machine, network: Network, digests: Digests, backoffs: Stream) -> None:
        self.machine, self._network, self._digests, self._backoffs = machine, network, digests, backoffs
        self.life = machine.begins()
        self.ending: Ending | None = None
        self.desk = Desk(session=f"{machine.hotkey}-{self.life}")
        self.pipeline = Pipeline(machine, digests, self._hand_in, self._give_up)
        self.joined: Joined | None = None
        """What the last Join settled; None while the miner joins (again)."""
        self._failures = 0
        self._loads = 0
        self._wakes_at = float("inf")
        self._heartbeat_s = self._timeout_s = 0.0
        self._pause_max_s = CAP_S

    def start(self) -> None:
        self._join()

    # ---- joining and loading -----------------------------------------------------------------------------------------

    def _join(self) -> None:
        self.joined = None
        message = Join(session=self.desk.session, device="modelled", software="crowd")
        self._network.call(self.machine, message, self._told_join, None, JOIN_TIMEOUT_S)

    def _told_join(self, call: Call | None, reply: Reply | None) -> None:
        if isinstance(reply, Joined):
            self._failures = 0
            self._settle(reply)
            return
        if isinstance(reply, Refusal):
            verdict = meaning(reply.notice)
            if isinstance(verdict, Ending):
                self._end(verdict)
                return
        self._failures += 1
        self._later(self._pause_s(), self._join)

    def _settle(self, joined: Joined) -> None:
        """Go on with what we have if it is still that, else load what the membership names."""
        now, replica = self.machine.events.now, self.pipeline.replica
        routing = joined.spec.routing
        self.joined, self._heartbeat_s = joined, routing.heartbeat_s
        self._timeout_s, self._pause_max_s = routing.hold_s + ANSWER_MARGIN_S, min(CAP_S, routing.heartbeat_s)
        self._loads += 1
        if self.desk.slots and replica is not None and replica.stage == joined.stage and replica.fits(joined.epoch):
            self.desk.joined(now)
        else:
            self.desk.slots = 0
            self.desk.abandon([*self.pipeline.drop_all(), *self.desk.held])
            self.desk.joined(now + joined.spec.routing.dead_after_s / 3)
            self.pipeline.loading = True
            size_bytes = sum(source.size_bytes for source in (*joined.data, joined.parameters, joined.momentum))
            ready_s = self.machine.down_s(size_bytes) + BUILD_S
            self._later(max(ready_s, self.pipeline.busy_until - now), self._loaded, joined, self._loads)
        self.look()

    def _loaded(self, joined: Joined, number: int) -> None:
        if number != self._loads:
            return  # joined again meanwhile
        replica = Replica(joined.spec, joined.stage, self.machine.snapshots, self._digests, self.machine.number)
        replica.load(joined.epoch, joined.parameters.digest)
        self.pipeline.replica, self.pipeline.loading = replica, False
        self.desk.slots = min(SLOTS_MAX, joined.spec.routing.slots_max)
        self.pipeline.pass_on()
        self.look()

    # ---- the line ----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Make the calls that are due, and plan when to look again."""
        if self.joined is None or self.ending is not None:
            return
        now = self.machine.events.now
        while isinstance(due := self.desk.next_call(now, self._heartbeat_s), Call):
            self._network.call(self.machine, due.exchange, self._told, due, self._timeout_s)
        if due is not None and now + due < self._wakes_at:
            self._wakes_at = now + due
            self._later(due, self._wake, self._wakes_at)

    def _wake(self, planned: float) -> None:
        if planned == self._wakes_at:
            self._wakes_at = float("inf")
            self.look()

    def _told(self, call: Call | None, reply: Reply | None) -> None:
        assert call is not None
        if isinstance(reply, ExchangeReply):
            self._failures = 0
            self._answered(call, reply)
        elif isinstance(reply, Refusal):
            self._refused(call, reply)
        else:
            self._failures += 1
            self.desk.unanswered(call, self.machine.events.now + self._pause_s())
        self.look()

    def _answered(self, call: Call, reply: ExchangeReply) -> None:
        taken = self.desk.replied(call, reply, self.machine.events.now)
        if taken.dropped:
            self.pipeline.drop(taken.dropped)
        for work in taken.work:
            self.pipeline.take(work)

    def _refused(self, call: Call, reply: Refusal) -> None:
        now = self.machine.events.now
        self.desk.unanswered(call, now)
        self._failures += 1
        if call.membership != self.desk.membership or self.joined is None:
            return
        verdict = meaning(reply.notice)
        if isinstance(verdict, Ending):
            self._end(verdict)
        elif verdict == "wait":
            self.desk.not_before = now + self._pause_s()
        else:
            self._join()

    def _end(self, ending: Ending) -> None:
        self.ending = ending
        self.machine.ends()

    def _pause_s(self) -> float:
        return backoff_s(max(1, self._failures), self._backoffs.jitter(), self._pause_max_s)

    def _later(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        self.machine.later(self.life, delay_s, action, *arguments)

    # ---- between desk and pipeline -----------------------------------------------------------------------------------

    def _hand_in(self, result: Result) -> None:
        self.desk.finish(result)
        self.look()

    def _give_up(self, item: ItemId) -> None:
        self.desk.abandon([item])
        self.look()
