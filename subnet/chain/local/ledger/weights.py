"""On-chain weights: set plainly, or committed under time-lock, and commitments of short texts.

Law: a vector that is stored has passed every check of the public chain. A time-locked commit needs a signature of the
drand network that does not exist offline: it is recorded and stays sealed; `reveal` is how a developer opens it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from subnet.chain.local.ledger import neurons, stake
from subnet.chain.local.ledger.book import U16_MAX, Book, Handler, require, require_subnet
from subnet.chain.local.ledger.storage import Storage
from subnet.chain.local.spec.interface import octets

COMMIT_REVEAL_VERSION = 4
OPEN_COMMITS_MAX = 10
"""Of one hotkey in one chain epoch."""
SEALED_EPOCHS = 10
"""How long a commit that nothing has opened is kept beyond its reveal period."""
COMMITMENT_FIELDS_MAX = 3
RECORD_HEAD_BYTES = 8 + 4
"""Deposit and block, which stand before what is committed."""
COMMITMENT_SIZE_MIN = 100
"""Bytes that even a short commitment counts for."""
Weight = tuple[int, int]
"""(uid, value out of U16_MAX)."""


def set_weights(book: Book, who: str, netuid: int, dests: list[int], weights: list[int], version_key: int) -> None:
    set_mechanism_weights(book, who, netuid, 0, dests, weights, version_key)


def set_mechanism_weights(
    book: Book, who: str, netuid: int, mecid: int, dests: list[int], weights: list[int], version_key: int
) -> None:
    storage = book.storage
    require_subnet(book, netuid)
    require(mecid == 0, "MechanismDoesNotExist")
    require(not storage.flag("CommitRevealWeightsEnabled", netuid), "CommitRevealEnabled")
    uid = _require_voter(storage, netuid, who)
    wanted = storage.number("WeightsVersionKey", netuid)
    require(not wanted or version_key >= wanted, "IncorrectWeightVersionKey")
    _require_rate(book, netuid, uid, "SettingWeightsTooFast")
    _store(book, netuid, uid, dests, weights)
    neurons.set_element(storage, "LastUpdate", netuid, uid, book.number)


def reveal(book: Book, netuid: int, hotkey: str, dests: list[int], weights: list[int]) -> None:
    """What the chain does when a time-locked commit opens; the rate limit was checked at the commit."""
    storage = book.storage
    require_subnet(book, netuid)
    uid = _require_voter(storage, netuid, hotkey)
    _store(book, netuid, uid, dests, weights)
    for epoch, rows in storage.pairs("SubtensorModule", "TimelockedWeightCommits", netuid):
        kept = [tuple(row) for row in rows if row[0] != hotkey]
        if kept:
            storage.write("TimelockedWeightCommits", [netuid, epoch], kept)
        else:
            storage.remove("TimelockedWeightCommits", [netuid, epoch])
    book.emit("SubtensorModule", "TimelockedWeightsRevealed", (netuid, hotkey))


def _require_voter(storage: Storage, netuid: int, hotkey: str) -> int:
    uid = neurons.uid_of(storage, netuid, hotkey)
    require(uid is not None, "HotKeyNotRegisteredInSubNet")
    assert uid is not None
    enough = stake.total_stake(storage, hotkey, netuid) >= storage.number("StakeThreshold")
    require(enough, "NotEnoughStakeToSetWeights")
    return uid


def _require_rate(book: Book, netuid: int, uid: int, error: str) -> None:
    last = book.storage.row("LastUpdate", netuid)[uid]
    require(not last or book.number - last >= book.storage.number("WeightsSetRateLimit", netuid), error)


def _store(book: Book, netuid: int, uid: int, dests: list[int], weights: list[int]) -> None:
    storage = book.storage
    require(len(dests) == len(weights), "WeightVecNotEqualSize")
    only_self = list(dests) == [uid]
    is_owner = storage.account("SubnetOwnerHotkey", netuid) == storage.account("Keys", netuid, uid)
    may_weigh = only_self or is_owner or storage.row("ValidatorPermit", netuid)[uid]
    require(may_weigh, "NeuronNoValidatorPermit")
    require(len(set(dests)) == len(dests), "DuplicateUids")
    require(all(dest < storage.number("SubnetworkN", netuid) for dest in dests), "UidVecContainInvalidOne")
    require(only_self or len(dests) >= storage.number("MinAllowedWeights", netuid), "WeightVecLengthIsLow")
    largest = max(weights, default=0) or 1
    row: list[Weight] = [(dest, weight * U16_MAX // largest) for dest, weight in zip(dests, weights, strict=True)]
    storage.write("Weights", [netuid, uid], row)
    book.emit("SubtensorModule", "WeightsSet", (netuid, uid))


# ---- under time-lock


def commit_timelocked_weights(
    book: Book, who: str, netuid: int, commit: Any, reveal_round: int, commit_reveal_version: int
) -> None:
    commit_timelocked_mechanism_weights(book, who, netuid, 0, commit, reveal_round, commit_reveal_version)


def commit_timelocked_mechanism_weights(
    book: Book, who: str, netuid: int, mecid: int, commit: Any, reveal_round: int, commit_reveal_version: int
) -> None:
    storage = book.storage
    require_subnet(book, netuid)
    require(mecid == 0, "MechanismDoesNotExist")
    require(storage.flag("CommitRevealWeightsEnabled", netuid), "CommitRevealDisabled")
    require(commit_reveal_version == COMMIT_REVEAL_VERSION, "IncorrectCommitRevealVersion")
    uid = _require_voter(storage, netuid, who)
    _require_rate(book, netuid, uid, "CommittingWeightsTooFast")
    epoch = storage.number("SubnetEpochIndex", netuid)
    rows = [tuple(row) for row in storage.row("TimelockedWeightCommits", netuid, epoch)]
    require(sum(row[0] == who for row in rows) < OPEN_COMMITS_MAX, "TooManyUnrevealedCommits")
    row = (who, book.number, commit, reveal_round)
    storage.write("TimelockedWeightCommits", [netuid, epoch], [*rows, row])
    neurons.set_element(storage, "LastUpdate", netuid, uid, book.number)
    digest = blake2b(octets(commit), digest_size=32).hexdigest()
    book.emit("SubtensorModule", "TimelockedWeightsCommitted", (who, netuid, "0x" + digest, reveal_round))


def drop_expired(storage: Storage, netuid: int) -> None:
    """Sealed commits whose epoch is long over; called at each epoch, so that they do not pile up."""
    epoch, period = storage.number("SubnetEpochIndex", netuid), storage.number("RevealPeriodEpochs", netuid)
    for committed, _ in storage.pairs("SubtensorModule", "TimelockedWeightCommits", netuid):
        if committed + period + SEALED_EPOCHS < epoch:
            storage.remove("TimelockedWeightCommits", [netuid, committed])


# ---- commitments of texts


def set_commitment(book: Book, who: str, netuid: int, info: dict[str, Any]) -> None:
    storage = book.storage
    registered = storage.flag("NetworksAdded", netuid) and neurons.uid_of(storage, netuid, who) is not None
    require(registered, "AccountNotAllowedCommit", "Commitments")
    fields = list(info["fields"])
    require(len(fields) <= COMMITMENT_FIELDS_MAX, "TooManyFieldsInCommitmentInfo", "Commitments")
    epoch = storage.number("SubnetEpochIndex", netuid)
    used = storage.get("Commitments", "UsedSpaceOf", netuid, who) or {"last_epoch": epoch, "used_space": 0}
    before = used["used_space"] if used["last_epoch"] == epoch else 0
    record = {"deposit": 0, "block": book.number, "info": {"fields": fields}}
    encoded = storage.interface.encode(storage.interface.item("Commitments", "CommitmentOf").value_type, record)
    size = max(COMMITMENT_SIZE_MIN, len(encoded) - RECORD_HEAD_BYTES)
    limit = storage.get("Commitments", "MaxSpace")
    require(before + size <= limit, "SpaceLimitExceeded", "Commitments")
    storage.put("Commitments", "CommitmentOf", [netuid, who], record)
    storage.put("Commitments", "LastCommitment", [netuid, who], book.number)
    storage.put("Commitments", "UsedSpaceOf", [netuid, who], {"last_epoch": epoch, "used_space": before + size})
    book.emit("Commitments", "Commitment", {"netuid": netuid, "who": who})


CALLS: dict[tuple[str, str], Handler] = {
    ("SubtensorModule", "set_weights"): set_weights,
    ("SubtensorModule", "set_mechanism_weights"): set_mechanism_weights,
    ("SubtensorModule", "commit_timelocked_weights"): commit_timelocked_weights,
    ("SubtensorModule", "commit_timelocked_mechanism_weights"): commit_timelocked_mechanism_weights,
    ("Commitments", "set_commitment"): set_commitment,
}
