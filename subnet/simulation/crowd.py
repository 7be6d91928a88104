"""Thousands of miners and days of a run in minutes: the production machine and desks over a heap of events.

    production   coordination (every envelope through `machine.handle`), scoring, settlement, merging's sizes and
                 assignments, `miner.desk`, `miner.worklog`, `miner.snapshots`, the back-off, the chain's news
    modelled     compute seconds, lines and transfers, digests of objects (no bytes exist), the waiting of
                 `miner.line`, `miner.pipeline` and `orchestrator.service`, which is asynchronous there; validators'
                 replays; the chain's blocks

Law: one thread, no waiting, all randomness from the seed by name: equal orders give equal runs, and the digest over
all that was said proves it. A broken promise raises InvariantViolation at the envelope that broke it.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from subnet.coordination import machine
from subnet.coordination.state import State
from subnet.protocol.ids import Epoch, Hotkey
from subnet.protocol.messages import Envelope
from subnet.protocol.run_spec import RunSpec
from subnet.simulation.crowd_chain import Chain, Validator
from subnet.simulation.crowd_checks import Checks
from subnet.simulation.crowd_digests import Digests
from subnet.simulation.crowd_events import START, Events, Stream
from subnet.simulation.crowd_faults import Faults, parse, plan
from subnet.simulation.crowd_host import ORCHESTRATOR, Host
from subnet.simulation.crowd_machine import Machine
from subnet.simulation.crowd_miner import Miner
from subnet.simulation.crowd_spec import opening

ARRIVALS_S = 120.0
"""Within which all miners join at first."""
CHECK_EVERY_S = 1800.0
SLICE_EVENTS = 5000
"""Events between two looks at the operator's clock."""
MINERS_PER_VALIDATOR = 500
VALIDATORS_MIN = 2


class Order(NamedTuple):
    """What is simulated."""

    spec: RunSpec
    miners: int
    hours: float
    seed: int = 7
    faults: str = ""
    training_cheats: int = 0
    """Of the miners so many, the last ones, compute nothing ..."""
    reducing_cheats: int = 0
    """... and so many before them reduce wrongly."""
    check_every_s: float = CHECK_EVERY_S


class Crowd:
    """One run. Raises ConfigError for faults that are not known."""

    def __init__(self, order: Order) -> None:
        self.order, spec, seed = order, order.spec, order.seed
        self.events = Events()
        self.end = START + order.hours * 3600.0
        names = [Hotkey(f"miner-{i:05d}") for i in range(order.miners)]
        count = max(VALIDATORS_MIN, order.miners // MINERS_PER_VALIDATOR)
        validators = [Hotkey(f"validator-{i:03d}") for i in range(count)]
        hardware, passes = Stream(seed, "hardware"), Stream(seed, "passes")
        self.machines = {
            hotkey: Machine(hotkey, number, self.events, hardware, passes) for number, hotkey in enumerate(names)
        }
        honest = order.miners - order.training_cheats
        for number, one in enumerate(self.machines.values()):
            one.cheats_training = number >= honest
            one.cheats_reducing = honest - order.reducing_cheats <= number < honest
        self._processes: dict[Hotkey, Miner] = {}
        self._digests, self._backoffs = Digests(), Stream(seed, "back-off")
        cheats = {m.hotkey for m in self.machines.values() if m.cheats_training or m.cheats_reducing}
        self.checks = Checks(spec.num_stages, cheats)
        self.chain = Chain(seed, self.events, Stream(seed, "chain"), names, validators)
        state = machine.open_run(Envelope(sender=ORCHESTRATOR, at=START, message=opening(spec, (Hotkey("nobody"),))))
        self.host = Host(state, self.events, self.checks, self._digests, Stream(seed, "secrets"), self.chain)
        self.faults = Faults(self, Stream(seed, "faults"))
        for at, fault in plan(parse(order.faults), Stream(seed, "plan"), START, self.end):
            self.events.at(at, self.faults.strike, fault)
        self._begin(validators)

    def _begin(self, validators: list[Hotkey]) -> None:
        self.host.start()
        self.chain.read(Epoch(-1), -1, self.host.submit)
        self.events.after(0.0, self.chain.watch, self.host)
        lines = Stream(self.order.seed, "validators")
        for number, hotkey in enumerate(validators):
            role = Validator(Machine(hotkey, number, self.events, lines, lines), self.host, self.machines)
            self.events.after(60.0 + number, role.review)
        arrivals = Stream(self.order.seed, "arrivals")
        for one in self.machines.values():
            self.events.after(30.0 + arrivals.between(0.0, ARRIVALS_S), self._start, one, one.life)
        self.events.after(self.order.check_every_s, self._check)

    # ---- the run -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self.host.state

    @property
    def hours(self) -> float:
        """Virtual ones so far."""
        return (self.events.now - START) / 3600.0

    def run(self, looked: Callable[[], None] = lambda: None) -> None:
        """To the end of the hours; `looked` is called every few thousand events."""
        thresholds = gc.get_threshold()
        gc.set_threshold(200_000, 20, 20)  # nearly all of what is made lives for hours of the run
        try:
            while not self.events.run(self.end, SLICE_EVENTS):
                looked()
            self.checks.whole(self.state)
        finally:
            gc.set_threshold(*thresholds)

    def _check(self) -> None:
        self.events.after(self.order.check_every_s, self._check)
        if self.host.is_up:
            self.checks.whole(self.state)

    # ---- processes, for the faults -----------------------------------------------------------------------------------

    def _start(self, one: Machine, life: int) -> None:
        """Start a process, unless another one came in between."""
        if one.life == life:
            process = self._processes[one.hotkey] = Miner(one, self.host, self._digests, self._backoffs)
            process.start()

    def running(self) -> list[Machine]:
        now = self.events.now
        return [
            one
            for one in self.machines.values()
            if one.life > 0 and now >= max(one.paused_until, one.cut_until, one.slow_until, one.delayed_until)
        ]

    def replicas(self, stage: int) -> list[Machine]:
        return [self.machines[m.hotkey] for m in self.state.replicas(stage) if self.machines[m.hotkey].life > 0]

    def kill(self, one: Machine, back_after_s: float) -> None:
        one.ends()
        self.events.after(back_after_s, self._start, one, one.life)

    def crash_orchestrator(self, away_s: float) -> None:
        self.host.crash(away_s)

    def chain_outage(self, away_s: float) -> None:
        self.chain.away_until = max(self.chain.away_until, self.events.now + away_s)

    def endings(self) -> dict[str, int]:
        """Why processes ended by themselves."""
        return dict(Counter(p.ending.reason.value for p in self._processes.values() if p.ending is not None))
