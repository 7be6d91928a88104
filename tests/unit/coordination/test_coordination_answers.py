"""What an orchestrator may write into the journal by itself: answers, to what the rules asked it, once each."""

from __future__ import annotations

from typing import Any

import pytest

from subnet.coordination.answers import Answers
from subnet.coordination.effects import CheckObject, DrawSecret, ReadChain, RecomputeShard
from subnet.coordination.machine import Decision
from subnet.coordination.merge_state import InspectMerge
from subnet.merging.butterfly import Assignment
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Epoch, Hotkey, RunId, Stage
from subnet.protocol.keys import Kind, make
from subnet.protocol.reasons import Reason

KEYS = [make(RunId("run"), 0, 0, f"item{number}", Kind.UPLOAD) for number in range(3)]
SOURCES = [m.Source(key=key, digest=Digest("0" * 64), size_bytes=1) for key in KEYS]
ENTRIES = tuple(
    m.ManifestEntry(hotkey=Hotkey("a"), weight=1.0, scale=1.0, source=source, chunk_digests=())
    for source in SOURCES[:2]
)
SHARD = m.Shard(index=4, start=0, length=1)
RECOMPUTE = RecomputeShard(
    stage=Stage(1), epoch=Epoch(2), attempt=0, manifest=ENTRIES, assignment=Assignment(SHARD, (Hotkey("a"),))
)
INSPECT = InspectMerge(stage=Stage(1), epoch=Epoch(2), number=9, uploads={}, chunks=())
LOOK, DRAW, READ = CheckObject(SOURCES[2]), DrawSecret(Epoch(3)), ReadChain(Epoch(2))

secret = m.SecretDrawn(epoch=Epoch(3), secret="a" * 64)
shard = m.ShardRecomputed(stage=Stage(1), epoch=Epoch(2), shard=4, source=None)
blamed = m.ObjectChecked(key=KEYS[1], reason=Reason.NOT_FINITE)
looked = m.ObjectChecked(key=KEYS[2], reason=Reason.OK)
inspected = m.MergeInspected(stage=Stage(1), epoch=Epoch(2), number=9, uploads=())
resumed = m.RunResumed(target_epochs=1)


def seen(closes: int | None, block: int = 1) -> m.ChainSeen:
    return m.ChainSeen(block=block, block_hash="a" * 64, owner_uid=0, neurons=(), closes=closes)


def read(*records: tuple[Any, ...]) -> Answers:
    """Each record: what it says, and the effects that follow."""
    answers = Answers()
    for index, (message, *effects) in enumerate(records):
        envelope = m.Envelope(sender=Hotkey("orchestrator"), at=1.0, message=message)
        answers.note(index, envelope, Decision(None, tuple(effects)))
    return answers


GOOD: dict[str, tuple[int, list[tuple[Any, ...]]]] = {
    "each once": (4, [(m.Tick(), DRAW, READ, LOOK, RECOMPUTE), (shard,), (looked,), (secret,), (seen(2),)]),
    "a bad upload instead of a shard": (1, [(m.Tick(), RECOMPUTE), (blamed,)]),
    "asked twice, answered twice": (2, [(m.Tick(), LOOK, LOOK), (looked,), (looked,)]),
    "a merge that was looked into": (1, [(m.Tick(), INSPECT), (resumed, INSPECT), (inspected,)]),
    "asked again after a restart": (1, [(m.Tick(), DRAW), (resumed, DRAW), (secret,)]),
    "never answered": (0, [(m.Tick(), DRAW, READ, LOOK, RECOMPUTE)]),
    "a look that crosses the answer": (1, [(m.Tick(), READ), (seen(None, 9),), (seen(2, 8),)]),
    "the chain was away until then": (1, [(seen(None, 9), READ), (seen(2, 700),), (seen(None, 701),)]),
    "what is registered": (0, [(seen(None),), (seen(None),)]),
}


@pytest.mark.parametrize("what", GOOD)
def test_answers(what: str) -> None:
    """1. What honest orchestrators do, in any order, restarts included."""
    count, records = GOOD[what]
    answers = read(*records)
    assert (answers.difference, answers.count) == (None, count)


BAD: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "drawn once more": ("record 2: the rules did not ask for a secret 3", [(m.Tick(), DRAW), (secret,), (secret,)]),
    "the block waited for, to choose it": (
        "record 2: epoch 2 is closed by block 700, although the chain was at 9 before: its audits were put off",
        [(m.Tick(), READ), (seen(None, 9),), (seen(2, 700),)],
    ),
    "of another epoch": ("record 1: the rules did not ask for a block 1", [(m.Tick(), READ), (seen(1),)]),
    "a merge that nobody took back": ("record 0: the rules did not ask for an inspection 1 2 9", [(inspected,)]),
    "a shard that nobody disputes": ("record 0: the rules did not ask for a shard 1 2 4", [(shard,)]),
    "an object that nobody accused": (f"record 1: the rules did not ask for a look {KEYS[0]}", [
        (m.Tick(), LOOK), (m.ObjectChecked(key=KEYS[0], reason=Reason.BAD_OBJECT),)
    ]),
    "an upload, and the shard too": ("record 2: the rules did not ask for a shard 1 2 4", [
        (m.Tick(), RECOMPUTE), (blamed,), (shard,)
    ]),
    "asked before a restart": ("record 2: the rules did not ask for a secret 3", [
        (m.Tick(), DRAW), (resumed,), (secret,)
    ]),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_choices_that_it_must_not_have(what: str) -> None:
    """2. An orchestrator that would like other draws, other shards, other culprits: the first record is named."""
    said, records = BAD[what]
    assert read(*records, (secret,)).difference == said
