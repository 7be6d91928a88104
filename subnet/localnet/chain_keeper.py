"""Keeps a local run's chain alive: started again at its port whenever it dies, by itself or on purpose.

Law: what the chain has sealed is on disk, so a death loses nothing and everybody's line heals at the old address. A
chain that makes no block between its deaths is given up after a few starts. `look` and `inject` never wait, and return
what the operator should hear.
"""

from __future__ import annotations

import signal

from subnet.chain.base import Subnet
from subnet.chain.local.store import Store
from subnet.localnet import chain_watch
from subnet.localnet.crew import START_TIMEOUT_S, Crew, LaunchFailed
from subnet.localnet.faults import RESTARTS_MAX, ChainFaultPlan
from subnet.localnet.folder import OnChain, RunFolder, on_chain
from subnet.localnet.processes import Child


class ChainKeeper:
    """Of one run: the chain's process, and the one that reads it."""

    def __init__(self, folder: RunFolder, crew: Crew, plan: ChainFaultPlan) -> None:
        self._folder, self._crew, self.plan = folder, crew, plan
        self._chain: Child | None = None
        self._watch: Child | None = None
        self._watch_restarts = 0
        self._killed = 0
        """Process id of the last one that was killed on purpose."""
        self._starting_since_s: float | None = None
        """Set while it does not listen."""
        self.subnet: Subnet | None = None
        """The newest reading."""

    @property
    def block(self) -> int:
        """The newest one that was read; 0 before the first."""
        return self.subnet.block.number if self.subnet is not None else 0

    @property
    def next_chain_epoch(self) -> int:
        """A block by which the weights that stand now have paid."""
        return self.block + self.subnet.tempo + 1 if self.subnet is not None else 0

    @property
    def children(self) -> list[Child]:
        """In the order they are to be stopped."""
        return [child for child in (self._watch, self._chain) if child is not None]

    async def start(self) -> tuple[OnChain, list[str]]:
        """The chain, with the run's subnet on it. Raises LaunchFailed and ConfigError."""
        before = on_chain(self._folder)
        self._chain = await self._crew.start_chain()
        self._watch = await self._crew.put_on_chain()
        self.subnet = chain_watch.read(self._folder.reading)
        now = self._crew.on_chain
        moved = before is not None and before != now
        return now, [f"port {before.port} is taken: the chain has moved to {now.network}"] if moved and before else []

    async def look(self, now_s: float, weights_block: int) -> list[str]:
        """The newest reading; a chain that died is started again. Raises LaunchFailed when that is in vain.

        `weights_block` is the newest block in which weights are known to be set.
        """
        assert self._chain is not None and self._watch is not None, "it is started first"
        self.subnet = chain_watch.read(self._folder.reading) or self.subnet
        self.plan.observe(now_s, self.block, weights_block)
        said = []
        if self._watch.exit_code is not None and self._watch_restarts < RESTARTS_MAX:
            self._watch_restarts += 1
            said.append(f"what reads the chain ended by itself and starts again; see {self._watch.log}")
            self._watch = await self._crew.start_chain_watch()
        if self._chain.exit_code is not None:
            said.append(await self._start_again(self._chain, self._chain.exit_code, now_s))
        elif self._starting_since_s is not None:
            if self._folder.chain_address.exists():
                since_s, self._starting_since_s = self._starting_since_s, None
                self.plan.started(now_s)
                said.append(f"the local chain listens again after {now_s - since_s:.1f}s")
            elif now_s - self._starting_since_s > START_TIMEOUT_S:
                self._chain.signal(signal.SIGKILL)
        return said

    def inject(self, now_s: float) -> list[str]:
        """Kill it on purpose, if it is time."""
        if self._chain is None or self._starting_since_s is not None or self._chain.exit_code is not None:
            return []
        if not self.plan.kill_is_due(now_s):
            return []
        self._killed = self._chain.pid
        self._chain.signal(signal.SIGKILL)
        return [f"killed the local chain (process {self._chain.pid}), on purpose"]

    async def _start_again(self, dead: Child, exit_code: int, now_s: float) -> str:
        killed = dead.pid == self._killed
        block = self._last_block()
        if not self.plan.ended(now_s, exit_code, block, killed=killed):
            raise LaunchFailed(f"the local chain dies again and again ({dead.last_line()}); see {dead.log}")
        self._starting_since_s = now_s if self._starting_since_s is None else self._starting_since_s
        self._chain = await self._crew.start_chain_at(self._crew.on_chain.port)
        how = "was killed" if killed else f"ended by itself with code {exit_code} (see {dead.log})"
        return f"the local chain {how} at block {block} and is started again on port {self._crew.on_chain.port}"

    def _last_block(self) -> int:
        """The last one on disk: the process that held the file is gone."""
        store = Store(self._folder.chain / "chain.sqlite")
        try:
            newest = store.newest()
        finally:
            store.close()
        return newest.number if newest is not None else 0
