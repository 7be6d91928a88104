"""Presets: the numbers of a run as functions, so that every choice stands beside its reason.

Law: a preset answers with specs only; paths, ports and devices are none of its business. `run_spec` joins a preset with
the data of one run into the RunSpec that everybody agrees on. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from subnet.errors import ConfigError
from subnet.model.split import split
from subnet.model.wire import boundary_size_bytes
from subnet.protocol.ids import RunId, Values
from subnet.protocol.run_spec import (
    AuditSpec,
    BoundarySpec,
    DataSpec,
    InnerSpec,
    MergeSpec,
    ModelSpec,
    RoutingSpec,
    RunSpec,
    ScoreSpec,
)


class Size(NamedTuple):
    """What an operator chooses about a run."""

    num_miners: int
    num_stages: int
    epochs: int
    num_microbatches_min: int = 0
    """B_min; 0 leaves it to the preset."""

    @property
    def replicas(self) -> int:
        """Miners on the least provisioned stage."""
        return max(1, self.num_miners // self.num_stages)


class Preset(NamedTuple):
    model: ModelSpec
    boundary: BoundarySpec
    inner: InnerSpec
    merge: MergeSpec
    routing: RoutingSpec
    audit: AuditSpec
    score: ScoreSpec


EPOCH_MICRO_BATCHES = 110
"""About so many make an epoch of `laptop`, whatever the number of replicas that share them."""


def laptop(size: Size) -> Preset:
    """A 2.2M-parameter model (3.2M with its token tables) that learns English in minutes on two cores; the default."""
    num_microbatches_min = size.num_microbatches_min or max(8, -(-EPOCH_MICRO_BATCHES // size.replicas))
    steps_per_epoch = max(1, num_microbatches_min // 2)
    warmup_steps = min(20, steps_per_epoch)
    return Preset(
        ModelSpec(vocab_size=4096, d_model=128, num_layers=6, num_heads=4, num_kv_heads=2, d_ff=352),
        # K = D/8 at int8: 16x against bf16. The token table makes up for the thin boundary (ALGORITHMS 1)
        BoundarySpec(width=16, hidden=64, values=Values.INT8, scale_group_tokens=64, token_table=True),
        InnerSpec(
            # after 0.68M tokens, two replicas without a pipeline, one seed each: lr 3e-3 4.515, 6e-3 4.370, 9e-3 4.389;
            # the optimizer's state is kept over merges: reset and warmed up again, less is learned from as many tokens
            micro_batches_per_step=2,
            lr_peak=6e-3,
            lr_final=6e-4,
            warmup_steps=warmup_steps,
            rewarm_steps=0,
            decay_steps=max(1, size.epochs * steps_per_epoch - warmup_steps),
            steps_per_epoch=steps_per_epoch,
            reset_each_epoch=False,
        ),
        MergeSpec(
            num_microbatches_min=num_microbatches_min,
            # whoever was away for half an epoch still counts, by as much as it did: weights are B_m
            counted_share=0.125,
            quorum=0.75,
            relax_after_s=90.0,
            grace_s=5.0,
            upload_deadline_s=20.0,
            reduce_deadline_s=20.0,
            apply_deadline_s=20.0,
            # few inner steps: plain averaging; outer momentum would amplify steady gradients (ALGORITHMS 3)
            outer_lr=1.0,
            outer_momentum=0.0,
            outer_momentum_first=0.0,
        ),
        # one machine: silence means a dead process, not a slow line. More micro-batches in flight would keep two cores
        # no busier, but gradients would come back to parameters that moved on
        RoutingSpec(
            in_flight_per_replica=1,
            heartbeat_s=5.0,
            dead_after_s=9.5,
            # three epochs: long enough to measure what a move has changed
            rebalance_after_s=60.0,
            deadline_first_s=60.0,
        ),
        # about nine segments an epoch, and a newcomer's n-th epoch audited with probability 1/n: 4 to 5 % of the
        # training compute over the default run, 4 % x 1/9 of it once all are settled
        AuditSpec(rate=0.04, settled_epochs=25, segment_steps=max(1, steps_per_epoch // 9)),
        # an epoch takes about 20 s here: 25 of them pay, as 15-minute epochs do at a γ of six hours
        ScoreSpec(gamma_s=500.0),
    )


def bench(size: Size) -> Preset:
    """`laptop` without its token tables: the 2.2M parameters that `make bench` measures speed with."""
    preset = laptop(size)
    return preset._replace(boundary=msgspec.structs.replace(preset.boundary, token_table=False))


def equivalence(size: Size, *, width: int | None = None) -> Preset:
    """A tiny model in plain fp32, synchronous: the swarm must follow `simulation.reference` step by step.

    `width` is K; None sends x itself (no bottleneck). Nothing is compressed, nothing relaxes, merges add up exactly.
    """
    model = ModelSpec(vocab_size=256, d_model=32, num_layers=4, num_heads=4, num_kv_heads=2, d_ff=64)
    micro_batches_per_step = 4
    num_microbatches_min = size.num_microbatches_min or 2 * micro_batches_per_step
    steps_per_epoch = max(1, num_microbatches_min // micro_batches_per_step)
    return Preset(
        model,
        BoundarySpec(
            width=model.d_model if width is None else width,
            hidden=32,
            values=Values.FP32,
            scale_group_tokens=16,
            token_table=width is not None,
        ),
        InnerSpec(
            micro_batches_per_step=micro_batches_per_step,
            lr_peak=3e-3,
            lr_final=3e-4,
            warmup_steps=2,
            rewarm_steps=1,
            decay_steps=max(1, size.epochs * steps_per_epoch - 2),
            steps_per_epoch=steps_per_epoch,
            reset_each_epoch=True,
        ),
        MergeSpec(
            num_microbatches_min=num_microbatches_min,
            quorum=1.0,
            relax_after_s=3600.0,
            grace_s=60.0,
            upload_deadline_s=60.0,
            reduce_deadline_s=60.0,
            apply_deadline_s=60.0,
            upload_values=Values.FP32,
            outer_lr=1.0,
            outer_momentum=0.0,
            outer_momentum_first=0.0,
            # far above any norm that occurs: clipping would hide a difference
            clip_factor=1e6,
        ),
        # at least three micro-batches in flight, and the next k only when all k came back
        RoutingSpec(in_flight_per_replica=micro_batches_per_step, deadline_floor_s=60.0, flush=True),
        AuditSpec(rate=0.0, settled_epochs=1, segment_steps=1),
        ScoreSpec(gamma_s=3600.0),
    )


PRESETS: dict[str, Callable[[Size], Preset]] = {"laptop": laptop, "equivalence": equivalence, "bench": bench}


def choose(name: str, size: Size) -> Preset:
    """The preset of that name. Raises ConfigError."""
    if name not in PRESETS:
        raise ConfigError("--preset", f"{name!r} is not known", f"choose one of {', '.join(PRESETS)}")
    return PRESETS[name](size)


def run_spec(preset: Preset, *, run_id: RunId, seed: int, num_stages: int, data: DataSpec) -> RunSpec:
    """The whole agreement of one run. Raises ConfigError when the model cannot be cut into so many stages, or living
    miners would be taken for dead."""
    if (problem := preset.routing.silence_problem) is not None:
        raise ConfigError("routing.dead_after_s", problem, "living miners would be taken for dead: give more")
    return RunSpec(
        run_id=run_id,
        seed=seed,
        model=preset.model,
        boundary=preset.boundary,
        boundary_size_bytes=boundary_size_bytes(preset.boundary, data.micro_batch_size, data.seq_len),
        stages=split(preset.model, preset.boundary, num_stages, data.seq_len),
        data=data,
        inner=preset.inner,
        merge=preset.merge,
        routing=preset.routing,
        audit=preset.audit,
        score=preset.score,
    )
