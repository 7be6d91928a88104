"""Faults on purpose: which miner dies, when it comes back, who joins late, and when the chain dies.

Law: decides, does not act. A plan is a function of the seed, the times it is asked at and what runs then; the keepers
kill and start, and report what happened. Times count from the first trained micro-batch: before it there is nothing to
disturb.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

from subnet.protocol import draw

RESTARTS_MAX = 5
"""How often a miner that dies by itself is started again."""
CHAIN_STARTS_MAX = 5
"""Starts of the chain after which it made no block, one after the other: then it is given up."""


class Fault(StrEnum):
    KILLED = "killed"
    """By this plan."""
    DIED = "died"
    """By itself."""
    JOINED_LATE = "joined-late"
    CHAIN_KILLED = "chain-killed"
    CHAIN_DIED = "chain-died"
    ORCHESTRATOR_KILLED = "orchestrator-killed"
    ORCHESTRATOR_DIED = "orchestrator-died"


# ---- miners ----------------------------------------------------------------------------------------------------------


class FaultRecord(Struct, kw_only=True):
    """One fault of a miner, for the report. Seconds since the launch."""

    fault: Fault
    miner: str
    at_s: float
    exit_code: int | None = None
    started_again_at_s: float | None = None
    credited_again_at_s: float | None = None
    """When the process that was started again had its first work accepted."""
    survived: bool = False
    """Whether micro-batches were completed after it, or the run was finished: training went on."""


class _Seen(Struct):
    """The status when a fault was first looked at, and its miner's credit when it had been started again."""

    micro_batches: int
    credit: float | None = None


class Kill(NamedTuple):
    miner: str


class Start(NamedTuple):
    """A dead one again, or the late joiner for the first time."""

    miner: str


Action = Kill | Start


class FaultPlan:
    """`kill_every_s`, `join_after_s` 0: never. `late_miner` is who joins late."""

    def __init__(
        self, seed: int, kill_every_s: float, restart_after_s: float, join_after_s: float, late_miner: str | None
    ) -> None:
        self._secret = draw.draw_bytes(seed.to_bytes(8, "big"), "localnet-faults")
        self._kill_every_s, self._restart_after_s, self._join_after_s = kill_every_s, restart_after_s, join_after_s
        self._late_miner = late_miner
        self._training_since_s: float | None = None
        self._kills = 0
        self._restart_at_s: dict[str, float] = {}
        self._deaths: dict[str, int] = {}
        self._seen: dict[int, _Seen] = {}
        self.records: list[FaultRecord] = []

    def training_began(self, now_s: float) -> None:
        if self._training_since_s is None:
            self._training_since_s = now_s

    def due(self, now_s: float, running: Collection[str]) -> list[Action]:
        """What to do now, given the miners whose processes run."""
        actions: list[Action] = []
        for miner in sorted(name for name, at_s in self._restart_at_s.items() if at_s <= now_s):
            del self._restart_at_s[miner]
            actions.append(Start(miner))
        if self._training_since_s is None:
            return actions
        training_s = now_s - self._training_since_s
        if self._late_miner is not None and training_s >= self._join_after_s:
            actions.append(Start(self._late_miner))
            self._late_miner = None
        if self._kill_every_s and running and training_s >= self._kill_every_s * (self._kills + 1):
            self._kills += 1
            actions.append(Kill(draw.choose(self._secret, sorted(running), "victim", self._kills)))
        return actions

    @property
    def expects_starts(self) -> bool:
        """Whether a miner will be started later."""
        return bool(self._restart_at_s)

    def started(self, miner: str, now_s: float) -> None:
        """A process of this miner was started on the plan's word."""
        waiting = [r for r in self.records if r.miner == miner and r.started_again_at_s is None]
        if waiting:
            waiting[-1].started_again_at_s = now_s
        else:
            self.records.append(FaultRecord(fault=Fault.JOINED_LATE, miner=miner, at_s=now_s, started_again_at_s=now_s))

    def ended(self, miner: str, now_s: float, exit_code: int, *, killed: bool) -> bool:
        """A miner's process ended without being asked to; whether it will be started again."""
        self._deaths[miner] = self._deaths.get(miner, 0) + (not killed)
        fault = Fault.KILLED if killed else Fault.DIED
        self.records.append(FaultRecord(fault=fault, miner=miner, at_s=now_s, exit_code=exit_code))
        again = killed or self._deaths[miner] <= RESTARTS_MAX
        if again:
            self._restart_at_s[miner] = now_s + self._restart_after_s
        return again

    def run_finished(self) -> None:
        """The run reached its goal in spite of everything, the last fault included."""
        for record in self.records:
            record.survived = True

    def observe(self, now_s: float, micro_batches: int, credit: Mapping[str, float]) -> None:
        """What the orchestrator's status says: micro-batches completed so far, credit by miner."""
        for number, record in enumerate(self.records):
            since = self._seen.setdefault(number, _Seen(micro_batches))
            record.survived = record.survived or micro_batches > since.micro_batches
            if record.started_again_at_s is None or record.credited_again_at_s is not None:
                continue
            if since.credit is None:
                since.credit = credit.get(record.miner, 0.0)
            elif credit.get(record.miner, 0.0) > since.credit:
                record.credited_again_at_s = now_s


# ---- the chain -------------------------------------------------------------------------------------------------------


class ChainFaultRecord(Struct, kw_only=True):
    """One death of the local chain, for the report. Seconds since the launch."""

    fault: Fault
    at_s: float
    exit_code: int
    block: int
    """The last one that it had made."""
    started_again_at_s: float | None = None
    """When it listened again."""
    blocks_again_at_s: float | None = None
    """When a later block was seen."""
    weights_again_at_s: float | None = None
    """When weights stood that were set in a later block."""
    survived: bool = False
    """Whether blocks went on and weights were set after it, or the last ones that the run wanted stood already."""


class ChainFaultPlan:
    """`kill_every_s` 0: it is never killed on purpose."""

    def __init__(self, kill_every_s: float) -> None:
        self._kill_every_s = kill_every_s
        self._training_since_s: float | None = None
        self._kills = 0
        self._vain_starts = 0
        """Starts since the last block that was seen."""
        self._last_weights_stand = False
        self.records: list[ChainFaultRecord] = []

    def training_began(self, now_s: float) -> None:
        if self._training_since_s is None:
            self._training_since_s = now_s

    def kill_is_due(self, now_s: float) -> bool:
        """Whether to kill the chain now; it is taken as done. Kills that were due while it was away are left out."""
        if self._training_since_s is None or not self._kill_every_s:
            return False
        due, before = int((now_s - self._training_since_s) / self._kill_every_s), self._kills
        self._kills = max(due, before)
        return due > before

    def ended(self, now_s: float, exit_code: int, block: int, *, killed: bool) -> bool:
        """Its process ended without being asked to, after `block`; whether it is worth starting again."""
        fault = Fault.CHAIN_KILLED if killed else Fault.CHAIN_DIED
        self.records.append(ChainFaultRecord(fault=fault, at_s=now_s, exit_code=exit_code, block=block))
        self._vain_starts += 1
        return self._vain_starts <= CHAIN_STARTS_MAX

    def started(self, now_s: float) -> None:
        """It listens again."""
        for record in self.records:
            if record.started_again_at_s is None:
                record.started_again_at_s = now_s

    def last_weights_stand(self) -> None:
        """The run is finished, and its validators left with nothing to set any more."""
        self._last_weights_stand = True

    def observe(self, now_s: float, block: int, weights_block: int) -> None:
        """The chain's newest block, and the newest one in which weights were set."""
        if self.records and block > self.records[-1].block:
            self._vain_starts = 0
        for record in self.records:
            if record.blocks_again_at_s is None and block > record.block:
                record.blocks_again_at_s = now_s
            if record.weights_again_at_s is None and weights_block > record.block:
                record.weights_again_at_s = now_s
            weights_stand = record.weights_again_at_s is not None or self._last_weights_stand
            record.survived = record.blocks_again_at_s is not None and weights_stand
