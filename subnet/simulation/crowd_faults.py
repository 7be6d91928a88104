"""What goes wrong in a crowd, by name and count: who is struck, when, and how hard.

    --faults kill=500,pause=200        so many of each, spread over the run
    --faults mixed=2000                drawn evenly among those that strike one party; of the others one in 400 each

Law: the plan is a function of the seed. A fault strikes who runs and is in no trouble, and nobody for good: killed
processes come back, with a new session, after a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol

from subnet.coordination.state import State
from subnet.errors import ConfigError
from subnet.protocol.ids import Phase
from subnet.simulation.crowd_events import Events, Stream
from subnet.simulation.crowd_machine import Machine

DEPARTURE_SHARE = 0.35
SHARED_EVERY = 400
"""Of so many mixed faults one is of each kind that strikes many at once."""
QUIET_SHARE = 0.03
"""At the beginning and at the end of the run nothing is struck."""
MIXED = "mixed"


class Fault(StrEnum):
    """A kind."""

    CRASH = "crash"
    """A process dies and is started again in seconds."""
    KILL = "kill"
    """A process is gone for minutes."""
    PAUSE = "pause"
    """A machine stands still, its connections too."""
    SLOW = "slow"
    """A machine computes several times slower for a while."""
    DROP = "drop"
    """The next messages of a miner, requests or replies, are lost."""
    DELAY = "delay"
    """A miner's messages take seconds for a while."""
    PARTITION = "partition"
    """A miner and the orchestrator do not reach each other."""
    FLAP = "flapping"
    """A process dies again and again."""
    ORCHESTRATOR = "orchestrator-crash"
    """The orchestrator's process dies and comes back with what the journal keeps."""
    CHAIN = "chain-outage"
    """The chain does not answer."""
    DEPARTURE = "mass-departure"
    """35 % of all miners are gone at once."""
    MERGE_DEPARTURE = "merge-departure"
    """35 % of a stage's replicas are gone while it reduces."""
    WIPE_OUT = "wipe-out"
    """All replicas of a stage are gone at once."""


SHARED = (Fault.ORCHESTRATOR, Fault.CHAIN, Fault.DEPARTURE, Fault.MERGE_DEPARTURE, Fault.WIPE_OUT)
SINGLE = tuple(fault for fault in Fault if fault not in SHARED)


class Strike(NamedTuple):
    at: float
    fault: Fault


def parse(text: str) -> dict[str, int]:
    """Counts by name. Raises ConfigError."""
    counts: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, count = part.partition("=")
        if name != MIXED and name not in list(Fault):
            raise ConfigError("--faults", f"{name!r} is not known", f"choose among {', '.join([*Fault, MIXED])}")
        if not count.isascii() or not count.isdigit():
            raise ConfigError("--faults", f"{part!r} has no count", f"write {name}=20")
        counts[name] = counts.get(name, 0) + int(count)
    return counts


def plan(counts: Mapping[str, int], draws: Stream, begin: float, end: float) -> list[Strike]:
    """When what strikes, in order."""
    kinds = [Fault(name) for name, count in counts.items() if name != MIXED for _ in range(count)]
    mixed = counts.get(MIXED, 0)
    shared = [fault for fault in SHARED for _ in range(mixed // SHARED_EVERY)]
    kinds += shared + [draws.choose(SINGLE) for _ in range(mixed - len(shared))]
    quiet_s = QUIET_SHARE * (end - begin)
    strikes = [Strike(draws.between(begin + quiet_s, end - quiet_s), fault) for fault in kinds]
    return sorted(strikes)


class Struck(Protocol):
    """What faults act on (`crowd.Crowd`)."""

    events: Events

    @property
    def state(self) -> State: ...

    def running(self) -> list[Machine]:
        """Machines with a process that is in no trouble."""
        ...

    def replicas(self, stage: int) -> list[Machine]: ...

    def kill(self, machine: Machine, back_after_s: float) -> None: ...

    def crash_orchestrator(self, away_s: float) -> None: ...

    def chain_outage(self, away_s: float) -> None: ...


class Faults:
    """Lets the plan happen."""

    def __init__(self, crowd: Struck, draws: Stream) -> None:
        self._crowd, self._draws = crowd, draws
        self.injected: dict[str, int] = {}
        self.processes_killed = 0
        self._merge_departures = 0
        """Waiting for a stage that reduces."""

    def strike(self, fault: Fault) -> None:
        self.injected[fault] = self.injected.get(fault, 0) + 1
        between = self._draws.between
        match fault:
            case Fault.ORCHESTRATOR:
                self._crowd.crash_orchestrator(between(5.0, 60.0))
            case Fault.CHAIN:
                self._crowd.chain_outage(between(600.0, 3600.0))
            case Fault.DEPARTURE:
                running = self._crowd.running()
                self._leave(self._draws.some(running, round(DEPARTURE_SHARE * len(running))), 300.0, 1800.0)
            case Fault.MERGE_DEPARTURE:
                self._merge_departures += 1
                self.look()
            case Fault.WIPE_OUT:
                stage = self._draws.choose(self._crowd.state.stages).stage
                self._leave(self._crowd.replicas(stage), 180.0, 600.0)
            case _:
                running = self._crowd.running()
                if running:
                    self._strike_one(fault, self._draws.choose(running))

    def look(self) -> None:
        """Strike a stage that reduces, if somebody waits for one."""
        if not self._merge_departures:
            return
        reducing = [
            stage.stage
            for stage in self._crowd.state.stages
            if stage.phase is Phase.MERGING and stage.merge is not None and stage.merge.assignments
        ]
        if not reducing:
            self._crowd.events.after(1.0, self.look)
            return
        self._merge_departures -= 1
        replicas = self._crowd.replicas(self._draws.choose(reducing))
        self._leave(self._draws.some(replicas, round(DEPARTURE_SHARE * len(replicas))), 300.0, 1800.0)

    def _leave(self, machines: list[Machine], low_s: float, high_s: float) -> None:
        for machine in machines:
            self._kill(machine, self._draws.between(low_s, high_s))

    def _kill(self, machine: Machine, back_after_s: float) -> None:
        self.processes_killed += 1
        self._crowd.kill(machine, back_after_s)

    def _strike_one(self, fault: Fault, machine: Machine) -> None:
        now, between = self._crowd.events.now, self._draws.between
        match fault:
            case Fault.CRASH:
                self._kill(machine, between(2.0, 15.0))
            case Fault.KILL:
                self._kill(machine, between(60.0, 600.0))
            case Fault.PAUSE:
                machine.paused_until = now + between(10.0, 300.0)
            case Fault.SLOW:
                machine.slow_factor, machine.slow_until = between(2.0, 8.0), now + between(600.0, 1800.0)
            case Fault.DROP:
                machine.in_trouble, machine.losing = True, 1 + int(between(0.0, 4.0))
            case Fault.DELAY:
                machine.in_trouble, machine.delays_s = True, (1.0, 15.0)
                machine.delayed_until = now + between(300.0, 900.0)
            case Fault.PARTITION:
                machine.in_trouble, machine.cut_until = True, now + between(15.0, 300.0)
            case Fault.FLAP:
                self._flap(machine, 4)

    def _flap(self, machine: Machine, times: int) -> None:
        if machine.life > 0:
            self._kill(machine, self._draws.between(2.0, 15.0))
        if times > 1:
            self._crowd.events.after(self._draws.between(30.0, 120.0), self._flap, machine, times - 1)
