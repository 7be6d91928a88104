"""Miners that write down what they do, validators, and a chain read by hand, on top of the hand-driven `World`.

A miner's states are made up, but each follows from all that came before it, and its log runs by the rules of
`scoring.audit`, written down the slow and obvious way. A validator finds whatever the test tells it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from subnet.coordination.audit_state import Audit, Dossier, Standing
from subnet.coordination.settlement import sheet
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, Pass
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.scoring import audit as rules

if TYPE_CHECKING:
    from conftest import World

GAMMA_S, REVEAL_S, REPLAY_S = 500.0, 10.0, 20.0
GOOD = m.AuditFigures(outputs=1)
BAD = m.AuditFigures(outputs=1, state=9.0)


def digest(*parts: object) -> Digest:
    return Digest(hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest())


@dataclass
class Book:
    """What one process of a miner has logged and committed."""

    spec: RunSpec
    name: str
    epoch: int
    """Whose start it trains from."""
    version: int = 1
    step: int = 0
    optimizer_steps: int = 0
    accumulated: int = 0
    since: int = 0
    applied_at: int | None = None
    loaded: bool = True
    uploaded: int = -1
    log: list[m.Logged] = field(default_factory=list)
    commitments: list[m.Commitment] = field(default_factory=list)
    states: dict[str, tuple[Digest, ...]] = field(default_factory=dict)
    """Parts of every state that was committed, by the commitment's digest."""
    ran: dict[ItemId, m.PassDone] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit()

    def commit(self) -> None:
        numbers = self.version, self.step, self.optimizer_steps
        parts = tuple(digest(part, self.name, self.epoch, *numbers) for part in m.STATE_PARTS)
        committed = rules.state_digest(*numbers, parts)
        self.commitments.append(m.Commitment(len(self.log), *numbers, committed))
        self.states[committed], self.since = parts, 0

    def inner_step(self) -> None:
        self.version, self.step, self.optimizer_steps = self.version + 1, self.step + 1, self.optimizer_steps + 1
        self.accumulated, self.since = 0, self.since + 1

    def run(self, done: m.PassDone) -> None:
        if done.item in self.ran:
            return
        self.ran[done.item] = done
        self.log.append(m.Logged(done.item, self.version))
        if rules.kind_of(done.item) is not Pass.FORWARD:
            self.accumulated += 1
            if self.accumulated == self.spec.inner.micro_batches_per_step:
                self.inner_step()
                if self.since == self.spec.audit.segment_steps:
                    self.commit()

    def upload(self) -> dict[str, Any]:
        """What goes with the upload."""
        if self.accumulated:
            self.inner_step()
        last = self.commitments[-1]
        if (last.position, last.version) != (len(self.log), self.version):
            self.commit()
        self.uploaded, self.since = len(self.commitments) - 1, 0
        log, commitments = tuple(self.log), tuple(self.commitments)
        return {"log": log, "commitments": commitments, "applied_at": self.applied_at, "loaded": self.loaded}

    def merge(self, epoch: int, counted: bool) -> None:
        """The outer step that ends `epoch`; a second offer of it changes nothing."""
        if epoch < self.epoch:
            return
        if not counted or self.uploaded < 0:
            self.load(epoch + 1)
            return
        cut = self.commitments[self.uploaded].position
        later = self.commitments[self.uploaded :]
        self.log = self.log[cut:]
        self.commitments = [msgspec.structs.replace(one, position=one.position - cut) for one in later]
        self.applied_at, self.loaded, self.uploaded = len(self.log), False, -1
        self.epoch, self.version, self.step, self.optimizer_steps = epoch + 1, self.version + 1, 0, 0

    def load(self, epoch: int) -> None:
        self.epoch, self.version, self.step, self.optimizer_steps = epoch, self.version + 1, 0, 0
        self.log, self.commitments, self.uploaded, self.accumulated = [], [], -1, 0
        self.applied_at, self.loaded = None, True
        self.commit()


class Court:
    """A world with audits: its miners keep books."""

    def __init__(self, world: World) -> None:
        self.world, self.state = world, world.state
        self.books: dict[tuple[str, str], Book] = {}
        self.states: dict[str, tuple[Digest, ...]] = {}
        """Of all books; they outlive a process, as a miner's snapshots do."""
        self.uids: dict[str, int] = {}
        self.uploads: list[m.Source] = []
        self.block = 100
        self._plain, world.honest = world.honest, self.honest

    # ---- miners ------------------------------------------------------------------------------------------------------

    def book(self, name: str) -> Book:
        """Of the present process; a new one has just loaded its stage's parameters."""
        key = name, self.world.players[name].session
        if key not in self.books:
            stage = self.state.stages[self.world.miner(name).stage]
            self.books[key] = Book(self.world.spec, f"{name}.{len(self.books)}", stage.epoch, states=self.states)
        return self.books[key]

    def honest(self, work: m.Work) -> m.Result:
        """What an honest miner brings back: a work log with its upload, the states it committed when asked."""
        name = next(name for name, player in self.world.players.items() if work.item in player.held)
        book = self.book(name)
        if isinstance(work, m.RevealWork):
            start, end = self.states.get(work.start_digest, ()), self.states.get(work.end_digest, ())
            return m.RevealDone(item=work.item, start=start if work.start else (), end=end if work.end else ())
        done = self._plain(work)
        match work:
            case m.PassWork():
                book.run(done)
            case m.UploadWork():
                size = work.output.size_bytes
                self.uploads.append(m.Source(key=work.output.key, digest=Digest(done.digest), size_bytes=size))
                return msgspec.structs.replace(done, **book.upload())
            case m.ApplyWork():
                book.merge(work.epoch, work.counted)
            case m.SyncWork():
                book.load(work.epoch)
        return done

    def to_epoch(self, epoch: int) -> None:
        """Everybody works until every stage is in that epoch."""
        for name in self.world.players:
            self.book(name)
        self.world.work_until(lambda: all(stage.epoch >= epoch for stage in self.state.stages))

    def upload_first(self, name: str) -> list[m.PassWork]:
        """Bring a miner to where its upload of the epoch is in, and passes that it was given before are in hand."""
        world = self.world
        others = [other for other in world.players if other != name]
        for other in world.players:
            self.book(other)
        while world.stage().merge is None:
            world.exchange(name, *map(world.result, world.players[name].works(m.PassWork)[:1]))
            for other in others:
                world.do(other)
        while not world.players[name].works(m.UploadWork):
            world.wait(1.0)
            for other in world.players:
                world.exchange(other, free=0)
        assert world.verdict(name, world.players[name].the(m.UploadWork)).outcome == "applied"
        return world.players[name].works(m.PassWork)

    def reveals(self, name: str) -> list[m.RevealWork]:
        """What a miner is asked to show, after it has asked for work."""
        self.world.exchange(name, free=0)
        return self.world.players[name].works(m.RevealWork)

    def reveal(self, name: str, **change: Any) -> m.Verdict:
        (work,) = self.reveals(name)
        return self.world.verdict(name, work, **change)

    # ---- the chain ---------------------------------------------------------------------------------------------------

    def see(
        self, closes: int | None = None, seed: object = 0, stakes: dict[str, float] | None = None, **uids: int
    ) -> None:
        """The shell has read a block. `stakes`: of those who have a permit. `uids` change whose a uid is."""
        stakes = {"v": 100.0} if stakes is None else stakes
        for name in (*self.state.registered, *stakes):
            self.uids.setdefault(name, len(self.uids))
        for name, uid in uids.items():
            self.uids = {other: old for other, old in self.uids.items() if old != uid and other != name}
            self.uids[name] = uid
        self.block += 1
        neurons = tuple(
            m.Neuron(uid=uid, hotkey=Hotkey(name), stake=stakes.get(name, 0.0), permit=name in stakes)
            for name, uid in self.uids.items()
        )
        closed = None if closes is None else Epoch(closes)
        drawn = self.block_hash(seed)
        seen = m.ChainSeen(block=self.block, block_hash=drawn, owner_uid=255, neurons=neurons, closes=closed)
        self.world.own(seen)

    def block_hash(self, seed: object) -> Digest:
        return digest("block", seed)

    def draw(self, epoch: int, segments: dict[str, int] | None = None, **stakes: float) -> None:
        """Close an epoch by a block that draws these segments."""
        for seed in range(10_000):
            if all(self._segment(epoch, name, seed) == segment for name, segment in (segments or {}).items()):
                self.see(epoch, seed, stakes or None)
                return
        raise AssertionError(f"no block draws {segments}")

    def _segment(self, epoch: int, name: str, seed: int) -> int:
        dossier = self.dossier(epoch, name)
        run_id, block_hash = self.world.spec.run_id, self.block_hash(seed)
        return rules.segment_of(block_hash, run_id, dossier.stage, epoch, Hotkey(name), len(dossier.commitments) - 1)

    # ---- validators --------------------------------------------------------------------------------------------------

    def review(self, name: str, *found: m.AuditDone, free: int = 16) -> Any:
        return self.world.send(Hotkey(name), m.Review(free=free, found=found))

    def found(
        self, item: ItemId, figures: m.AuditFigures | None = GOOD, reason: Reason = Reason.OK, sentence: str = "found"
    ) -> m.AuditDone:
        return m.AuditDone(item=item, figures=figures, reason=reason, sentence=sentence, compute_s=1.0)

    def given(self, name: str) -> list[m.AuditWork]:
        """Audits that a validator has to do now."""
        return list(self.review(name).audits)

    def show_all(self, *names: str) -> None:
        """The states that these miners, or all, are asked for."""
        for name in names or tuple(self.world.players):
            if self.reveals(name):
                self.reveal(name)

    def settle_all(self, name: str = "v") -> None:
        """Every miner shows its states, and one validator finds nothing wrong."""
        while self.state.pay.audits:
            count = len(self.state.pay.audits)
            self.show_all()
            works = self.given(name)
            self.review(name, *(self.found(work.item) for work in works))
            assert len(self.state.pay.audits) < count, "no audit goes on"

    # ---- what is known -----------------------------------------------------------------------------------------------

    def audit(self, name: str, epoch: int | None = None) -> Audit:
        """The one open audit of a miner."""
        audits = [a for a in self.state.pay.audits.values() if a.hotkey == name and epoch in (None, a.epoch)]
        assert len(audits) == 1, audits
        return audits[0]

    def audited(self) -> list[str]:
        return sorted(audit.hotkey for audit in self.state.pay.audits.values())

    def dossier(self, epoch: int, name: str) -> Dossier:
        return self.state.pay.dossiers[epoch][Hotkey(name)]

    def standing(self, name: str) -> Standing:
        return self.state.pay.standing.get(Hotkey(name), Standing())

    def score(self, name: str) -> float:
        return sheet(self.state).emission.scores.get(Hotkey(name), 0.0)

    def pays(self, name: str) -> dict[int, Reason]:
        """Why each epoch of a miner counts, or does not."""
        return {line.epoch: line.reason for line in sheet(self.state).payslip(Hotkey(name)).lines}


@pytest.fixture
def courts(worlds: Callable[..., World]) -> Callable[..., Court]:
    """`courts(*miners, target_epochs=0, ...)`: one stage, an inner step after every pass, a segment for each step."""

    def make(*names: str, **change: Any) -> Court:
        asked = {
            "num_stages": 1, "rate": 1.0, "settled_epochs": 99, "segment_steps": 1, "micro_batches_per_step": 1,
            "reveal_deadline_s": REVEAL_S, "replay_deadline_s": REPLAY_S, "gamma_s": GAMMA_S, **change,
        }  # fmt: skip
        court = Court(worlds(**asked))
        court.world.join(*names)
        return court

    return make
