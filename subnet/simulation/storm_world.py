"""A small world of real roles with modelled training, whose machines and host can be disturbed, and whose promises are
checked after every record.

Law: it adds nothing to `World` but machines, a host that can end anywhere, and the watching: each new life of the
orchestrator must begin with the very state in which the one before ended, also when that ended in the middle of a batch
of records. Every choice is drawn from the world's own seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from subnet.chain.base import Chain
from subnet.coordination import machine
from subnet.coordination.state import State
from subnet.errors import ConfigError
from subnet.miner.line import Ending
from subnet.orchestrator.restoring import Restored
from subnet.orchestrator.service import Service
from subnet.presets import Preset
from subnet.protocol.draw import draw_below
from subnet.protocol.ids import Hotkey, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.run_spec import (
    AuditSpec,
    BoundarySpec,
    InnerSpec,
    MergeSpec,
    ModelSpec,
    RoutingSpec,
    RunSpec,
    ScoreSpec,
)
from subnet.simulation.modelled import ModelledTrainer
from subnet.simulation.opening import text_spec
from subnet.simulation.outside import WatchedJournal
from subnet.simulation.promises import PromiseBroken, Promises, equal
from subnet.simulation.storm_host import Host, HostRuntime, HostService
from subnet.simulation.storm_machine import Machine, MachineControl, MachineObjects, MachineRuntime
from subnet.simulation.world import ORCHESTRATOR, World
from subnet.storage.memory import MemoryObjectStore

T = TypeVar("T")
VOCABULARY = 16
TOKENS = (np.arange(200) % VOCABULARY).astype(np.uint16)


class Dice:
    """Draws in a row from one secret: equal secrets, equal rows."""

    def __init__(self, secret: str) -> None:
        self._secret, self._drawn = secret.encode(), 0

    def below(self, bound: int) -> int:
        self._drawn += 1
        return draw_below(self._secret, bound, self._drawn)

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def some_of(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones, or all."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(min(count, len(left)))]

    def seconds(self, least: float, most: float) -> float:
        return least + (most - least) * self.below(1000) / 999


def storm_spec(stages: int, micro_batches: int, dice: Dice, *, audited: bool) -> tuple[RunSpec, bytes]:
    """Rules under which everything happens within seconds; the seed varies what merges are made of."""
    preset = Preset(
        ModelSpec(vocab_size=VOCABULARY, d_model=4, num_layers=stages, num_heads=1, num_kv_heads=1, d_ff=4),
        BoundarySpec(width=4, hidden=4, values=Values.FP32, scale_group_tokens=4, token_table=False),
        InnerSpec(
            micro_batches_per_step=1 + dice.below(2),
            lr_peak=1e-3,
            lr_final=1e-4,
            warmup_steps=1,
            rewarm_steps=0,
            decay_steps=10,
            steps_per_epoch=4,
            reset_each_epoch=dice.below(2) == 0,
        ),
        MergeSpec(
            num_microbatches_min=micro_batches,
            quorum=0.75,
            relax_after_s=15.0,
            grace_s=3.0,
            upload_deadline_s=5.0,
            reduce_deadline_s=5.0,
            apply_deadline_s=5.0,
            upload_values=dice.one_of((Values.FP32, Values.BF16, Values.INT8)),
        ),
        RoutingSpec(
            in_flight_per_replica=2,
            heartbeat_s=2.0,
            dead_after_s=6.0,
            deadline_first_s=6.0,
            deadline_floor_s=3.0,
            slots_max=2 + dice.below(3),
        ),
        AuditSpec(
            rate=1.0 if audited else 0.0,
            settled_epochs=100,
            segment_steps=1,
            reveal_deadline_s=15.0,
            replay_deadline_s=15.0,
        ),
        ScoreSpec(gamma_s=3600.0, burn_fraction=0.1 * dice.below(3)),
    )
    return text_spec(preset, TOKENS, num_stages=stages, micro_batch_size=1, seq_len=4)


async def _no_weather() -> None: ...


class HeldObjects(MemoryObjectStore):
    def holds(self, key: ObjectKey) -> bool:
        return key in self._objects


class StormWorld(World):
    def __init__(self, spec: RunSpec, text: bytes, folder: Path, *, target_epochs: int, seed: int) -> None:
        super().__init__(spec, text, folder, target_epochs=target_epochs, seed=seed)
        self.store: HeldObjects = HeldObjects(self._runtime("store").now)
        self.promises = Promises(self.store.holds)
        self.machines: dict[Hotkey, Machine] = {}
        self.ambush: Callable[[str], bool] = lambda point: False
        """Whether the orchestrator's process ends at this point."""
        self.one_host_at_a_time = asyncio.Lock()
        """Held from the end of one to the start of the next."""
        self.store_weather: Callable[[], Awaitable[None]] = _no_weather
        """Before the store does what the orchestrator asks of it."""
        self.host: Host | None = None
        self.told: list[str] = []
        """What machines told their operators when they ended before their time."""

    # ---- machines ----------------------------------------------------------------------------------------------------

    async def switch_on(
        self, name: str, compute_s: float = 0.5, trainer: type[ModelledTrainer] = ModelledTrainer
    ) -> None:
        """Start a machine's process; its clock and its disk are what they were."""
        one = self.machines.setdefault(Hotkey(name), Machine(name, compute_s, trainer))
        one.crashes = False
        one.running.set()
        lives = self.miners[one.hotkey].starts if one.hotkey in self.miners else 0
        await self.start(
            name,
            control=lambda line: MachineControl(one, line),
            objects=lambda line: MachineObjects(one, line),
            trainer=one.trainer,
            runtime=MachineRuntime(f"{self._seed} {name} {lives}", one),
            receipts=one.book(self._folder / name),
            snapshots=one.snapshots,
        )

    async def switch_on_again(self, one: Machine) -> None:
        """Its process runs again, if it does not already; where the orchestrator is away it knocks until it hears."""
        task = self.miners[one.hotkey].task
        while task is not None and not task.done():
            if not (one.crashes or task.cancelling()):
                return
            await asyncio.sleep(0.1)
        await self.switch_on(one.name)

    def up(self) -> list[Machine]:
        return [one for one in self.machines.values() if self.is_up(one)]

    def is_up(self, one: Machine) -> bool:
        task = self.miners[one.hotkey].task
        return task is not None and not task.done()

    async def _process(self, hotkey: Hotkey, life: Coroutine[Any, Any, Ending]) -> Ending | None:
        try:
            return await super()._process(hotkey, life)
        except ConfigError as error:
            if not self.machines[hotkey].disk_is_full:
                raise
            self.told.append(str(error))
            return None

    # ---- the host ----------------------------------------------------------------------------------------------------

    def _host_of(self, journal: WatchedJournal, restored: Restored | None, chain: Chain) -> Service:
        if restored is not None:
            self.compare(restored.state)
        self.host = Host(lambda point: self.ambush(point), self.stop_orchestrator, lambda: self.store_weather())
        runtime = HostRuntime(f"{self._seed} orchestrator {self._hosts}", self.host)
        after = self.promises.after
        return HostService(
            journal, self.store, runtime, ORCHESTRATOR, restored, chain, self.snapshots, self.host, after
        )

    def stop_orchestrator(self) -> None:
        if self.host is not None:
            self.host.dead = True
        super().stop_orchestrator()

    @property
    def listens(self) -> bool:
        return self.door.service is not None

    def compare(self, replayed: State) -> None:
        """The journal's fold beside the state in which the process before ended."""
        if self.promises.seen > len(self.records):
            said = f"{self.promises.seen} records were decided, the journal has {len(self.records)}"
            raise PromiseBroken("replay == live", said)
        if self.promises.seen == len(self.records):
            equal(self.state, replayed)
            return
        first, *rest = self.envelopes()  # it ended between two records of a batch: look at those now
        state = machine.open_run(first)
        for index, envelope in enumerate(rest, start=1):
            decision = machine.handle(state, envelope)
            if index >= self.promises.seen:
                self.promises.after(state, envelope, decision)
        equal(state, replayed)
