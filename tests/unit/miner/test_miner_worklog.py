"""A miner's own book: what `WorkLog` writes down is what `scoring.audit` accepts, and every state can be shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.coordination.dossiers import KEPT_EPOCHS
from subnet.miner.snapshots import FolderSnapshots, MemorySnapshots, Snapshots
from subnet.miner.worklog import WorkLog, encoded
from subnet.model.training_state import TrainingState
from subnet.protocol.ids import Epoch, ItemId, RunId
from subnet.protocol.messages import STATE_PARTS, Commitment
from subnet.scoring.audit import check_log, state_digest
from subnet.transport.transfer import digest_of

RUN = RunId("run")


class Training:
    """Counts like a trainer, and calls the log as `Replica` does."""

    def __init__(self, k: int, s: int, reset: bool, snapshots: Snapshots) -> None:
        self.k, self.s, self.reset = k, s, reset
        self.log = WorkLog(snapshots, s)
        self.epoch = self.version = self.step = self.optimizer_steps = self.accumulated = self.items = 0
        self.uploads = 0
        self.load()

    def state(self) -> TrainingState:
        rng = np.random.default_rng([self.epoch, self.version, self.step])
        parts = tuple(rng.standard_normal(3).astype(np.float32) for _ in STATE_PARTS)
        return TrainingState(self.version, self.step, self.optimizer_steps, parts)

    def load(self) -> None:
        self.version, self.step, self.optimizer_steps, self.accumulated = self.version + 1, 0, 0, 0
        self.uploads = 0
        self.log.began(self.state())

    def run(self, kind: str) -> None:
        self.items += 1
        stepped = False
        version = self.version
        if kind != "f":
            self.accumulated += 1
            stepped = self.accumulated == self.k
            if stepped:
                self.inner_step()
        if self.log.ran(ItemId(f"{kind}{self.items}.1.0"), version, stepped):
            self.log.commit(Epoch(self.epoch), self.state())

    def inner_step(self) -> None:
        self.version, self.step, self.optimizer_steps = self.version + 1, self.step + 1, self.optimizer_steps + 1
        self.accumulated = 0

    def upload(self) -> None:
        if self.accumulated:
            self.inner_step()
        self.uploads += 1
        self.log.uploaded(Epoch(self.epoch), self.state())

    def merge(self) -> None:
        self.epoch, self.version, self.step, self.uploads = self.epoch + 1, self.version + 1, 0, 0
        if self.reset:
            self.optimizer_steps = 0
        self.log.applied()

    def check(self) -> str | None:
        told = self.log.told()
        assert (told.applied_at is None) == told.loaded
        return check_log(
            told.log, told.commitments, told.applied_at or 0, self.k, self.s, loaded=told.loaded,
            merged=told.applied_at is not None, reset_each_epoch=self.reset, uploads=self.uploads,
        )  # fmt: skip


EPOCH = st.tuples(
    st.lists(st.lists(st.sampled_from("fbl"), max_size=14), min_size=1, max_size=3),
    st.lists(st.sampled_from("fbl"), max_size=5),
    st.sampled_from(["merge", "merge", "load"]),
)
"""Rounds, each ended by an upload (all but the last came to nothing); passes after the last one; how it goes on."""


@given(epochs=st.lists(EPOCH, min_size=1, max_size=4), k=st.integers(1, 3), s=st.integers(1, 3), reset=st.booleans())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_an_honest_log_is_accepted(
    epochs: list[tuple[list[list[str]], list[str], str]], k: int, s: int, reset: bool
) -> None:
    """1. Whatever passes come, before and after uploads, over merges, loads and rounds that came to nothing: the log is
    what the rules make due, goes on where the one before ended, and every state that it commits can be shown."""
    snapshots = MemorySnapshots()
    training = Training(k, s, reset, snapshots)
    known = {training.log.told().commitments[0].digest}
    last: Commitment | None = None
    for rounds, after, way in epochs:
        for passes in rounds:
            for kind in passes:
                training.run(kind)
            training.upload()
        assert training.log.has_uploaded and training.check() is None
        told = training.log.told()
        if last is not None:
            assert told.commitments[0] == Commitment(0, *_numbers(last))
        for commitment in told.commitments:
            parts = snapshots.parts(commitment.digest)
            if parts is None:
                assert commitment.digest in known, "only what was loaded is not kept"
                continue
            digests = [digest_of(part) for part in parts]
            assert state_digest(commitment.version, commitment.step, commitment.optimizer_steps, digests) == (
                commitment.digest
            )
        last = told.commitments[-1]
        for kind in after:
            training.run(kind)
        if way == "merge":
            training.merge()
            assert training.log.told().applied_at == len(after) and not training.log.has_uploaded
        else:
            training.load()
            last = None
            known.add(training.log.told().commitments[0].digest)


def _numbers(commitment: Commitment) -> tuple[int, int, int, str]:
    return commitment.version, commitment.step, commitment.optimizer_steps, commitment.digest


def test_what_is_told_does_not_change_later() -> None:
    """2. The log that goes with an upload is a copy: passes of the next epoch are not in it."""
    training = Training(1, 1, True, MemorySnapshots())
    training.run("l")
    training.upload()
    told = training.log.told()
    training.run("l")
    training.merge()
    assert len(told.log) == 1 and len(told.commitments) == 2 and told.loaded
    assert [one.item for one in training.log.told().log] == ["l2.1.0"]


def test_no_state_is_committed_twice() -> None:
    """3. The upload comes right after a committed step, and once more with nothing in between."""
    training = Training(1, 1, True, MemorySnapshots())
    training.run("l")
    for _ in range(2):
        training.upload()
        assert [one.version for one in training.log.told().commitments] == [1, 2]


# ---- snapshots -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "folder"])
def make_snapshots(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Snapshots]:
    return MemorySnapshots if request.param == "memory" else lambda: FolderSnapshots(tmp_path / "snapshots", RUN)


def parts_of(seed: int) -> tuple[bytes, ...]:
    values = np.random.default_rng(seed).standard_normal((4, 5)).astype(np.float32)
    return encoded(TrainingState(0, 0, 0, tuple(values)))


def test_a_state_comes_back_byte_for_byte(make_snapshots: Callable[[], Snapshots]) -> None:
    """4. All four parts, in their order; what was never kept is not there."""
    snapshots = make_snapshots()
    for seed in range(3):
        snapshots.keep(Epoch(seed), f"{seed}" * 64, parts_of(seed))
    assert [snapshots.parts(f"{seed}" * 64) for seed in range(3)] == [parts_of(seed) for seed in range(3)]
    assert snapshots.parts("f" * 64) is None


def test_states_are_kept_as_long_as_an_audit_may_ask(make_snapshots: Callable[[], Snapshots]) -> None:
    """5. Three epochs behind the newest; a state of an older epoch that comes late drops nothing."""
    snapshots = make_snapshots()
    for epoch in range(KEPT_EPOCHS + 1):
        snapshots.keep(Epoch(epoch), f"{epoch}" * 64, parts_of(epoch))
    assert all(snapshots.parts(f"{epoch}" * 64) for epoch in range(KEPT_EPOCHS + 1))
    snapshots.keep(Epoch(KEPT_EPOCHS + 1), "e" * 64, parts_of(9))
    assert snapshots.parts("0" * 64) is None and snapshots.parts("1" * 64) == parts_of(1)
    snapshots.keep(Epoch(2), "d" * 64, parts_of(8))
    assert snapshots.parts("e" * 64) == parts_of(9) and snapshots.parts("1" * 64) == parts_of(1)
    snapshots.drop()
    assert all(snapshots.parts(digest * 64) is None for digest in "1de")


def test_states_outlive_the_process(tmp_path: Path) -> None:
    """6. A restarted miner can still show what it committed; half a write of the old process is not taken for one, and
    another run's states go."""
    FolderSnapshots(tmp_path, RunId("other")).keep(Epoch(0), "a" * 64, parts_of(1))
    first = FolderSnapshots(tmp_path, RUN)
    first.keep(Epoch(3), "b" * 64, parts_of(2))
    (tmp_path / RUN / ".partial").write_bytes(b"half")
    second = FolderSnapshots(tmp_path, RUN)
    assert second.parts("b" * 64) == parts_of(2) and second.parts("a" * 64) is None
    assert [path.name for path in tmp_path.iterdir()] == [RUN]
    second.keep(Epoch(3), "c" * 64, parts_of(3))
    assert second.parts("b" * 64) == parts_of(2) and second.parts("c" * 64) == parts_of(3)
    second.keep(Epoch(7), "d" * 64, parts_of(4))
    assert second.parts("b" * 64) is None
