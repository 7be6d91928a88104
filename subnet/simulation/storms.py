"""Storms: small worlds, each with the faults that its seed draws, each judged by every promise.

Law: `run_seed` is a function of seed and fault names, so a failing seed is its own reproduction; seeds are shared out
over processes, and one that fails does not keep the others from being counted. While faults last, promises of the state
must hold; when they are over, the run must go on and end by itself.

Every fourth world has audits, a validator (whose replays are modelled too) and a chain; every third of those has a
cheat, beside an equally fast honest machine that no fault strikes, which must not earn less.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
from loguru import logger
from msgspec import Struct, field

from subnet.coordination.notices import finished
from subnet.coordination.state import State
from subnet.errors import ConfigError
from subnet.simulation import virtual_time
from subnet.simulation.faults import FaultName
from subnet.simulation.faults_host import Planned, plan
from subnet.simulation.modelled import ModelledCheat, ModelledReplay
from subnet.simulation.promises import PromiseBroken
from subnet.simulation.storm_end import judge_end
from subnet.simulation.storm_machine import Machine
from subnet.simulation.storm_world import Dice, StormWorld, storm_spec

EPOCH_LIMIT_S = 120.0
"""Virtual time within which every stage must end an epoch, once faults are over and all machines are back: relaxed
quorum (30 s), the grace window and every deadline of a merge, once more for whom the faults left behind."""
LEAVING_LIMIT_S = 60.0
NO_FAULT = "none"
NEED_AUDITS = frozenset({FaultName.CHAIN_OUTAGE, FaultName.FULL_DISK})
"""Without audits nobody reads the chain, and nobody keeps states on a disk."""
MICRO_BATCHES = 4
EPOCHS = 2


class Outcome(Struct, kw_only=True):
    """Of one seed."""

    seed: int
    injected: dict[str, int] = field(default_factory=dict)
    """Faults that really did something, by name."""
    broken: str = ""
    """The promise that broke, and how; empty: all of them held."""
    passes_started: int = 0
    passes_merged: int = 0
    virtual_s: float = 0.0
    records: int = 0
    head: str = ""
    """Of the journal: equal seeds end at the same one."""
    recovery_s: dict[str, float] = field(default_factory=dict)
    """By name: the longest time from the end of a fault to the next credited pass."""
    reasons: dict[str, int] = field(default_factory=dict)
    """What participants and the operator were told meanwhile, by 'whom: reason'."""
    audited: bool = False
    cheated: bool = False

    @property
    def passes_lost(self) -> int:
        return self.passes_started - self.passes_merged


def names_of(faults: str | None) -> tuple[FaultName, ...]:
    """From a comma-joined list; all of them when there is none, nothing for `none`. Raises ConfigError."""
    asked = [name.strip() for name in (faults or "").split(",") if name.strip()]
    if asked == [NO_FAULT]:
        return ()
    unknown = sorted(set(asked) - set(FaultName))
    if unknown:
        name = unknown[0].partition("=")[0]
        alone = f"with --seeds give names alone: {name}" if name in set(FaultName) else ""
        raise ConfigError("--faults", f"{unknown[0]!r} is not known", alone or f"choose of {', '.join(FaultName)}")
    return tuple(FaultName(name) for name in asked) or tuple(FaultName)


class Storm:
    """One seed."""

    def __init__(self, seed: int, names: Sequence[FaultName], count: int = 0) -> None:
        self.outcome = Outcome(seed=seed)
        self.dice = dice = Dice(f"storm {seed}")
        self._waiting: list[tuple[FaultName, float]] = []
        self.stages = dice.one_of((2, 2, 2, 3, 1))
        mixed = len(names) == len(FaultName)
        needs_audits = not mixed and not NEED_AUDITS.isdisjoint(names)
        self.outcome.audited = audited = dice.below(4) == 0 or needs_audits
        self.outcome.cheated = audited and mixed and dice.below(3) == 0
        usable = [name for name in names if audited or name is not FaultName.CHAIN_OUTAGE]
        self.planned = plan(Dice(f"faults {seed}"), usable, self._targets, count) if usable else []
        self.pair = ("cheat", "twin") if self.outcome.cheated else None
        """No fault strikes them."""

    def _targets(self, world: StormWorld) -> list[Machine]:
        return [one for one in world.machines.values() if one.name not in (self.pair or ())]

    async def run(self, folder: Path) -> Outcome:
        dice, outcome = self.dice, self.outcome
        spec, text = storm_spec(self.stages, MICRO_BATCHES, dice, audited=outcome.audited)
        world = StormWorld(spec, text, folder, target_epochs=EPOCHS, seed=outcome.seed)
        try:
            async with world:
                world.promises.on_credit = self._work_goes_on
                await self._people(world)
                validator = None
                if outcome.audited:
                    validator = world.start_validator(replay=ModelledReplay, tokens_max=1)
                async with asyncio.TaskGroup() as group:
                    for planned in self.planned:
                        group.create_task(self._strike(world, planned))
                await self._calm(world)
                await _until_the_end(world)
                if validator is not None:
                    async with asyncio.timeout(LEAVING_LIMIT_S):
                        await validator.finished.wait()
                await judge_end(world, self.pair)
        except Exception as error:
            outcome.broken = _words(error)
        self._sum_up(world)
        return outcome

    async def _people(self, world: StormWorld) -> None:
        count = 2 * self.stages + self.dice.below(2) + (1 if self.stages == 1 else 0)
        for number in range(count):
            await world.switch_on(f"miner{number}", 0.3 + 0.2 * self.dice.below(5))
        if self.outcome.cheated:
            await world.switch_on("twin", 0.5)
            await world.switch_on("cheat", 0.5, ModelledCheat)
            world.promises.explained.add(world.machines["cheat"].hotkey)  # type: ignore[index]

    # ---- the weather -------------------------------------------------------------------------------------------------

    async def _strike(self, world: StormWorld, planned: Planned) -> None:
        await asyncio.sleep(planned.at_s)
        fault = planned.fault
        if finished(world.state):
            return
        try:
            await fault.strike(world)
        finally:
            if fault.hits:
                injected = self.outcome.injected
                injected[fault.name] = injected.get(fault.name, 0) + 1
        if fault.hits and not finished(world.state):
            self._waiting.append((fault.name, asyncio.get_running_loop().time()))

    def _work_goes_on(self) -> None:
        now, recovery_s = asyncio.get_running_loop().time(), self.outcome.recovery_s
        for name, since in self._waiting:
            recovery_s[name] = max(recovery_s.get(name, 0.0), now - since)
        self._waiting.clear()

    async def _calm(self, world: StormWorld) -> None:
        """Everything works again, and everybody is back; for each that an audit has convicted, as it convicts machines
        whose bytes flip on their way, somebody new comes: without them a stage may have no honest replica left."""
        if not world.listens:
            await world.start_orchestrator()
        if not finished(world.state):
            convicted = sum(one.failed_at is not None for one in world.state.pay.standing.values())
            for one in list(world.machines.values()):
                await world.switch_on_again(one)
            for number in range(convicted):
                await world.switch_on(f"newcomer{number}", 0.5)

    # ---- what came of it ---------------------------------------------------------------------------------------------

    def _sum_up(self, world: StormWorld) -> None:
        outcome, state = self.outcome, world.state
        outcome.passes_started, outcome.passes_merged = state.passes_started, state.passes_merged
        outcome.virtual_s = asyncio.get_running_loop().time()
        outcome.records, outcome.head = len(world.records), world.records[-1].head
        told = outcome.reasons
        for said, count in world.promises.told.items():
            told[f"miner: {said}"] = count
        for incident in state.incidents:
            told[f"operator: {incident.reason}"] = told.get(f"operator: {incident.reason}", 0) + 1
        if world.told:
            told["miner's operator: config error"] = len(world.told)


async def _until_the_end(world: StormWorld) -> None:
    """Epochs end in time and the run finishes. Raises PromiseBroken with what every stage waits for."""
    try:
        while not finished(world.state):
            await world.until(_beyond(min(stage.epoch for stage in world.state.stages)), EPOCH_LIMIT_S)
    except AssertionError as error:
        raise PromiseBroken("an epoch ends in time once the faults are over", str(error)) from None
    try:
        async with asyncio.timeout(LEAVING_LIMIT_S):
            await world.finished()
    except TimeoutError:
        still = [one.name for one in world.up()]
        raise PromiseBroken("miners leave when the run is over", f"{still} stay") from None


def _beyond(slowest: int) -> Callable[[State], bool]:
    """Whether every stage is beyond that epoch, or the run is over."""
    return lambda state: finished(state) or (slowest < EPOCHS and min(s.epoch for s in state.stages) > slowest)


def _words(error: BaseException) -> str:
    """The first cause, in words."""
    causes = list(_leaves(error))
    cause = next((one for one in causes if isinstance(one, PromiseBroken)), causes[0])
    return str(cause) if isinstance(cause, PromiseBroken) else f"the program broke: {type(cause).__name__}: {cause}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


def run_seed(seed: int, faults: str | None = None, count: int = 0) -> Outcome:
    """One world. `faults` names those that may strike, comma-joined; `count` how many, 0 draws it."""
    logger.disable("subnet")
    with tempfile.TemporaryDirectory(prefix="iota-storm-") as folder:
        storm = Storm(seed, names_of(faults), count)
        return virtual_time.run(storm.run(Path(folder)))


# ---- many ------------------------------------------------------------------------------------------------------------


def run(first_seed: int, seeds: int, processes: int, faults: str | None, report: Path | None) -> int:
    """Run seeds, print how far it is, and every promise that broke with the line that shows it again. 0: all held."""
    names_of(faults)
    began, numbers = os.times(), range(first_seed, first_seed + seeds)
    outcomes: list[Outcome] = []
    for outcome in outcomes_of(numbers, processes, faults):
        outcomes.append(outcome)
        if outcome.broken:
            chosen = f" --faults {faults}" if faults else ""
            print(f"seed {outcome.seed}: {outcome.broken}")
            print(f"    python -m subnet.simulation --seeds 1 --first-seed {outcome.seed}{chosen}", flush=True)
        if len(outcomes) % max(1, seeds // 20) == 0:
            print(_line(outcomes, seeds, began), flush=True)
    print(_line(outcomes, seeds, began))
    if report is not None:
        report.write_bytes(msgspec.json.encode(outcomes) + b"\n")
    return 1 if any(outcome.broken for outcome in outcomes) else 0


def outcomes_of(numbers: Sequence[int], processes: int, faults: str | None, count: int = 0) -> Iterator[Outcome]:
    """Of each seed, in their order."""
    one = partial(run_seed, faults=faults, count=count)
    if processes <= 1 or len(numbers) == 1:
        yield from map(one, numbers)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(one, numbers, chunksize=4)


def _line(outcomes: Sequence[Outcome], seeds: int, began: os.times_result) -> str:
    now, failed = os.times(), sum(bool(outcome.broken) for outcome in outcomes)
    injected = sum(sum(outcome.injected.values()) for outcome in outcomes)
    started, merged = (sum(getattr(o, name) for o in outcomes) for name in ("passes_started", "passes_merged"))
    cpu_s, hours = sum(now[:4]) - sum(began[:4]), sum(outcome.virtual_s for outcome in outcomes) / 3600
    return (
        f"{len(outcomes)} of {seeds} seeds, {failed} failed; {injected} faults injected;"
        f" goodput {merged / max(1, started):.1%}; {hours:.1f} virtual hours in {now.elapsed - began.elapsed:.0f} s"
        f" ({cpu_s / max(1, len(outcomes)):.2f} s of CPU each, where this process counts)"
    )
