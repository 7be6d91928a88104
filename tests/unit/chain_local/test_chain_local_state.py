"""Raw state against a plain dictionary: versions, undoing, forgetting, and the copy on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.chain.local.ledger.state import Change, Forget, State
from subnet.chain.local.store import Block, Store
from subnet.errors import InvariantViolation

KEYS = [bytes([group]) * 32 + bytes([item]) for group in (1, 2) for item in range(3)]
writes = st.lists(st.tuples(st.sampled_from(KEYS), st.none() | st.binary(max_size=3)), max_size=6)
blocks = st.lists(st.tuples(writes, writes, st.booleans()), min_size=1, max_size=25)
"""Of each block: writes, writes inside an attempt, and whether the attempt fails."""
KEEP = 4


class Undone(Exception):
    pass


def block_of(number: int) -> Block:
    return Block(number, f"0x{number:064x}", "", "", "", (), ())


def play(state: State, store: Store, story: list[Any]) -> list[dict[bytes, bytes]]:
    """Carries a story out; returns the state that each block should have left."""
    model: dict[bytes, bytes] = {}
    history = [dict(model)]
    store.seal(block_of(0), state.changes(), state.seal())
    for number, (plain, tried, fails) in enumerate(story, start=1):
        state.begin(number)
        for key, value in plain:
            state.put(key, value)
            model = {**model, key: value} if value is not None else {k: v for k, v in model.items() if k != key}
        try:
            with state.attempt():
                for key, value in tried:
                    state.put(key, value)
                if fails:
                    raise Undone
        except Undone:
            pass
        else:
            for key, value in tried:
                model = {**model, key: value} if value is not None else {k: v for k, v in model.items() if k != key}
        changes = state.changes()
        store.seal(block_of(number), changes, state.seal())
        history.append(dict(model))
    return history


def check(state: State, history: list[dict[bytes, bytes]]) -> None:
    for number in range(state.oldest, len(history)):
        assert {key: state.get(key, number) for key in state.keys(b"", number)} == history[number]
        for key in KEYS:
            assert state.get(key, number) == history[number].get(key)
    for group in (1, 2):
        prefix = bytes([group]) * 32
        assert state.keys(prefix) == sorted(key for key in history[-1] if key.startswith(prefix))


@settings(max_examples=60, deadline=None)
@given(blocks)
def test_state_is_what_was_written(story: list[Any]) -> None:
    """1. Whatever is written, undone and forgotten: each block that is kept reads as it was; what the disk holds gives
    the same again after a restart, and the restarted state forgets as the first one does."""
    state, store = State(KEEP), Store(None)
    history = play(state, store, story)
    check(state, history)
    again = State(KEEP)
    again.restore(len(story), store.versions())
    check(again, history)
    for one in (state, again):
        one.begin(len(story) + 1)
    assert state.seal() is not None and again.seal() is not None
    check(again, [*history, history[-1]])
    store.close()


@settings(max_examples=30, deadline=None)
@given(blocks)
def test_no_more_is_kept_than_needed(story: list[Any]) -> None:
    """2. A counter that changes in every block leaves at most one version for each block that can be read."""
    state, store = State(KEEP), Store(None)
    play(state, store, story)
    for versions, values in state._versions.values():
        assert sum(number <= state.oldest for number in versions) <= 1
        assert len(versions) <= KEEP + 1
        assert len(versions) > 1 or values[0] is not None or versions[0] > state.oldest
    stored = {(key, number): value for number, key, value in store.versions()}
    kept = {
        (key, number): value
        for key, (numbers, values) in state._versions.items()
        for number, value in zip(numbers, values, strict=True)
    }
    assert stored == kept
    store.close()


def test_attempts_nest() -> None:
    """3. A batch in a batch: the inner one fails and is undone, the outer one stands; then the outer one fails too."""
    state = State(KEEP)
    state.put(KEYS[0], b"before")
    with state.attempt():
        state.put(KEYS[0], b"outer")
        with pytest.raises(Undone), state.attempt():
            state.put(KEYS[0], b"inner")
            state.put(KEYS[1], b"inner")
            raise Undone
        assert (state.get(KEYS[0]), state.get(KEYS[1])) == (b"outer", None)
    with pytest.raises(Undone), state.attempt():
        with state.attempt():
            state.put(KEYS[1], b"inner")
        raise Undone
    assert (state.get(KEYS[0]), state.get(KEYS[1])) == (b"outer", None)


def test_blocks_follow_each_other() -> None:
    """4. A block is left out: the program contradicts itself and says so."""
    state = State(KEEP)
    state.put(KEYS[0], b"x")
    state.seal()
    with pytest.raises(InvariantViolation):
        state.begin(5)


def test_a_full_disk(tmp_path: Path) -> None:
    """5. The disk is full in the middle of a block: nothing of that block is there after the restart."""
    store = Store(tmp_path / "chain.sqlite")
    store.seal(block_of(0), [Change(KEYS[0], b"a")], [])
    with pytest.raises(Exception, match="UNIQUE"):
        store.seal(block_of(0), [Change(KEYS[0], b"b")], [Forget(KEYS[0], 9)])
    with pytest.raises(Exception, match="type"):
        store.seal(block_of(1), [Change(KEYS[0], b"b"), Change(KEYS[1], object())], [])  # type: ignore[arg-type]
    store.close()
    again = Store(tmp_path / "chain.sqlite")
    assert list(again.versions()) == [(0, KEYS[0], b"a")]
    newest = again.newest()
    assert newest is not None and newest.number == 0
    again.close()
