"""Everything parties say to each other, typed: requests, work, results, replies, and the orchestrator's own records.

Law: frozen structs without behaviour; msgspec refuses what does not fit, so code behind the door sees valid types
only. Requests and own records together are what the journal holds: the run state is their fold. Object references in
a journal never hold a URL; the shell fills `url` in on the way out.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, MicroBatchId, Pass, RunId, Stage
from subnet.protocol.keys import ObjectKey
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec

Hex64 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
ShortText = Annotated[str, Meta(max_length=300)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]

# ---- object references -----------------------------------------------------------------------------------------------


class Source(Struct, frozen=True, kw_only=True):
    """An object to read: which one, which bytes it must have, and where to get it."""

    key: ObjectKey
    digest: Digest
    size_bytes: int
    url: str = ""


class Target(Struct, frozen=True, kw_only=True):
    """A slot to write: one key, one exact size."""

    key: ObjectKey
    size_bytes: int
    url: str = ""


class RangeSource(Struct, frozen=True, kw_only=True):
    """Part of an object: `digest` is that of the range alone."""

    key: ObjectKey
    offset: int
    size_bytes: int
    digest: Digest
    url: str = ""


# ---- work: what a miner is given -------------------------------------------------------------------------------------


class PassWork(Struct, frozen=True, kw_only=True, tag="pass"):
    """One pass of one micro-batch through the miner's stage.

    A backward always names the stage input too, so a replica that never saw the forward can recompute it and go on.
    """

    item: ItemId
    kind: Pass
    micro_batch: MicroBatchId
    stage: Stage
    epoch: Epoch
    """The stage's epoch when the item was given out."""
    stage_input: Source | None
    """z_BTK of the stage before; None at stage 0, whose input are the tokens."""
    gradient: Source | None
    """Gradient with respect to this stage's output; backward only."""
    output: Target | None
    """Boundary forward, or gradient with respect to the stage input; None for stage 0's backward."""
    deadline_s: float


class UploadWork(Struct, frozen=True, kw_only=True, tag="upload"):
    """Close the epoch's training: upload the pseudo-gradient."""

    item: ItemId
    stage: Stage
    epoch: Epoch
    output: Target
    deadline_s: float


class ManifestEntry(Struct, frozen=True, kw_only=True):
    """One replica's pseudo-gradient as it enters the reduction."""

    hotkey: Hotkey
    weight: float
    """w_m, its micro-batches."""
    scale: float
    """Clip factor in (0, 1]."""
    source: Source
    chunk_digests: tuple[Hex64, ...]
    """SHA-256 of each consecutive chunk of `compression.CHUNK_VALUES` values, so that ranges can be checked."""


class Shard(Struct, frozen=True, kw_only=True):
    """A contiguous range of the stage's flat vector, in values."""

    index: int
    start: int
    length: int


class ReduceWork(Struct, frozen=True, kw_only=True, tag="reduce"):
    """Reduce the named shards over the manifest, bit-exactly; write them one after the other into `output` (fp32)."""

    item: ItemId
    stage: Stage
    epoch: Epoch
    manifest: tuple[ManifestEntry, ...]
    shards: tuple[Shard, ...]
    output: Target
    deadline_s: float


class MergedShard(Struct, frozen=True, kw_only=True):
    """Where the reduced values of one shard are; None means lost: parameters and momentum stay as they are there."""

    shard: Shard
    source: RangeSource | None


class ApplyWork(Struct, frozen=True, kw_only=True, tag="apply"):
    """Take the outer step with the merged shards; the first replicas also publish the result for joiners."""

    item: ItemId
    stage: Stage
    epoch: Epoch
    """The epoch that ends; its successor starts with the result."""
    shards: tuple[MergedShard, ...]
    counted: bool
    """Whether the miner's own upload is in the merge; where it is not, it starts the next epoch at the result."""
    publish_parameters: Target | None
    publish_momentum: Target | None
    deadline_s: float
    spec: RunSpec | None = None
    """The rules of the next epoch, where the owner has tuned them: they hold from this step on."""


class SyncWork(Struct, frozen=True, kw_only=True, tag="sync"):
    """Drop local parameters and load the stage's epoch-start parameters: the replica fell behind or differs."""

    item: ItemId
    stage: Stage
    epoch: Epoch
    """The epoch that starts with these parameters."""
    parameters: Source
    momentum: Source
    deadline_s: float
    spec: RunSpec | None = None
    """The rules of that epoch; None where the run has had no others."""


class RevealWork(Struct, frozen=True, kw_only=True, tag="reveal"):
    """Show the training state at the ends of a drawn segment: the states that were committed, byte for byte."""

    item: ItemId
    stage: Stage
    epoch: Epoch
    segment: int
    """Commitment number `segment` opens it, the next one closes it."""
    start_digest: Hex64
    end_digest: Hex64
    start: tuple[Target, ...]
    """One for each of STATE_PARTS; empty where everybody knows the state: parameters loaded at the epoch's start."""
    end: tuple[Target, ...]
    deadline_s: float


STATE_PARTS = ("parameters", "older", "mean", "square")
"""A training state: local parameters now and one version before, AdamW's two moments; each fp32 [P] as an object."""


Work = PassWork | UploadWork | ReduceWork | ApplyWork | SyncWork | RevealWork

# ---- results: what a miner brings back -------------------------------------------------------------------------------


class PassDone(Struct, frozen=True, kw_only=True, tag="pass"):
    item: ItemId
    digest: Hex64 | None
    """Of the object written to the target; None where there was none."""
    loss: float | None = None
    """Mean cross-entropy in nats; Pass.LOSS only."""
    param_version: Annotated[int, Meta(ge=0)]
    """Which local parameter version the pass used."""
    compute_s: Annotated[float, Meta(ge=0)]


class Logged(Struct, frozen=True, array_like=True):
    """One pass in a miner's own order, whether or not its result counted."""

    item: ItemId
    version: Annotated[int, Meta(ge=0)]
    """The local parameter version it ran on: the one of the moment, or the one before."""


class Commitment(Struct, frozen=True, array_like=True):
    """A training state that a miner can show: every s inner steps, at the epoch's start and at its upload."""

    position: Annotated[int, Meta(ge=0)]
    """Passes of the log that came before it."""
    version: Annotated[int, Meta(ge=0)]
    step: Annotated[int, Meta(ge=0)]
    """Inner steps since the epoch's start."""
    optimizer_steps: Annotated[int, Meta(ge=0)]
    """Inner steps since the optimizer was reset."""
    digest: Hex64
    """`scoring.audit.state_digest` of these numbers and the state's parts."""


class UploadDone(Struct, frozen=True, kw_only=True, tag="upload"):
    item: ItemId
    digest: Hex64
    norm: Annotated[float, Meta(ge=0)]
    """L2 norm of the pseudo-gradient as sent."""
    chunk_digests: Annotated[tuple[Hex64, ...], Meta(max_length=65_536)]
    log: Annotated[tuple[Logged, ...], Meta(max_length=65_536)] = ()
    """Every pass since the upload or load before, in the order it was computed."""
    commitments: Annotated[tuple[Commitment, ...], Meta(max_length=4096)] = ()
    """The first opens the epoch, the last is the state that was uploaded."""
    applied_at: Annotated[int, Meta(ge=0)] | None = None
    """Passes of the log that came before the last merge was applied; None when none was since the log began."""
    loaded: bool = False
    """Whether the log begins with parameters that were loaded (everybody knows them), not with a merge applied."""


class ReduceDone(Struct, frozen=True, kw_only=True, tag="reduce"):
    item: ItemId
    digest: Hex64
    shard_digests: Annotated[tuple[Hex64, ...], Meta(max_length=65_536)]
    """In the order of the work's shards."""


class ApplyDone(Struct, frozen=True, kw_only=True, tag="apply"):
    item: ItemId
    parameters_digest: Hex64
    """Of the encoded parameters object, published or not: equal on all honest replicas."""
    momentum_digest: Hex64


class SyncDone(Struct, frozen=True, kw_only=True, tag="sync"):
    item: ItemId
    parameters_digest: Hex64


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """The work cannot be done. Names the object that is to blame where there is one."""

    item: ItemId
    reason: Reason
    sentence: ShortText
    object_key: Name | None = None


class RevealDone(Struct, frozen=True, kw_only=True, tag="reveal"):
    item: ItemId
    start: Annotated[tuple[Hex64, ...], Meta(max_length=4)]
    """Digests of the parts, in their order."""
    end: Annotated[tuple[Hex64, ...], Meta(max_length=4)]


Result = PassDone | UploadDone | ReduceDone | ApplyDone | SyncDone | RevealDone | Failed

# ---- requests --------------------------------------------------------------------------------------------------------


class Resumes(Struct, frozen=True, kw_only=True):
    """What a miner's process found on its disk: the training of the process before, up to a state it committed."""

    run_id: RunId
    stage: Annotated[int, Meta(ge=0)]
    epoch: Annotated[int, Meta(ge=0)]
    anchor: Hex64
    """Digest of the parameters that the epoch began with."""
    log: Annotated[tuple[Logged, ...], Meta(max_length=65_536)]
    """Every pass since the upload or load before; the last commitment comes after all of them."""
    commitments: Annotated[tuple[Commitment, ...], Meta(min_length=1, max_length=4096)]
    applied_at: Annotated[int, Meta(ge=0)] | None
    """As in UploadDone."""
    loaded: bool


class Join(Struct, frozen=True, kw_only=True, tag="join"):
    """A miner's process starts taking part. `session` names the process: a new one ends the hotkey's older one."""

    session: Name
    device: ShortText
    software: ShortText
    resumes: Resumes | None = None
    """What it would go on from, were the stage where it left it."""


class Exchange(Struct, frozen=True, kw_only=True, tag="exchange"):
    """Results in, work out; also the heartbeat."""

    session: Name
    free_slots: Annotated[int, Meta(ge=0, le=64)]
    holding: Annotated[tuple[ItemId, ...], Meta(max_length=256)]
    """Items already received and not yet answered, results in this very request excluded."""
    results: Annotated[tuple[Result, ...], Meta(max_length=256)]


class Evaluated(Struct, frozen=True, kw_only=True, tag="evaluated"):
    """Validation loss of the merged model at an epoch's start."""

    epoch: Annotated[int, Meta(ge=0)]
    loss: float
    num_tokens: Annotated[int, Meta(ge=1)]
    parameters: tuple[Hex64, ...]
    """Digest of each stage's parameters that were evaluated."""


class AuditFigures(Struct, frozen=True, kw_only=True):
    """What a replay found, worst over the segment. `scoring.audit.judge` alone decides what it means."""

    outputs: Annotated[int, Meta(ge=0)]
    """Boundaries, gradients and losses that were compared."""
    quantiser_steps: float = 0.0
    cosine_min: float = 1.0
    cosine_p01: float = 1.0
    relative_l2: float = 0.0
    loss: float = 0.0
    state: float = 0.0
    worst_item: ItemId = ItemId("")
    """The pass whose output was furthest off."""


class AuditDone(Struct, frozen=True, kw_only=True):
    """A validator's finding on one audit."""

    item: ItemId
    figures: AuditFigures | None
    """None when it could not be replayed; then `reason` says whose fault that is."""
    reason: Reason
    """OK with figures; BAD_OBJECT or BAD_DIGEST: the miner showed other bytes than it committed, or sent nothing
    replayable; UNREADABLE: an input is gone, which is nobody's fault."""
    sentence: ShortText
    compute_s: Annotated[float, Meta(ge=0)]


class Review(Struct, frozen=True, kw_only=True, tag="review"):
    """A validator's exchange: findings in, audits out; also its heartbeat."""

    free: Annotated[int, Meta(ge=0, le=16)]
    """Audits it would take on now, besides those it holds."""
    holding: Annotated[tuple[ItemId, ...], Meta(max_length=16)] = ()
    """Audits it has and has not answered; what it does not name is given again."""
    found: Annotated[tuple[AuditDone, ...], Meta(max_length=64)]
    with_data: bool = False
    """Whether the reply shall name the RunSpec's files."""


class WeightsSet(Struct, frozen=True, kw_only=True, tag="weights-set"):
    """A validator says which weights it has given the chain, and what they follow from."""

    index: Annotated[int, Meta(ge=0)]
    """The journal record after which they were computed."""
    head: Hex64
    """The journal's head there."""
    weights: Annotated[tuple[tuple[int, float], ...], Meta(max_length=4096)]
    """(uid, weight), as `scoring.emission` gives them."""
    block: int
    """Where the chain took them; 0: it did not."""
    sentence: ShortText
    dropped: Annotated[tuple[int, ...], Meta(max_length=4096)] = ()
    """uids whose hotkey on the chain is another one than at that record: their share was told to nobody."""


Message = Join | Exchange | Evaluated | Review | WeightsSet


class Request(Struct, frozen=True, kw_only=True):
    """What travels: every signature covers run and RunSpec, so nothing replays across runs."""

    run_id: RunId
    spec_digest: Digest | None
    """None only in a Join: that is how the RunSpec is learned."""
    message: Message


# ---- replies ---------------------------------------------------------------------------------------------------------


class Verdict(Struct, frozen=True, kw_only=True):
    """What became of one result."""

    item: ItemId
    outcome: Annotated[str, Meta(pattern="^(applied|ignored|rejected)$")]
    reason: Reason
    sentence: str
    work_units: float = 0.0
    """Credit for it in the ledger; 0 unless a pass was applied, now or when it first came (a duplicate)."""


class Notice(Struct, frozen=True, kw_only=True):
    """Why a miner is in the state it is in, with what to do about it."""

    reason: Reason
    sentence: str
    remedy: str


class Receipt(Struct, frozen=True, kw_only=True):
    """Where in the journal the request stands: with the reply's signature, proof that it was accepted."""

    journal_index: int
    head: Digest


class Joined(Struct, frozen=True, kw_only=True, tag="joined"):
    spec: RunSpec
    stage: Stage
    epoch: Epoch
    parameters: Source
    momentum: Source
    data: tuple[Source, ...]
    """Tokenizer, training and validation files of the RunSpec with their URLs."""
    notice: Notice
    resumed: bool = False
    """Whether the miner goes on from what it said it resumes; else it starts at the epoch's parameters."""
    receipt: Receipt | None = None


class ExchangeReply(Struct, frozen=True, kw_only=True, tag="exchanged"):
    verdicts: tuple[Verdict, ...]
    work: tuple[Work, ...]
    drop: tuple[ItemId, ...]
    """Items the miner holds that nobody waits for any more."""
    notice: Notice
    finished: bool = False
    """The run reached its target: the miner may leave."""
    receipt: Receipt | None = None


class AuditPass(Struct, frozen=True, kw_only=True):
    """One pass of a segment: what was given, and what the miner said came of it."""

    work: PassWork
    """As it was given out; its target is where the miner's output lies."""
    version: int
    """From the miner's log."""
    output: Source | None
    """What the miner stored; None where the pass had no output, or its result never arrived: then nothing is compared,
    but the replay still needs the pass."""
    loss: float | None


class AuditWork(Struct, frozen=True, kw_only=True):
    """Replay one segment of one miner's epoch (ALGORITHMS 5)."""

    item: ItemId
    hotkey: Hotkey
    """Whose work it is."""
    stage: Stage
    epoch: Epoch
    segment: int
    begins: Commitment
    ends: Commitment
    anchor: Source
    """The stage's parameters at the epoch's start."""
    loaded: bool
    """Whether the segment begins at the anchor itself, with a fresh optimizer; then `start` is empty."""
    applies_after: int | None
    """After how many of `passes` the miner went over to the anchor; None: not in this segment."""
    start: tuple[Source, ...]
    end: tuple[Source, ...]
    upload: Source | None
    """The pseudo-gradient, for the last segment."""
    passes: tuple[AuditPass, ...]
    deadline_s: float
    spec: RunSpec | None = None
    """The rules that the epoch was trained by; None where the run has had no others."""
    spec_before: RunSpec | None = None
    """Those of the epoch before, where they were others: by them went what comes before the merge was applied."""


class EvaluateWork(Struct, frozen=True, kw_only=True):
    """Measure the merged model on the held-out text."""

    epoch: Epoch
    parameters: tuple[Source, ...]


class Reviewed(Struct, frozen=True, kw_only=True, tag="reviewed"):
    audits: tuple[AuditWork, ...]
    """Given to this validator and not answered yet."""
    evaluate: EvaluateWork | None
    data: tuple[Source, ...]
    """Tokenizer, training and validation files, when asked for."""
    notice: Notice
    finished: bool = False
    """The run is over and every audit of it settled."""
    receipt: Receipt | None = None


class Noted(Struct, frozen=True, kw_only=True, tag="noted"):
    notice: Notice
    receipt: Receipt | None = None


class Refusal(Struct, frozen=True, kw_only=True, tag="refused"):
    """Nothing was changed by the request."""

    notice: Notice
    receipt: Receipt | None = None


Reply = Joined | ExchangeReply | Reviewed | Noted | Refusal

# ---- the orchestrator's own records ----------------------------------------------------------------------------------


class StageStart(Struct, frozen=True, kw_only=True):
    """A stage's first parameters and momentum."""

    parameters: Source
    momentum: Source


class RunOpened(Struct, frozen=True, kw_only=True, tag="run-opened"):
    spec: RunSpec
    starts: tuple[StageStart, ...]
    evaluators: tuple[Hotkey, ...]
    """Hotkeys that may report validation losses."""
    target_epochs: int
    """Stages pause after so many epochs; 0 means never."""


class RunResumed(Struct, frozen=True, kw_only=True, tag="run-resumed"):
    """The orchestrator's process started again: sessions go on, deadlines begin anew, the gap is nobody's fault."""

    target_epochs: int


class Registered(Struct, frozen=True, kw_only=True, tag="registered"):
    """The full set of hotkeys that may join, as read from the chain."""

    hotkeys: tuple[Hotkey, ...]


class Neuron(Struct, frozen=True, kw_only=True):
    """One uid of the subnet, as the chain shows it."""

    uid: int
    hotkey: Hotkey
    stake: float
    """Total stake behind the hotkey, in alpha."""
    permit: bool
    """Whether it may validate."""


class ChainSeen(Struct, frozen=True, kw_only=True, tag="chain-seen"):
    """What the chain says: who has which uid, and a block hash that nobody could know before."""

    block: int
    block_hash: Hex64
    owner_uid: int
    """Where burnt weight goes."""
    neurons: tuple[Neuron, ...]
    closes: Epoch | None = None
    """The block is the first one after every stage had closed this epoch: its hash draws that epoch's audits."""
    tempo: int = 0
    """Blocks between two chain epochs."""
    hyperparameters: dict[str, float | int | bool] = {}
    """On-chain ones, by btcli's names, in the order of their names."""


class Tuned(Struct, frozen=True, kw_only=True, tag="tuned"):
    """The owner changed the rules: each stage takes them over with its next epoch."""

    spec: RunSpec


class Anchored(Struct, frozen=True, kw_only=True, tag="anchored"):
    """The owner's commitment on chain names a head of this journal: nobody can exchange what lies before it."""

    epoch: Annotated[int, Meta(ge=0)]
    """How many epochs every stage had closed."""
    index: Annotated[int, Meta(ge=0)]
    """The record after which the journal had that head."""
    head: Hex64
    block: Annotated[int, Meta(ge=0)]
    """Which block holds the commitment."""


class SecretDrawn(Struct, frozen=True, kw_only=True, tag="secret-drawn"):
    """The secret behind an epoch's draws."""

    epoch: Epoch
    secret: Hex64


class Tick(Struct, frozen=True, kw_only=True, tag="tick"):
    """Time passed and something was due."""


class ShardRecomputed(Struct, frozen=True, kw_only=True, tag="shard-recomputed"):
    """The orchestrator's own reduction of a disputed shard."""

    stage: Stage
    epoch: Epoch
    shard: int
    source: RangeSource | None
    """None: the inputs could not be read; the shard is lost."""


class UploadSeen(Struct, frozen=True, kw_only=True):
    """What the orchestrator found in one upload of a merge that went wrong."""

    hotkey: Hotkey
    reason: Reason
    """OK, or what is wrong with its bytes."""
    norm: float = 0.0
    """L2 norm of what was read."""
    cosine: float | None = None
    """With the others' mean direction; None where there is nothing to compare."""


class MergeInspected(Struct, frozen=True, kw_only=True, tag="merge-inspected"):
    """The orchestrator looked at every upload of a merge that was taken back."""

    stage: Stage
    epoch: Epoch
    number: int
    """Of the question."""
    uploads: tuple[UploadSeen, ...]


class ObjectChecked(Struct, frozen=True, kw_only=True, tag="object-checked"):
    """The orchestrator looked at an object a reader complained about."""

    key: ObjectKey
    reason: Reason
    """OK, or what is wrong with it."""


class Refused(Struct, frozen=True, kw_only=True, tag="refused"):
    """A request that did not pass the door. `times` counts equal ones that were not recorded one by one."""

    reason: Reason
    claimed: ShortText
    sentence: ShortText
    times: int = 1


OwnRecord = (
    RunOpened
    | RunResumed
    | Registered
    | ChainSeen
    | SecretDrawn
    | Tick
    | ShardRecomputed
    | ObjectChecked
    | MergeInspected
    | Refused
    | Tuned
    | Anchored
)


class Envelope(Struct, frozen=True, kw_only=True):
    """One entry of the journal: who said what, when it was received. Their fold is the run state."""

    sender: Hotkey
    at: float
    """Unix time in seconds; never decreases along the journal."""
    message: Message | OwnRecord
