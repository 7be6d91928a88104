"""What becomes of the results of merge work: uploads, reductions, outer steps, synchronisations.

Law: a result counts while its offer is open and its step runs; later it is Ignored(PHASE_OVER), never a fault. What
is wrong in itself is Rejected and named.
"""

from __future__ import annotations

import math

from subnet.coordination import reducing, routing
from subnet.coordination.passes import reject, verdict
from subnet.coordination.state import CheckObject, Merge, Offer, StageState, State, Upload
from subnet.merging import compression
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.messages import (
    ApplyDone,
    ApplyWork,
    Failed,
    ReduceDone,
    ReduceWork,
    Source,
    SyncDone,
    SyncWork,
    Target,
    UploadDone,
    UploadWork,
    Verdict,
)
from subnet.protocol.reasons import Reason

MergeDone = UploadDone | ReduceDone | ApplyDone | SyncDone


def accept(state: State, offer: Offer, done: MergeDone) -> Verdict:
    """Judge the result of open merge work; the offer's miner is its sender."""
    routing.withdraw(state, offer.item)
    stage, work, hotkey = state.stage_of(offer.hotkey), offer.work, offer.hotkey
    if isinstance(work, SyncWork) and isinstance(done, SyncDone):
        return _synced(state, stage, work, done, hotkey)
    merge = stage.merge
    if merge is None or work.epoch != stage.epoch:
        return verdict(done.item, "ignored", Reason.PHASE_OVER, f"epoch {work.epoch} of the stage is over")
    match work, done:
        case UploadWork(), UploadDone() if merge.step == "upload":
            return _uploaded(state, stage, merge, work, done, hotkey)
        case ReduceWork(), ReduceDone() if merge.step == "reduce":
            return _reduced(state, merge, work, done, hotkey)
        case ApplyWork(), ApplyDone() if merge.step == "apply":
            return _applied(merge, work, done, hotkey)
    return verdict(done.item, "ignored", Reason.PHASE_OVER, f"the merge is past this step: {merge.step}")


def _source(target: Target, digest: str) -> Source:
    return Source(key=target.key, digest=Digest(digest), size_bytes=target.size_bytes)


def _uploaded(
    state: State, stage: StageState, merge: Merge, work: UploadWork, done: UploadDone, hotkey: Hotkey
) -> Verdict:
    if not math.isfinite(done.norm):
        return reject(state, done.item, Reason.NOT_FINITE, f"the pseudo-gradient's norm is {done.norm}", hotkey)
    count = state.spec.stages[stage.stage].num_params
    chunks = -(-count // compression.CHUNK_VALUES)
    if len(done.chunk_digests) != chunks:
        said = f"{len(done.chunk_digests)} chunk digests for {chunks} chunks"
        return reject(state, done.item, Reason.MALFORMED, said, hotkey)
    merge.uploads[hotkey] = Upload(
        source=_source(work.output, done.digest),
        norm=done.norm,
        weight=merge.weights[hotkey],
        chunk_digests=done.chunk_digests,
    )
    return verdict(done.item, "applied", Reason.OK, f"in the manifest with weight {merge.weights[hotkey]}")


def _reduced(state: State, merge: Merge, work: ReduceWork, done: ReduceDone, hotkey: Hotkey) -> Verdict:
    if len(done.shard_digests) != len(work.shards):
        said = f"{len(done.shard_digests)} digests for {len(work.shards)} shards"
        return reject(state, done.item, Reason.MALFORMED, said, hotkey)
    digests = (Digest(digest) for digest in done.shard_digests)
    merge.reports[hotkey] = {shard.index: digest for shard, digest in zip(work.shards, digests, strict=True)}
    merge.reduced[hotkey] = _source(work.output, done.digest)
    return verdict(done.item, "applied", Reason.OK, f"{len(work.shards)} shards reduced")


def _applied(merge: Merge, work: ApplyWork, done: ApplyDone, hotkey: Hotkey) -> Verdict:
    merge.applied[hotkey] = (Digest(done.parameters_digest), Digest(done.momentum_digest))
    if work.publish_parameters is not None and work.publish_momentum is not None:
        merge.published[hotkey] = (
            _source(work.publish_parameters, done.parameters_digest),
            _source(work.publish_momentum, done.momentum_digest),
        )
    return verdict(done.item, "applied", Reason.OK, "the outer step is taken")


def _synced(state: State, stage: StageState, work: SyncWork, done: SyncDone, hotkey: Hotkey) -> Verdict:
    if done.parameters_digest != work.parameters.digest:
        return reject(state, done.item, Reason.WRONG_ANCHOR, "loaded parameters have another digest", hotkey)
    state.miners[hotkey].synced_epoch = work.epoch
    if work.epoch == stage.epoch:
        stage.contributions.pop(hotkey, None)
    return verdict(done.item, "applied", Reason.OK, f"holds the parameters of epoch {work.epoch}")


def fail(state: State, offer: Offer, failed: Failed) -> tuple[Verdict, list[CheckObject]]:
    """A miner cannot do its merge work; where it blames an object, the orchestrator looks at it."""
    routing.withdraw(state, offer.item)
    answer = verdict(failed.item, "applied", failed.reason, f"noted ({failed.sentence})")
    state.incident(failed.reason, f"{failed.item}: {failed.sentence}", offer.hotkey)
    merge = state.stage_of(offer.hotkey).merge
    if isinstance(offer.work, ApplyWork | SyncWork):
        state.miners[offer.hotkey].synced_epoch = -1
    if merge is None or failed.object_key is None:
        return answer, []
    for upload in merge.uploads.values():
        if upload.source.key == failed.object_key:
            return answer, [CheckObject(upload.source, upload.chunk_digests)]
    for reduced in merge.reduced.values():
        if reduced.key == failed.object_key:
            return answer, [CheckObject(reduced)]
    return answer, []


def checked(state: State, key: str, reason: Reason) -> str:
    """The orchestrator looked at an upload or a reduced object: a bad one is taken out and its maker named."""
    parsed = keys.parse(key)
    stage = state.stages[parsed.stage]
    merge = stage.merge
    if merge is None or parsed.epoch != stage.epoch:
        return f"{key} was checked, but its merge is over"
    if reason is Reason.OK:
        return f"{key} is good: the complaint was false"
    for hotkey, upload in merge.uploads.items():
        if upload.source.key == key and hotkey not in merge.excluded:
            state.miners[hotkey].faults += 1
            state.incident(reason, f"pseudo-gradient {key} is bad", hotkey)
            return reducing.restart(state, stage, merge, hotkey)
    for hotkey, source in list(merge.reduced.items()):
        if source.key == key:
            state.miners[hotkey].faults += 1
            state.incident(reason, f"reduced shards {key} are bad", hotkey)
            return reducing.discard(state, stage, merge, hotkey)
    return f"{key} belongs to nobody here"
