"""What the machine asks of its shell besides replying.

Law: frozen structs without behaviour, in the order in which they are to be carried out; what comes of one is an own
record for the journal, or nothing.
"""

from __future__ import annotations

from msgspec import Struct

from subnet.coordination.merge_state import InspectMerge
from subnet.merging.butterfly import Assignment
from subnet.protocol.ids import Epoch, Hotkey, Stage
from subnet.protocol.messages import ManifestEntry, RangeSource, Source


class Deliver(Struct, frozen=True):
    """New work lies ready for a miner: answer its open exchange."""

    hotkey: Hotkey


class CheckObject(Struct, frozen=True):
    """Look at an object someone complained about and journal an ObjectChecked."""

    source: Source
    chunk_digests: tuple[str, ...] = ()
    """Of an upload: what its maker said about its chunks."""
    ranges: tuple[RangeSource, ...] = ()
    """Of a reduced object: what its maker said about the shards in it."""


class RecomputeShard(Struct, frozen=True):
    """Reduce one disputed shard and journal a ShardRecomputed, or an ObjectChecked that names a bad upload."""

    stage: Stage
    epoch: Epoch
    attempt: int
    """Of this question alone: the item in the answer's key ends in it, so a late answer is not taken for another."""
    manifest: tuple[ManifestEntry, ...]
    assignment: Assignment


class ReadChain(Struct, frozen=True):
    """Wait for the first block from now on and journal a ChainSeen that closes the epoch."""

    closes: Epoch
    above: int = 0
    """The highest block that is known already."""


class DrawSecret(Struct, frozen=True):
    """Draw the secret of an epoch and journal a SecretDrawn."""

    epoch: Epoch


class DropEpoch(Struct, frozen=True):
    """Delete the objects of an epoch: nothing refers to them any more."""

    epoch: Epoch


class Say(Struct, frozen=True):
    """One line for the operator: a state changed, and why."""

    sentence: str


Effect = Deliver | CheckObject | RecomputeShard | InspectMerge | ReadChain | DrawSecret | DropEpoch | Say
