"""A run without a shell: envelopes go into the machine by hand, and players do what miners would.

A player computes nothing; it answers work with digests that follow from the work, so honest replicas agree. The law of
all tests here: after every envelope the state breaks no invariant and nothing is left to a tick that comes at once, and
the journal, replayed, gives the same state byte by byte, with the index kept up to date or built afresh each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import pytest

from subnet import presets
from subnet.coordination import effects, index, invariants, machine, routing
from subnet.coordination import state as run
from subnet.coordination.merge_state import InspectMerge, Upload
from subnet.merging.compression import CHUNK_VALUES
from subnet.merging.shards import reduced_range
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Hotkey, ItemId, Pass, RunId
from subnet.protocol.keys import Kind, make
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec

RUN, BEGIN = RunId("run"), 1_000.0
ORCHESTRATOR, EVALUATOR = Hotkey("orchestrator"), Hotkey("evaluator")

encode_state, decode_state = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(run.State).decode
encode_entry, decode_entry = msgspec.json.Encoder().encode, msgspec.json.Decoder(m.Envelope).decode
make_key = partial(make, RUN)
Errand = effects.CheckObject | effects.RecomputeShard | InspectMerge | effects.DrawSecret


def digest(*parts: object) -> Digest:
    return Digest(hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest())


def make_spec(num_stages: int = 3, num_microbatches_min: int = 4, **change: Any) -> RunSpec:
    """A tiny model; `change` names fields of the merge, routing, inner, audit or score part."""
    file = DataFile(key=make_key(0, 0, "text", Kind.DATA), digest=digest("text"), size_bytes=1)
    data = DataSpec(tokenizer=file, train=(file,), validation=(file,), micro_batch_size=2, seq_len=16)
    preset = presets.equivalence(presets.Size(num_stages, num_stages, 3))
    spec = presets.run_spec(preset, run_id=RUN, seed=7, num_stages=num_stages, data=data)
    all_fields = {
        "num_microbatches_min": num_microbatches_min, "quorum": 0.75, "relax_after_s": 120.0, "grace_s": 5.0,
        "upload_deadline_s": 20.0, "reduce_deadline_s": 20.0, "apply_deadline_s": 20.0, "heartbeat_s": 5.0,
        "dead_after_s": 15.0, "in_flight_per_replica": 2, "deadline_first_s": 30.0, "deadline_floor_s": 10.0,
        "slots_max": 4, "flush": False, **change,
    }  # fmt: skip
    parts = {}
    for name in ("merge", "routing", "inner", "audit", "score"):
        part = getattr(spec, name)
        parts[name] = msgspec.structs.replace(part, **{f: v for f, v in all_fields.items() if hasattr(part, f)})
    return msgspec.structs.replace(spec, **parts)


@dataclass
class Player:
    """A miner's process as the orchestrator sees it."""

    hotkey: Hotkey
    session: str
    slots: int
    held: dict[ItemId, m.Work] = field(default_factory=dict)
    answered: list[m.Result] = field(default_factory=list)
    said: m.Notice | None = None
    verdicts: list[m.Verdict] = field(default_factory=list)
    finished: bool = False

    def works(self, kind: type | Pass) -> list[Any]:
        """What is in hand of one type of work, or of one kind of pass."""
        if isinstance(kind, Pass):
            return [work for work in self.works(m.PassWork) if work.kind is kind]
        return [work for work in self.held.values() if isinstance(work, kind)]

    def the(self, kind: type | Pass) -> Any:
        """The one piece of that kind in hand."""
        (work,) = self.works(kind)
        return work


class World:
    """The journal, the state, the players, and the shell's part of the effects."""

    def __init__(self, spec: RunSpec, target_epochs: int = 0, auto: bool = True) -> None:
        self.spec, self.at, self.auto = spec, BEGIN, auto
        self.journal: list[bytes] = []
        self.players: dict[str, Player] = {}
        self.said: list[str] = []
        self.errands: list[Errand] = []
        self.dropped, self.blocks = list[int](), list[int]()  # epochs; nobody reads a chain here
        self.honest: Callable[[m.Work], m.Result] = partial(_honest, spec)
        self.bad_objects: dict[str, Reason] = {}
        self.seen: Callable[[Hotkey, Upload], m.UploadSeen] = _sound
        keys = [make_key(0, stage, "start", Kind.PARAMETERS) for stage in range(spec.num_stages)]
        loads = [m.Source(key=key, digest=digest(stage), size_bytes=1) for stage, key in enumerate(keys)]
        starts = tuple(m.StageStart(parameters=source, momentum=source) for source in loads)
        opened = m.RunOpened(spec=spec, starts=starts, evaluators=(EVALUATOR,), target_epochs=target_epochs)
        self.state = machine.open_run(self._journaled(ORCHESTRATOR, opened))
        self.watch: Callable[[m.Envelope, m.Reply | None], None] = lambda envelope, reply: None
        self.own(m.Tick())

    def _journaled(self, sender: Hotkey, message: Any) -> m.Envelope:
        self.journal.append(encode_entry(m.Envelope(sender=sender, at=self.at, message=message)))
        return decode_entry(self.journal[-1])

    def send(self, sender: Hotkey, message: Any) -> m.Reply | None:
        """Journal, decide, see that what must hold holds, note the effects."""
        envelope = self._journaled(sender, message)
        opened = self.state.next_micro_batch
        decision = machine.handle(self.state, envelope)
        for effect in decision.effects:
            self._perform(effect)
        assert list(invariants.broken(self.state)) == []
        assert not machine.is_due(self.state, self.at), "something was left to a tick that comes at once"
        if self.state.next_micro_batch > opened:
            assert len(self.state.micro_batches) <= routing.in_flight_max(self.state)
        self.watch(envelope, decision.reply)
        if self.auto:
            self.do_errands()
        return decision.reply

    def _perform(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Say():
                self.said.append(effect.sentence)
            case effects.DropEpoch():
                self.dropped.append(effect.epoch)
            case effects.ReadChain():
                self.blocks.append(effect.closes)
            case effects.CheckObject() | effects.RecomputeShard() | InspectMerge() | effects.DrawSecret():
                self.errands.append(effect)

    def own(self, message: m.OwnRecord) -> None:
        self.send(ORCHESTRATOR, message)

    def do_errands(self) -> None:
        while self.errands:
            self.own(self.answer_to(self.errands.pop(0)))

    def answer_to(self, errand: Errand) -> m.OwnRecord:
        """What the shell would find; `bad_objects` are not what their makers said."""
        match errand:
            case effects.DrawSecret():
                return m.SecretDrawn(epoch=errand.epoch, secret=digest("secret", errand.epoch))
            case effects.CheckObject():
                key = errand.source.key
                return m.ObjectChecked(key=key, reason=self.bad_objects.get(key, Reason.OK))
            case InspectMerge():
                seen = tuple(self.seen(hotkey, upload) for hotkey, upload in errand.uploads.items())
                return m.MergeInspected(stage=errand.stage, epoch=errand.epoch, number=errand.number, uploads=seen)
            case effects.RecomputeShard():
                shard, (offset, size) = errand.assignment.shard, reduced_range((errand.assignment.shard,), 0)
                for entry in errand.manifest:
                    if entry.source.key in self.bad_objects:
                        return m.ObjectChecked(key=entry.source.key, reason=self.bad_objects[entry.source.key])
                item = f"orchestrator.{shard.index}.{errand.attempt}"
                key, right = make_key(errand.epoch, errand.stage, item, Kind.REDUCED), reduced(errand.manifest, shard)
                source = m.RangeSource(key=key, offset=offset, size_bytes=size, digest=right)
                return m.ShardRecomputed(stage=errand.stage, epoch=errand.epoch, shard=shard.index, source=source)

    def wait(self, seconds: float, step_s: float = 0.5) -> None:
        """Time passes; a tick is journaled whenever something is due."""
        until = self.at + seconds
        while self.at < until:
            self.at = min(until, self.at + step_s)
            if machine.is_due(self.state, self.at):
                self.own(m.Tick())

    def idle(self, seconds: float) -> None:
        """Time passes; everybody is there, but has its hands full."""
        until = self.at + seconds
        while self.at < until:
            self.wait(min(5.0, until - self.at))
            for name in self.players:
                self.exchange(name, free=0)

    def register(self, *names: str) -> None:
        self.own(m.Registered(hotkeys=tuple(Hotkey(name) for name in names)))

    def join(self, *names: str, session: str = "s1", slots: int = 2) -> None:
        """Registered if need be, placed, and loaded at once."""
        for name in names:
            hotkey = Hotkey(name)
            if hotkey not in self.state.registered:
                self.own(m.Registered(hotkeys=(*sorted(self.state.registered), hotkey)))
            reply = self.send(hotkey, m.Join(session=session, device="cpu", software="test"))
            assert isinstance(reply, m.Joined), reply
            self.players[name] = Player(hotkey, session, slots)

    def exchange(self, name: str, *results: m.Result, free: int | None = None, lost: bool = False) -> Any:
        """Results in, work out. `lost`: the orchestrator's reply does not arrive."""
        player = self.players[name]
        for result in results:
            player.held.pop(result.item, None)
        slots = max(0, player.slots - len(player.works(m.PassWork))) if free is None else free
        message = m.Exchange(session=player.session, free_slots=slots, holding=tuple(player.held), results=results)
        reply = self.send(player.hotkey, message)
        if lost:
            return None
        player.answered += results
        if isinstance(reply, m.ExchangeReply):
            held = player.held | {work.item: work for work in reply.work}
            player.held = {item: work for item, work in held.items() if item not in reply.drop}
            player.said, player.finished = reply.notice, reply.finished
            player.verdicts += reply.verdicts
        return reply

    def result(self, work: m.Work, **change: Any) -> Any:
        """What an honest miner would bring back, but for `change`."""
        return msgspec.structs.replace(self.honest(work), **change)

    def do(self, name: str, *works: m.Work, **change: Any) -> Any:
        """Hand in good results of these works, or of all that is in hand."""
        chosen = works or tuple(self.players[name].held.values())
        return self.exchange(name, *(self.result(work, **change) for work in chosen))

    def verdict(self, name: str, work: m.Work, **change: Any) -> m.Verdict:
        (verdict,) = self.do(name, work, **change).verdicts
        return verdict

    def work_until(self, until: Callable[[], bool], names: Iterable[str] | None = None, limit_s: float = 600.0) -> None:
        """Each second, everybody hands in all it holds and asks for more; who is refused joins again."""
        deadline = self.at + limit_s
        while not until():
            assert self.at < deadline, f"stuck: {[(s.epoch, s.phase, s.sentence) for s in self.state.stages]}"
            for name in list(self.players if names is None else names):
                if isinstance(self.do(name), m.Refusal):
                    self.join(name, session=self.players[name].session)
                if until():
                    return
            self.wait(1.0)

    def stage(self, index: int = 0) -> run.StageState:
        return self.state.stages[index]

    def miner(self, name: str) -> run.Miner:
        return self.state.miners[Hotkey(name)]

    def of_stage(self, index: int) -> list[str]:
        return [player for player in self.players if self.miner(player).stage == index]

    def credit(self, name: str) -> float:
        return self.state.ledger.total(Hotkey(name))

    def merge(self) -> run.Merge:
        assert self.stage().merge is not None
        return self.stage().merge

    def to_step(self, step: str) -> None:
        """Everybody works until stage 0's merge is at that step; then everybody asks for its part in it."""
        self.work_until(lambda: self.stage().merge is not None and self.merge().step == step)
        for name in self.players:
            self.exchange(name)

    def copy(self) -> run.State:
        return decode_state(encode_state(self.state))


def _sound(hotkey: Hotkey, upload: Upload) -> m.UploadSeen:
    return m.UploadSeen(hotkey=hotkey, reason=Reason.OK, norm=upload.norm, cosine=0.3)


def _honest(spec: RunSpec, work: m.Work) -> m.Result:
    match work:
        case m.PassWork():
            written, loss = digest(work.output.key) if work.output else None, 5.0 if work.kind is Pass.LOSS else None
            return m.PassDone(item=work.item, digest=written, loss=loss, param_version=0, compute_s=0.1)
        case m.UploadWork():
            count = spec.stages[work.stage].num_params
            sums = tuple(digest(work.output.key, chunk) for chunk in range(-(-count // CHUNK_VALUES)))
            return m.UploadDone(item=work.item, digest=digest(work.output.key), norm=1.0, chunk_digests=sums)
        case m.ReduceWork():
            sums = tuple(reduced(work.manifest, shard) for shard in work.shards)
            return m.ReduceDone(item=work.item, digest=digest(work.output.key), shard_digests=sums)
        case m.ApplyWork():
            read = [part.source.digest if part.source else None for part in work.shards]
            anchors = (digest("anchor", kind, work.stage, work.epoch, read) for kind in ("parameters", "momentum"))
            return m.ApplyDone(item=work.item, parameters_digest=next(anchors), momentum_digest=next(anchors))
        case m.SyncWork():
            return m.SyncDone(item=work.item, parameters_digest=work.parameters.digest)


def reduced(manifest: Sequence[m.ManifestEntry], shard: m.Shard) -> Digest:
    """The one right digest of a reduced shard."""
    read = [(entry.source.digest, entry.weight, entry.scale) for entry in manifest]
    return digest("reduced", read, shard.start, shard.length)


@pytest.fixture
def worlds() -> Iterator[Callable[..., World]]:
    """`worlds(num_stages=3, ..., target_epochs=0, auto=True)`: a fresh run; replayed when the test is over."""
    made: list[World] = []

    def make(target_epochs: int = 0, auto: bool = True, **spec: Any) -> World:
        made.append(World(make_spec(**spec), target_epochs, auto))
        return made[-1]

    yield make
    for world in made:
        assert encode_state(machine.replay(map(decode_entry, world.journal))) == encode_state(world.state)
        assert decode_state(encode_state(world.state)) == world.state
        assert encode_state(forgetful_replay(map(decode_entry, world.journal))) == encode_state(world.state)


def forgetful_replay(envelopes: Iterator[m.Envelope]) -> run.State:
    """The journal folded with an index that is built afresh before every record."""
    state = machine.open_run(next(envelopes))
    for envelope in envelopes:
        index.rebuild(state)
        machine.handle(state, envelope)
    return state
