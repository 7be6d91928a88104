"""The journal of a long run, made by the machine itself: miners that compute nothing ask, are given work and answer.

    heap of (when, miner): the miner's next request ─► Envelope ─► machine.handle ─► work now, or a Deliver later

Law: every record is one that the real machine has decided about, in the form it has in a real journal; only tensors do
not exist, so digests follow from the work. Nobody dies and nobody errs: passes, merges, heartbeats, secrets, joins.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator

import msgspec

from subnet import presets
from subnet.coordination import machine
from subnet.coordination.effects import CheckObject, Deliver, DrawSecret, Effect
from subnet.coordination.state import State
from subnet.errors import InvariantViolation
from subnet.merging.compression import CHUNK_VALUES
from subnet.protocol import draw, keys
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Hotkey, ItemId, Pass, RunId
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec

RUN = RunId("long")
SLOTS = 2
TICK_S = 0.25


def digest(*parts: object) -> Digest:
    return Digest(hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest())


def make_spec(miners: int, stages: int) -> RunSpec:
    """The local net's default rules; audits off, for they need a chain."""
    file = DataFile(key=keys.make(RUN, 0, 0, "text", keys.Kind.DATA), digest=digest("text"), size_bytes=1)
    data = DataSpec(tokenizer=file, train=(file,), validation=(file,), micro_batch_size=8, seq_len=128)
    preset = presets.laptop(presets.Size(miners, stages, 1))
    spec = presets.run_spec(preset, run_id=RUN, seed=7, num_stages=stages, data=data)
    settled = msgspec.structs.replace(spec.routing, rebalance_after_s=86_400.0)  # its players stay in their stages
    return msgspec.structs.replace(spec, audit=msgspec.structs.replace(spec.audit, rate=0.0), routing=settled)


class Player:
    """A miner that computes nothing."""

    def __init__(self, hotkey: Hotkey) -> None:
        self.hotkey = hotkey
        self.held: dict[ItemId, m.Work] = {}
        self.request = m.Exchange(session="s", free_slots=0, holding=(), results=())
        self.asked = 0
        """Counts its requests: what is on the heap for an earlier one is void."""
        self.is_waiting = False
        """Whether its request is held open."""


class LongRun:
    """`records()` yields envelopes without end; `state` is what they have led to so far."""

    def __init__(self, owner: Hotkey, miners: int, stages: int, begin_at: float, compute_s: float = 1.0) -> None:
        self.spec, self._owner, self._at, self._compute_s = make_spec(miners, stages), owner, begin_at, compute_s
        self.hotkeys = tuple(Hotkey(f"miner-{number:05d}") for number in range(miners))
        loads = [
            m.Source(key=keys.make(RUN, 0, stage, "start", keys.Kind.PARAMETERS), digest=digest(stage), size_bytes=1)
            for stage in range(stages)
        ]
        starts = tuple(m.StageStart(parameters=source, momentum=source) for source in loads)
        self.opened = m.RunOpened(spec=self.spec, starts=starts, evaluators=(), target_epochs=0)
        self._players = {hotkey: Player(hotkey) for hotkey in self.hotkeys}
        self._heap: list[tuple[float, Hotkey, int]] = []
        self._own: list[m.OwnRecord] = []
        self._next_tick = begin_at
        self._state: State | None = None

    @property
    def state(self) -> State:
        if self._state is None:
            raise InvariantViolation("the run is not open")
        return self._state

    def records(self) -> Iterator[m.Envelope]:
        opening = m.Envelope(sender=self._owner, at=self._at, message=self.opened)
        self._state = machine.open_run(opening)
        yield opening
        self._own += [m.Registered(hotkeys=self.hotkeys), m.Tick()]
        yield from self._owed()
        for number, player in enumerate(self._players.values()):
            yield self._say(player.hotkey, m.Join(session="s", device="cpu", software="long"))[0]
            heapq.heappush(self._heap, (self._at + 0.01 * number, player.hotkey, 0))
        while True:
            when, hotkey, asked = heapq.heappop(self._heap)
            player = self._players[hotkey]
            if asked == player.asked:
                yield from self._ticks(when)
                yield self._exchange(player)
                yield from self._owed()

    def _ticks(self, until: float) -> Iterator[m.Envelope]:
        while self._next_tick <= until:
            self._at = max(self._at, self._next_tick)
            self._next_tick += TICK_S
            if machine.is_due(self.state, self._at):
                self._own.append(m.Tick())
                yield from self._owed()
        self._at = max(self._at, until)

    def _owed(self) -> Iterator[m.Envelope]:
        while self._own:
            yield self._say(self._owner, self._own.pop(0))[0]

    def _exchange(self, player: Player) -> m.Envelope:
        results = tuple(_answer(self.spec, work) for work in player.held.values())
        player.held.clear()
        player.asked += 1
        player.request = m.Exchange(session="s", free_slots=SLOTS, holding=(), results=results)
        player.is_waiting = True
        envelope, reply = self._say(player.hotkey, player.request)
        if player.is_waiting:
            assert isinstance(reply, m.ExchangeReply), reply
            self._hear(player, reply)
        return envelope

    def _hear(self, player: Player, reply: m.ExchangeReply) -> None:
        """Work is computed; a reply without verdicts and work would not have been sent: the call stays open."""
        player.held = {work.item: work for work in reply.work}
        player.is_waiting = not reply.work and not reply.verdicts
        shares = [0.5 + draw.draw_below(b"pace", 1000, item) / 1000 for item in player.held]
        pause_s = self._compute_s * sum(shares) if shares else self.spec.routing.heartbeat_s * player.is_waiting
        heapq.heappush(self._heap, (self._at + pause_s, player.hotkey, player.asked))

    def _say(self, sender: Hotkey, message: m.Message | m.OwnRecord) -> tuple[m.Envelope, m.Reply | None]:
        envelope = m.Envelope(sender=sender, at=self._at, message=message)
        decision = machine.handle(self.state, envelope)
        for effect in decision.effects:
            self._perform(effect, sender)
        return envelope, decision.reply

    def _perform(self, effect: Effect, asking: Hotkey) -> None:
        match effect:
            case DrawSecret():
                self._own.append(m.SecretDrawn(epoch=effect.epoch, secret=digest("secret", effect.epoch)))
            case CheckObject():
                self._own.append(m.ObjectChecked(key=effect.source.key, reason=Reason.OK))
            case Deliver() if effect.hotkey != asking and self._players[effect.hotkey].is_waiting:
                player = self._players[effect.hotkey]
                player.asked += 1  # the end of its heartbeat is void
                self._hear(player, machine.exchange_reply(self.state, player.hotkey, player.request, ()))
            case _:
                pass


def _answer(spec: RunSpec, work: m.Work) -> m.Result:
    match work:
        case m.PassWork():
            written, loss = digest(work.output.key) if work.output else None, 5.0 if work.kind is Pass.LOSS else None
            return m.PassDone(item=work.item, digest=written, loss=loss, param_version=0, compute_s=0.1)
        case m.UploadWork():
            chunks = range(-(-spec.stages[work.stage].num_params // CHUNK_VALUES))
            sums = tuple(digest(work.output.key, chunk) for chunk in chunks)
            return m.UploadDone(item=work.item, digest=digest(work.output.key), norm=1.0, chunk_digests=sums)
        case m.ReduceWork():
            sums = tuple(digest("shard", work.stage, work.epoch, shard.index) for shard in work.shards)
            return m.ReduceDone(item=work.item, digest=digest(work.output.key), shard_digests=sums)
        case m.ApplyWork():
            anchors = [digest(kind, work.stage, work.epoch) for kind in ("parameters", "momentum")]
            return m.ApplyDone(item=work.item, parameters_digest=anchors[0], momentum_digest=anchors[1])
        case m.SyncWork():
            return m.SyncDone(item=work.item, parameters_digest=work.parameters.digest)
        case m.RevealWork():
            raise InvariantViolation("a run without audits asks nobody to reveal")
