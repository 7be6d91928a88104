"""From a micro-batch id to its tokens: everybody derives the same, and the whole text is used."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.data.sampling import Batches, permuted, validation_batches
from subnet.errors import ConfigError

KNOWN_STARTS = [9890, 3330, 1474, 994, 2946, 9154]


def text(count: int, dtype: type = np.uint16) -> np.ndarray:
    """Each token is its own position, so a batch shows where it was taken from."""
    return np.arange(count, dtype=dtype)


def test_two_parties_derive_the_same_batch() -> None:
    """1. A miner with a memory-mapped file, a validator with an array, asked in any order: equal bits, nothing sent."""
    miner, validator = Batches(text(10_000), 7, 4, 32), Batches(text(10_000, np.uint32), 7, 4, 32)
    ids = [900, 0, 3, 10**12, 900]
    for number in ids:
        for one, other in zip(miner.batch(number), validator.batch(number), strict=True):
            assert one.dtype == np.int64 and one.shape == (4, 32) and np.array_equal(one, other)


def test_known_batch() -> None:
    """2. A living run must not change under an update: these starts are part of the protocol."""
    batches = Batches(text(10_000), 7, 4, 32)
    assert [batches.start(window) for window in range(6)] == KNOWN_STARTS
    assert batches.batch(1)[0][:, 0].tolist() == [KNOWN_STARTS[4], KNOWN_STARTS[5], batches.start(6), batches.start(7)]


def test_targets_are_the_next_tokens() -> None:
    """3. The model predicts what follows, also across the window's end."""
    tokens_BT, targets_BT = Batches(text(5_000), 1, 8, 16).batch(3)
    assert np.array_equal(targets_BT, tokens_BT + 1)
    assert np.array_equal(tokens_BT, tokens_BT[:, :1] + np.arange(16))


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 10**6), st.data())
@settings(max_examples=60, deadline=None)
def test_each_pass_covers_the_text_evenly(seq_len: int, batch: int, seed: int, data: st.DataObject) -> None:
    """4. Whatever the text's length: in each pass every target comes at most once, and all but the ends come."""
    count = data.draw(st.integers(seq_len + 1, 1_500))
    batches = Batches(text(count), seed, batch, seq_len)
    for round_of_text in range(2):
        first = round_of_text * batches.windows_per_pass
        starts = [batches.start(first + position) for position in range(batches.windows_per_pass)]
        assert min(starts) >= 0 and max(starts) + seq_len < count
        targets = Counter(target for start in starts for target in range(start + 1, start + seq_len + 1))
        assert set(targets.values()) == {1}
        assert len(targets) == batches.windows_per_pass * seq_len > count - 2 * seq_len
    assert len(batches.batch(batches.windows_per_pass)[0]) == batch  # a batch may straddle two passes


def test_passes_and_seeds_differ() -> None:
    """5. The second pass over the text has other windows in another order, and so has another run."""
    batches, other = Batches(text(30_000), 1, 1, 32), Batches(text(30_000), 2, 1, 32)
    w = batches.windows_per_pass
    first, second = [batches.start(i) for i in range(w)], [batches.start(w + i) for i in range(w)]
    assert first[0] % 32 != second[0] % 32 or first != second
    assert first != sorted(first) and first != [other.start(i) for i in range(w)]
    same_place = sum(a // 32 == b // 32 for a, b in zip(first, second, strict=True))
    assert same_place < 10  # about one by chance


@given(st.integers(1, 300), st.binary(max_size=8), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_permutation_is_one(count: int, key: bytes, tweak: int) -> None:
    """6. Every position is hit exactly once, for any count."""
    assert sorted(permuted(key, position, count, tweak) for position in range(count)) == list(range(count))
    for outside in (-1, count):
        with pytest.raises(ValueError):
            permuted(key, outside, count, tweak)


def test_neighbours_are_torn_apart() -> None:
    """7. Micro-batches in flight together come from all over the text: no visible order is left in the permutation."""
    places = np.array([permuted(b"key", position, 1_000, 0) for position in range(1_000)], np.float64)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.1
    assert abs(np.corrcoef(np.arange(1_000), places)[0, 1]) < 0.1


def test_the_next_decade_costs_the_same() -> None:
    """8. A trillion windows: random access needs no table of them."""
    assert 0 <= permuted(b"key", 10**11, 10**12 + 39, 5) < 10**12 + 39


@pytest.mark.parametrize("count", [0, 1, 16])
def test_a_text_shorter_than_a_sequence_names_the_flag(count: int) -> None:
    """9. The operator gave a haiku: one line that says what to do."""
    with pytest.raises(ConfigError) as error:
        Batches(text(count), 0, 1, 16)
    assert error.value.field == "--text"
    with pytest.raises(ConfigError):
        next(validation_batches(text(count), 1, 16))


def test_a_negative_id_is_a_bug() -> None:
    """10. Python's modulo would quietly give a batch for it."""
    with pytest.raises(ValueError):
        Batches(text(100), 0, 1, 16).batch(-1)


def test_validation_is_the_same_for_everyone_and_spread() -> None:
    """11. Each held-out token is predicted at most once; with a limit the batches still span the text."""
    every = list(validation_batches(text(1_000), 4, 16))
    targets = np.concatenate([targets_BT.ravel() for _, targets_BT in every])
    assert np.array_equal(targets, np.arange(1, len(targets) + 1)) and len(targets) > 1_000 - 16 * 5
    few = list(validation_batches(text(1_000), 4, 16, num_batches_max=3))
    assert [int(tokens_BT[0, 0]) for tokens_BT, _ in few] == [0, 320, 640]
    assert all(np.array_equal(targets_BT, tokens_BT + 1) for tokens_BT, targets_BT in few)
    (only,) = validation_batches(text(40), 4, 16)
    assert only[0].shape == (2, 16)  # fewer windows than a batch
