"""What an honest miner's work log and commitments look like, and which lies show (DESIGN 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.protocol.ids import ItemId, Pass
from subnet.protocol.messages import Commitment, Logged
from subnet.scoring.audit import check_log, kind_of, match_log, state_digest


@dataclass
class Miner:
    """An honest miner's book-keeping, written down the slow and obvious way: commits and logs as it goes."""

    k: int
    s: int
    reset: bool = True
    version: int = 7
    step: int = 0
    optimizer_steps: int = 0
    accumulated: int = 0
    since: int = 0
    items: int = 0
    log: list[Logged] = field(default_factory=list)
    commitments: list[Commitment] = field(default_factory=list)
    applied_at: int = 0
    loaded: bool = True
    uploads: int = 0

    def __post_init__(self) -> None:
        self.commit()

    def commit(self) -> None:
        numbers = self.version, self.step, self.optimizer_steps
        self.commitments.append(Commitment(len(self.log), *numbers, state_digest(*numbers, [])))
        self.since = 0

    def run(self, kind: str, back: int = 0) -> None:
        self.items += 1
        self.log.append(Logged(ItemId(f"{kind}{self.items}.1.{self.items + 3}"), self.version - back))
        if kind != "f":
            self.accumulated += 1
            if self.accumulated == self.k:
                self.inner_step()
                if self.since == self.s:
                    self.commit()

    def inner_step(self) -> None:
        self.version, self.step, self.optimizer_steps = self.version + 1, self.step + 1, self.optimizer_steps + 1
        self.accumulated, self.since = 0, self.since + 1

    def upload(self) -> None:
        self.uploads += 1
        if self.accumulated:
            self.inner_step()
        if (self.commitments[-1].position, self.commitments[-1].version) != (len(self.log), self.version):
            self.commit()
        self.since = 0

    def turn(self) -> None:
        """The upload was taken: what follows is in the next log."""
        self.commitments = [msgspec.structs.replace(self.commitments[-1], position=0)]
        self.log, self.loaded, self.uploads = [], False, 0

    def merge(self) -> None:
        self.applied_at, self.version, self.step = len(self.log), self.version + 1, 0
        self.optimizer_steps = 0 if self.reset else self.optimizer_steps

    def check(self, **changes: object) -> str | None:
        told: dict[str, object] = {"log": self.log, "commitments": self.commitments, "applied_at": self.applied_at}
        told |= {"loaded": self.loaded, "uploads": self.uploads, "reset_each_epoch": self.reset}
        return check_log(micro_batches_per_step=self.k, segment_steps=self.s, **(told | changes))  # type: ignore[arg-type]


PASSES = st.lists(st.sampled_from(["f", "b", "l", "older"]), max_size=25)


def work(miner: Miner, passes: Sequence[str]) -> None:
    for kind in passes:
        miner.run(kind if kind != "older" else "b", back=int(kind == "older"))


@settings(max_examples=150, deadline=None)
@given(
    k=st.integers(1, 4),
    s=st.integers(1, 4),
    reset=st.booleans(),
    epochs=st.lists(st.tuples(PASSES, st.lists(PASSES, min_size=1, max_size=3)), min_size=1, max_size=3),
)
def test_no_honest_log_is_refused(k: int, s: int, reset: bool, epochs: list[tuple[list[str], list[list[str]]]]) -> None:
    """1. Any passes in any order, uploads that came to nothing, merges applied at any moment: nothing to object to.

    A log that is told of more uploads than there were is no problem either.
    """
    miner = Miner(k, s, reset)
    for before_merge, rounds in epochs:
        if not miner.loaded:
            work(miner, before_merge)
            miner.merge()
        for passes in rounds:
            work(miner, passes)
            miner.upload()
        assert miner.check() is None
        assert miner.check(uploads=miner.uploads + 1) is None
        assert miner.check(merged=not miner.loaded) is None
        miner.turn()


def trained() -> Miner:
    """Two epochs: loaded, then one that goes on from the upload, with a merge after two passes."""
    miner = Miner(k=2, s=2)
    work(miner, ["f", "b", "b", "f", "b", "b", "b"])
    miner.upload()
    miner.turn()
    work(miner, ["f", "b"])
    miner.merge()
    work(miner, ["b", "f", "older", "b", "b", "b", "l"])
    miner.upload()
    return miner


def test_the_log_of_an_epoch_in_figures() -> None:
    """2. k = 2, s = 2; the merge comes while one gradient is accumulated: it stays, and the first step is epoch 1's."""
    assert [tuple(one)[:4] for one in map(msgspec.structs.astuple, trained().commitments)] == [
        (0, 10, 3, 3),  # the upload before
        (6, 13, 2, 2),  # merge → 11; steps after passes 3 and 6
        (9, 15, 4, 4),  # the third step's gradient pair, and the one that the upload made
    ] and trained().check() is None


def replaced(miner: Miner, number: int, **changes: object) -> list[Commitment]:
    commitments = list(miner.commitments)
    commitments[number] = msgspec.structs.replace(commitments[number], **changes)
    return commitments


def logged(miner: Miner, number: int, **changes: object) -> list[Logged]:
    log = list(miner.log)
    log[number] = msgspec.structs.replace(log[number], **changes)
    return log


LIES: list[tuple[str, Callable[[Miner], dict[str, object]]]] = [
    ("no training state", lambda m: {"commitments": []}),
    ("not before the first", lambda m: {"commitments": replaced(m, 0, position=1)}),
    ("not before the first", lambda m: {"commitments": m.commitments[1:]}),
    ("commitment 1 is for", lambda m: {"commitments": [m.commitments[0], m.commitments[-1]]}),
    ("2 states were committed; the log makes 3", lambda m: {"commitments": m.commitments[:-1]}),
    ("4 states were committed; the log makes 3", lambda m: {"commitments": [*m.commitments, m.commitments[-1]]}),
    ("commitment 1 is for", lambda m: {"commitments": [m.commitments[0], *m.commitments]}),  # an empty segment
    ("commitment 1 is for", lambda m: {"commitments": replaced(m, 1, position=5)}),
    ("commitment 1 is for", lambda m: {"commitments": replaced(m, 1, version=12)}),
    ("commitment 1 is for", lambda m: {"commitments": replaced(m, 1, step=5)}),  # another place on the LR schedule
    ("commitment 2 is for", lambda m: {"commitments": replaced(m, 2, optimizer_steps=7)}),
    ("commitment 2 is for", lambda m: {"log": m.log[:-1]}),
    ("has 9", lambda m: {"applied_at": 10}),
    ("due is one for after 6 passes, version 12", lambda m: {"applied_at": 8}),
    ("but at inner step 3", lambda m: {"loaded": True}),
    ("both, or neither", lambda m: {"merged": False}),  # neither: the first state would be anybody's invention
    ("both, or neither", lambda m: {"loaded": True, "merged": True}),
    ("is no pass", lambda m: {"log": logged(m, 4, item=ItemId("u0.1.2.hk"))}),
    ("is no pass", lambda m: {"log": logged(m, 4, item=ItemId("b007.1.2"))}),
    ("run on version 9, when version 10 was", lambda m: {"log": logged(m, 0, version=9)}),  # a forward is never older
    ("run on version 9, when version 11 was", lambda m: {"log": logged(m, 2, version=9)}),  # two versions back
    ("run on version 13, when version 12 was", lambda m: {"log": logged(m, 3, version=13)}),
    ("run on version 13, when version 14 was", lambda m: {"log": logged(m, 8, version=13)}),  # a loss is never older
]


@pytest.mark.parametrize(("said", "lie"), LIES, ids=[f"{number} {said}" for number, (said, _) in enumerate(LIES)])
def test_a_false_log_is_told_what_is_wrong(said: str, lie: Callable[[Miner], dict[str, object]]) -> None:
    """3. One number is off, a state is left out, one comes twice: the sentence names the first problem, in brief."""
    problem = trained().check(**lie(trained()))
    assert problem is not None and said in problem and len(problem) <= 300


def test_a_cut_log_does_not_fit_its_commitments() -> None:
    """4. A lazy miner leaves a backward out and moves its later commitments forward: the versions do not come out."""
    lazy = trained()
    log = [one for number, one in enumerate(lazy.log) if number != 5]
    moved = [msgspec.structs.replace(one, position=max(0, one.position - 1)) for one in lazy.commitments]
    moved[0] = lazy.commitments[0]
    assert lazy.check(log=log, commitments=moved) is not None


def test_an_upload_in_between_has_to_have_been_asked_for() -> None:
    """5. Extra commitments thin out the draw: they pass as uploads only as often as uploads were asked for."""
    miner = Miner(k=2, s=4)
    for _ in range(3):
        work(miner, ["b"])
        miner.upload()
    assert miner.check() is None
    assert miner.check(uploads=2) is not None and miner.check(uploads=1) is not None


def test_a_log_must_match_the_journal() -> None:
    """6. Items of somebody else, items twice, and credited items that are left out so that nobody replays them."""
    items = [ItemId(name) for name in ("f1.0.0", "b1.0.1", "f2.0.0")]
    log = [Logged(item, 0) for item in items]
    assert match_log(log, set(items), items) is None
    assert match_log(log, dict.fromkeys([*items, ItemId("f9.0.0")]), items[:1]) is None, "given, but never computed"
    assert "never given" in str(match_log(log, set(items[:2]), []))
    assert "twice" in str(match_log([*log, log[1]], set(items), items))
    assert "b7.0.3 was credited" in str(match_log(log, set(items), [*items, ItemId("b7.0.3")]))
    assert "f7.0.3 was credited" in str(match_log(log, set(items), [*items, ItemId("f7.0.3")])), "noise sent forward"
    assert match_log([], set(), []) is None


def test_item_ids_name_their_pass() -> None:
    """7. Peers invent ids; only those that the orchestrator could have written name a pass."""
    assert [kind_of(ItemId(item)) for item in ("f12.0.1", "b0.3.0", "l7.1.22")] == [
        Pass.FORWARD,
        Pass.BACKWARD,
        Pass.LOSS,
    ]
    for item in ("", "f1.0", "g1.0.0", "f01.0.0", "f1.0.0 ", "f1.0.0.0", "f-1.0.0", "f1.0.0\n", "f\u0661.0.0"):
        assert kind_of(ItemId(item)) is None, item
