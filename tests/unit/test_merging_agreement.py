"""Whose copy stands and who is to blame (ALGORITHMS 4, vector 5)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.merging.agreement import disagreements, matrix, settle, silent_share
from subnet.merging.butterfly import Assignment, assign
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.messages import Shard

A, B, C, X = (Hotkey(name) for name in "ABCX")
GOOD, BAD, WORSE = (Digest(hashlib.sha256(name).hexdigest()) for name in (b"good", b"bad", b"worse"))


def one_shard(*owners: Hotkey) -> list[Assignment]:
    return [Assignment(Shard(index=0, start=0, length=256), owners)]


@pytest.mark.parametrize(
    ("reports", "recomputed", "outcome", "winner", "faulty"),
    [
        ({A: GOOD, B: GOOD}, {}, "agreed", A, set()),
        ({B: GOOD}, {}, "single", B, set()),
        ({}, {}, "lost", None, set()),
        ({A: GOOD, B: BAD}, {}, "disputed", None, set()),
        ({A: GOOD, B: BAD}, {0: GOOD}, "settled", A, {B}),
        ({A: BAD, B: GOOD}, {0: GOOD}, "settled", B, {A}),
        ({A: BAD, B: WORSE}, {0: GOOD}, "settled", None, {A, B}),  # both wrong, differently
        ({A: BAD, B: BAD}, {0: GOOD}, "settled", None, {A, B}),  # both wrong, colluding: only a spot check sees it
        ({A: GOOD, B: GOOD}, {0: GOOD}, "settled", A, set()),
        ({B: BAD}, {0: GOOD}, "settled", None, {B}),
        ({}, {0: GOOD}, "settled", None, set()),  # nobody reported, the orchestrator's own values stand
        ({A: GOOD, B: BAD}, {0: None}, "lost", None, set()),  # inputs gone: nobody can be blamed
        ({A: GOOD, B: GOOD}, {0: None}, "agreed", A, set()),
        ({B: GOOD}, {0: None}, "single", B, set()),
        ({}, {0: None}, "lost", None, set()),
        ({X: BAD, A: GOOD}, {}, "single", A, set()),  # a stranger's report is not looked at
    ],
)
def test_the_table(
    reports: dict[Hotkey, Digest],
    recomputed: dict[int, Digest | None],
    outcome: str,
    winner: Hotkey | None,
    faulty: set[Hotkey],
) -> None:
    """1. Every row of the truth table in the module's docstring, two owners."""
    result = settle(one_shard(A, B), {hotkey: {0: digest} for hotkey, digest in reports.items()}, recomputed)
    outcomes = result._asdict()
    assert [name for name in ("agreed", "single", "lost", "disputed", "settled") if outcomes[name]] == [outcome]
    assert outcomes[outcome] == (0,) and result.winners == {0: winner}
    assert result.faulty == {hotkey: (0,) for hotkey in faulty}


def test_a_majority_settles_nothing() -> None:
    """2. Three owners, two colluders: the majority is wrong and the recomputation says so."""
    said = {A: {0: BAD}, B: {0: BAD}, C: {0: GOOD}}
    assert settle(one_shard(A, B, C), said, {}).disputed == (0,)
    result = settle(one_shard(A, B, C), said, {0: GOOD})
    assert result.winners == {0: C} and set(result.faulty) == {A, B}


def hotkeys(count: int) -> list[Hotkey]:
    return [Hotkey(f"hk{i:03d}") for i in range(count)]


def swarm(num_owners: int, bad: int, copies: int, lie: Callable[[Hotkey, int], str]) -> tuple:
    """Assignments, reports in which the first `bad` owners lie, and the true digests."""
    assignments = assign(b"s" * 32, 0, 0, hotkeys(num_owners), 10_000_000, copies)
    truth = {shard.index: Digest(hashlib.sha256(b"%d" % shard.index).hexdigest()) for shard, _ in assignments}
    reports: dict[Hotkey, dict[int, Digest]] = {hotkey: {} for hotkey in hotkeys(num_owners)}
    liars = set(hotkeys(bad))
    for shard, owners in assignments:
        for owner in owners:
            said = (
                hashlib.sha256(lie(owner, shard.index).encode()).hexdigest() if owner in liars else truth[shard.index]
            )
            reports[owner][shard.index] = Digest(said)
    return assignments, reports, truth


@pytest.mark.parametrize(
    ("lie", "bad_row", "disputed"),
    [
        (lambda owner, shard: f"{owner} {shard}", 49, 5 * 45 + 10),  # each invents its own
        (lambda owner, shard: f"pact {shard}", 45, 5 * 45),  # they agree among each other
    ],
    ids=["alone", "colluding"],
)
def test_liars_stand_out_in_the_matrix(lie: Callable[[Hotkey, int], str], bad_row: int, disputed: int) -> None:
    """3. Vector 5: N = 50, five liars: their rows disagree 49 times (45 if they collude), honest rows 5 times."""
    assignments, reports, truth = swarm(50, 5, 2, lie)
    rows = disagreements(assignments, reports)
    assert {rows[hotkey] for hotkey in hotkeys(5)} == {bad_row}
    assert {rows[hotkey] for hotkey in hotkeys(50)[5:]} == {5}
    open_ = settle(assignments, reports, {})
    assert len(open_.disputed) == disputed and not open_.faulty
    # recomputing the disputed shards names exactly the liars
    result = settle(assignments, reports, {index: truth[index] for index in open_.disputed})
    assert not result.disputed and set(result.faulty) == set(hotkeys(5))
    assert all(len(shards) == bad_row for shards in result.faulty.values())


def test_the_silent_set_is_what_collusion_hides() -> None:
    """4. Shards both of whose owners collude look agreed: C(5,2)/C(50,2) = 0.8 %, and 11.1 % at seventeen; recomputing
    a random 5 % of all shards finds one with 40 % and 99.9 %."""
    for bad, percent, caught in ((5, 0.8, 0.40), (17, 11.1, 0.999)):
        assignments, reports, truth = swarm(50, bad, 2, lambda owner, shard: f"pact {shard}")
        result = settle(assignments, reports, {})
        silent = [i for i in result.agreed if reports[assignments[i].owners[0]][i] != truth[i]]
        assert len(silent) == bad * (bad - 1) // 2
        assert len(silent) / len(assignments) == pytest.approx(silent_share(50, bad))
        assert 100 * silent_share(50, bad) == pytest.approx(percent, abs=0.05)
        assert 1 - 0.95 ** len(silent) == pytest.approx(caught, abs=0.002)
        # a spot check of one such shard names both
        spotted = settle(assignments, reports, {silent[0]: truth[silent[0]]})
        assert set(spotted.faulty) == set(assignments[silent[0]].owners)


def test_one_wrong_shard_names_its_owner() -> None:
    """5. Five replicas, one uploads one wrong shard: matrix and settlement point at it, its other shards stand."""
    assignments, reports, truth = swarm(5, 0, 2, lambda owner, shard: "")
    culprit = hotkeys(5)[2]
    wrong = next(shard.index for shard, owners in assignments if culprit in owners)
    reports[culprit][wrong] = BAD
    partner = next(owner for owner in assignments[wrong].owners if owner != culprit)
    pairs = matrix(assignments, reports)
    assert [pair for pair, counts in pairs.items() if counts.different] == [tuple(sorted((culprit, partner)))]
    assert settle(assignments, reports, {}).disputed == (wrong,)
    result = settle(assignments, reports, {wrong: truth[wrong]})
    assert result.faulty == {culprit: (wrong,)} and result.winners[wrong] == partner and len(result.agreed) == 9


@given(st.integers(1, 6), st.integers(1, 3), st.data())
@settings(max_examples=60, deadline=None)
def test_every_shard_has_one_outcome_and_no_honest_owner_is_blamed(
    num_owners: int, copies: int, data: st.DataObject
) -> None:
    """6. Any mixture of silence, honesty and lies, any shards recomputed: outcomes part the shards, blame is just."""
    assignments = assign(b"s" * 32, 0, 0, hotkeys(num_owners), 50_000, copies)
    digest = st.sampled_from([None, GOOD, BAD, WORSE])
    reports: dict[Hotkey, dict[int, Digest]] = {}
    for shard, owners in assignments:
        for owner in owners:
            said = data.draw(digest)
            if said is not None:
                reports.setdefault(owner, {})[shard.index] = said
    recomputed = {i: GOOD for i in data.draw(st.sets(st.integers(0, len(assignments) - 1)))}
    result = settle(assignments, reports, recomputed)
    parts = [*result.agreed, *result.single, *result.lost, *result.disputed, *result.settled]
    assert sorted(parts) == list(range(len(assignments))) == sorted(result.winners)
    for owner, shards in result.faulty.items():
        assert all(reports[owner][i] != GOOD and i in recomputed for i in shards)
    for index, winner in result.winners.items():
        if index in recomputed and winner is not None:
            assert reports[winner][index] == GOOD
    assert set(result.disputed).isdisjoint(recomputed)
