"""The orchestrator is killed at each kind of decision in turn, at four moments of it, and nothing comes of it.

A kind is everything that a record can be, carry, cause or move: its message, each result in it, each effect, each
verdict on a result, each phase and merge step that a stage enters. What kinds there are is read from the unions
themselves, so none is forgotten, and a run in which nobody dies makes all of them; a run for each moment then kills at
the first record of every kind that it has not been killed at yet. What a killed process would still have done never
happens: its writer stops at the very line, and nobody hears a word from it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, get_args

import msgspec
import pytest

from subnet.adversaries.catalogue import CATALOGUE
from subnet.adversaries.names import Name
from subnet.chain.memory import MemoryChain
from subnet.coordination import machine
from subnet.coordination.answers import Answers
from subnet.coordination.effects import Effect
from subnet.coordination.invariants import broken
from subnet.coordination.state import State
from subnet.errors import Unavailable
from subnet.orchestrator import tuning
from subnet.orchestrator.anchoring import Publisher
from subnet.orchestrator.restoring import Restored, restore
from subnet.orchestrator.service import Service
from subnet.protocol import keys
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Hotkey, Phase
from subnet.protocol.reasons import Reason
from subnet.simulation.world import ORCHESTRATOR, World
from subnet.storage.base import Journal, JournalRecord
from subnet.storage.memory import MemoryJournal
from subnet.transport.base import ControlClient, ObjectClient

pytestmark = pytest.mark.looptime(end=20_000)
MakeWorld = Callable[..., World]
decode_entry = msgspec.json.Decoder(m.Envelope).decode
AUDITED = {"rate": 1.0, "settled_epochs": 100, "segment_steps": 1, "reveal_deadline_s": 60.0, "replay_deadline_s": 90.0}
QUICK = {"apply_deadline_s": 3.0, "quorum": 0.5, "relax_after_s": 5.0}
EPOCHS = 6
RULES = b"[inner]\nlr_peak = 0.004\n"
NAMES = ("a", "b", "c", "d", "cheat")
STEPS = ("drain", "upload", "reduce", "apply")
AWAY_S = 0.7


class Moment(StrEnum):
    BEFORE_APPEND = "before the journal has it"
    AFTER_APPEND = "in the journal, nothing decided"
    BEFORE_EFFECTS = "decided, no effect yet"
    BEFORE_REPLY = "effects begun, no reply yet"


def canonical(state: State) -> bytes:
    """A state's bytes; the order inside a set is each process's own."""
    state = copy(state)
    sets = sorted(state.registered), sorted(state.pay.fresh)
    state.registered, state.pay.fresh = set(), set()
    return msgspec.msgpack.encode((state, sets))


def copy(state: State) -> State:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=State)


# ---- kinds -----------------------------------------------------------------------------------------------------------


def fold(state: State | None, envelope: m.Envelope) -> tuple[State, set[str]]:
    """The state after one more record, and the kinds of decision that it was."""
    kinds = {f"record {type(envelope.message).__name__}"}
    if state is None:
        return machine.open_run(envelope), kinds
    before = [_where(stage) for stage in state.stages]
    decision = machine.handle(state, envelope)
    kinds |= {f"effect {type(effect).__name__}" for effect in decision.effects}
    kinds |= {f"stage {now}" for now, was in zip(map(_where, state.stages), before, strict=True) if now != was}
    if isinstance(envelope.message, m.Exchange):
        kinds |= {f"result {type(result).__name__}" for result in envelope.message.results}
    if isinstance(envelope.message, m.Review) and envelope.message.found:
        kinds.add("result AuditDone")
    if isinstance(decision.reply, m.ExchangeReply):
        kinds |= {f"verdict {verdict.outcome}" for verdict in decision.reply.verdicts}
    return state, kinds


def _where(stage: Any) -> str:
    return f"{stage.phase.value} {stage.merge.step if stage.merge is not None else ''}".strip()


def all_kinds() -> set[str]:
    """Whatever the unions of the protocol and the machine know, and every step of a stage."""
    unions = [("record", m.Message), ("record", m.OwnRecord), ("result", m.Result), ("effect", Effect)]
    named = {f"{word} {one.__name__}" for word, union in unions for one in get_args(union)}
    # an honest run has no poisoned merge: the unit tests of roll-backs restart there
    named -= {"record MergeInspected", "effect InspectMerge"}
    named |= {"result AuditDone", "verdict applied", "verdict ignored"}
    named |= {f"stage {phase.value}" for phase in (Phase.TRAINING, Phase.PAUSED)}
    named |= {f"stage {Phase.UPLOADING.value} {step}" for step in STEPS[:2]}
    return named | {f"stage {Phase.MERGING.value} {step}" for step in STEPS[2:]}


# ---- dying -----------------------------------------------------------------------------------------------------------


class Reaper:
    """Kills the world's orchestrator, and keeps the fold of all that came into the journal. `seen` are the kinds that
    it died at; without a moment it dies at none, and they are all that came."""

    def __init__(self, world: World, moment: Moment | None) -> None:
        self.world, self.moment = world, moment
        self.whole: State | None = None
        self.seen: set[str] = set()
        self.deaths: list[set[str]] = []
        self.by_snapshot = 0
        self.died = asyncio.Event()
        reaper = self

        class Mortal(Service):
            def __init__(self, journal: Journal, *parts: Any) -> None:
                reaper.check(parts[3])
                super().__init__(MortalJournal(journal, reaper), *parts)

            def _decide(self, envelope: m.Envelope) -> machine.Decision | None:
                reaper.next_kinds = reaper.waiting.pop(0)
                decision = super()._decide(envelope)
                # what causes no effect has no moment between decision and effects: it dies here
                reaper.strike(Moment.BEFORE_EFFECTS, reaper.next_kinds)
                reaper.strike(Moment.BEFORE_REPLY, reaper.next_kinds)
                return decision

            def _perform(self, effect: Effect) -> None:
                kinds = {kind for kind in reaper.next_kinds if not kind.startswith("effect ")}
                reaper.strike(Moment.BEFORE_EFFECTS, kinds | {f"effect {type(effect).__name__}"})
                super()._perform(effect)

        world.service_type = Mortal
        self.waiting: list[set[str]] = []
        """Kinds of the records that are in the journal and not decided yet."""
        self.next_kinds: set[str] = set()

    def check(self, restored: Restored | None) -> None:
        """A process starts: from snapshot and tail it has the state that the whole journal leads to, byte by byte."""
        self.waiting.clear()
        if restored is None:
            assert self.whole is None
            return
        assert self.whole is not None and canonical(restored.state) == canonical(self.whole)
        self.by_snapshot += restored.snapshot_index >= 0

    def foresee(self, bodies: Sequence[bytes]) -> set[str]:
        """The kinds of records that are not in the journal yet."""
        if self.moment is not Moment.BEFORE_APPEND:
            return set()
        state, kinds = copy(self.whole) if self.whole is not None else None, set[str]()
        for body in bodies:
            state, more = fold(state, decode_entry(body))
            kinds |= more
        return kinds

    def appended(self, bodies: Sequence[bytes]) -> set[str]:
        """They are in the journal now."""
        for body in bodies:
            self.whole, kinds = fold(self.whole, decode_entry(body))
            assert list(broken(self.whole)) == [], f"after {kinds}"
            self.waiting.append(kinds)
            self.seen |= kinds if self.moment is None else set()
        return set().union(*self.waiting)

    def strike(self, moment: Moment, kinds: set[str]) -> None:
        """kill -9, if it is the moment and one of these kinds is new."""
        if moment is not self.moment or kinds <= self.seen:
            return
        self.deaths.append(kinds - self.seen)
        self.seen |= kinds
        self.world.stop_orchestrator()
        self.died.set()
        raise asyncio.CancelledError  # the writer's next line is not reached

    async def revive(self) -> None:
        """Starts it again a moment after each death; it may die while it starts."""
        while True:
            await self.died.wait()
            self.died.clear()
            await asyncio.sleep(AWAY_S)
            await self.world.start_orchestrator()


class MortalJournal(MemoryJournal):
    """Around the world's."""

    def __init__(self, journal: Any, reaper: Reaper) -> None:
        self._journal, self._reaper = journal, reaper

    async def append(self, bodies: Sequence[bytes]) -> list[JournalRecord]:
        self._reaper.strike(Moment.BEFORE_APPEND, self._reaper.foresee(bodies))
        records = await self._journal.append(bodies)
        self._reaper.strike(Moment.AFTER_APPEND, self._reaper.appended(bodies))
        return list(records)

    async def read(self, start: int, limit: int) -> list[JournalRecord]:
        return list(await self._journal.read(start, limit))

    async def last(self) -> JournalRecord | None:
        return await self._journal.last()  # type: ignore[no-any-return]


# ---- a run in which everything happens -------------------------------------------------------------------------------


class Unlucky:
    """Of one miner: it cannot apply its first merge, so it is synchronised; and the first boundary that it fetches
    arrives with a flipped bit."""

    def __init__(self) -> None:
        self._spoiled = self._synced = False

    def control(self, line: ControlClient) -> ControlClient:
        self._line = line
        return self

    def objects(self, store: ObjectClient) -> ObjectClient:
        self._store = store
        return self

    async def call(self, message: m.Message, spec_digest: Digest | None, timeout_s: float) -> m.Reply:
        if isinstance(message, m.Exchange):
            self._synced = self._synced or any(isinstance(done, m.SyncDone) for done in message.results)
            message = msgspec.structs.replace(message, results=tuple(map(self._report, message.results)))
        return await self._line.call(message, spec_digest, timeout_s)

    def _report(self, result: m.Result) -> m.Result:
        if self._synced or not isinstance(result, m.ApplyDone):
            return result
        return m.Failed(item=result.item, reason=Reason.BAD_OBJECT, sentence="cannot read it")

    async def get(self, url: str, offset: int, size_bytes: int, timeout_s: float) -> bytes:
        data = await self._store.get(url, offset, size_bytes, timeout_s)
        key = url.partition("/objects/")[2].partition("?")[0]
        if self._spoiled or keys.parse(key).kind not in (keys.Kind.BOUNDARY, keys.Kind.GRADIENT):
            return data
        self._spoiled = True
        return data[:-1] + bytes([data[-1] ^ 1])

    async def put(self, url: str, data: bytes, timeout_s: float) -> None:
        await self._store.put(url, data, timeout_s)

    async def close(self) -> None: ...


async def owner(world: World) -> None:
    """What the owner's process does besides serving: heads go onto the chain, rules are tuned, a stranger is refused.
    With each new process it begins anew."""
    refused = m.Refused(reason=Reason.MALFORMED, claimed="stranger", sentence="no such message")
    service, publisher = None, None
    while True:
        await asyncio.sleep(0.5)
        if world.door.service is None:
            continue
        if service is not world.door.service:
            service = world.door.service
            chain, runtime = MemoryChain(world.ledger, ORCHESTRATOR), world._runtime("publisher")
            publisher = Publisher(chain, service, ORCHESTRATOR, ("http://127.0.0.1:1",), runtime)
        assert publisher is not None
        try:
            await service.refuse(refused)
            await service.submit(m.Tick())  # one that is due comes with no certainty
            await publisher.look()
            if service.state.completed > 4:
                await tuning.update(RULES, service)
        except Unavailable:
            pass  # it died


async def patiently(world: World, message: m.OwnRecord) -> None:
    while True:
        try:
            if world.door.service is not None:
                return await world.door.service.submit(message)
        except Unavailable:
            pass
        await asyncio.sleep(0.3)


async def live(world: World, reaper: Reaper) -> None:
    """The run to its end, whoever dies."""
    background = [asyncio.create_task(reaper.revive())]
    async with world:
        for name in NAMES:
            world.ledger.register(Hotkey(name))
        await patiently(world, m.Registered(hotkeys=tuple(map(Hotkey, NAMES))))
        background.append(asyncio.create_task(owner(world)))
        unlucky = Unlucky()
        await world.start("a", control=unlucky.control, objects=unlucky.objects)
        for name in NAMES[1:-1]:
            await world.start(name)
        await world.start("cheat", reduction=CATALOGUE[Name.WRONG_MERGER].reduction)
        validator = world.start_validator()
        await world.until(lambda state: state.completed > 12)
        world.stop_orchestrator()
        reaper.died.set()
        await world.finished()
        await validator.finished.wait()
        for task in background:
            task.cancel()


async def check(world: World, reaper: Reaper) -> None:
    """Nothing was lost and nothing is there twice: in the state, in the ledger, in the answers to what was asked."""
    whole, live_bytes = machine.replay(world.envelopes()), canonical(world.state)
    assert reaper.whole is not None
    by_snapshot = await restore(MemoryJournal(world.records), world.snapshots)
    assert by_snapshot is not None and by_snapshot.snapshot_index >= 0
    assert live_bytes == canonical(whole) == canonical(by_snapshot.state) == canonical(reaper.whole)
    assert [stage.epoch for stage in world.state.stages] == [EPOCHS, EPOCHS]
    answers, state = Answers(), None
    for index, envelope in enumerate(world.envelopes()):
        decision = None
        if state is None:
            state = machine.open_run(envelope)
        else:
            decision = machine.handle(state, envelope)
        answers.note(index, envelope, decision)
    assert answers.difference is None
    honest = [standing for hotkey, standing in world.state.pay.standing.items() if hotkey != "cheat"]
    assert not any(one.failed or one.not_revealed or one.wrong_shard_at for one in honest)


@pytest.fixture
def world(make_world: MakeWorld, lively: dict[str, Any]) -> World:
    return make_world(2, EPOCHS, b_min=4, seed=3, **lively | AUDITED | QUICK)


async def test_every_kind_of_decision_is_made(world: World, check_credit: Callable[..., None]) -> None:
    """1. One restart between two decisions apart nobody dies: in this run the orchestrator decides everything that it
    ever may, whatever the unions of messages, records, results and effects hold."""
    reaper = Reaper(world, None)
    await live(world, reaper)
    await check(world, reaper)
    check_credit(world)
    assert reaper.seen >= all_kinds(), all_kinds() - reaper.seen


@pytest.mark.parametrize("moment", Moment)
async def test_killed_at_each_kind(world: World, moment: Moment, check_credit: Callable[..., None]) -> None:
    """2. The orchestrator dies at the first decision of every kind, each time at this moment of it, and is started
    again: the run has its epochs, every promise holds after every record, each start leads where the whole journal
    leads, every accepted pass is credited once, and nobody honest is blamed for a thing."""
    reaper = Reaper(world, moment)
    await live(world, reaper)
    await check(world, reaper)
    check_credit(world)
    assert reaper.seen >= all_kinds(), f"survived: {all_kinds() - reaper.seen}"
    assert len(reaper.deaths) >= 15 and reaper.by_snapshot > 5
