"""Keeps a local run's orchestrator alive: started again at its port whenever it dies, by itself or on purpose.

Law: what it has decided is in its journal, so a death loses nothing, and everybody's line heals at the old address. An
operator's mistake ends the run with the orchestrator's own line; one that dies again and again while nothing is trained
is given up. `look` and `inject` never wait, and return what the operator should hear.
"""

from __future__ import annotations

import signal

from subnet.localnet.crew import START_TIMEOUT_S, Crew, LaunchFailed, failure
from subnet.localnet.folder import RunFolder
from subnet.localnet.orchestrator_faults import OrchestratorFaultPlan
from subnet.localnet.processes import Child

OPERATOR_MUST_ACT = 2


class OrchestratorKeeper:
    """Of one run."""

    def __init__(self, folder: RunFolder, crew: Crew, plan: OrchestratorFaultPlan) -> None:
        self._folder, self._crew, self.plan = folder, crew, plan
        self._child: Child | None = None
        self._killed = 0
        """Process id of the last one that was killed on purpose."""
        self._starting_since_s: float | None = None
        """Set while it does not listen."""

    @property
    def children(self) -> list[Child]:
        return [self._child] if self._child is not None else []

    async def start(self) -> None:
        """The first one of this launch. Raises LaunchFailed and ConfigError."""
        self._child = await self._crew.start_orchestrator()

    async def look(self, now_s: float, micro_batches: int | None) -> list[str]:
        """One that died is started again. Raises LaunchFailed when that is in vain, ConfigError when it says so.

        `micro_batches` have come back as its status says, if it answers.
        """
        if self._child is None:
            return []
        if micro_batches is not None:
            self.plan.observe(now_s, micro_batches)
        if self._child.exit_code is not None:
            return [await self._start_again(self._child, self._child.exit_code, now_s)]
        if self._starting_since_s is None:
            return []
        if self._folder.address.exists():
            since_s, self._starting_since_s = self._starting_since_s, None
            self.plan.started(now_s)
            return [f"the orchestrator listens again after {now_s - since_s:.1f}s"]
        if now_s - self._starting_since_s > START_TIMEOUT_S:
            self._child.signal(signal.SIGKILL)
        return []

    def inject(self, now_s: float) -> list[str]:
        """Kill it on purpose, if it is time."""
        if self._child is None or self._starting_since_s is not None or self._child.exit_code is not None:
            return []
        if not self.plan.kill_is_due(now_s):
            return []
        self._killed = self._child.pid
        self._child.signal(signal.SIGKILL)
        return [f"killed the orchestrator (process {self._child.pid}), on purpose"]

    async def _start_again(self, dead: Child, exit_code: int, now_s: float) -> str:
        killed = dead.pid == self._killed
        if exit_code == OPERATOR_MUST_ACT:
            raise failure(dead)
        if not self.plan.ended(now_s, exit_code, killed=killed):
            raise LaunchFailed(f"the orchestrator dies again and again ({dead.last_line()}); see {dead.log}")
        self._starting_since_s = now_s
        self._child = await self._crew.start_orchestrator_again()
        how = "was killed" if killed else f"ended by itself with code {exit_code} (see {dead.log})"
        return f"the orchestrator {how} and is started again at {self._crew.url}"
