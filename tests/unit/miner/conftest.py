"""A miner and a scripted orchestrator: real trainer, store and transport in memory, virtual time.

The miner is the middle one of three stages, so every pass has an input and an output.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.data.sampling import Batches
from subnet.data.token_shards import encode as encode_tokens
from subnet.data.token_shards import open_file
from subnet.errors import Unavailable
from subnet.merging import compression
from subnet.miner.line import Ending
from subnet.miner.miner import Miner, data_path
from subnet.model import wire
from subnet.model.initial import initial_parameters
from subnet.model.trainer import Trainer
from subnet.protocol import keys
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, MicroBatchId, Pass, RunId, Stage, Values
from subnet.protocol.keys import Kind
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.runtime import LoopRuntime
from subnet.storage.memory import MemoryObjectStore
from subnet.transport.memory import MemoryControlClient, MemoryObjectClient

T = TypeVar("T")
RUN, MIDDLE = RunId("run"), Stage(1)
TOKENS = encode_tokens(np.random.default_rng(1).integers(0, 256, 2_000), 256)
EXPIRES_AT = 1.8e9


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


def make_spec() -> RunSpec:
    file = DataFile(key=keys.make(RUN, 0, 0, "text", Kind.DATA), digest=digest_of(TOKENS), size_bytes=len(TOKENS))
    data = DataSpec(tokenizer=file, train=(file,), validation=(file,), micro_batch_size=2, seq_len=16)
    preset = presets.equivalence(presets.Size(num_miners=3, num_stages=3, epochs=1))
    preset = preset._replace(routing=msgspec.structs.replace(preset.routing, slots_max=16))
    return presets.run_spec(preset, run_id=RUN, seed=7, num_stages=3, data=data)


SPEC = make_spec()


class SlowRuntime(LoopRuntime):
    """Computing takes virtual time; two computations at once would be a bug of the miner."""

    def __init__(self) -> None:
        super().__init__(b"test")
        self.compute_s, self.computing = 0.0, 0

    async def run_blocking(self, work: Callable[[], T]) -> T:
        self.computing += 1
        assert self.computing == 1, "two computations at once"
        try:
            await asyncio.sleep(self.compute_s)
            return work()
        finally:
            self.computing -= 1


class Objects(MemoryObjectClient):
    """Remembers which keys were read; `away` makes the store unreachable."""

    def __init__(self, store: MemoryObjectStore) -> None:
        super().__init__(store)
        self.reads: list[str] = []
        self.away = False

    async def get(self, url: str, offset: int, size_bytes: int, timeout_s: float) -> bytes:
        self.reads.append(url.partition("?")[0].partition("/objects/")[2])
        if self.away:
            raise Unavailable("the store is away")
        return await super().get(url, offset, size_bytes, timeout_s)


class Script:
    """An orchestrator that gives what the test queues, holds polls open, and writes down what it hears."""

    def __init__(self, store: MemoryObjectStore, runtime: LoopRuntime) -> None:
        self.store, self.runtime = store, runtime
        self.stage, self.epoch, self.finished = MIDDLE, Epoch(0), False
        self.queue: list[m.Work] = []
        self.given: dict[ItemId, m.Work] = {}
        self.answered: dict[ItemId, m.Result] = {}
        self.doubled: list[ItemId] = []
        self.exchanges: list[tuple[float, m.Exchange]] = []
        self.joins: list[m.Join] = []
        self.refusals: list[Reason] = []
        self.lose_replies = self.lose_results = 0
        self.refuse_held_after_s: float | None = None
        self.withdrawn: set[ItemId] = set()
        self._poll: asyncio.Event | None = None
        self._index = 0

    async def handle(self, sender: Hotkey, request: m.Request) -> m.Reply:
        if self.refusals:
            return refusal(self.refusals.pop(0))
        if isinstance(request.message, m.Join):
            self.joins.append(request.message)
            return await self._joined()
        assert isinstance(request.message, m.Exchange) and request.spec_digest == SPEC.digest()
        return await self._exchange(request.message)

    async def _joined(self) -> m.Joined:
        spec = SPEC.stages[self.stage]
        vectors = initial_parameters(SPEC, self.stage), np.zeros(spec.num_params, np.float32)
        parameters, momentum = [
            await self.put(
                keys.make(RUN, self.epoch, self.stage, "start", kind), compression.encode(Values.FP32, vector)
            )
            for kind, vector in zip((Kind.PARAMETERS, Kind.MOMENTUM), vectors, strict=True)
        ]
        data = (await self.put(SPEC.data.train[0].key, TOKENS),)
        return m.Joined(
            spec=SPEC,
            stage=self.stage,
            epoch=self.epoch,
            parameters=parameters,
            momentum=momentum,
            data=data,
            notice=m.Notice(reason=Reason.OK, sentence="welcome", remedy=""),
        )

    async def _exchange(self, message: m.Exchange) -> m.Reply:
        if message.results and self.lose_results:
            self.lose_results -= 1
            raise Unavailable("the line broke before the request had arrived")
        self.exchanges.append((self.time(), message))
        verdicts = tuple(self._judge(result) for result in message.results)
        self.wake()
        drop = tuple(item for item in message.holding if item in self.withdrawn)
        if not self._work(message) and not drop and message.free_slots and not self.finished:
            self._poll = poll = asyncio.Event()
            try:
                async with asyncio.timeout(SPEC.routing.hold_s):
                    await poll.wait()
            except TimeoutError:
                pass
            if self.refuse_held_after_s is not None:
                await asyncio.sleep(self.refuse_held_after_s)
                return refusal(Reason.NOT_JOINED)
        work = self._work(message)
        for piece in work:
            self.given[piece.item] = piece
            if piece in self.queue:
                self.queue.remove(piece)
        if self.lose_replies:
            self.lose_replies -= 1
            raise Unavailable("the line broke after the request had arrived")
        reason = Reason.BUSY if work else Reason.NO_WORK
        notice = m.Notice(reason=reason, sentence="said", remedy="")
        receipt = m.Receipt(journal_index=self._index, head=Digest("0" * 64))
        return m.ExchangeReply(
            verdicts=verdicts, work=work, drop=drop, notice=notice, finished=self.finished, receipt=receipt
        )

    def _work(self, message: m.Exchange) -> tuple[m.Work, ...]:
        lost = [work for item, work in self.given.items() if item not in message.holding]
        return (*lost, *self.queue[: message.free_slots])

    def _judge(self, result: m.Result) -> m.Verdict:
        self._index += 1
        if result.item in self.answered:
            self.doubled.append(result.item)
            return m.Verdict(item=result.item, outcome="ignored", reason=Reason.DUPLICATE, sentence="accepted before")
        self.answered[result.item] = result
        self.given.pop(result.item, None)
        return m.Verdict(item=result.item, outcome="applied", reason=Reason.OK, sentence="credited", work_units=1.0)

    async def refuse(self, refused: m.Refused) -> m.Reply:
        raise AssertionError(f"refused at the door: {refused}")

    def status(self) -> bytes:
        return b"{}"

    # ---- what tests do ----

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def wake(self) -> None:
        if self._poll is not None:
            self._poll.set()
            self._poll = None

    def give(self, *work: m.Work) -> None:
        self.queue += work
        self.wake()

    async def put(self, key: keys.ObjectKey, data: bytes) -> m.Source:
        await self.store.put(key, data)
        url = self.store.grant_get(key, EXPIRES_AT)
        return m.Source(key=key, digest=digest_of(data), size_bytes=len(data), url=url)

    async def work(self, kind: Pass, micro_batch: int, name: str = "") -> m.PassWork:
        """A pass of the middle stage with inputs that are good."""
        item = name or f"{kind.value[0]}{micro_batch}"
        stage_input = await self.put(keys.make(RUN, 0, 0, f"in{micro_batch}", Kind.BOUNDARY), tensor(micro_batch))
        gradient, produced = None, Kind.BOUNDARY
        if kind is Pass.BACKWARD:
            produced = Kind.GRADIENT
            gradient = await self.put(keys.make(RUN, 0, 2, f"in{micro_batch}", Kind.GRADIENT), tensor(-1 - micro_batch))
        key = keys.make(RUN, 0, 1, item, produced)
        url = self.store.grant_put(key, SPEC.boundary_size_bytes, EXPIRES_AT)
        return m.PassWork(
            item=ItemId(item),
            kind=kind,
            micro_batch=MicroBatchId(micro_batch),
            stage=MIDDLE,
            epoch=Epoch(0),
            stage_input=stage_input,
            gradient=gradient,
            output=m.Target(key=key, size_bytes=SPEC.boundary_size_bytes, url=url),
            deadline_s=60.0,
        )


def refusal(reason: Reason) -> m.Refusal:
    return m.Refusal(notice=m.Notice(reason=reason, sentence=f"refused: {reason.value}", remedy="act"))


def tensor(seed: int) -> bytes:
    """z_BTK, or its gradient for negative seeds."""
    z_BTK = np.random.default_rng(seed % 2**32).standard_normal((2, 16, SPEC.boundary.width)).astype(np.float32)
    return wire.encode(SPEC, z_BTK if seed >= 0 else z_BTK * np.float32(1e-3), None)


class World:
    """One miner and its orchestrator."""

    spec = SPEC
    tensor = staticmethod(tensor)

    def __init__(self, folder: Path, slots: int = 4, store: MemoryObjectStore | None = None) -> None:
        self.folder, self.runtime = folder, SlowRuntime()
        self.store = store or MemoryObjectStore(self.runtime.now)
        self.objects, self.script = Objects(self.store), Script(self.store, self.runtime)
        self.built: list[Stage] = []
        self.miner = Miner(
            control=MemoryControlClient(self.script, Hotkey("miner"), RUN),
            objects=self.objects,
            runtime=self.runtime,
            trainer_factory=self._build,
            work_dir=folder,
            slots=slots,
        )
        self.life: asyncio.Task[Ending] | None = None

    def _build(self, spec: RunSpec, stage: Stage) -> Trainer:
        self.built.append(stage)
        return self.trainer(stage)

    def trainer(self, stage: Stage) -> Trainer:
        """Over the text that the miner downloaded."""
        tokens = open_file(data_path(self.folder, SPEC.data.train[0]), 256)
        return Trainer(SPEC, stage, "cpu", Batches(tokens, SPEC.seed, 2, 16))

    def start(self) -> None:
        self.life = asyncio.create_task(self.miner.run())

    async def until(self, *items: str) -> None:
        """Until these items are answered."""
        await self.eventually(lambda: set(items) <= set(self.script.answered))

    async def eventually(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(300.0):
            while not met():
                assert self.life is None or not self.life.done(), self.life.result()
                await asyncio.sleep(0.05)

    def result(self, item: str) -> m.Result:
        return self.script.answered[ItemId(item)]

    async def finish(self) -> Ending:
        assert self.life is not None
        self.script.finished = True
        self.script.wake()
        async with asyncio.timeout(60.0):
            return await self.life


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
