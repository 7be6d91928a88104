"""RunSpec: everything all parties must agree on. Its digest travels in every request.

Law: frozen, complete, no defaults that differ between machines, no local matters (paths, devices, ports). Two parties
with the same digest derive the same batches, shapes, sizes, deadlines and arithmetic. Units are last in the names.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from subnet.protocol.ids import Digest, RunId, Values
from subnet.protocol.keys import ObjectKey

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Fraction = Annotated[float, Meta(ge=0, le=1)]

HOLD_SHARE = 0.6
"""Of a heartbeat: how long an exchange is held open."""
SILENCE_HEARTBEATS_MIN = 1.5
"""A held exchange, then one that gets lost and is made again after 0.8 heartbeats: 1.4 without any delay."""


class ModelSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A Llama-style decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU, untied head."""

    vocab_size: Positive
    d_model: Positive
    num_layers: Positive
    num_heads: Positive
    num_kv_heads: Positive
    d_ff: Positive
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


class BoundarySpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What crosses from stage to stage (ALGORITHMS 1)."""

    width: Count
    """K, values per token. width == d_model means no bottleneck: x itself crosses. 0 sends nothing (the control)."""
    hidden: Positive
    """Width of the encoder's and decoder's hidden layer."""
    values: Values
    """How z and its gradient are held on the wire."""
    scale_group_tokens: Positive
    """Tokens that share one 2-byte scale when values are int8."""
    token_table: bool
    """Adds a learned row per token on the receiving side: y += P[token]."""


class StageSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stage as pure arithmetic; `model.split` computes it and every party checks it."""

    first_layer: Count
    end_layer: Count
    """One past the last layer."""
    num_params: Positive
    """P, length of the stage's flat parameter vector."""
    flops_per_token: Positive
    """Forward FLOPs for one token; a backward costs twice as much."""


class DataFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file every party downloads once and checks."""

    key: ObjectKey
    digest: Digest
    size_bytes: Positive
    num_tokens: Count = 0


class DataSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which tokens, and how they become micro-batches of shape [B, T]."""

    tokenizer: DataFile
    train: tuple[DataFile, ...]
    validation: tuple[DataFile, ...]
    micro_batch_size: Positive
    """B, sequences in a micro-batch."""
    seq_len: Positive
    """T, tokens in a sequence."""


class InnerSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """AdamW on each replica between merges (ALGORITHMS 3)."""

    micro_batches_per_step: Positive
    """k, micro-batches accumulated before the inner optimizer steps."""
    lr_peak: float
    lr_final: float
    warmup_steps: Count
    """Steps of linear warm-up at the start of the run."""
    rewarm_steps: Count
    """Steps of linear warm-up at each later epoch's start, after the optimizer's state was reset."""
    decay_steps: Positive
    """Steps from the end of the warm-up to lr_final (cosine)."""
    steps_per_epoch: Positive
    """Nominal inner steps in an epoch: places (epoch, step) on the schedule, so that the LR needs no other state."""
    reset_each_epoch: bool
    """Whether the AdamW state starts afresh at each epoch."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Gradient norm of the stage above which its gradient is scaled down."""


class MergeSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a stage merges and by what arithmetic (ALGORITHMS 3 and 4)."""

    num_microbatches_min: Positive
    """B_min, micro-batches a replica does before its stage merges."""
    counted_share: Fraction = 0.75
    """Share of B_min from which a pseudo-gradient counts in a merge that was called; 1 is the primer's rule."""
    quorum: Fraction
    """q, share of a stage's live replicas that must reach B_min."""
    relax_after_s: Seconds
    """q and B_min begin to relax when an epoch is this old; both are at their floor after twice this time."""
    grace_s: Seconds
    """How long work in flight may still finish after training closed."""
    upload_deadline_s: Seconds
    reduce_deadline_s: Seconds
    apply_deadline_s: Seconds
    copies: Annotated[int, Meta(ge=1, le=8)] = 2
    """Owners per shard."""
    upload_values: Values = Values.INT8
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    outer_momentum_first: float = 0.5
    """Momentum at epoch 0; rises linearly to outer_momentum over momentum_warmup_epochs."""
    momentum_warmup_epochs: Count = 0
    clip_factor: float = 3.0
    """Pseudo-gradients are clipped to this multiple of the stage's median norm of its last five epochs."""
    explosion_nats: Annotated[float, Meta(ge=0)] = 1.0
    """A merge is rolled back when the loss after it is so much above that of the epoch before; 0: never."""


class RoutingSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How work moves (ALGORITHMS 2)."""

    heartbeat_s: Seconds = 10.0
    """A living miner is heard of more often than this."""
    dead_after_s: Seconds = 19.0
    """Silence after which a miner is taken for gone: a little less than two heartbeats, so that its work is offered
    again within two."""
    rebalance_factor: Annotated[float, Meta(ge=1.25, le=100)] = 2.0
    """A stage starves when another one has more than this times its strength per FLOP, and a replica's move helps."""
    rebalance_after_s: Seconds = 300.0
    """How long it must have starved before a replica moves there, and the least time between two such moves."""
    in_flight_per_replica: Annotated[int, Meta(ge=1, le=64)] = 2
    """Micro-batches in flight = this times the replicas of the least provisioned stage, times the stages."""
    deadline_own_factor: float = 4.0
    """c: an item expires after c x the replica's own mean time ..."""
    deadline_stage_factor: float = 6.0
    """c': ... or c' x the stage's median, whichever is less."""
    deadline_floor_s: Seconds = 10.0
    deadline_first_s: Seconds = 60.0
    """Deadline while nothing is known about a replica."""
    slots_max: Annotated[int, Meta(ge=1, le=64)] = 4
    """Passes one miner may hold at once."""
    flush: bool = False
    """Synchronous mode: k micro-batches are opened together, the next k when all of them came back."""

    @property
    def hold_s(self) -> float:
        """How long an exchange is held open at most: so short that one lost call is made good before dead_after_s."""
        return HOLD_SHARE * self.heartbeat_s

    @property
    def silence_problem(self) -> str | None:
        """Why dead_after_s cannot work; None when it can."""
        least_s = SILENCE_HEARTBEATS_MIN * self.heartbeat_s
        if self.dead_after_s >= least_s:
            return None
        return f"{self.dead_after_s:g} s is below {least_s:g} s, {SILENCE_HEARTBEATS_MIN:g} heartbeats"


class Tolerances(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far an honest replay may be from what a miner sent; `python -m subnet.calibrate` measures them.

    The defaults are 25 to 1,000 times the worst seen among 3,009 honest replays on CPUs (thread counts, float64, other
    attention and matrix products), except that a quantiser's step is whole; devices not tried yet need the room.

    A cosine is taken per token over the K values of one token (ALGORITHMS 5): one cosine over a whole tensor would let
    a miner skip 19 % of its tokens.
    """

    quantiser_steps: float = 1.5
    """int8 only: largest |q - q'| over all values, in steps of the quantiser; stochastic rounding may cost one."""
    cosine_min: float = 0.999
    """Lowest per-token cosine; only where values are not int8."""
    cosine_p01: float = 0.9999
    """1 % quantile of the per-token cosines; only where values are not int8."""
    relative_l2: float = 0.01
    """||a - a'|| / ||a'|| of one output; only where values are not int8."""
    loss: float = 0.001
    """|loss - loss'| in nats."""
    state: float = 0.01
    """||end - end'|| / ||end' - start|| of the parameters over one segment."""


class AuditSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Replays of miners' work by validators (DESIGN 7, ALGORITHMS 5)."""

    rate: Fraction
    """Share of a settled miner's epochs that are audited; 0 switches audits off."""
    settled_epochs: Positive
    """N_scores: a miner with n unexpired epochs is audited with probability min(1, rate x settled_epochs / n)."""
    segment_steps: Positive
    """s, inner steps between two committed states."""
    reveal_deadline_s: Seconds = 60.0
    """For a miner to show the states at both ends of a drawn segment."""
    replay_deadline_s: Seconds = 120.0
    """For a validator to replay it; then another one is asked."""
    tolerances: Tolerances = Tolerances()


class ScoreSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """From accepted work to on-chain weights (ALGORITHMS 6)."""

    gamma_s: Annotated[float, Meta(gt=0)]
    """γ: work counts for so long after its epoch ended, then not at all."""
    burn_fraction: Fraction = 0.0
    """Share of the weight that goes to the owner's uid."""


class RunSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole agreement of one run."""

    version: Positive = 1
    """1 as the run began; one more each time the owner tuned it (`protocol.tuning`)."""
    run_id: RunId
    seed: Count
    model: ModelSpec
    boundary: BoundarySpec
    boundary_size_bytes: Positive
    """Bytes of one encoded z_BTK or its gradient, framing included; `model.wire.encoded_size` computes it."""
    stages: tuple[StageSpec, ...]
    data: DataSpec
    inner: InnerSpec
    merge: MergeSpec
    routing: RoutingSpec
    audit: AuditSpec
    score: ScoreSpec

    @property
    def num_stages(self) -> int:
        return len(self.stages)

    @property
    def micro_batch_tokens(self) -> int:
        """B x T."""
        return self.data.micro_batch_size * self.data.seq_len

    def digest(self) -> Digest:
        """SHA-256 over the canonical JSON."""
        return Digest(hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest())
