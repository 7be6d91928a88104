"""Where the model is cut: layers to stages, balanced by FLOPs. Pure arithmetic, no torch.

Law: the cut is a function of the model, the boundary, the sequence length and the number of stages alone; every party
computes the same. Stages are contiguous and hold at least one layer each. The head's cost counts, so the last stage of
a model with a large vocabulary holds fewer layers.
"""

from __future__ import annotations

from itertools import accumulate

from subnet.errors import ConfigError, PeerFault
from subnet.model.spec import (
    check_model,
    ends_flops_per_token,
    flops_per_token,
    layer_flops_per_token,
    num_params,
    stage_shapes,
)
from subnet.model.wire import encoded_size
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import BoundarySpec, ModelSpec, RunSpec, StageSpec


def split(model: ModelSpec, boundary: BoundarySpec, num_stages: int, seq_len: int) -> tuple[StageSpec, ...]:
    """The stages, first to last. Raises ConfigError when there are more stages than layers, or none.

    Every layer costs the same, so giving each next layer to the least loaded stage minimises the largest load.
    """
    check_model(model, boundary)
    if not 1 <= num_stages <= model.num_layers:
        raise ConfigError("--stages", f"{num_stages} stages for a model of {model.num_layers} layers",
                          f"choose 1 to {model.num_layers}: a stage holds at least one layer")
    layer = layer_flops_per_token(model, seq_len)
    ends = [(stage == 0, stage == num_stages - 1) for stage in range(num_stages)]
    loads = [layer + ends_flops_per_token(model, boundary, *which) for which in ends]
    counts = [1] * num_stages
    for _ in range(model.num_layers - num_stages):
        lightest = min(range(num_stages), key=loads.__getitem__)
        counts[lightest] += 1
        loads[lightest] += layer
    stops = list(accumulate(counts))
    return tuple(
        StageSpec(
            first_layer=stop - count,
            end_layer=stop,
            num_params=num_params(stage_shapes(model, boundary, stop - count, stop, *which)),
            flops_per_token=flops_per_token(model, boundary, stop - count, stop, *which, seq_len),
        )
        for stop, count, which in zip(stops, counts, ends, strict=True)
    )


def check_spec(spec: RunSpec) -> None:
    """Raises PeerFault(WRONG_SPEC) where a RunSpec states a derived number that is not what it derives to."""
    stages = split(spec.model, spec.boundary, spec.num_stages, spec.data.seq_len)
    if spec.stages != stages:
        raise PeerFault(Reason.WRONG_SPEC, "the RunSpec's stages are not the balanced cut of its model", str(stages))
    if spec.boundary_size_bytes != encoded_size(spec):
        raise PeerFault(Reason.WRONG_SPEC, f"a boundary object has {encoded_size(spec)} bytes, the RunSpec says "
                        f"{spec.boundary_size_bytes}")
