"""The chain and the validators of a crowd.

Law: blocks come by the clock; the chain may be away for a while, and is asked again as `orchestrator.errands` and
`orchestrator.registrations` do. Validators speak as `validator.validator` does (review every so often, audits one after
the other, evaluations beside them) and replay nothing: their figures say honestly whether the miner computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from subnet.chain.base import Block
from subnet.miner.desk import Call
from subnet.orchestrator.errands import RETRY_S
from subnet.orchestrator.registrations import is_news
from subnet.protocol.ids import Epoch, Hotkey
from subnet.protocol.messages import (
    AuditDone,
    AuditFigures,
    AuditWork,
    ChainSeen,
    Evaluated,
    EvaluateWork,
    Neuron,
    OwnRecord,
    Reply,
    Review,
    Reviewed,
)
from subnet.protocol.reasons import Reason
from subnet.simulation.crowd_events import START, Events, Stream
from subnet.simulation.crowd_host import ORCHESTRATOR, Host
from subnet.simulation.crowd_machine import Machine
from subnet.simulation.crowd_spec import digest_of

BLOCK_S, READING_S = 12.0, 0.5
WATCH_EVERY_S = 300.0
TEMPO = 360
REVIEW_EVERY_S = 30.0
CALL_TIMEOUT_S = 30.0
AT_ONCE = 16
"""Audits that a validator holds."""
REPLAY_S, EVALUATE_S = 2.0, 30.0
"""A replayed pass on a validator's machine; a measurement of the merged model."""
HONEST, INVENTED = 1e-4, 1.0
"""State distance that a replay finds."""


class Chain:
    """One subnet. `miners` and `validators` are registered from the start."""

    def __init__(
        self, seed: int, events: Events, draws: Stream, miners: list[Hotkey], validators: list[Hotkey]
    ) -> None:
        self._seed, self._events, self._draws = seed, events, draws
        self._validators = [ORCHESTRATOR, *validators]
        first = len(self._validators)
        self._miners = tuple(
            Neuron(uid=first + i, hotkey=hotkey, stake=0.0, permit=False) for i, hotkey in enumerate(miners)
        )
        self.away_until = 0.0

    def read(self, closes: Epoch, above: int, then: Callable[[OwnRecord], None]) -> None:
        """Tell of the first block that nobody knew when an epoch closed; `then` hears of it."""
        now = self._events.now
        if now < self.away_until:
            self._events.at(self.away_until + RETRY_S, self.read, closes, above, then)
            return
        wanted = max(self._number(now), above) + 1
        self._events.at(START + wanted * BLOCK_S + READING_S, self._read, wanted, closes, then)

    def _read(self, wanted: int, closes: Epoch, then: Callable[[OwnRecord], None]) -> None:
        if self._events.now < self.away_until:
            self._events.at(self.away_until + RETRY_S, self._read, wanted, closes, then)
        else:
            then(self._seen(wanted, closes))

    def watch(self, host: Host) -> None:
        """Tell the run what is news, again and again; stakes move with time."""
        self._events.after(WATCH_EVERY_S, self.watch, host)
        if self._events.now >= self.away_until:
            seen = self._seen(self._number(self._events.now), None)
            if is_news(seen, host.state.pay.chain):
                host.submit(seen)

    def _number(self, now: float) -> int:
        return int((now - START) / BLOCK_S)

    def _seen(self, number: int, closes: Epoch | None) -> ChainSeen:
        block = Block(number=number, hash=digest_of(f"{self._seed} block {number}"))
        stakes = [1000.0 * (1 + uid) * (1.0 + 0.1 * self._draws.unit()) for uid in range(len(self._validators))]
        staked = tuple(
            Neuron(uid=uid, hotkey=hotkey, stake=stake, permit=uid > 0)
            for uid, (hotkey, stake) in enumerate(zip(self._validators, stakes, strict=True))
        )
        return ChainSeen(
            block=block.number,
            block_hash=block.hash,
            owner_uid=0,
            neurons=staked + self._miners,
            closes=closes,
            tempo=TEMPO,
        )


class Validator:
    """One validator's process; it never ends."""

    def __init__(self, machine: Machine, host: Host, miners: Mapping[Hotkey, Machine]) -> None:
        self._machine, self._host, self._miners = machine, host, miners
        self._busy: deque[AuditWork] = deque()
        self._found: dict[str, AuditDone] = {}
        self._told: tuple[str, ...] = ()
        self._evaluated = -1
        machine.begins()

    def review(self) -> None:
        self._told = tuple(self._found)
        message = Review(
            free=AT_ONCE - len(self._busy),
            holding=tuple(work.item for work in self._busy),
            found=tuple(self._found.values()),
        )
        self._host.call(self._machine, message, self._reviewed, None, CALL_TIMEOUT_S)

    def _reviewed(self, call: Call | None, reply: Reply | None) -> None:
        self._machine.later(self._machine.life, REVIEW_EVERY_S, self.review)
        if not isinstance(reply, Reviewed):
            return
        for item in self._told:
            self._found.pop(item, None)
        held = {work.item for work in self._busy} | self._found.keys()
        idle = not self._busy
        self._busy.extend(work for work in reply.audits if work.item not in held)
        if idle and self._busy:
            self._replay()
        if reply.evaluate is not None and reply.evaluate.epoch > self._evaluated:
            self._evaluated = reply.evaluate.epoch
            self._machine.later(self._machine.life, EVALUATE_S, self._evaluate, reply.evaluate)

    def _replay(self) -> None:
        self._machine.later(self._machine.life, REPLAY_S * (1 + len(self._busy[0].passes)), self._replayed)

    def _replayed(self) -> None:
        work = self._busy.popleft()
        invented = self._miners[work.hotkey].cheats_training
        figures = AuditFigures(outputs=len(work.passes), state=INVENTED if invented else HONEST)
        said = f"{len(work.passes)} passes replayed"
        seconds = REPLAY_S * len(work.passes)
        self._found[work.item] = AuditDone(
            item=work.item, figures=figures, reason=Reason.OK, sentence=said, compute_s=seconds
        )
        if self._busy:
            self._replay()

    def _evaluate(self, work: EvaluateWork) -> None:
        message = Evaluated(
            epoch=work.epoch,
            loss=2.0 + 3.0 / (1.0 + work.epoch),
            num_tokens=100_000,
            parameters=tuple(source.digest for source in work.parameters),
        )
        self._host.call(self._machine, message, lambda call, reply: None, None, CALL_TIMEOUT_S)
