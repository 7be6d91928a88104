"""What all replicas of a stage share between two merges: the anchor, its momentum, and the step from one to the next.

    Δ = anchor - local        as uploaded, at the precision of `merge.upload_values`
    outer step                `merging.reduction`, bit-exact, so every replica arrives at the same anchor

Law: numpy only; the same calls with the same values give the same bytes on every machine. A merge that cannot be
applied changes nothing. Letters: P flat parameters, v the outer optimizer's momentum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from subnet.errors import PeerFault
from subnet.merging import compression, reduction
from subnet.protocol.ids import Digest, Epoch, Values
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import MergeSpec

MergedRange = tuple[int, int, np.ndarray | None]
"""Start, length and reduced values of one shard; None where the shard was lost."""


class Upload(NamedTuple):
    """A pseudo-gradient as it goes to the store."""

    data: bytes
    digest: Digest
    norm: float
    """L2 norm of what was sent, that is after rounding."""
    chunk_digests: tuple[Digest, ...]


class Anchor(NamedTuple):
    """An epoch's starting point, encoded: equal on all honest replicas."""

    parameters: bytes
    momentum: bytes
    parameters_digest: Digest
    momentum_digest: Digest


class Outer:
    """The shared state of one stage at one epoch."""

    def __init__(self, merge: MergeSpec, epoch: Epoch, theta_P: np.ndarray, v_P: np.ndarray) -> None:
        self._merge = merge
        self.epoch = epoch
        self.theta_P = np.array(theta_P, np.float32)
        self.v_P = np.array(v_P, np.float32)

    def go_by(self, merge: MergeSpec) -> None:
        """The owner tuned the rules: the next outer step is taken by these."""
        self._merge = merge

    def upload(self, local_P: np.ndarray) -> Upload:
        """The pseudo-gradient of a replica that now stands at `local_P`."""
        values = self._merge.upload_values
        data, sent_P = self._encoded(local_P)
        norm = float(np.sqrt(np.square(sent_P, dtype=np.float64).sum()))
        chunks = compression.chunk_digests(data, values, len(local_P))
        return Upload(data, _digest(data), norm, chunks)

    def sent(self, local_P: np.ndarray) -> np.ndarray:
        """The pseudo-gradient as readers see it, after the encoding's rounding."""
        return self._encoded(local_P)[1]

    def _encoded(self, local_P: np.ndarray) -> tuple[bytes, np.ndarray]:
        values = self._merge.upload_values
        data = compression.encode(values, self.theta_P - local_P)
        return data, compression.decode(data, values, len(local_P))

    def apply(self, shards: Sequence[MergedRange]) -> Anchor:
        """Take the outer step and begin the next epoch.

        Raises PeerFault(BAD_OBJECT | NOT_FINITE) when the shards do not tile the vector or the step leaves the numbers.
        """
        self._check_tiling(shards)
        mu = reduction.outer_momentum(self._merge, self.epoch)
        theta_P, v_P = reduction.outer_step_shards(self.theta_P, self.v_P, shards, self._merge.outer_lr, mu)
        anchor = encode_anchor(theta_P, v_P)
        self.theta_P, self.v_P, self.epoch = theta_P, v_P, Epoch(self.epoch + 1)
        return anchor

    def _check_tiling(self, shards: Sequence[MergedRange]) -> None:
        at = 0
        for start, length, g in sorted(shards, key=lambda shard: shard[0]):
            if start != at or length < 0 or (g is not None and g.shape != (length,)):
                raise PeerFault(Reason.BAD_OBJECT, f"the merged shards do not tile the vector at value {at}")
            at += length
        if at != len(self.theta_P):
            raise PeerFault(Reason.BAD_OBJECT, f"the merged shards hold {at} of {len(self.theta_P)} values")


def encode_anchor(theta_P: np.ndarray, v_P: np.ndarray) -> Anchor:
    """Parameters and momentum as the fp32 objects that joiners download. Raises PeerFault(NOT_FINITE)."""
    parameters, momentum = compression.encode(Values.FP32, theta_P), compression.encode(Values.FP32, v_P)
    return Anchor(parameters, momentum, _digest(parameters), _digest(momentum))


def _digest(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())
