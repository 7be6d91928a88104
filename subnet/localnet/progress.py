"""What the operator sees while a local run is on: plain lines, made from the orchestrator's public status.

Law: reads GET /v1/status and nothing else, so everything shown here is there for everybody. `Progress.lines` is a pure
function of the statuses seen so far; a line appears when something changed, and a summary at most every ten seconds.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

import msgspec
from msgspec import Struct, field

SUMMARY_EVERY_S = 10.0
TIMEOUT_S = 3.0


class Replica(Struct):
    hotkey: str
    live: bool
    epoch_micro_batches: int = 0
    credit: float = 0.0


class Merge(Struct):
    epoch: int
    shards: int
    lost: int
    single: int
    agreed: int
    disputed: int


class StageStatus(Struct):
    stage: int
    epoch: int
    phase: str
    sentence: str = ""
    replicas: list[Replica] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)


class Evaluation(Struct):
    epoch: int
    loss: float


class Status(Struct):
    """The part of the public status that the launcher uses."""

    finished: bool
    tokens: int
    micro_batches: int
    in_flight: int
    loss: float | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    stages: list[StageStatus] = field(default_factory=list)

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


class Progress:
    """Turns statuses into lines. `names` are the miners' names by hotkey."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._phases: dict[int, tuple[int, str]] = {}
        self._live: dict[str, int] = {}
        self._merges: set[tuple[int, int]] = set()
        self._evaluations: set[int] = set()
        self._summary_at_s = float("-inf")
        self._tokens = 0

    def lines(self, status: Status, now_s: float) -> list[str]:
        """What is new in `status`, seen `now_s` seconds after the launch."""
        return [
            *self._membership(status),
            *self._stages(status),
            *self._losses(status),
            *self._summary(status, now_s),
        ]

    def _membership(self, status: Status) -> Iterator[str]:
        live = {r.hotkey: s.stage for s in status.stages for r in s.replicas if r.live}
        for hotkey, stage in live.items():
            if self._live.get(hotkey) != stage:
                yield f"{self._name(hotkey)} trains stage {stage}"
        for hotkey, stage in self._live.items():
            if hotkey not in live:
                yield f"{self._name(hotkey)} left stage {stage}"
        self._live = live

    def _stages(self, status: Status) -> Iterator[str]:
        for stage in status.stages:
            for merge in stage.merges:
                if (stage.stage, merge.epoch) not in self._merges:
                    self._merges.add((stage.stage, merge.epoch))
                    yield (
                        f"stage {stage.stage} merged epoch {merge.epoch}: {merge.shards} shards, "
                        f"{merge.agreed} agreed, {merge.single} single, {merge.lost} lost, {merge.disputed} disputed"
                    )
            before = self._phases.get(stage.stage)
            self._phases[stage.stage] = (stage.epoch, stage.phase)
            if before is not None and before != (stage.epoch, stage.phase) and stage.phase in ("uploading", "paused"):
                yield f"stage {stage.stage} {stage.phase}, epoch {stage.epoch}: {stage.sentence}"

    def _losses(self, status: Status) -> Iterator[str]:
        for evaluation in status.evaluations:
            if evaluation.epoch not in self._evaluations:
                self._evaluations.add(evaluation.epoch)
                yield f"validation loss {evaluation.loss:.3f} nats/token after {evaluation.epoch} epochs"

    def _summary(self, status: Status, now_s: float) -> Iterator[str]:
        since_s = now_s - self._summary_at_s
        if since_s < SUMMARY_EVERY_S or status.micro_batches == 0:
            return
        speed = "" if self._tokens == 0 else f", {(status.tokens - self._tokens) / since_s:,.0f} tokens/s"
        loss = "" if status.loss is None else f", training loss {status.loss:.3f}"
        epochs = " ".join(str(stage.epoch) for stage in status.stages)
        yield (
            f"epochs {epochs}: {status.micro_batches} micro-batches, {status.tokens:,} tokens{speed}{loss}, "
            f"{status.in_flight} in flight"
        )
        self._summary_at_s, self._tokens = now_s, status.tokens

    def _name(self, hotkey: str) -> str:
        return self._names.get(hotkey, hotkey[:8])
