"""What a stage consists of, as names and shapes, and what it costs: pure arithmetic, no torch.

Law: `stage_shapes` is the one definition of a stage's flat parameter vector; every party that cuts, encodes, merges or
loads a vector derives the layout from here. The order is that of the forward pass. Names of layers carry the layer's
index in the whole model, so a layer is called the same wherever the model is cut.

A stage is entry -> layers -> exit. The first stage's entry is the token embedding, the last stage's exit the final norm
and head; every other entry and exit is one side of a boundary (ALGORITHMS 1).

Letters: D model width, K boundary width, H heads, F feed-forward, V vocabulary, P flat parameters.
"""

from __future__ import annotations

from math import prod

from subnet.errors import ConfigError
from subnet.protocol.run_spec import BoundarySpec, ModelSpec, RunSpec

Shape = tuple[int, ...]
NamedShape = tuple[str, Shape]


def has_bottleneck(model: ModelSpec, boundary: BoundarySpec) -> bool:
    """Whether encoder and decoder have anything to learn: not when x itself crosses, nor when nothing does."""
    return 0 < boundary.width < model.d_model


def check_model(model: ModelSpec, boundary: BoundarySpec) -> None:
    """Raises ConfigError where the numbers do not make a model."""
    if model.d_model % model.num_heads:
        raise ConfigError("model.num_heads", f"{model.num_heads} heads do not divide d_model {model.d_model}",
                          "choose a divisor of d_model")
    if model.num_heads % model.num_kv_heads:
        raise ConfigError("model.num_kv_heads", f"{model.num_kv_heads} do not divide {model.num_heads} heads",
                          "choose a divisor of num_heads")
    if (model.d_model // model.num_heads) % 2:
        raise ConfigError("model.num_heads", f"the head width {model.d_model // model.num_heads} is odd",
                          "rotary positions turn pairs: choose an even head width")
    if boundary.width > model.d_model:
        raise ConfigError("boundary.width", f"{boundary.width} is more than d_model {model.d_model}",
                          "choose at most d_model, which sends x itself")


def head_dim(model: ModelSpec) -> int:
    return model.d_model // model.num_heads


def stage_shapes(
    model: ModelSpec, boundary: BoundarySpec, first_layer: int, end_layer: int, is_first: bool, is_last: bool
) -> tuple[NamedShape, ...]:
    """Names and shapes of a stage's parameters in the order of the flat vector."""
    shapes = list(_entry_shapes(model, boundary, is_first))
    for layer in range(first_layer, end_layer):
        shapes += _layer_shapes(model, layer)
    shapes += _exit_shapes(model, boundary, is_last)
    return tuple(shapes)


def shapes_of(spec: RunSpec, stage: int) -> tuple[NamedShape, ...]:
    """`stage_shapes` of one of a run's stages."""
    this = spec.stages[stage]
    is_last = stage == spec.num_stages - 1
    return stage_shapes(spec.model, spec.boundary, this.first_layer, this.end_layer, stage == 0, is_last)


def num_params(shapes: tuple[NamedShape, ...]) -> int:
    """P, the length of the flat vector."""
    return sum(prod(shape) for _, shape in shapes)


def _entry_shapes(model: ModelSpec, boundary: BoundarySpec, is_first: bool) -> list[NamedShape]:
    if is_first:
        return [("entry.embedding.weight", (model.vocab_size, model.d_model))]
    shapes: list[NamedShape] = []
    if has_bottleneck(model, boundary):
        shapes += [("entry.up.weight", (boundary.hidden, boundary.width)),
                   ("entry.down.weight", (model.d_model, boundary.hidden))]
    if boundary.token_table:
        shapes += [("entry.table.weight", (model.vocab_size, model.d_model))]
    return shapes


def _layer_shapes(model: ModelSpec, layer: int) -> list[NamedShape]:
    width = head_dim(model)
    name = f"layers.{layer}"
    return [
        (f"{name}.attention_norm.weight", (model.d_model,)),
        (f"{name}.qkv.weight", ((model.num_heads + 2 * model.num_kv_heads) * width, model.d_model)),
        (f"{name}.out.weight", (model.d_model, model.num_heads * width)),
        (f"{name}.mlp_norm.weight", (model.d_model,)),
        (f"{name}.gate_up.weight", (2 * model.d_ff, model.d_model)),
        (f"{name}.down.weight", (model.d_model, model.d_ff)),
    ]


def _exit_shapes(model: ModelSpec, boundary: BoundarySpec, is_last: bool) -> list[NamedShape]:
    if is_last:
        return [("exit.norm.weight", (model.d_model,)),
                ("exit.head.weight", (model.vocab_size, model.d_model))]
    if has_bottleneck(model, boundary):
        return [("exit.norm.weight", (model.d_model,)),
                ("exit.up.weight", (boundary.hidden, model.d_model)),
                ("exit.down.weight", (boundary.width, boundary.hidden))]
    return []


def layer_flops_per_token(model: ModelSpec, seq_len: int) -> int:
    """Forward FLOPs of one layer: two per weight, and causal attention over half the sequence on average."""
    matrices = sum(prod(shape) for _, shape in _layer_shapes(model, 0) if len(shape) == 2)
    return 2 * matrices + 2 * seq_len * model.d_model


def ends_flops_per_token(model: ModelSpec, boundary: BoundarySpec, is_first: bool, is_last: bool) -> int:
    """Forward FLOPs of a stage's entry and exit; rows looked up in a table cost nothing."""
    ends = _entry_shapes(model, boundary, is_first) + _exit_shapes(model, boundary, is_last)
    looked_up = ("entry.embedding.weight", "entry.table.weight")
    return 2 * sum(prod(shape) for name, shape in ends if len(shape) == 2 and name not in looked_up)


def flops_per_token(
    model: ModelSpec, boundary: BoundarySpec, first_layer: int, end_layer: int, is_first: bool, is_last: bool,
    seq_len: int,
) -> int:
    """Forward FLOPs of a stage for one token; a backward costs twice as much."""
    layers = (end_layer - first_layer) * layer_flops_per_token(model, seq_len)
    return layers + ends_flops_per_token(model, boundary, is_first, is_last)
