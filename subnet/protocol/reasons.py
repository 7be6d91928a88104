"""The one catalogue of reasons: code, and what to do about it.

Law: every idle, ignored, refused or removed state a miner can be in has a code here and a remedy. The sentence itself
is written where the decision is made, with the figures that led to it.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why something is as it is. The value is what travels and what operators grep for."""

    OK = "ok"
    # waiting
    NO_WORK = "no-work"
    MERGE_RUNNING = "merge-running"
    STAGE_EMPTY = "stage-empty"
    PIPELINE_FULL = "pipeline-full"
    PAUSED = "paused"
    TARGET_REACHED = "target-reached"
    BUSY = "busy"
    # ignored: late is not malicious
    LATE = "late"
    DUPLICATE = "duplicate"
    PHASE_OVER = "phase-over"
    # rejected: somebody broke the protocol
    NOT_YOURS = "not-yours"
    NEVER_GIVEN = "never-given"
    BAD_SIZE = "bad-size"
    BAD_DIGEST = "bad-digest"
    BAD_OBJECT = "bad-object"
    NOT_FINITE = "not-finite"
    WRONG_SHARD = "wrong-shard"
    WRONG_ANCHOR = "wrong-anchor"
    FALSE_COMPLAINT = "false-complaint"
    # refused at the door
    UNSIGNED = "unsigned"
    REPLAYED = "replayed"
    STALE = "stale"
    WRONG_RECEIVER = "wrong-receiver"
    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    WRONG_RUN = "wrong-run"
    WRONG_SPEC = "wrong-spec"
    NOT_REGISTERED = "not-registered"
    NOT_JOINED = "not-joined"
    OLD_SESSION = "old-session"
    RATE_LIMITED = "rate-limited"
    NOT_ALLOWED = "not-allowed"
    # removed
    SILENT = "silent"
    MOVED = "moved"
    # pay
    AUDIT_FAILED = "audit-failed"
    AUDIT_PENDING = "audit-pending"
    AUDIT_PASSED = "audit-passed"
    NOT_REVEALED = "not-revealed"
    SKIPPED_MERGE = "skipped-merge"
    POISONED = "poisoned"
    UNREADABLE = "unreadable"
    NO_UID = "no-uid"
    NO_COUNTED_WORK = "no-counted-work"
    EXPIRED = "expired"
    PAID = "paid"
    # the chain
    NO_PERMIT = "no-permit"
    NO_FUNDS = "no-funds"
    NO_WEIGHTS = "no-weights"
    CHAIN_REFUSED = "chain-refused"
    CHAIN_AWAY = "chain-away"
    CHAIN_EPOCH_MISSED = "chain-epoch-missed"
    DEREGISTERED = "deregistered"


REMEDY: dict[Reason, str] = {
    Reason.OK: "nothing to do",
    Reason.NO_WORK: "wait: work for your stage comes as soon as the stage before or after it delivers",
    Reason.MERGE_RUNNING: "wait: training goes on when the merge ends",
    Reason.STAGE_EMPTY: "wait: a stage has no miner; the next one to join is placed there",
    Reason.PIPELINE_FULL: "wait: enough micro-batches are in flight; the slowest stage sets the pace",
    Reason.PAUSED: "wait for the operator",
    Reason.TARGET_REACHED: "the run has all its epochs; the operator may extend it with --resume and --epochs",
    Reason.BUSY: "nothing to do: you have work",
    Reason.LATE: "none needed: another replica was faster; credit goes to the first valid result",
    Reason.DUPLICATE: "none needed: this result was already accepted once",
    Reason.PHASE_OVER: "none needed: the merge closed without this piece; upload faster to take part",
    Reason.NOT_YOURS: "send results only for work that was given to this hotkey",
    Reason.NEVER_GIVEN: "send results only for work that was given out",
    Reason.BAD_SIZE: "upload exactly the size the target names",
    Reason.BAD_DIGEST: "upload the bytes whose digest you report",
    Reason.BAD_OBJECT: "upload objects in the wire format with the shape the RunSpec implies",
    Reason.NOT_FINITE: "check the device: a result held NaN or infinity",
    Reason.WRONG_SHARD: "check the reduction: it must be bit-exact (fp32, manifest order, CPU)",
    Reason.WRONG_ANCHOR: "download the stage's parameters again: they differ from the other replicas'",
    Reason.FALSE_COMPLAINT: "check your download path: the object you called bad is good in the store",
    Reason.UNSIGNED: "sign the request with the hotkey (btauth/1)",
    Reason.REPLAYED: "sign each request afresh",
    Reason.STALE: "set the clock (NTP): the request is outside the freshness window",
    Reason.WRONG_RECEIVER: "sign for the orchestrator's hotkey",
    Reason.OVERSIZED: "send less per request; the limit is in the reply",
    Reason.MALFORMED: "update the miner: the message does not match the protocol",
    Reason.WRONG_RUN: "join the run that this orchestrator hosts",
    Reason.WRONG_SPEC: "fetch the RunSpec again: its digest changed",
    Reason.NOT_REGISTERED: "register the hotkey on the subnet: btcli subnet register",
    Reason.NOT_JOINED: "join first",
    Reason.OLD_SESSION: "a newer process runs with this hotkey; stop one of them",
    Reason.RATE_LIMITED: "slow down; the limit is in the reply",
    Reason.NOT_ALLOWED: "only hotkeys named in the run may send this",
    Reason.AUDIT_FAILED: "run the published code unmodified on sound hardware; pay starts again when the forfeit ends",
    Reason.AUDIT_PENDING: "wait: credit counts once the audits of its epoch are settled",
    Reason.AUDIT_PASSED: "nothing to do",
    Reason.NOT_REVEALED: "keep the states of the last epochs on disk and show them when asked; stay online",
    Reason.SKIPPED_MERGE: "upload when the stage merges; check bandwidth and the upload deadline",
    Reason.POISONED: "run the published code unmodified; an upload that spoilt the model costs its epoch's pay",
    Reason.UNREADABLE: "none needed: an object of the audit was gone, which is nobody's fault",
    Reason.NO_UID: "register the hotkey on the subnet: btcli subnet register",
    Reason.NO_COUNTED_WORK: "wait until an epoch with your work has closed and its audits are settled",
    Reason.EXPIRED: "go on working: credit older than the score window pays no more",
    Reason.PAID: "nothing to do",
    Reason.NO_PERMIT: "stake more to this hotkey: btcli stake add; permits are given anew at each chain epoch",
    Reason.NO_FUNDS: "put more TAO on the coldkey",
    Reason.NO_WEIGHTS: "none needed: the weights before stand until there is work to pay for",
    Reason.CHAIN_REFUSED: "read what the chain says; it is tried again",
    Reason.CHAIN_AWAY: "none needed: training goes on, and weights follow when the chain answers; see --network",
    Reason.CHAIN_EPOCH_MISSED: "keep the validator running; the chain paid by the weights before meanwhile",
    Reason.DEREGISTERED: "register again: btcli subnet register; its credit of before pays while it is not too old",
    Reason.MOVED: "nothing to do: the miner joins again by itself, in the stage that needs it more",
    Reason.SILENT: "keep the exchange open: heartbeats stopped; join again to continue with your credit",
}
