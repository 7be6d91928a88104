"""What a miner holds, what it has finished, and what it says to the orchestrator next.

Law: decide, then act: synchronous, no I/O, time is an argument. Results that are ready are handed in at once, all
together; with free slots and nothing to hand in, exactly one long-poll is open; without free slots a heartbeat goes out
every half heartbeat interval. A call without an answer for 0.8 heartbeats may be lost: from then on it holds up no
other, so one lost call never makes a living miner silent for 1.5 heartbeats. An offer is taken up once, however often
it is delivered. A finished result leaves the desk only when the orchestrator has answered it, so a lost reply loses
nothing: the result goes out again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from subnet.protocol.ids import ItemId
from subnet.protocol.messages import Exchange, ExchangeReply, PassWork, Result, Work

OPEN_CALLS_MAX = 2
"""A held long-poll and one call with results that overtakes it."""
UNANSWERED_CALLS_MAX = 4
"""With those that may be lost: an orchestrator that hangs is not flooded."""
OVERDUE_SHARE = 0.8
"""Of a heartbeat: how long an answer is waited for before the next call; exchanges are held for 0.6 at most."""
ITEMS_MAX = 256
"""Most items, and most results, in one exchange (`messages.Exchange`)."""
SLOTS_MAX = 64
EMPTY_PAUSE_S = 0.25
"""Least time between two long-polls that were answered at once with nothing new."""


@dataclass(eq=False)
class Call:
    """One exchange under way."""

    exchange: Exchange
    opened_at: float
    number: int
    """Its place in the order of everything that happened at the desk."""
    membership: int
    """How often the miner had joined when it was opened."""
    overtaken: bool = False
    """A later call was opened meanwhile: an empty answer is expected."""


class Taken(NamedTuple):
    """What a reply changes for the pipeline."""

    work: list[Work]
    dropped: list[ItemId]


@dataclass
class Desk:
    session: str
    slots: int = 0
    """Passes to hold at once; 0 while the parameters are not loaded."""
    membership: int = 0
    held: dict[ItemId, Work] = field(default_factory=dict)
    """Received, result not ready."""
    ready: dict[ItemId, Result] = field(default_factory=dict)
    """Finished, to be handed in."""
    calls: list[Call] = field(default_factory=list)
    next_heartbeat_at: float = 0.0
    not_before: float = 0.0
    """Back-off after a call without an answer."""
    next_poll_at: float = 0.0
    _closed: dict[ItemId, int] = field(default_factory=dict)
    """When (as a number) an item was answered or dropped: a reply to an older call may still bring it again."""
    _number: int = 0

    @property
    def free_slots(self) -> int:
        free = min(SLOTS_MAX, self.slots)
        for work in self.held.values():
            if isinstance(work, PassWork):
                free -= 1
        return max(0, free)

    def next_call(self, now: float, heartbeat_s: float) -> Call | float | None:
        """A call to make now (it counts as open from here on), seconds until the next look, or None: only a change
        of the desk can lead to a call."""
        if now < self.not_before:
            return self.not_before - now
        unanswered = [call for call in self.calls if call.membership == self.membership]
        if len(unanswered) >= UNANSWERED_CALLS_MAX:
            return None
        overdue_at = [call.opened_at + OVERDUE_SHARE * heartbeat_s for call in unanswered]
        waited_for = [at for at in overdue_at if now < at]
        if self.ready and len(waited_for) < OPEN_CALLS_MAX:
            return self._open(now, heartbeat_s)
        if waited_for:
            return (min if self.ready else max)(waited_for) - now
        due_at = self.next_poll_at if self.free_slots else self.next_heartbeat_at
        return self._open(now, heartbeat_s) if now >= due_at else due_at - now

    def _open(self, now: float, heartbeat_s: float) -> Call:
        results = tuple(self.ready.values())[:ITEMS_MAX] if self.ready else ()
        for result in results:
            del self.ready[result.item]
        unanswered = [*self.held, *self.ready]
        for call in self.calls:
            call.overtaken = True
            for result in call.exchange.results:
                unanswered.append(result.item)
        exchange = Exchange(
            session=self.session,
            free_slots=self.free_slots,
            holding=tuple(unanswered[:ITEMS_MAX]),
            results=results,
        )
        self.calls.append(call := Call(exchange, now, self._next_number(), self.membership))
        self.next_heartbeat_at = now + heartbeat_s / 2
        return call

    def replied(self, call: Call, reply: ExchangeReply, now: float) -> Taken:
        """Close a call that was answered; what it brings that is new."""
        self._close(call)
        self.not_before = 0.0
        dropped = [item for item in reply.drop if self.held.pop(item, None) is not None] if reply.drop else []
        new = [work for work in reply.work if not self._knows(work.item, call)] if reply.work else []
        number = self._next_number()
        for item in dropped:
            self._closed[item] = number
        for result in call.exchange.results:
            self._closed[result.item] = number
        if self._closed:
            oldest = min((call.number for call in self.calls), default=number)
            self._closed = {item: closed for item, closed in self._closed.items() if closed > oldest}
        for work in new:
            self.held[work.item] = work
        in_vain = not (new or dropped or call.exchange.results or call.overtaken)
        if in_vain and now - call.opened_at < EMPTY_PAUSE_S:
            self.next_poll_at = now + EMPTY_PAUSE_S
        return Taken(new, dropped)

    def unanswered(self, call: Call, retry_at: float) -> None:
        """Close a call that brought no answer, or a refusal: its results are handed in again."""
        self._close(call)
        self.not_before = max(self.not_before, retry_at)
        self.ready = {result.item: result for result in call.exchange.results} | self.ready

    def finish(self, result: Result) -> None:
        """A held item is done; a dropped one's result is of no use to anybody."""
        if self.held.pop(result.item, None) is not None:
            self.ready[result.item] = result

    def abandon(self, items: Iterable[ItemId]) -> None:
        """Forget items without a result; given again, they are taken up again."""
        for item in items:
            self.held.pop(item, None)

    def joined(self, first_heartbeat_at: float) -> None:
        """The miner has joined (again): refusals of older calls mean nothing any more."""
        self.membership += 1
        self.not_before = self.next_poll_at = 0.0
        self.next_heartbeat_at = first_heartbeat_at

    def _close(self, call: Call) -> None:
        self.calls.remove(call)

    def _knows(self, item: ItemId, call: Call) -> bool:
        """Whether an item in the reply to `call` is not a new offer."""
        if item in self.held or item in self.ready or self._closed.get(item, -1) > call.number:
            return True
        return any(result.item == item for other in self.calls for result in other.exchange.results)

    def _next_number(self) -> int:
        self._number += 1
        return self._number
