"""Shard assignment: who reduces what, what a loss of owners costs, what a merge moves (ALGORITHMS 4)."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.merging.butterfly import SHARDS_MAX, assign, loss_counts, traffic_vectors
from subnet.merging.compression import BLOCK_VALUES
from subnet.protocol.ids import Hotkey

SECRET = b"s" * 32


def hotkeys(count: int) -> list[Hotkey]:
    return [Hotkey(f"hk{i:04d}") for i in range(count)]


def check_cover(assignments: tuple, count: int) -> None:
    """Every value in exactly one shard; shards in index order, block-aligned, never empty."""
    at = 0
    for index, (shard, owners) in enumerate(assignments):
        assert shard.index == index and shard.start == at and shard.length > 0
        assert shard.start % BLOCK_VALUES == 0 and len(set(owners)) == len(owners)
        at += shard.length
    assert at == count


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("num_owners", [1, 2, 3, 5, 10, 50])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 5_000, 700_123])
def test_every_value_has_its_owners(num_owners: int, copies: int, count: int) -> None:
    """1. From one replica to fifty, from one value to a real stage: all of the vector, no group twice."""
    assignments = assign(SECRET, 1, 4, hotkeys(num_owners), count, copies)
    check_cover(assignments, count)
    size = min(copies, num_owners)
    groups = [owners for _, owners in assignments]
    assert all(len(owners) == size for owners in groups) and len(set(groups)) == len(groups)
    assert len(groups) == min(comb(num_owners, size), -(-count // BLOCK_VALUES), SHARDS_MAX)
    load = Counter(owner for owners in groups for owner in owners)
    assert max(load.values()) - min(load[hotkey] for hotkey in hotkeys(num_owners)) <= size


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 100_000), st.binary(min_size=32, max_size=32))
@settings(max_examples=60, deadline=None)
def test_any_vector_any_owners(num_owners: int, copies: int, count: int, secret: bytes) -> None:
    """2. The same for shapes nobody thought of."""
    check_cover(assign(secret, 0, 0, hotkeys(num_owners), count, copies), count)


def test_each_pair_meets_exactly_once() -> None:
    """3. Five replicas: ten shards, each pair shares one, each miner reduces four of them (vector 3)."""
    assignments = assign(SECRET, 0, 0, hotkeys(5), 1_000_000, 2)
    assert sorted(owners for _, owners in assignments) == sorted(combinations(hotkeys(5), 2))
    assert set(Counter(owner for _, owners in assignments for owner in owners).values()) == {4}
    lengths = [shard.length for shard, _ in assignments]
    assert max(lengths) - min(lengths) <= 2 * BLOCK_VALUES


def test_small_swarms() -> None:
    """4. One replica owns everything alone; two share one shard; copies beyond the replicas change nothing."""
    for num_owners in (1, 2):
        (only,) = assign(SECRET, 0, 0, hotkeys(num_owners), 5_000, 8)
        assert only.owners == tuple(hotkeys(num_owners)) and (only.shard.start, only.shard.length) == (0, 5_000)


def test_the_draw_is_verifiable_and_moves() -> None:
    """5. After the secret is revealed anyone recomputes the assignment, whatever order it lists the owners in; the
    next epoch, stage or secret gives another."""
    base = assign(SECRET, 1, 2, hotkeys(6), 100_000, 2)
    assert base == assign(SECRET, 1, 2, hotkeys(6)[::-1], 100_000, 2)
    others = [
        assign(SECRET, 1, 3, hotkeys(6), 100_000, 2),
        assign(SECRET, 2, 2, hotkeys(6), 100_000, 2),
        assign(b"t" * 32, 1, 2, hotkeys(6), 100_000, 2),
    ]
    assert all(base != other for other in others)
    # over many epochs a given pair gets every place
    places = {
        next(shard.index for shard, owners in assign(SECRET, 0, epoch, hotkeys(3), 9_999, 2) if owners[1] == "hk0001")
        for epoch in range(40)
    }
    assert places == {0, 1, 2}


def test_a_thousand_replicas_stay_small() -> None:
    """6. Half a million pairs are capped; all replicas still reduce about the same amount."""
    assignments = assign(SECRET, 0, 0, hotkeys(1_000), 10_000_000, 2)
    assert len(assignments) == SHARDS_MAX
    load = Counter(owner for _, owners in assignments for owner in owners)
    assert len(load) == 1_000 and max(load.values()) - min(load.values()) <= 2


@pytest.mark.parametrize(("owners", "count", "copies"), [([], 9, 2), (["a", "a"], 9, 2), (["a"], 0, 2), (["a"], 9, 0)])
def test_nonsense_is_a_bug(owners: list[Hotkey], count: int, copies: int) -> None:
    """7. No owners, a hotkey twice, an empty vector: the caller is wrong and hears so."""
    with pytest.raises(ValueError):
        assign(SECRET, 0, 0, owners, count, copies)


@pytest.mark.parametrize(
    ("num_owners", "dead", "copies", "expected"),
    [
        (5, 2, 2, (1, 6, 3)),  # vector 3
        (50, 17, 2, (136, 561, 528)),  # vector 4
        (1, 0, 2, (0, 1, 0)),
        (1, 1, 2, (1, 0, 0)),
        (2, 1, 2, (0, 1, 0)),
        (20, 7, 3, (35, 13 * 21, 1140 - 35 - 13 * 21)),
    ],
)
def test_loss_counts(num_owners: int, dead: int, copies: int, expected: tuple[int, int, int]) -> None:
    """8. Replicas die during the merge (vectors 3 and 4)."""
    assert loss_counts(num_owners, dead, copies) == expected


def test_loss_counts_are_what_the_assignment_loses() -> None:
    """9. The formula against the real assignment, for every number of dead."""
    assignments = assign(SECRET, 0, 0, hotkeys(7), 100_000, 2)
    for dead in range(8):
        gone = set(hotkeys(7)[:dead])
        left = Counter(len(set(owners) - gone) for _, owners in assignments)
        assert loss_counts(7, dead) == (left[0], left[1], left[2])


def test_traffic() -> None:
    """10. Five replicas move 4.4 vectors each (vector 3); ten thousand hardly more than four."""
    assert traffic_vectors(5) == pytest.approx(4.4)
    assert traffic_vectors(10_000) == pytest.approx(4.0, abs=1e-3)
    assert traffic_vectors(5, copies=3) == pytest.approx(5.6)
