"""The orchestrator's public status, as far as the launcher reads it.

Law: GET /v1/status and nothing else, which is there for everybody. A status may lack any field, and may have more than
are read here: an older or newer orchestrator is shown as far as it goes.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import msgspec
from msgspec import Struct, field

TIMEOUT_S = 3.0


class Replica(Struct):
    hotkey: str = ""
    live: bool = False
    epoch_micro_batches: int = 0
    credit: float = 0.0
    reason: str = ""
    sentence: str = ""
    remedy: str = ""


class Merge(Struct):
    epoch: int = 0
    shards: int = 0
    lost: int = 0
    single: int = 0
    agreed: int = 0
    disputed: int = 0
    handed_on: int = 0


class StageStatus(Struct):
    stage: int = 0
    epoch: int = 0
    phase: str = ""
    sentence: str = ""
    replicas: list[Replica] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    """The newest ones."""
    reason: str = ""
    spec_version: int = 1
    """Of the RunSpec that its running epoch goes by."""


class Evaluation(Struct):
    epoch: int = 0
    loss: float = 0.0


class Incident(Struct):
    at: float = 0.0
    reason: str = ""
    sentence: str = ""
    hotkey: str | None = None


class Verdicts(Struct):
    """Of one miner's audits, or of all."""

    passed: int = 0
    failed: int = 0
    not_revealed: int = 0
    unreadable: int = 0
    sentence: str = ""


class Audits(Verdicts):
    open: int = 0
    replay_s: float = 0.0
    compute_s: float = 0.0
    by_hotkey: dict[str, Verdicts] = field(default_factory=dict)

    @property
    def cost_share(self) -> float | None:
        """Seconds of replay for one of training; None before there was any."""
        return self.replay_s / self.compute_s if self.compute_s > 0 else None


class Slip(Struct):
    """What one hotkey is paid for, or why it is not."""

    uid: int | None = None
    score: float = 0.0
    weight: float = 0.0
    reason: str = ""
    sentence: str = ""
    remedy: str = ""


class WeightsReport(Struct):
    """What a validator said of the weights it has set; block 0: the chain did not take them."""

    index: int = 0
    block: int = 0
    sentence: str = ""


class Pay(Struct):
    scores: dict[str, Slip] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    validators: dict[str, WeightsReport] = field(default_factory=dict)


class Anchor(Struct):
    """Where a head of the journal stands on the chain."""

    epoch: int = 0
    index: int = 0
    head: str = ""
    block: int = 0


class Chain(Struct):
    block: int = 0
    anchor: Anchor | None = None
    """The newest one."""


class RollBack(Struct):
    """A poisoned merge that was taken back."""

    at: float = 0.0
    epoch: int = 0
    sentence: str = ""
    offenders: dict[str, str] = field(default_factory=dict)
    outcome: str = ""


class Status(Struct):
    """The part of the public status that the launcher uses."""

    finished: bool = False
    spec_version: int = 1
    """Of the newest RunSpec that all stages go by."""
    tokens: int = 0
    micro_batches: int = 0
    in_flight: int = 0
    loss: float | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    stages: list[StageStatus] = field(default_factory=list)
    at: float = 0.0
    target_epochs: int = 0
    abandoned: int = 0
    passes_started: int = 0
    passes_merged: int = 0
    first_completed_at: float | None = None
    last_completed_at: float = 0.0
    incident_count: int = 0
    incidents: list[Incident] = field(default_factory=list)
    rollbacks: list[RollBack] = field(default_factory=list)
    audits: Audits = field(default_factory=Audits)
    pay: Pay = field(default_factory=Pay)
    chain: Chain = field(default_factory=Chain)
    outcomes: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)

    @property
    def goodput(self) -> float | None:
        """Share of the passes given out whose gradient is in a merge; None before the first merge."""
        return self.passes_merged / self.passes_started if self.passes_merged and self.passes_started else None

    @property
    def weights_block(self) -> int:
        """The newest block in which weights were set; 0 before the first."""
        return max((report.block for report in self.pay.validators.values()), default=0)

    def credit(self) -> dict[str, float]:
        """By hotkey."""
        return {replica.hotkey: replica.credit for stage in self.stages for replica in stage.replicas}


async def fetch(url: str) -> Status | None:
    """The status of the orchestrator at `url`; None when it does not answer."""
    return await asyncio.to_thread(_fetch, f"{url}/v1/status")


def _fetch(url: str) -> Status | None:
    # no proxy, whatever the environment says: the orchestrator is on this machine
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            return msgspec.json.decode(answer.read(), type=Status)
    except (OSError, urllib.error.URLError, msgspec.MsgspecError):
        return None
