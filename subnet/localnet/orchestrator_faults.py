"""Faults on purpose of the orchestrator: when it is killed, and what became of each of its deaths.

Law: decides, does not act; the keeper kills and starts. Times count from the first trained micro-batch, and after
a death from when it listened again.
"""

from __future__ import annotations

from msgspec import Struct

from subnet.localnet.faults import Fault

STARTS_MAX = 5
"""Starts after which no micro-batch came back, one after the other: then it is given up."""


class OrchestratorFaultRecord(Struct, kw_only=True):
    """One death, for the report. Seconds since the launch."""

    fault: Fault
    at_s: float
    exit_code: int
    started_again_at_s: float | None = None
    """When it listened again."""
    trained_again_at_s: float | None = None
    """When more micro-batches had come back than before it died."""
    survived: bool = False
    """Whether any did, or the run was finished: training went on."""


class OrchestratorFaultPlan:
    """`kill_every_s` 0: it is never killed on purpose."""

    def __init__(self, kill_every_s: float) -> None:
        self._kill_every_s = kill_every_s
        self._kill_at_s: float | None = None
        self._vain_starts = 0
        self._micro_batches = 0
        """The most that any status told of."""
        self.records: list[OrchestratorFaultRecord] = []

    def training_began(self, now_s: float) -> None:
        if self._kill_at_s is None and self._kill_every_s:
            self._kill_at_s = now_s + self._kill_every_s

    def kill_is_due(self, now_s: float) -> bool:
        """Whether to kill it now."""
        return self._kill_at_s is not None and now_s >= self._kill_at_s

    def ended(self, now_s: float, exit_code: int, *, killed: bool) -> bool:
        """Its process ended without being asked to; whether it is worth starting again."""
        fault = Fault.ORCHESTRATOR_KILLED if killed else Fault.ORCHESTRATOR_DIED
        self.records.append(OrchestratorFaultRecord(fault=fault, at_s=now_s, exit_code=exit_code))
        self._vain_starts += not killed
        self._kill_at_s = None
        return self._vain_starts <= STARTS_MAX

    def started(self, now_s: float) -> None:
        """It listens again: the next kill is due so long after this, or a machine that is slow would never train."""
        self._kill_at_s = now_s + self._kill_every_s if self._kill_every_s else None
        for record in self.records:
            if record.started_again_at_s is None:
                record.started_again_at_s = now_s

    def observe(self, now_s: float, micro_batches: int) -> None:
        """How many have come back, by the newest status."""
        if micro_batches > self._micro_batches:
            self._micro_batches, self._vain_starts = micro_batches, 0
            for record in self.records:
                if record.started_again_at_s is not None and record.trained_again_at_s is None:
                    record.trained_again_at_s, record.survived = now_s, True

    def run_finished(self) -> None:
        """The run reached its goal in spite of everything."""
        for record in self.records:
            record.survived = True
