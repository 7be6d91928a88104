"""Anything in any order: joins, crashes, silence, doubled, lost, late and wrong results, complaints, restarts.

The world's own laws hold after every envelope (conftest); the `Book` adds what no single state shows. However a run was
treated, once all miners are honest and alive it reaches its target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from subnet.coordination import machine
from subnet.coordination.state import State
from subnet.protocol import messages as m
from subnet.protocol import tuning
from subnet.protocol.ids import Hotkey, ItemId, MicroBatchId, Pass
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

import os

EXAMPLES, STEPS = int(os.environ.get("EX", "20")), int(os.environ.get("ST", "50"))
CHEATS = ["foreign", "invented", "wrong type"]
NAMES = [f"m{number}" for number in range(7)]
SENTENCES = {"sentence", "at"}
"""Fields that follow the clock without being a change: what a Tick may alter for nothing."""


class Book:
    """Every accepted pass is credited once, and the ledger holds just that."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.paid: dict[Hotkey, float] = {}
        self.done: dict[tuple[MicroBatchId, int, Pass], tuple[Hotkey, float]] = {}
        self.given: dict[ItemId, m.Work] = {}

    def watch(self, envelope: m.Envelope, reply: m.Reply | None) -> None:
        self.given |= {item: offer.work for item, offer in self.world.state.offers.items()}
        if isinstance(reply, m.ExchangeReply):
            for verdict in reply.verdicts:
                self._judge(envelope.sender, verdict)
        if isinstance(envelope.message, m.ObjectChecked) and envelope.message.reason is not Reason.OK:
            self._withdraw(envelope.message.key)
        ledger = self.world.state.ledger
        for hotkey in self.world.state.miners:
            assert abs(ledger.total(hotkey) - self.paid.get(hotkey, 0.0)) < 1e-6

    def _judge(self, hotkey: Hotkey, verdict: m.Verdict) -> None:
        assert verdict.sentence and (verdict.outcome == "applied" or verdict.reason is not Reason.OK)
        work = self.given.get(verdict.item)
        if verdict.outcome != "applied" or not verdict.work_units:
            return
        assert isinstance(work, m.PassWork)
        piece = work.micro_batch, work.stage, work.kind
        assert piece not in self.done, f"{piece} was credited twice"
        self.done[piece] = hotkey, verdict.work_units
        self.paid[hotkey] = self.paid.get(hotkey, 0.0) + verdict.work_units

    def _withdraw(self, key: str) -> None:
        """A bad output takes back the credit of the pass that made it, if that still counted."""
        for work in self.given.values():
            if not isinstance(work, m.PassWork) or work.output is None or work.output.key != key:
                continue
            batch = self.world.state.micro_batches.get(work.micro_batch)
            hop = batch.hops[work.stage] if batch else None
            piece = work.micro_batch, work.stage, work.kind
            if hop and (hop.forward_epoch if work.kind is Pass.FORWARD else hop.backward_epoch) < 0:
                hotkey, units = self.done.pop(piece, (Hotkey(""), 0.0))
                self.paid[hotkey] = self.paid.get(hotkey, 0.0) - units


def without_sentences(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_sentences(part) for key, part in value.items() if key not in SENTENCES}
    return [without_sentences(part) for part in value] if isinstance(value, list) else value


def builtins(state: State) -> Any:
    return without_sentences(msgspec.to_builtins(state, str_keys=True))


class Chaos(RuleBasedStateMachine):
    """The orchestrator and seven hotkeys that do whatever they like."""

    make_world: Callable[..., World]

    def __init__(self) -> None:
        super().__init__()
        self.sessions = 0

    @initialize(stages=st.integers(1, 3), flush=st.booleans(), first=st.integers(1, 6), copies=st.integers(1, 3))
    def open(self, stages: int, flush: bool, first: int, copies: int) -> None:
        self.world = self.make_world(
            num_stages=stages, flush=flush, target_epochs=2, auto=False, num_microbatches_min=3, copies=copies
        )
        self.book = Book(self.world)
        self.world.watch = self.book.watch
        self.world.do_errands()
        for name in NAMES[:first]:
            self.world.join(name)

    def _player(self, number: int) -> str | None:
        names = sorted(self.world.players)
        return names[number % len(names)] if names else None

    @rule(number=st.integers(0, 6))
    def join(self, number: int) -> None:
        """A new process, of a new or a known hotkey; the older one may live on as a zombie."""
        self.sessions += 1
        self.world.join(NAMES[number], session=f"s{self.sessions}", slots=1 + self.sessions % 4)

    @rule(number=st.integers(0, 6), count=st.integers(0, 5), late_first=st.booleans(), lost=st.booleans())
    def work(self, number: int, count: int, late_first: bool, lost: bool) -> None:
        """Some results, oldest or newest first; the reply may get lost, and then they come again."""
        if (name := self._player(number)) is None:
            return
        held = list(self.world.players[name].held.values())
        results = [self.world.result(work) for work in (held[::-1] if late_first else held)[:count]]
        self.world.exchange(name, *results, lost=lost)
        if lost:
            self.world.exchange(name, *results)

    @rule(seconds=st.sampled_from([0.5, 2.0, 8.0, 30.0]))
    def everybody_works(self, seconds: float) -> None:
        for name in sorted(self.world.players):
            self.world.do(name)
        self.world.wait(min(seconds, 2.0))

    @rule(number=st.integers(0, 6), back=st.integers(1, 4))
    def double(self, number: int, back: int) -> None:
        """An old result is sent once more."""
        if (name := self._player(number)) is not None:
            self.world.exchange(name, *self.world.players[name].answered[-back:][:1])

    @rule(number=st.integers(0, 6), other=st.integers(0, 6), kind=st.sampled_from(CHEATS))
    def cheat(self, number: int, other: int, kind: str) -> None:
        name, victim = self._player(number), self._player(other)
        if name is None or victim is None:
            return
        works = list(self.world.players[victim if kind == "foreign" else name].held.values())
        if kind == "invented":
            self.world.exchange(name, m.Failed(item=ItemId("f99999.0.0"), reason=Reason.OK, sentence="ha"))
        elif works and kind == "foreign":
            self.world.exchange(name, self.world.result(works[0]))
        elif works:
            done = m.SyncDone(item=works[0].item, parameters_digest="0" * 64)
            self.world.exchange(name, done)

    @rule(number=st.integers(0, 6), pick=st.integers(0, 3), bad=st.booleans())
    def complain(self, number: int, pick: int, bad: bool) -> None:
        """Work fails; where it reads an object, that is blamed, rightly or not."""
        name = self._player(number)
        if name is None or not self.world.players[name].held:
            return
        held = list(self.world.players[name].held.values())
        work = held[pick % len(held)]
        key = next(iter(inputs(work)), None)
        if key is not None and bad:
            self.world.bad_objects[key] = Reason.BAD_DIGEST
        failed = m.Failed(item=work.item, reason=Reason.BAD_DIGEST, sentence="unreadable", object_key=key)
        self.world.exchange(name, failed)

    @rule(number=st.integers(0, 6), pick=st.integers(0, 3))
    def lie(self, number: int, pick: int) -> None:
        """Digests that are not those of the others."""
        name = self._player(number)
        if name is None or not self.world.players[name].held:
            return
        held = list(self.world.players[name].held.values())
        result = self.world.result(held[pick % len(held)])
        match result:
            case m.ReduceDone():
                result = msgspec.structs.replace(result, shard_digests=("f" * 64,) * len(result.shard_digests))
            case m.ApplyDone() | m.SyncDone():
                result = msgspec.structs.replace(result, parameters_digest="f" * 64)
            case m.PassDone():
                result = msgspec.structs.replace(result, digest=None if result.digest else "f" * 64)
            case m.UploadDone():
                result = msgspec.structs.replace(result, chunk_digests=())
        self.world.exchange(name, result)

    @rule(number=st.integers(0, 6))
    def hang(self, number: int) -> None:
        """It beats its heart and does nothing."""
        if (name := self._player(number)) is not None:
            self.world.exchange(name, free=0)

    @rule(number=st.integers(0, 6))
    def crash(self, number: int) -> None:
        if (name := self._player(number)) is not None:
            del self.world.players[name]

    @rule(seconds=st.sampled_from([0.5, 3.0, 12.0, 25.0, 130.0]))
    def silence(self, seconds: float) -> None:
        """Time passes while nobody speaks; whatever a tick would change, it is announced, and nothing else is."""
        self.world.at += seconds
        copy = self.world.copy()
        due, before = machine.is_due(copy, self.world.at), builtins(copy)
        machine.handle(copy, m.Envelope(sender=Hotkey("orchestrator"), at=self.world.at, message=m.Tick()))
        assert due == (builtins(copy) != before)
        if due:
            self.world.own(m.Tick())

    @precondition(lambda self: self.world.errands)
    @rule(last=st.booleans())
    def errand(self, last: bool) -> None:
        self.world.own(self.world.answer_to(self.world.errands.pop(-1 if last else 0)))

    @rule(lose=st.booleans())
    def restart(self, lose: bool) -> None:
        """The orchestrator's process ends, with whatever it had not yet looked at."""
        if lose:
            self.world.errands.clear()
        self.world.own(m.RunResumed(target_epochs=2))

    @rule(num_microbatches_min=st.integers(1, 6), quorum=st.sampled_from([0.25, 1.0]))
    def tune(self, num_microbatches_min: int, quorum: float) -> None:
        """The owner changes the rules at any moment."""
        versions = self.world.state.versions
        asked = tuning.Tuning(merge=tuning.Merge(num_microbatches_min=num_microbatches_min, quorum=quorum))
        self.world.own(m.Tuned(spec=tuning.tuned(versions[0], asked, versions[-1].version + 1)))

    @rule(first=st.integers(0, 6), count=st.integers(3, 7))
    def registrations(self, first: int, count: int) -> None:
        self.world.register(*(NAMES[(first + number) % 7] for number in range(count)))

    def teardown(self) -> None:
        """From here on everybody is honest and stays."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.auto = True
        world.do_errands()
        world.players.clear()
        world.join(*NAMES[:4], session="last")
        world.work_until(lambda: all(player.finished for player in world.players.values()), limit_s=2_000.0)
        assert all(stage.epoch == 2 for stage in world.state.stages)


def inputs(work: m.Work) -> list[str]:
    """Keys of the objects that a piece of work reads."""
    match work:
        case m.PassWork():
            return [source.key for source in (work.gradient, work.stage_input) if source is not None]
        case m.ReduceWork():
            return [entry.source.key for entry in work.manifest]
        case m.ApplyWork():
            return [part.source.key for part in work.shards if part.source is not None]
        case m.SyncWork():
            return [work.parameters.key]
        case _:
            return []


def test_whatever_happens(worlds: Callable[..., World]) -> None:
    """1. See the law above."""

    class Once(Chaos):
        make_world = staticmethod(worlds)

    run_state_machine_as_test(
        Once,
        settings=settings(
            max_examples=20,
            stateful_step_count=60,
            deadline=None,
            # the same runs every time, and no shrinking: many minutes for a run of a few hundred envelopes
            derandomize=True,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        ),
    )
