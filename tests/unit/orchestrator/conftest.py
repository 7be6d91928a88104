"""An orchestrator's service over memory, driven by hand: requests in, replies out, on the running loop's time; and the
same service behind its real HTTP door on 127.0.0.1, with a clock that tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NoReturn, TypeVar

import msgspec
import numpy as np
import pytest
from bittensor.keyfiles import Keypair
from loguru import logger

from subnet import presets
from subnet.coordination import machine
from subnet.coordination.state import State
from subnet.orchestrator.restoring import restore
from subnet.orchestrator.service import Service
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import LoopRuntime, Runtime
from subnet.simulation.opening import open_run, text_spec
from subnet.storage.base import Journal, JournalRecord, Snapshots
from subnet.storage.memory import MemoryJournal, MemoryObjectStore, MemorySnapshots
from subnet.transport.http_client import HttpControlClient, HttpObjectClient, HttpSession
from subnet.transport.http_server import ControlServer
from subnet.transport.signing import RequestSigner

HOST = Hotkey("orchestrator")
SPEC, TEXT = text_spec(
    presets.equivalence(presets.Size(num_miners=2, num_stages=2, epochs=2)),
    np.random.default_rng(1).integers(0, 256, 2_000).astype(np.uint16),
    num_stages=2,
    micro_batch_size=2,
    seq_len=16,
)
NOT_SAID: Any = object()
PATH, STEP_S = "/v1/control", 0.25
NAMES = ("One", "Two", "Three", "Four")
T = TypeVar("T")


class Hosted:
    """A running service and its memory. `name`s are hotkeys; everybody's session is "s"."""

    spec = SPEC

    def __init__(
        self,
        journal: Journal | None = None,
        runtime: Runtime | None = None,
        hotkey: Hotkey = HOST,
        registered: tuple[str, ...] = ("one", "two", "three"),
        snapshots: Snapshots | None = None,
        snapshot_every: int = 1_000,
    ) -> None:
        self.runtime = runtime or LoopRuntime(b"orchestrator")
        self.records: list[JournalRecord] = []
        self.journal = journal or MemoryJournal(self.records)
        self.snapshots, self._snapshot_every = snapshots or MemorySnapshots(), snapshot_every
        self.store = MemoryObjectStore(self.runtime.now)
        self.said: list[str] = []
        self._hotkey, self._registered = hotkey, tuple(Hotkey(name) for name in registered)
        self.task: asyncio.Task[NoReturn] | None = None

    async def start(self) -> Hosted:
        """Open the run, or go on with its journal."""
        restored = await restore(self.journal, self.snapshots)
        self.service = Service(
            self.journal,
            self.store,
            self.runtime,
            self._hotkey,
            restored,
            self.said.append,
            snapshots=self.snapshots,
            snapshot_every=self._snapshot_every,
        )
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def begin() -> None:
            if restored is None:
                await self.service.open(await open_run(self.spec, TEXT, self.store, target_epochs=2))
                await self.service.submit(m.Registered(hotkeys=self._registered))
            else:
                await self.service.submit(m.RunResumed(target_epochs=2))
            begun.set_result(None)

        self.task = asyncio.create_task(self.service.run(begin))
        await asyncio.wait([begun, self.task], return_when=asyncio.FIRST_COMPLETED)
        begun.result()
        return self

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])

    async def ask(self, name: str, message: m.Message, run: str = "", digest: str | None = NOT_SAID) -> m.Reply:
        said = self.spec.digest() if digest is NOT_SAID else digest
        request = m.Request(run_id=run or self.spec.run_id, spec_digest=said, message=message)
        return await self.service.handle(Hotkey(name), request)

    async def join(self, *names: str) -> None:
        """In this order they are placed in the stages 0, 1, ..."""
        for name in names:
            reply = await self.ask(name, m.Join(session="s", device="cpu", software="test"), digest=None)
            assert isinstance(reply, m.Joined), reply

    async def exchange(self, name: str, free_slots: int = 0, **more: Any) -> m.ExchangeReply:
        message = m.Exchange(**{"session": "s", "free_slots": free_slots, "holding": (), "results": ()} | more)
        reply = await self.ask(name, message)
        assert isinstance(reply, m.ExchangeReply), reply
        return reply

    @property
    def state(self) -> State:
        return self.service.state

    def state_bytes(self) -> bytes:
        return encoded(self.state)

    def messages(self) -> list[Any]:
        """What the journal holds, senders and times left out."""
        return [msgspec.json.decode(record.body, type=m.Envelope).message for record in self.records]

    def folded(self) -> bytes:
        """The state that a reader of the journal arrives at."""
        return encoded(machine.replay(msgspec.json.decode(r.body, type=m.Envelope) for r in self.records))


class HandClock:
    """A runtime whose time moves only when the test moves it."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, duration_s: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.at + duration_s, woken))
        await woken

    async def advance(self, duration_s: float) -> None:
        """Let time pass; whatever was due has happened when this returns."""
        for _ in range(round(duration_s / STEP_S)):
            self.at += STEP_S
            for when, woken in list(self._sleepers):
                if when <= self.at:
                    self._sleepers.remove((when, woken))
                    if not woken.done():
                        woken.set_result(None)
            for _ in range(20):
                await asyncio.sleep(0)

    def random_bytes(self, count: int) -> bytes:
        return b"\x42" * count

    async def run_blocking(self, work: Callable[[], T]) -> T:
        return work()


class Door:
    """The service behind its server, and honest lines to it."""

    names = NAMES

    def __init__(self) -> None:
        self.clock, self.session = HandClock(), HttpSession()
        self.session.retain()
        self.lines: dict[str, HttpControlClient] = {}
        self.host_key = self.keypair("Orchestrator")
        self.receiver = Hotkey(self.host_key.ss58_address)

    async def open(self, host: Callable[..., Awaitable[Any]]) -> None:
        registered = tuple(self.hotkey(name) for name in NAMES)
        self.run = await host(runtime=self.clock, hotkey=self.receiver, registered=registered)
        self.spec, self.store = self.run.spec, self.run.store
        self.server = ControlServer(self.run.service, self.store, self.host_key, self.clock.now)
        self.url = f"http://127.0.0.1:{await self.server.start('127.0.0.1', 0)}"
        self.store.base_url = self.url
        self.objects = HttpObjectClient(self.session, self.clock)
        for name in NAMES:
            assert isinstance(await self.ask(name, m.Join(session="s", device="cpu", software="t"), None), m.Joined)
            await self.exchange(name)

    @staticmethod
    def keypair(name: str) -> Keypair:
        return Keypair.create_from_uri(f"//{name}")

    def hotkey(self, name: str) -> Hotkey:
        return Hotkey(self.keypair(name).ss58_address)

    async def ask(self, name: str, message: m.Message, digest: Digest | None) -> m.Reply:
        if name not in self.lines:
            parts = self.session, self.url, self.keypair(name), self.receiver, self.spec.run_id, self.clock
            self.lines[name] = HttpControlClient(*parts)
        return await self.lines[name].call(message, digest, 10.0)

    async def exchange(self, name: str, *results: m.Result, free_slots: int = 0) -> m.ExchangeReply:
        message = m.Exchange(session="s", free_slots=free_slots, holding=(), results=results)
        reply = await self.ask(name, message, self.spec.digest())
        assert isinstance(reply, m.ExchangeReply), reply
        return reply

    async def post(self, body: bytes, headers: dict[str, str]) -> tuple[int, m.Reply]:
        async with self.session.open().post(self.url + PATH, data=body, headers=headers) as answer:
            return answer.status, msgspec.json.decode(await answer.read(), type=m.Reply)

    def signed(self, body: bytes, receiver: str | None = None, shift_s: float = 0.5) -> dict[str, str]:
        """As One signs it, by a clock that is `shift_s` ahead: nonces are times, and its line has used the present."""
        signer = RequestSigner(self.keypair("One"), Hotkey(receiver or self.receiver), lambda: self.clock.at + shift_s)
        return signer.sign(PATH, body)[0]

    @staticmethod
    def done(item: str, **change: Any) -> m.PassDone:
        """The result of a pass with an output, which need not exist."""
        return m.PassDone(**{"item": item, "digest": "0" * 64, "param_version": 1, "compute_s": 0.1} | change)

    async def first_work(self) -> tuple[str, str, m.PassWork]:
        """A forward is given out: its miner, the other replica of the stage, and the work."""
        name, other = self.replicas(0)
        (work,) = (await self.exchange(name, free_slots=1)).work
        assert isinstance(work, m.PassWork) and work.output is not None
        return name, other, work

    def frozen(self) -> Any:
        """The state without its counters and times of contact."""
        plain = msgspec.to_builtins(self.run.state)
        for counter in ("at", "outcomes", "refusals", "incidents", "incident_count"):
            del plain[counter]
        for miner in plain["miners"].values():
            for counter in ("faults", "false_complaints", "last_seen"):
                del miner[counter]
        return plain

    @property
    def state(self) -> State:
        return self.run.state

    def replicas(self, stage: int) -> list[str]:
        return [name for name in NAMES if self.miner(name).stage == stage]

    def miner(self, name: str) -> Any:
        return self.state.miners[self.hotkey(name)]


def encoded(state: State) -> bytes:
    return msgspec.msgpack.encode(state)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger.disable("subnet")
    yield
    logger.enable("subnet")


@pytest.fixture
async def host() -> AsyncIterator[Callable[..., Awaitable[Hosted]]]:
    """Starts services, and stops them after the test."""
    started: list[Hosted] = []

    async def start(**parts: Any) -> Hosted:
        started.append(Hosted(**parts))
        return await started[-1].start()

    yield start
    for hosted in started:
        await hosted.stop()


@pytest.fixture
def spec() -> RunSpec:
    return SPEC


@pytest.fixture
async def door(host: Callable[..., Awaitable[Any]]) -> AsyncIterator[Door]:
    """Two miners have joined in each stage; nobody has work yet."""
    opened = Door()
    await opened.open(host)
    yield opened
    for line in (opened.objects, *opened.lines.values()):
        await line.close()
    await opened.session.release()
    await opened.server.stop()
