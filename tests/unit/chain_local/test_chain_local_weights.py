"""On-chain weights and commitments: what is refused and why, what is stored, and what a time-lock means offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Laboratory

PALLET = "SubtensorModule"


@pytest.fixture
def voting(town: Laboratory) -> Laboratory:
    """After the first epoch, so that validator and second have permits."""
    town.to_epoch()
    return town


def test_weights_are_scaled_and_stored(voting: Laboratory) -> None:
    """1. 1 to 3 becomes 21845 to 65535, the largest first of all; the next vector replaces it."""
    assert voting.weigh("validator", {3: 100, 4: 300}) == ""
    assert voting.storage.row("Weights", 1, 1) == [(3, 21_845), (4, 65_535)]
    assert voting.storage.row("LastUpdate", 1)[1] == voting.chain.number
    assert voting.event("WeightsSet") == (1, 1)
    assert voting.weigh("validator", {4: 0}) == ""
    assert voting.storage.row("Weights", 1, 1) == [(4, 0)]


def test_who_may_not(voting: Laboratory) -> None:
    """2. A stranger, a miner without permit (but for itself alone), an old version; the owner may without stake."""
    voting.tune("weights_version_key", weights_version_key=7)
    assert voting.weigh("validator", {3: 1}, version_key=6) == "IncorrectWeightVersionKey"
    assert voting.weigh("validator", {3: 1}, version_key=7) == ""
    voting.tune("weights_version_key", weights_version_key=0)
    assert voting.weigh("miner", {4: 1}) == "NeuronNoValidatorPermit"
    assert voting.weigh("miner", {3: 1}) == ""
    assert voting.weigh("owner", {3: 1}) == ""
    voting.do("stranger", PALLET, "try_associate_hotkey", hotkey=voting.address("stranger/hot"))
    assert voting.weigh("stranger", {3: 1}) == "HotKeyNotRegisteredInSubNet"
    voting.storage.write("StakeThreshold", [], 10**18)
    assert voting.weigh("validator", {3: 1}) == "NotEnoughStakeToSetWeights"


@pytest.mark.parametrize(
    ("dests", "weights", "error"),
    [
        ([3], [1, 2], "WeightVecNotEqualSize"),
        ([3, 3], [1, 2], "DuplicateUids"),
        ([3, 99], [1, 2], "UidVecContainInvalidOne"),
        ([3], [1], "WeightVecLengthIsLow"),
    ],
)
def test_vectors_that_do_not_fit(voting: Laboratory, dests: list[int], weights: list[int], error: str) -> None:
    """3. Lengths, doubles, uids that nobody has, fewer than the subnet asks for."""
    voting.tune("min_allowed_weights", min_allowed_weights=2)
    args = {"netuid": 1, "dests": dests, "weights": weights, "version_key": 0}
    assert voting.do("validator/hot", PALLET, "set_weights", **args) == error
    other = {"netuid": 9, "mecid": 0, "dests": dests, "weights": weights, "version_key": 0}
    assert voting.do("validator/hot", PALLET, "set_mechanism_weights", **other) == "SubnetNotExists"
    assert voting.do("validator/hot", PALLET, "set_mechanism_weights", **other | {"netuid": 1, "mecid": 1}) == (
        "MechanismDoesNotExist"
    )


def test_not_too_often(voting: Laboratory) -> None:
    """4. Once in five blocks."""
    voting.tune("weights_set_rate_limit", weights_set_rate_limit=5)
    assert voting.weigh("validator", {3: 1}) == ""
    voting.block(3)
    assert voting.weigh("validator", {4: 1}) == "SettingWeightsTooFast"
    assert voting.weigh("validator", {4: 1}) == ""


def commit(lab: Laboratory, who: str = "validator", **changes: Any) -> str:
    args = {"netuid": 1, "mecid": 0, "commit": "0x" + "ab" * 40, "reveal_round": 99, "commit_reveal_version": 4}
    return lab.do(f"{who}/hot", PALLET, "commit_timelocked_mechanism_weights", **args | changes)


def test_a_time_lock(voting: Laboratory) -> None:
    """5. With commit-reveal on, plain weights are refused; a commit is kept sealed until a developer opens it: then the
    weights stand, and the commit is gone. What does not hold at the opening is dropped."""
    assert commit(voting) == "CommitRevealDisabled"
    voting.tune("commit_reveal_weights_enabled", enabled=True)
    assert voting.weigh("validator", {3: 1}) == "CommitRevealEnabled"
    assert commit(voting, commit_reveal_version=3) == "IncorrectCommitRevealVersion"
    assert commit(voting, mecid=1) == "MechanismDoesNotExist"
    assert commit(voting) == "" and commit(voting, who="second") == ""
    assert voting.event("TimelockedWeightsCommitted")[3] == 99
    epoch = voting.storage.number("SubnetEpochIndex", 1)
    assert [row[0] for row in voting.storage.row("TimelockedWeightCommits", 1, epoch)] == [
        voting.address("validator/hot"),
        voting.address("second/hot"),
    ]
    assert voting.storage.row("Weights", 1, 1) == []
    hotkey = voting.address("validator/hot")
    voting.chain.reveal_later(1, hotkey, [3, 4], [1, 1])
    voting.chain.reveal_later(1, voting.address("second/hot"), [99], [1])
    voting.block()
    assert voting.storage.row("Weights", 1, 1) == [(3, 65_535), (4, 65_535)]
    assert voting.storage.row("Weights", 1, 2) == []
    assert len(voting.storage.row("TimelockedWeightCommits", 1, epoch)) == 1
    assert voting.event("TimelockedWeightsRevealed") == (1, hotkey)


def test_too_many_commits(voting: Laboratory) -> None:
    """6. Ten sealed vectors of one hotkey in one chain epoch are enough; another epoch, another ten."""
    voting.tune("commit_reveal_weights_enabled", enabled=True)
    voting.tune("tempo", tempo=100)
    assert [commit(voting) for _ in range(11)] == [""] * 10 + ["TooManyUnrevealedCommits"]
    voting.tune("weights_set_rate_limit", weights_set_rate_limit=50)
    assert commit(voting) == "CommittingWeightsTooFast"


def test_sealed_commits_do_not_pile_up(voting: Laboratory) -> None:
    """7. Nothing ever opens them: after a dozen epochs the old ones are gone, the newer ones are kept."""
    voting.tune("commit_reveal_weights_enabled", enabled=True)
    for _ in range(14):
        assert commit(voting) == ""
        voting.to_epoch()
    kept = [epoch for epoch, _ in voting.storage.pairs(PALLET, "TimelockedWeightCommits", 1)]
    assert len(kept) == 11 and max(kept) == voting.storage.number("SubnetEpochIndex", 1) - 1


def committed(lab: Laboratory, who: str, text: bytes) -> str:
    fields = {"fields": [{f"Raw{len(text)}": "0x" + text.hex()}]}
    return lab.do(f"{who}/hot", "Commitments", "set_commitment", netuid=1, info=fields)


def test_a_commitment(town: Laboratory) -> None:
    """8. One text for each hotkey: the next one overwrites it. All 128 bytes come back, whatever they are."""
    for text in (b"http://127.0.0.1:8091", bytes(range(128)), b"0x41"):
        assert committed(town, "miner", text) == ""
        record = town.storage.get("Commitments", "CommitmentOf", 1, town.address("miner/hot"))
        ((name, value),) = record["info"]["fields"][0].items()
        assert (name, bytes.fromhex(value[2:])) == (f"Raw{len(text)}", text)
        assert record["block"] == town.chain.number
    assert town.storage.get("Commitments", "CommitmentOf", 1, town.address("other/hot")) is None


def test_who_may_not_commit(town: Laboratory) -> None:
    """9. Only registered hotkeys, three fields at most, and no more than the space of one tempo; the next tempo gives
    new space."""
    town.do("stranger", PALLET, "try_associate_hotkey", hotkey=town.address("stranger/hot"))
    assert committed(town, "stranger", b"hi") == "AccountNotAllowedCommit"
    info = {"fields": [{"Raw1": "0x61"}] * 4}
    call = ("miner/hot", "Commitments", "set_commitment")
    assert town.do(*call, netuid=1, info=info) == "TooManyFieldsInCommitmentInfo"
    town.tune("tempo", tempo=40)
    results = [committed(town, "miner", bytes(128)) for _ in range(25)]
    assert results.index("SpaceLimitExceeded") == 23  # 3100 bytes in pieces of 130
    town.to_epoch()
    assert committed(town, "miner", b"again") == ""
