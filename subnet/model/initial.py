"""The parameters a run starts from. numpy only.

Law: a pure function of (RunSpec, stage). Each tensor is drawn from its own stream, named by the seed, the tensor's name
and, for the two sides of a boundary, the layer where the boundary sits. So layers, embedding and head start from the
same values however the model is cut, and a whole model equals its stages chained.

Scales: matrices that read the residual stream 1/sqrt(D), those that write to it divided by sqrt(2 x layers), so the
stream's variance at the top does not depend on depth. Encoder and decoder end in zeros, hence a boundary starts as
exactly truncate-then-pad. A token table starts as what was truncated of the embedding: its columns from K on are the
embedding's, the first K are zero, so the receiver starts from the stream without what the layers before wrote to
columns that did not cross. (Measured at 0.15M tokens; a table of zeros is drowned by z in the first norm.)
"""

from __future__ import annotations

import hashlib
from math import prod, sqrt

import numpy as np

from subnet.model.spec import NamedShape, shapes_of
from subnet.protocol.ids import Stage
from subnet.protocol.run_spec import RunSpec

EMBEDDING_STD = 1.0
HEAD_STD = 0.05
_ZEROS = frozenset({"entry.down.weight", "exit.down.weight"})


def initial_parameters(spec: RunSpec, stage: Stage) -> np.ndarray:
    """The stage's flat vector, float32 [P]."""
    parts = [_draw(spec, stage, named).reshape(-1) for named in shapes_of(spec, stage)]
    return np.concatenate(parts)


def _draw(spec: RunSpec, stage: Stage, named: NamedShape) -> np.ndarray:
    name, shape = named
    if "norm" in name:
        return np.ones(shape, np.float32)
    if name in _ZEROS:
        return np.zeros(shape, np.float32)
    if name == "entry.table.weight":
        table_VD = _draw(spec, Stage(0), ("entry.embedding.weight", shape))
        table_VD[:, : spec.boundary.width] = 0
        return table_VD
    this = spec.stages[stage]
    place = {"entry.up.weight": this.first_layer, "exit.up.weight": this.end_layer}.get(name, 0)
    return _normal(spec.seed, name, place, shape) * np.float32(_std(spec, name, shape))


def _std(spec: RunSpec, name: str, shape: tuple[int, ...]) -> float:
    if name == "entry.embedding.weight":
        return EMBEDDING_STD
    if name == "exit.head.weight":
        return HEAD_STD
    reads = 1.0 / sqrt(shape[1])
    writes_to_stream = name.endswith((".out.weight", ".down.weight"))
    return reads / sqrt(2 * spec.model.num_layers) if writes_to_stream else reads


def _normal(seed: int, name: str, place: int, shape: tuple[int, ...]) -> np.ndarray:
    stream = hashlib.sha256(f"initial\x1f{seed}\x1f{name}\x1f{place}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(stream[:16], "little")))
    return generator.standard_normal(prod(shape), np.float32).reshape(shape)
