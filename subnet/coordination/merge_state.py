"""What a stage's merge in progress knows: a part of the run state, under the same law as `state`."""

from __future__ import annotations

from msgspec import Struct, field

from subnet.merging.butterfly import Assignment
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import ManifestEntry, MergedShard, RangeSource, Source


class Upload(Struct):
    """An accepted pseudo-gradient."""

    source: Source
    norm: float
    weight: int
    chunk_digests: tuple[str, ...]


class Merge(Struct):
    """A stage's merge in progress."""

    closed_at: float
    """When training closed."""
    deadline: float
    """Of the current step."""
    next_rules: int = 0
    """Which of the run's RunSpecs the next epoch goes by; settled when training closed."""
    step: str = "drain"
    """drain, upload, reduce, apply."""
    attempt: int = 0
    """Grows whenever the step begins anew."""
    assigned: int = 0
    """How often shards were handed out."""
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
    reports: dict[Hotkey, dict[int, Digest]] = field(default_factory=dict)
    reduced: dict[Hotkey, Source] = field(default_factory=dict)
    recomputing: dict[int, int] = field(default_factory=dict)
    """Disputed shards, and the number under which the orchestrator was asked for each."""
    recomputed: dict[int, RangeSource | None] = field(default_factory=dict)
    shards: tuple[MergedShard, ...] = ()
    applied: dict[Hotkey, tuple[Digest, Digest]] = field(default_factory=dict)
    published: dict[Hotkey, tuple[Source, Source]] = field(default_factory=dict)
