"""What a crowd agrees on: its RunSpec, the record that opens its run, and what the modelled hardware takes.

Law: a function of the number of miners, stages and the seed alone. Vectors are tiny, since none exists: a byte of an
object stands for `STANDS_FOR` bytes on the line, so that transfers take what those of a 100M-parameter stage take.
"""

from __future__ import annotations

import hashlib

from subnet.merging import compression
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Hotkey, Pass, RunId, Values
from subnet.protocol.messages import RunOpened, Source, StageStart
from subnet.protocol.run_spec import (
    AuditSpec,
    BoundarySpec,
    DataFile,
    DataSpec,
    InnerSpec,
    MergeSpec,
    ModelSpec,
    RoutingSpec,
    RunSpec,
    ScoreSpec,
    StageSpec,
)

RUN = RunId("crowd")
NUM_PARAMS = compression.CHUNK_VALUES
"""P of a stage: one chunk, 64 blocks, so at most 64 shards."""
STANDS_FOR = 6000.0
FORWARD_S = 28.0
"""A median miner's forward pass; a backward takes twice as long, the last stage's pass three times. With the waits of
a pipeline and its merges that makes about one pass a minute and miner."""
NUM_MICROBATCHES_MIN = 14
"""B_min: all but the slowest, and those who were struck, reach it after about 40 minutes, the median having done 20."""
EPOCH_S = 2400.0
"""About what an epoch takes."""
TIMES = {Pass.FORWARD: 1.0, Pass.BACKWARD: 2.0, Pass.LOSS: 3.0}
"""Passes in forwards."""


def crowd_spec(stages: int, seed: int = 7, audit_rate: float = 0.01) -> RunSpec:
    """The whole agreement."""
    file = DataFile(key=keys.make(RUN, 0, 0, "text", keys.Kind.DATA), digest=digest_of("text"), size_bytes=20_000)
    return RunSpec(
        run_id=RUN,
        seed=seed,
        model=ModelSpec(vocab_size=256, d_model=32, num_layers=stages, num_heads=4, num_kv_heads=2, d_ff=64),
        boundary=BoundarySpec(width=16, hidden=32, values=Values.INT8, scale_group_tokens=16, token_table=False),
        boundary_size_bytes=200,
        stages=tuple(
            StageSpec(first_layer=i, end_layer=i + 1, num_params=NUM_PARAMS, flops_per_token=1_000_000)
            for i in range(stages)
        ),
        data=DataSpec(tokenizer=file, train=(file,), validation=(file,), micro_batch_size=8, seq_len=1024),
        inner=InnerSpec(
            micro_batches_per_step=4,
            lr_peak=1e-3,
            lr_final=1e-4,
            warmup_steps=10,
            rewarm_steps=0,
            decay_steps=1000,
            steps_per_epoch=8,
            reset_each_epoch=False,
        ),
        merge=MergeSpec(
            num_microbatches_min=NUM_MICROBATCHES_MIN,
            quorum=0.85,
            # weights are micro-batches: who was struck brings what it has
            counted_share=0.125,
            relax_after_s=1.5 * EPOCH_S,
            grace_s=60.0,
            upload_deadline_s=240.0,
            reduce_deadline_s=240.0,
            apply_deadline_s=240.0,
        ),
        # dead miners are noticed within two heartbeats; a pass may wait for the two before it in its miner's hand
        routing=RoutingSpec(
            heartbeat_s=180.0,
            dead_after_s=342.0,
            rebalance_after_s=EPOCH_S,
            in_flight_per_replica=2,
            deadline_floor_s=240.0,
            deadline_first_s=900.0,
            slots_max=3,
        ),
        audit=AuditSpec(
            rate=audit_rate, settled_epochs=24, segment_steps=2, reveal_deadline_s=900.0, replay_deadline_s=900.0
        ),
        score=ScoreSpec(gamma_s=6 * EPOCH_S),
    )


def opening(spec: RunSpec, evaluators: tuple[Hotkey, ...]) -> RunOpened:
    """The first record. The run has no last epoch: virtual time ends it."""
    starts = []
    for stage in range(spec.num_stages):
        parameters, momentum = (_start(spec, stage, kind) for kind in (keys.Kind.PARAMETERS, keys.Kind.MOMENTUM))
        starts.append(StageStart(parameters=parameters, momentum=momentum))
    return RunOpened(spec=spec, starts=tuple(starts), evaluators=evaluators, target_epochs=0)


def _start(spec: RunSpec, stage: int, kind: keys.Kind) -> Source:
    size_bytes = compression.encoded_size(Values.FP32, spec.stages[stage].num_params)
    key = keys.make(spec.run_id, 0, stage, "start", kind)
    return Source(key=key, digest=digest_of(f"start {stage} {kind.value}"), size_bytes=size_bytes)


def digest_of(what: str) -> Digest:
    """Stands for the digest of an object that nobody made: equal for whoever names the same thing."""
    return Digest(hashlib.sha256(what.encode()).hexdigest())
