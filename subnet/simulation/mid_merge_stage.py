"""One stage whose replicas die while they reduce: the production machine's merge, with miners that compute nothing.

Law: the machine is driven through its envelopes alone; what a miner would compute is a digest of what it was given, so
honest copies agree. A reduction takes time in proportion to its values, heartbeats go on meanwhile, and whoever is dead
says nothing more. Equal seeds give equal merges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from itertools import count
from typing import NamedTuple

import msgspec

from subnet import presets
from subnet.coordination import machine
from subnet.coordination.effects import DrawSecret, Effect
from subnet.coordination.merge_state import Merge
from subnet.coordination.state import State
from subnet.merging.butterfly import Assignment
from subnet.merging.compression import CHUNK_VALUES
from subnet.protocol import keys
from subnet.protocol import messages as m
from subnet.protocol.draw import shuffled
from subnet.protocol.ids import Digest, Hotkey, ItemId, Pass, RunId
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec

RUN, ORCHESTRATOR = RunId("mid-merge"), Hotkey("orchestrator")
REDUCTION_SHARE = 0.25
"""Of the reduce deadline: what an owner needs for its part of an undisturbed merge."""

encode_state, decode_state = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(State).decode


class Outcome(NamedTuple):
    """What became of the shards when some replicas had died."""

    shards: int
    plain_lost: int
    """Shards whose two owners were both dead: what the plain scheme loses."""
    plain_single: int
    lost: int
    single: int
    handed_on: int
    took_s: float
    """From the first hand-out to the last copy."""
    handed_on_after_s: float
    """Until shards were handed on: the plain scheme would have ended here."""


def make_spec(replicas: int) -> RunSpec:
    """The local net's preset with one stage and a merge after every micro-batch."""
    size = presets.Size(replicas, 1, 1, 1)
    file = DataFile(key=keys.make(RUN, 0, 0, "text", keys.Kind.DATA), digest=_digest("text"), size_bytes=1)
    data = DataSpec(tokenizer=file, train=(file,), validation=(file,), micro_batch_size=1, seq_len=16)
    spec = presets.run_spec(presets.laptop(size), run_id=RUN, seed=7, num_stages=1, data=data)
    merge = msgspec.structs.replace(spec.merge, num_microbatches_min=1, quorum=1.0)
    audit = msgspec.structs.replace(spec.audit, rate=0.0)
    return msgspec.structs.replace(spec, merge=merge, audit=audit)


def _digest(*parts: object) -> Digest:
    return Digest(hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest())


class ModelledStage:
    """`begin()` leads to the moment at which every owner has its shards in hand; `merged(dead)` goes on from there, as
    often as asked."""

    def __init__(self, replicas: int, seed: int) -> None:
        self.spec, self._seed, self.at = make_spec(replicas), seed, 0.0
        self.names = [Hotkey(f"miner{number:03d}") for number in range(replicas)]
        start = m.Source(key=keys.make(RUN, 0, 0, "start", keys.Kind.PARAMETERS), digest=_digest("start"), size_bytes=1)
        opened = m.RunOpened(
            spec=self.spec, starts=(m.StageStart(parameters=start, momentum=start),), evaluators=(), target_epochs=0
        )
        self.state = machine.open_run(m.Envelope(sender=ORCHESTRATOR, at=self.at, message=opened))
        self._held: dict[Hotkey, dict[ItemId, m.Work]] = {}
        self._kept = b""

    @property
    def merge(self) -> Merge | None:
        return self.state.stages[0].merge

    def begin(self) -> None:
        """Join, train, upload; the uploads are in and the reduction is handed out."""
        self._send(ORCHESTRATOR, m.Registered(hotkeys=tuple(self.names)))
        for name in self.names:
            self._send(name, m.Join(session="s", device="cpu", software="modelled"))
            self._held[name] = {}
        for _ in count():
            for name in self.names:
                done = [self._result(work) for work in self._held[name].values() if not isinstance(work, m.ReduceWork)]
                self._exchange(name, *done)
            if self.merge is not None and self.merge.assignments:
                break
            self._pass(1.0)
        self._kept = encode_state(self.state)

    def drawn(self, number: int) -> frozenset[Hotkey]:
        """Who dies: so many of the replicas."""
        order = shuffled(str(self._seed).encode(), self.names, "dead")
        return frozenset(order[:number])

    def merged(self, dead: Collection[Hotkey]) -> Outcome:
        """These die with their shards in hand; the others go on until the stage has its merged shards."""
        self.state = decode_state(self._kept)
        self.at = began = self.state.at
        merge = self.merge
        assert merge is not None and not merge.reduced, "begin first"
        owners_left = [len(set(a.owners) - set(dead)) for a in merge.assignments]
        self._held = {name: {} for name in self.names if name not in dead}
        handed_on_at: float | None = None
        ready: dict[ItemId, float] = {}
        heartbeat_s = self.spec.routing.heartbeat_s
        spoke = dict.fromkeys(self._held, -heartbeat_s)
        while merge.step == "reduce":
            for name, held in self._held.items():
                for item, work in held.items():
                    ready.setdefault(item, self.at + self._needs_s(work, merge.assignments))
                done = [self._result(work) for item, work in held.items() if ready[item] <= self.at]
                if done or self.at >= spoke[name] + heartbeat_s:
                    self._exchange(name, *done)
                    spoke[name] = self.at
            if handed_on_at is None and merge.handed_on:
                handed_on_at = self.at
            if merge.step == "reduce":
                self._pass(0.5)
        copies = [sum(a.shard.index in one.digests for one in merge.reduced.values()) for a in merge.assignments]
        return Outcome(
            shards=len(merge.shards),
            plain_lost=owners_left.count(0),
            plain_single=owners_left.count(1),
            lost=sum(part.source is None for part in merge.shards),
            single=copies.count(1),
            handed_on=len(merge.handed_on),
            took_s=self.at - began,
            handed_on_after_s=(self.at if handed_on_at is None else handed_on_at) - began,
        )

    def _needs_s(self, work: m.Work, assignments: tuple[Assignment, ...]) -> float:
        if not isinstance(work, m.ReduceWork):
            return 0.0
        total = sum(a.shard.length for a in assignments)
        usual = total * min(self.spec.merge.copies, len(self.names)) / len(self.names)
        values = sum(shard.length for shard in work.shards)
        return REDUCTION_SHARE * self.spec.merge.reduce_deadline_s * values / usual

    def _pass(self, seconds: float) -> None:
        self.at += seconds
        if machine.is_due(self.state, self.at):
            self._send(ORCHESTRATOR, m.Tick())

    def _exchange(self, name: Hotkey, *results: m.Result) -> None:
        held = self._held[name]
        for result in results:
            held.pop(result.item, None)
        message = m.Exchange(session="s", free_slots=1, holding=tuple(held), results=results)
        reply = self._send(name, message)
        assert isinstance(reply, m.ExchangeReply), reply
        held |= {work.item: work for work in reply.work}
        for item in reply.drop:
            held.pop(item, None)

    def _send(self, sender: Hotkey, message: m.Message | m.OwnRecord) -> m.Reply | None:
        decision = machine.handle(self.state, m.Envelope(sender=sender, at=self.at, message=message))
        for effect in decision.effects:
            self._perform(effect)
        return decision.reply

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, DrawSecret):
            secret = _digest("secret", self._seed, effect.epoch)
            self._send(ORCHESTRATOR, m.SecretDrawn(epoch=effect.epoch, secret=secret))

    def _result(self, work: m.Work) -> m.Result:
        """What an honest miner brings back."""
        match work:
            case m.PassWork():
                written = _digest(work.output.key) if work.output else None
                loss = 5.0 if work.kind is Pass.LOSS else None
                return m.PassDone(item=work.item, digest=written, loss=loss, param_version=0, compute_s=0.1)
            case m.UploadWork():
                chunks = -(-self.spec.stages[0].num_params // CHUNK_VALUES)
                sums = tuple(_digest(work.output.key, chunk) for chunk in range(chunks))
                return m.UploadDone(item=work.item, digest=_digest(work.output.key), norm=1.0, chunk_digests=sums)
            case m.ReduceWork():
                sums = tuple(_digest("reduced", shard.start, shard.length) for shard in work.shards)
                return m.ReduceDone(item=work.item, digest=_digest(work.output.key), shard_digests=sums)
            case _:
                raise AssertionError(f"nobody asks for {type(work).__name__} before the shards are reduced")
