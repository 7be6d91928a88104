"""Names for the things that parties speak about. Law: a NewType or an enum each, no behaviour beyond parsing."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

Hotkey = NewType("Hotkey", str)
"""ss58 address of a neuron's hotkey: its identity everywhere."""
RunId = NewType("RunId", str)
Stage = NewType("Stage", int)
"""Index of a contiguous slice of transformer layers, 0 first."""
Epoch = NewType("Epoch", int)
"""Index of one TRAINING, UPLOADING, MERGING round of one stage."""
MicroBatchId = NewType("MicroBatchId", int)
Digest = NewType("Digest", str)
"""Lower-case hex SHA-256."""
ItemId = NewType("ItemId", str)
"""Names one offer of one piece of work; a second offer of the same piece has another id."""


class Pass(StrEnum):
    """What a miner does with one micro-batch in its stage."""

    FORWARD = "forward"
    BACKWARD = "backward"
    LOSS = "loss"
    """Forward, loss and backward at once: the last stage's only kind."""


class Phase(StrEnum):
    """Where a stage is in its epoch."""

    TRAINING = "training"
    UPLOADING = "uploading"
    MERGING = "merging"
    PAUSED = "paused"


class Values(StrEnum):
    """How numbers are held on the wire."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
