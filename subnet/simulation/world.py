"""The whole subnet in one process: the real orchestrator and the real miners on the running event loop's time.

Law: every part that decides or computes is the production one: Service, Miner, Trainer, machine, codecs. Only the
outside is replaced: journal and objects lie in memory, requests cross as the wire's JSON without a socket, and
computing takes `compute_s` of the loop's time. On a virtual-time loop hours pass in seconds. All randomness comes from
one seed, by name, so equal seeds give equal journals. The world decides nothing and knows no fault by name: a fault is
a wrapper around a miner's lines to the outside, a kill and a start, or an orchestrator that stops and starts again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from subnet.chain.base import Chain
from subnet.chain.memory import MemoryChain, MemoryLedger
from subnet.coordination import machine
from subnet.coordination.notices import finished
from subnet.coordination.state import State
from subnet.data import token_shards
from subnet.data.sampling import Batches
from subnet.merging import compression
from subnet.merging.shards import ShardReduction
from subnet.miner.line import Ending
from subnet.miner.miner import Miner, data_path
from subnet.miner.receipts import ReceiptBook
from subnet.miner.snapshots import Snapshots
from subnet.model.replay import Replay
from subnet.model.trainer import Trainer
from subnet.orchestrator import registrations
from subnet.orchestrator.restoring import Restored, restore
from subnet.orchestrator.service import Service
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, Stage, Values
from subnet.protocol.run_spec import RunSpec
from subnet.simulation.opening import open_run
from subnet.simulation.outside import Door, PacedRuntime, Participant, WatchedJournal, until_crash
from subnet.storage.base import JournalRecord
from subnet.storage.memory import MemoryObjectStore, MemorySnapshots
from subnet.transport.base import ControlClient, ObjectClient
from subnet.transport.memory import MemoryControlClient, MemoryJournalReader, MemoryObjectClient
from subnet.validator.follower import Follower
from subnet.validator.validator import Validator
from subnet.validator.weight_setter import WeightSetter

ORCHESTRATOR = Hotkey("orchestrator")
VALIDATOR = Hotkey("validator")
"""May audit and evaluate from the start; others need a permit of the chain."""
BLOCK_S, TEMPO_BLOCKS, EVALUATED_TOKENS = 1.0, 5, 512
SNAPSHOT_EVERY = 50
"""Records: every restart of a world goes by a snapshot."""

_decode_envelope = msgspec.json.Decoder(m.Envelope).decode


class World:
    """`async with World(...) as world:` hosts the run; the miners come by `start`. `folder` holds their disks."""

    def __init__(self, spec: RunSpec, text: bytes, folder: Path, *, target_epochs: int = 2, seed: int = 7) -> None:
        self.spec = spec
        self.miners: dict[Hotkey, Participant] = {}
        self.records: list[JournalRecord] = []
        self.snapshots = MemorySnapshots()
        self.service_type: type[Service] = Service
        self.said: list[str] = []
        """What the orchestrator told its operator."""
        self.door = Door()
        self._text, self._folder, self._seed, self._target_epochs = text, folder, seed, target_epochs
        self._hosts = 0
        self._host: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._validating: list[asyncio.Task[None]] = []
        self._service: Service | None = None
        self._group = asyncio.TaskGroup()
        self._grown = asyncio.Event()
        self.validators: dict[Hotkey, Validator] = {}
        self.store = MemoryObjectStore(self._runtime("store").now)

    # ---- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> World:
        await self._group.__aenter__()
        self.ledger = MemoryLedger(
            ORCHESTRATOR,
            random_bytes=self._runtime("chain").random_bytes,
            now=self._runtime("blocks").now,
            block_s=BLOCK_S,
            tempo=TEMPO_BLOCKS,
            weights_rate_limit=1,
        )
        await self.start_orchestrator()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for miner in self.miners.values():
            self.kill(miner.hotkey)
        self.stop_orchestrator()
        if kind is not None:  # a validator would wait for ever for the end of a run that nobody hosts
            for task in self._validating:
                task.cancel()
        if kind is asyncio.CancelledError:  # a part has crashed, or the world's own task was cancelled
            await self._group.__aexit__(kind, error, trace)
        else:  # what the body raises is raised as it is
            await self._group.__aexit__(None, None, None)

    async def start_orchestrator(self) -> None:
        """Open the run, or go on with its journal as a new process does."""
        self._hosts += 1
        journal = WatchedJournal(self.records, self._grown)
        restored = await restore(journal, self.snapshots)
        chain = MemoryChain(self.ledger, ORCHESTRATOR)
        service = self._host_of(journal, restored, chain)
        begun = asyncio.Event()

        async def begin() -> None:
            if restored is None:
                target = self._target_epochs
                opening = await open_run(
                    self.spec, self._text, self.store, target_epochs=target, evaluators=(VALIDATOR,)
                )
                await service.open(opening)
            else:
                await service.submit(m.RunResumed(target_epochs=restored.state.target_epochs))
            begun.set()

        self._host = host = self._group.create_task(until_crash(service.run(begin)))
        beginning = asyncio.create_task(begun.wait())
        await asyncio.wait((beginning, host), return_when=asyncio.FIRST_COMPLETED)
        beginning.cancel()
        self._service = service
        if self._host is not host or host.done():
            return  # it was stopped, or crashed, before it could listen
        if self.spec.audit.rate > 0:
            watch = registrations.watch_chain(chain, service, self._runtime("watch"))
            self._watch = self._group.create_task(until_crash(watch))
        self.door.service = service

    def _host_of(self, journal: WatchedJournal, restored: Restored | None, chain: Chain) -> Service:
        """The process that hosts the run; where the weather is bad, another one is put here."""
        runtime, said = self._runtime(f"orchestrator {self._hosts}"), self.said.append
        return self.service_type(
            journal, self.store, runtime, ORCHESTRATOR, restored, said, chain, self.snapshots, SNAPSHOT_EVERY
        )

    async def _process(self, hotkey: Hotkey, life: Coroutine[Any, Any, Ending]) -> Ending | None:
        """A miner's process from its start to its end."""
        return await until_crash(life)

    def stop_orchestrator(self) -> None:
        """Its process is gone at once; the journal and the objects stay."""
        self.door.service = None
        for task in (self._host, self._watch):
            if task is not None:
                task.cancel()
        self._host = self._watch = None

    async def start(
        self,
        name: str,
        *,
        compute_s: float = 0.05,
        control: Callable[[ControlClient], ControlClient] = lambda client: client,
        objects: Callable[[ObjectClient], ObjectClient] = lambda client: client,
        trainer: type[Trainer] = Trainer,
        reduction: type[ShardReduction] = ShardReduction,
        runtime: PacedRuntime | None = None,
        receipts: ReceiptBook | None = None,
        snapshots: Snapshots | None = None,
    ) -> Participant:
        """Start a miner's process, registering its hotkey first where it is new; `control` and `objects` wrap its
        lines to the outside, `trainer` and `reduction` are what it computes with, `runtime` is its clock, `receipts`
        and `snapshots` are its disk where that is not its folder."""
        hotkey = Hotkey(name)
        miner = self.miners.setdefault(hotkey, Participant(hotkey, self._folder / name))
        assert miner.task is None or miner.task.done(), f"{name} runs already"
        if hotkey not in self.state.registered:
            self.ledger.register(hotkey)
            await self.service.submit(m.Registered(hotkeys=tuple(self.miners)))
        miner.starts += 1

        def build(spec: RunSpec, stage: Stage) -> Trainer:
            tokens_N = token_shards.open_file(data_path(miner.folder, spec.data.train[0]), spec.model.vocab_size)
            batches = Batches(tokens_N, spec.seed, spec.data.micro_batch_size, spec.data.seq_len)
            miner.trainer = trainer(spec, stage, "cpu", batches)
            return miner.trainer

        role = Miner(
            control=control(MemoryControlClient(self.door, hotkey, self.spec.run_id)),
            objects=objects(MemoryObjectClient(self.store)),
            runtime=runtime or self._runtime(f"{name} {miner.starts}", compute_s),
            trainer_factory=build,
            reduction=reduction,
            work_dir=miner.folder,
            receipts=receipts,
            snapshots=snapshots,
        )
        miner.task = self._group.create_task(self._process(hotkey, role.run()), name=name)
        return miner

    def start_validator(
        self,
        name: str = VALIDATOR,
        *,
        stake: float = 1000.0,
        replay: type[Replay] = Replay,
        tokens_max: int = EVALUATED_TOKENS,
    ) -> Validator:
        """Start a validator; one that the run was not opened with waits for its permit."""
        hotkey = Hotkey(name)
        if hotkey not in self.validators:
            self.ledger.register(hotkey)
            self.ledger.add_stake(hotkey, stake)
        self.validators[hotkey] = role = Validator(
            control=MemoryControlClient(self.door, hotkey, self.spec.run_id),
            objects=MemoryObjectClient(self.store),
            follower=Follower(MemoryJournalReader(self.door)),
            weights=WeightSetter(MemoryChain(self.ledger, hotkey), hotkey),
            runtime=self._runtime(f"validator {name}", 0.05),
            work_dir=self._folder / name,
            tokens_max=tokens_max,
            replay=replay,
        )
        self._validating.append(self._group.create_task(role.run(), name=name))
        return role

    def kill(self, name: str) -> None:
        """End a miner's process without a word; its folder stays."""
        task = self.miners[Hotkey(name)].task
        if task is not None:
            task.cancel()

    # ---- waiting -----------------------------------------------------------------------------------------------------

    async def until(self, met: Callable[[State], bool], limit_s: float = 3600.0) -> None:
        """Until the run's state is as asked. AssertionError after `limit_s`, with what every stage waits for."""
        try:
            async with asyncio.timeout(limit_s):
                while not met(self.state):
                    self._grown.clear()
                    await self._grown.wait()
        except TimeoutError:
            where = [f"{s.stage}/{s.epoch} {s.phase.value}: {s.sentence}" for s in self.state.stages]
            raise AssertionError(f"not within {limit_s:g} s of loop time; stages: {'; '.join(where)}") from None

    async def finished(self, limit_s: float = 3600.0) -> None:
        """Until the run has all its epochs and every living miner has left by itself."""
        await self.until(finished, limit_s)
        await asyncio.wait([miner.task for miner in self.miners.values() if miner.task is not None])

    # ---- what happened -----------------------------------------------------------------------------------------------

    @property
    def service(self) -> Service:
        """The orchestrator that is up, or that was up last."""
        assert self._service is not None, "enter the world first"
        return self._service

    @property
    def state(self) -> State:
        """Its live state."""
        return self.service.state

    def envelopes(self) -> list[m.Envelope]:
        """The journal so far."""
        return [_decode_envelope(record.body) for record in self.records]

    def fold(self) -> Iterator[State]:
        """The run state after each record of the journal; one object that is changed in place."""
        first, *rest = self.envelopes()
        yield (state := machine.open_run(first))
        for envelope in rest:
            machine.handle(state, envelope)
            yield state

    def losses(self) -> dict[int, float]:
        """Each micro-batch's loss as the first loss pass reported it."""
        found: dict[int, float] = {}
        for envelope in self.envelopes():
            for result in envelope.message.results if isinstance(envelope.message, m.Exchange) else ():
                if isinstance(result, m.PassDone) and result.loss is not None:
                    found.setdefault(int(result.item[1:].partition(".")[0]), result.loss)
        return found

    async def parameters(self, stage: int) -> np.ndarray:
        """A stage's merged parameters as the store holds them, float32 [P]."""
        key, count = self.state.stages[stage].parameters.key, self.spec.stages[stage].num_params
        return compression.decode(await self.store.get(key), Values.FP32, count)

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _runtime(self, name: str, compute_s: float = 0.0) -> PacedRuntime:
        return PacedRuntime(f"{self._seed} {name}", compute_s)
