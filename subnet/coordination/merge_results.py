"""What becomes of the results of merge work: uploads, reductions, outer steps, synchronisations.

Law: a result counts while its offer is open and its step runs; later it is Ignored(PHASE_OVER), never a fault. What
is wrong in itself is Rejected and named.
"""

from __future__ import annotations

import math

from subnet.coordination import dossiers, members, poison, reducing, routing
from subnet.coordination.effects import CheckObject, Effect
from subnet.coordination.index import index_of
from subnet.coordination.merge_state import Merge, Reduced, Upload
from subnet.coordination.passes import reject, verdict
from subnet.coordination.state import Offer, StageState, State
from subnet.merging import compression
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.keys import ObjectKey
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


def accept(state: State, offer: Offer, done: MergeDone) -> tuple[Verdict, list[Effect]]:
    """Judge the result of open merge work; the offer's miner is its sender."""
    routing.withdraw(state, offer.item)
    stage, work, hotkey = state.stage_of(offer.hotkey), offer.work, offer.hotkey
    merge = stage.merge if work.epoch == stage.epoch else None
    step = merge.step if merge is not None else ""
    match work, done:
        case SyncWork(), SyncDone():
            return _synced(state, stage, work, done, hotkey)
        case UploadWork(), UploadDone():
            if merge is not None and step == "upload":
                return _uploaded(state, stage, merge, work, done, hotkey), []
        case ReduceWork(), ReduceDone():
            if merge is not None and step == "reduce":
                return _reduced(state, merge, work, done, hotkey), []
        case ApplyWork(), ApplyDone():
            if merge is not None and step == "apply":
                return _applied(merge, work, done, hotkey), []
        case _:
            return misanswered(state, offer, f"a {type(done).__name__} does not answer a {type(work).__name__}"), []
    said = f"the merge is past this step: {step}" if merge else f"epoch {work.epoch} of the stage is over"
    return verdict(done.item, "ignored", Reason.PHASE_OVER, said), []


def misanswered(state: State, offer: Offer, sentence: str) -> Verdict:
    """A result of another kind than the work: it is not asked for again."""
    routing.withdraw(state, offer.item)
    return reject(state, offer.item, Reason.MALFORMED, sentence, offer.hotkey)


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
    said_of_log = dossiers.problem(state, stage, hotkey, done)
    if said_of_log is not None:
        return reject(state, done.item, Reason.MALFORMED, f"the work log does not fit: {said_of_log}", hotkey)
    source = _source(work.output, done.digest)
    dossiers.uploaded(state, stage, hotkey, source, done)
    merge.uploads[hotkey] = Upload(
        source=source,
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
    merge.reduced[work.item] = Reduced(
        hotkey=hotkey,
        source=_source(work.output, done.digest),
        digests={shard.index: digest for shard, digest in zip(work.shards, digests, strict=True)},
    )
    return verdict(done.item, "applied", Reason.OK, f"{len(work.shards)} shards reduced")


def _applied(merge: Merge, work: ApplyWork, done: ApplyDone, hotkey: Hotkey) -> Verdict:
    merge.applied[hotkey] = (Digest(done.parameters_digest), Digest(done.momentum_digest))
    if work.publish_parameters is not None and work.publish_momentum is not None:
        merge.published[hotkey] = (
            _source(work.publish_parameters, done.parameters_digest),
            _source(work.publish_momentum, done.momentum_digest),
        )
    return verdict(done.item, "applied", Reason.OK, "the outer step is taken")


def _synced(
    state: State, stage: StageState, work: SyncWork, done: SyncDone, hotkey: Hotkey
) -> tuple[Verdict, list[Effect]]:
    if done.parameters_digest != work.parameters.digest:
        said = "loaded parameters have another digest"
        answer = reject(state, done.item, Reason.WRONG_ANCHOR, said, hotkey)
        return answer, members.remove(state, state.miners[hotkey], Reason.WRONG_ANCHOR, said)
    state.miners[hotkey].synced_epoch = work.epoch
    index_of(state).file_miner(state, state.miners[hotkey])
    dossiers.restarted(state, hotkey)
    if work.epoch == stage.epoch:
        stage.contributions.pop(hotkey, None)
    return verdict(done.item, "applied", Reason.OK, f"holds the parameters of epoch {work.epoch}"), []


# ---- complaints ------------------------------------------------------------------------------------------------------


def fail(state: State, offer: Offer, failed: Failed) -> tuple[Verdict, list[Effect]]:
    """A miner cannot do its merge work; where it blames an object, the orchestrator looks at it.

    Who cannot load the stage's parameters is no replica: its session ends, and it comes back with a fresh download.
    """
    routing.withdraw(state, offer.item)
    answer = verdict(failed.item, "applied", failed.reason, f"noted ({failed.sentence})")
    state.incident(failed.reason, f"{failed.item}: {failed.sentence}", offer.hotkey)
    miner = state.miners[offer.hotkey]
    if isinstance(offer.work, SyncWork):
        said = f"the parameters of epoch {offer.work.epoch} could not be loaded: {failed.sentence}"
        return answer, members.remove(state, miner, failed.reason, said)
    stage = state.stages[miner.stage]
    merge = stage.merge if offer.work.epoch == stage.epoch else None
    check = None if merge is None else _blamed(merge, offer, failed)
    if merge is not None and check is not None:
        accusers = merge.checking.setdefault(check.source.key, [])
        accusers.append(offer.hotkey)
        return answer, [check] if len(accusers) == 1 else []
    if merge is not None and isinstance(offer.work, ApplyWork):
        miner.synced_epoch = -1
        index_of(state).file_miner(state, miner)
        merge.applied.pop(offer.hotkey, None)
        if failed.reason is Reason.NOT_FINITE and failed.object_key is None:
            poison.note_overflow(state, stage, merge, offer.hotkey)
    return answer, []


def _blamed(merge: Merge, offer: Offer, failed: Failed) -> CheckObject | None:
    """The object that the miner could not use, if its work was to read it and it still counts."""
    match offer.work:
        case ReduceWork():
            read = {entry.source.key for entry in offer.work.manifest}
        case ApplyWork():
            read = {part.source.key for part in offer.work.shards if part.source is not None}
        case _:
            read = set()
    key = next((key for key in read if key == failed.object_key), None)
    return None if key is None else _check(merge, key)


def open_checks(merge: Merge) -> list[Effect]:
    """What the orchestrator still has to look at: what a restart makes it look at again."""
    return [check for check in (_check(merge, key) for key in merge.checking) if check is not None]


def _check(merge: Merge, key: ObjectKey) -> CheckObject | None:
    for published in merge.published.values():
        for source in published:
            if source.key == key:
                return CheckObject(source)
    for hotkey, upload in merge.uploads.items():
        if upload.source.key == key and hotkey not in merge.excluded:
            return CheckObject(upload.source, upload.chunk_digests)
    for one in merge.reduced.values():
        if one.source.key == key:
            return CheckObject(one.source, ranges=tuple(reducing.ranges_of(merge, one).values()))
    return None


def checked(state: State, key: ObjectKey, reason: Reason) -> str:
    """The orchestrator looked at an upload or a reduced object: a bad one is taken out and its maker named."""
    parsed = keys.parse(key)
    stage = state.stages[parsed.stage]
    merge = stage.merge
    # what is published belongs to the next epoch already; while it inspects, every upload is looked at
    if merge is None or parsed.epoch not in (stage.epoch, stage.epoch + 1) or merge.step == "inspect":
        return f"{key} was checked, but nobody waits for it any more"
    accusers = merge.checking.pop(key, [])
    publisher = next((h for h, pair in merge.published.items() if key in (pair[0].key, pair[1].key)), None)
    if publisher is not None:
        return _published_checked(state, merge, publisher, key, reason)
    if reason is Reason.OK:
        said = f"{key} is good: the complaint was false"
        for hotkey in accusers:
            state.miners[hotkey].false_complaints += 1
            state.incident(Reason.FALSE_COMPLAINT, said, hotkey)
        if accusers:
            merge.unheeded[key] = sorted({*merge.unheeded.get(key, ()), *accusers})
        return said
    for hotkey, upload in merge.uploads.items():
        if upload.source.key == key and hotkey not in merge.excluded:
            _at_fault(state, hotkey, reason, f"pseudo-gradient {key} is bad")
            return reducing.restart(state, stage, merge, hotkey)
    for item, one in merge.reduced.items():
        if one.source.key == key:
            _at_fault(state, one.hotkey, reason, f"reduced shards {key} are bad")
            return reducing.discard(state, stage, merge, item)
    return f"{key} is bad, and already left out"


def _published_checked(state: State, merge: Merge, publisher: Hotkey, key: ObjectKey, reason: Reason) -> str:
    if reason is Reason.OK:
        merge.seen.append(key)
        return f"{key} is what its publisher said"
    for source in merge.published.pop(publisher):
        merge.checking.pop(source.key, None)
    merge.misprinted[publisher] = merge.misprinted.get(publisher, 0) + 1
    merge.applied.pop(publisher, None)
    merge.attempt += 1
    _at_fault(state, publisher, reason, f"published {key} is bad")
    return f"{key} is bad: another replica publishes"


def _at_fault(state: State, hotkey: Hotkey, reason: Reason, sentence: str) -> None:
    state.miners[hotkey].faults += 1
    state.incident(reason, sentence, hotkey)
