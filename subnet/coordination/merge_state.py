"""What a stage's merge in progress knows: a part of the run state, under the same law as `state`."""

from __future__ import annotations

from msgspec import Struct, field

from subnet.merging.butterfly import Assignment
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, Stage
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import ManifestEntry, MergedShard, RangeSource, Source, UploadSeen

CLOSED_KEPT = 2
"""Merges of a stage that may be taken back: it may be two epochs past the merge that spoilt the last stage's losses."""


class Upload(Struct):
    """An accepted pseudo-gradient."""

    source: Source
    norm: float
    weight: int
    chunk_digests: tuple[str, ...]


class Reduced(Struct):
    """The accepted answer to one piece of reduce work; an owner that was given more shards later has several."""

    hotkey: Hotkey
    source: Source
    digests: dict[int, Digest]
    """What its maker says of each shard, in the order in which they lie in the object."""


class Inspection(Struct):
    """The orchestrator looks at every upload of a merge, because the epoch that followed it went wrong."""

    number: int
    """Of the question."""
    chunks: tuple[int, ...] = ()
    """Which chunks are read; empty: all."""
    contributions: tuple[UploadSeen, ...] | None = None
    """The answer."""


class InspectMerge(Struct, frozen=True):
    """An effect: look at every upload of a merge that poisoned the run and journal a MergeInspected."""

    stage: Stage
    epoch: Epoch
    number: int
    uploads: dict[Hotkey, Upload]
    chunks: tuple[int, ...]
    """Which chunks to read; empty: all."""


class ClosedMerge(Struct):
    """A merge that was done, kept while it may still be taken back."""

    epoch: Epoch
    generation: int
    """Which merge of the run it was, counted over all stages."""
    before: int
    """Generation of what the epoch had started from."""
    parameters: Source
    """What the epoch had started from."""
    momentum: Source
    norms: list[list[float]]
    uploads: dict[Hotkey, Upload]
    excluded: list[Hotkey]
    attempt: int
    redone: int


class Merge(Struct):
    """A stage's merge in progress."""

    closed_at: float
    """When training closed."""
    deadline: float
    """Of the current step; while shards are reduced, of the piece of work that is due first."""
    next_rules: int = 0
    """Which of the run's RunSpecs the next epoch goes by; settled when training closed."""
    step: str = "drain"
    """drain, upload, reduce, apply; inspect where it was taken up again."""
    attempt: int = 0
    """Grows whenever the step begins anew."""
    weights: dict[Hotkey, int] = field(default_factory=dict)
    """B_m of the replicas asked to upload, frozen when they were asked."""
    uploads: dict[Hotkey, Upload] = field(default_factory=dict)
    excluded: list[Hotkey] = field(default_factory=list)
    """Uploads found bad."""
    checking: dict[ObjectKey, list[Hotkey]] = field(default_factory=dict)
    """Uploads and reduced objects to look at, and who complained: the step does not end before."""
    unheeded: dict[ObjectKey, list[Hotkey]] = field(default_factory=dict)
    """Complaints about objects that were found good."""
    faulty: dict[Hotkey, list[int]] = field(default_factory=dict)
    """Owners whose copy of a shard was wrong."""
    manifest: tuple[ManifestEntry, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    """Each shard with everybody who was ever asked to reduce it."""
    reduced: dict[ItemId, Reduced] = field(default_factory=dict)
    handed: int = 0
    """Pieces of reduce work that are open or answered, as of the last look: fewer now, and one has fallen away."""
    handed_on: dict[int, int] = field(default_factory=dict)
    """Shards that were given to others because no owner was left that had reduced them or still might, and how many
    hand-outs of each a living owner had left unanswered."""
    recomputing: dict[int, int] = field(default_factory=dict)
    """Disputed shards, and the number under which the orchestrator was asked for each."""
    recomputed: dict[int, RangeSource | None] = field(default_factory=dict)
    shards: tuple[MergedShard, ...] = ()
    applied: dict[Hotkey, tuple[Digest, Digest]] = field(default_factory=dict)
    published: dict[Hotkey, tuple[Source, Source]] = field(default_factory=dict)
    seen: list[ObjectKey] = field(default_factory=list)
    """Published objects that the orchestrator has found good: nobody could load the epoch's start from a bad one."""
    misprinted: dict[Hotkey, int] = field(default_factory=dict)
    """Whose published objects were bad, and how often: what it says it reached counts no more."""
    overflowed: list[Hotkey] = field(default_factory=list)
    """Who could not apply it, because the result is not finite."""
    redone: int = 0
    """How often it was taken up again after it had poisoned the run."""
    inspection: Inspection | None = None

    @property
    def reports(self) -> dict[Hotkey, dict[int, Digest]]:
        """Owner -> shard -> digest."""
        found: dict[Hotkey, dict[int, Digest]] = {}
        for one in self.reduced.values():
            found.setdefault(one.hotkey, {}).update(one.digests)
        return found


class MergeRecord(Struct):
    """What became of one merge; kept for the report."""

    epoch: Epoch
    replicas: int
    batch: int
    """B_eff, sum of the weights."""
    shards: int
    agreed: int
    single: int
    lost: int
    disputed: int
    faulty: dict[Hotkey, list[int]]
    """Owners whose copy of a shard was wrong."""
    disagreements: dict[Hotkey, int]
    """Row sums of the agreement matrix."""
    closed_at: float
    uploaded_at: float
    reduced_at: float
    done_at: float
    handed_on: int = 0
    """Shards that nobody would have reduced, had they not been given to others within the merge."""
    undone: bool = False
    """It poisoned the run and was taken back."""
