"""What a replica's training holds between two calls. Law: plain records without behaviour; `trainer` fills them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # who only counts states needs no torch
    from torch import Tensor, nn


@dataclass(slots=True)
class Kept:
    """A forward whose backward has not come yet."""

    version: int
    leaves: tuple[nn.Parameter, ...]
    stage_input: Tensor | None
    output: Tensor
    """z_BTK, or the loss at the last stage."""


class TrainingState(NamedTuple):
    """A replica between two inner steps."""

    version: int
    step: int
    """Inner steps since the epoch's start."""
    optimizer_steps: int
    parts: tuple[np.ndarray, ...]
    """float32 [P] each, in the order of `messages.STATE_PARTS`."""
