"""Between one flat float32 vector and the leaves of a stage.

Law: leaves are views; they share the flat vector's storage, so writing the vector writes the model and nothing is ever
copied or kept in step. One vector is one parameter version: a step writes a new vector and binds new leaves, and graphs
built on the old ones stay valid as long as the old vector does. Letters: P flat parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from subnet.model.spec import NamedShape, num_params


def to_flat(vector_P: np.ndarray, shapes: tuple[NamedShape, ...], device: str) -> Tensor:
    """A copy on the device. ValueError when the length is not the layout's."""
    if vector_P.shape != (num_params(shapes),):
        raise ValueError(f"a flat vector of {num_params(shapes)} values is needed, not {vector_P.shape}")
    return torch.tensor(vector_P, dtype=torch.float32, device=device)


def to_numpy(vector_P: Tensor) -> np.ndarray:
    """A copy in host memory."""
    return np.array(vector_P.detach().cpu().numpy(), np.float32)


def leaves(vector_P: Tensor, shapes: tuple[NamedShape, ...]) -> tuple[nn.Parameter, ...]:
    """One leaf per named shape, in order."""
    return tuple(nn.Parameter(part) for part in views(vector_P, shapes))


def views(vector_P: Tensor, shapes: tuple[NamedShape, ...]) -> list[Tensor]:
    """The flat vector as tensors of the layout's shapes."""
    parts = vector_P.split([prod(shape) for _, shape in shapes])
    return [part.view(shape) for part, (_, shape) in zip(parts, shapes, strict=True)]


def norm(gradients: Sequence[Tensor]) -> float:
    """L2 norm over all tensors together; NaN or infinity when any value is."""
    return float(torch.stack(torch._foreach_norm(list(gradients))).norm())
