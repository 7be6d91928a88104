"""Whether the orchestrator's own records are answers to what the rules asked it, and to nothing else.

Law: pure. An orchestrator may draw one secret an epoch, look at the objects somebody complained about, and read the
chain when an epoch has closed; a record nobody asked for is a choice it must not have. Started again, it is asked again
for everything without an answer, so what was asked before a RunResumed does not count any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from subnet.coordination.effects import CheckObject, DrawSecret, Effect, ReadChain, RecomputeShard
from subnet.coordination.machine import Decision
from subnet.coordination.merge_state import InspectMerge
from subnet.protocol.messages import (
    ChainSeen,
    Envelope,
    MergeInspected,
    ObjectChecked,
    RunResumed,
    SecretDrawn,
    ShardRecomputed,
)

SLACK_BLOCKS = 10
"""Between a look at the chain and the block after an epoch's end: two readings of one node may cross."""


class Answers:
    """Fed with every record in order, and what the rules made of it."""

    def __init__(self) -> None:
        self.count = 0
        """Answers so far."""
        self.difference: str | None = None
        """The first record that answers nothing."""
        self._asked: Counter[Hashable] = Counter()
        self._looks: dict[Hashable, int] = {}
        """Questions for a block → the first one that the chain was seen at since."""
        self._uploads: dict[Hashable, tuple[str, ...]] = {}
        """Shards that are being recomputed → the uploads, one of which may turn out to be the bad one."""

    def note(self, index: int, envelope: Envelope, decision: Decision | None) -> None:
        message = envelope.message
        if isinstance(message, RunResumed):
            self._asked.clear()
            self._uploads.clear()
            self._looks.clear()
        if isinstance(message, ChainSeen):
            self._note_look(index, message)
        question = self._question(message)
        if question is not None:
            self._answered(index, question)
        if decision is not None:
            self._ask(decision.effects)

    def _note_look(self, index: int, seen: ChainSeen) -> None:
        """Who has seen the chain knows the first block after the epoch: a later one was waited for, to choose it."""
        if seen.closes is None:
            for question in self._asked:
                if isinstance(question, tuple) and question[0] == "a block":
                    self._looks.setdefault(question, seen.block)
            return
        first = self._looks.pop(("a block", seen.closes), None)
        if first is not None and seen.block > first + SLACK_BLOCKS:
            said = f"record {index}: epoch {seen.closes} is closed by block {seen.block}, although the chain was at"
            self.difference = self.difference or f"{said} {first} before: its audits were put off"

    def _question(self, message: object) -> Hashable | None:
        """What a record answers; None when it is no answer."""
        match message:
            case SecretDrawn():
                return "a secret", message.epoch
            case ChainSeen():
                # what is registered may be told at any time
                return None if message.closes is None else ("a block", message.closes)
            case ShardRecomputed():
                return "a shard", message.stage, message.epoch, message.shard
            case MergeInspected():
                return "an inspection", message.stage, message.epoch, message.number
            case ObjectChecked():
                look = ("a look", message.key)
                if self._asked[look]:
                    return look
                return next((shard for shard, keys in self._uploads.items() if message.key in keys), look)
        return None

    def _answered(self, index: int, question: Hashable) -> None:
        if not self._asked[question]:
            what = " ".join(map(str, question)) if isinstance(question, tuple) else str(question)
            said = f"record {index}: the rules did not ask for {what}"
            self.difference = self.difference or said
            return
        self.count += 1
        self._asked[question] -= 1
        if not self._asked[question]:
            del self._asked[question]
            self._uploads.pop(question, None)

    def _ask(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case DrawSecret():
                    self._asked["a secret", effect.epoch] += 1
                case ReadChain():
                    self._asked["a block", effect.closes] += 1
                case CheckObject():
                    self._asked["a look", effect.source.key] += 1
                case RecomputeShard():
                    shard = ("a shard", effect.stage, effect.epoch, effect.assignment.shard.index)
                    self._asked[shard] += 1
                    self._uploads[shard] = tuple(entry.source.key for entry in effect.manifest)
                case InspectMerge():
                    self._asked["an inspection", effect.stage, effect.epoch, effect.number] += 1
                case _:
                    pass
