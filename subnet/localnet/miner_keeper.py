"""Keeps a local run's miners: starts them, kills them on purpose, starts dead ones again.

Law: what is to be done is the fault plan's decision; here it is done, and what happened is reported to the plan. `look`
and `inject` return what the operator should hear.
"""

from __future__ import annotations

import signal

from subnet.config import LocalnetConfig
from subnet.localnet.crew import Crew, LaunchFailed, failure
from subnet.localnet.faults import FaultPlan, Kill
from subnet.localnet.folder import miner_names
from subnet.localnet.plan import parts
from subnet.localnet.processes import Child


class MinerKeeper:
    """Of one run."""

    def __init__(self, settings: LocalnetConfig, crew: Crew, plan: FaultPlan) -> None:
        self._settings, self._crew, self.plan = settings, crew, plan
        self.parts = parts(settings)
        self._running: dict[str, Child] = {}
        """The process of each miner that should be running."""
        self._victims: set[int] = set()
        """Process ids that were killed on purpose."""

    async def start(self) -> None:
        for name in miner_names(self._settings):
            await self._start(name)

    def look(self, now_s: float, finished: bool) -> list[str]:
        """Miners that ended: on purpose, by themselves, or because the run is over.

        Raises ConfigError for an operator's mistake, LaunchFailed when nobody is left.
        """
        said = []
        for name, child in list(self._running.items()):
            if child.exit_code is None:
                continue
            del self._running[name]
            killed = child.pid in self._victims
            if not killed and (finished or child.exit_code == 0):
                continue
            if child.exit_code == 2 and not killed:
                if not self.parts[name].adversary:
                    raise failure(child)
                said.append(f"{name} is out: {child.last_line()}")
                continue
            again = self.plan.ended(name, now_s, child.exit_code, killed=killed)
            if not killed:
                then = f"starts again in {self._settings.restart_after_s:g}s" if again else "stays away"
                said.append(f"{name} ended by itself with code {child.exit_code} and {then}; see {child.log}")
        if not self._running and not self.plan.expects_starts and not finished:
            raise LaunchFailed("no miner is left; see their logs")
        return said

    async def inject(self, now_s: float) -> list[str]:
        """What the plan wants done now."""
        said = []
        for action in self.plan.due(now_s, self._running):
            if isinstance(action, Kill):
                child = self._running[action.miner]
                self._victims.add(child.pid)
                child.signal(signal.SIGKILL)
                said.append(f"killed {action.miner} (process {child.pid}), on purpose")
            else:
                await self._start(action.miner)
                self.plan.started(action.miner, now_s)
                said.append(f"{action.miner} starts")
        return said

    async def _start(self, name: str) -> None:
        self._running[name] = await self._crew.start_miner(name, self.parts[name])
