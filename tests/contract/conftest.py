"""What the contract suites share: a clock that tests move, hotkeys, the three object stores as miners reach them, and
a recording handler behind a real door on 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import boto3
import msgspec
import pytest
import uvicorn
from bittensor.keyfiles import Keypair
from nanio.app import build_app
from nanio.auth.credentials import StaticCredentialResolver
from nanio.config import Settings

from subnet.protocol.ids import Hotkey, RunId
from subnet.protocol.messages import Join, Noted, Notice, Refusal, Refused, Reply, Request
from subnet.protocol.reasons import Reason
from subnet.storage.base import ObjectStore
from subnet.storage.files import FileObjectStore
from subnet.storage.memory import MemoryObjectStore
from subnet.storage.s3 import S3ObjectStore
from subnet.transport.base import ObjectClient
from subnet.transport.http_client import HttpControlClient, HttpObjectClient, HttpSession
from subnet.transport.http_server import ControlServer
from subnet.transport.limits import Limits
from subnet.transport.memory import MemoryObjectClient
from subnet.transport.signing import RequestSigner

ACCESS_KEY, SECRET_KEY, BUCKET = "testkey", "testsecret-testsecret", "iota-objects"
RUN = RunId("run")
PATH = "/v1/control"
JOIN = Join(session="s1", device="cpu", software="test")
BODY = msgspec.json.encode(Request(run_id=RUN, spec_digest=None, message=JOIN))
T = TypeVar("T")

_SERVER = shutil.which("postgres")
_INITDB = Path(os.path.realpath(_SERVER)).parent / "initdb" if _SERVER else None
POSTGRES = "IOTA_TEST_POSTGRES_URL" in os.environ or (_INITDB is not None and _INITDB.exists())
JOURNAL_KINDS = ["memory", "sqlite"] + (["postgres"] if POSTGRES else [])
"""PostgreSQL where IOTA_TEST_POSTGRES_URL names one or its programs are installed."""


class Clock:
    """Unix seconds; moves only when a test moves it."""

    def __init__(self) -> None:
        self.at = time.time()

    def __call__(self) -> float:
        return self.at

    def advance(self, duration_s: float) -> None:
        self.at += duration_s


class TestRuntime:
    """A runtime whose sleep takes no time and is written down."""

    __test__ = False

    def __init__(self, clock: Clock) -> None:
        self.now = clock
        self.slept: list[float] = []

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        await asyncio.sleep(0)

    def random_bytes(self, count: int) -> bytes:
        return b"\x80" * count

    async def run_blocking(self, work: Callable[[], T]) -> T:
        return work()


def noted(sentence: str) -> Noted:
    return Noted(notice=Notice(reason=Reason.OK, sentence=sentence, remedy="nothing to do"))


@dataclass
class Handler:
    """Answers with the sender's name; a test may put another answer in, or hold answers back."""

    orchestrator: Hotkey
    handled: list[tuple[Hotkey, Request]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    answer: Callable[[Hotkey, Request], Awaitable[Reply]] | None = None
    _arrival: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def has_handled(self, count: int) -> None:
        """Wait until so many requests have arrived."""
        async with self._arrival:
            await self._arrival.wait_for(lambda: len(self.handled) >= count)

    async def handle(self, sender: Hotkey, request: Request) -> Reply:
        async with self._arrival:
            self.handled.append((sender, request))
            self._arrival.notify_all()
        return await self.answer(sender, request) if self.answer else noted(sender)

    async def refuse(self, refused: Refused) -> Reply:
        self.refused.append(refused)
        return Refusal(notice=Notice(reason=refused.reason, sentence=refused.sentence, remedy="see the catalogue"))

    def status(self) -> bytes:
        return f'{{"run_id": "{RUN}", "orchestrator": "{self.orchestrator}", "more": [1]}}'.encode()


@dataclass
class Door:
    """One server and what is on both sides of it."""

    server: ControlServer
    handler: Handler
    url: str
    keypair: Keypair
    session: HttpSession
    runtime: TestRuntime

    def control(self, keypair: Keypair, url: str | None = None, reply_bytes_max: int = 1 << 20) -> HttpControlClient:
        receiver = Hotkey(self.keypair.ss58_address)
        return HttpControlClient(
            self.session, url or self.url, keypair, receiver, RUN, self.runtime, reply_bytes_max=reply_bytes_max
        )


class Shelf(NamedTuple):
    """A store, and the client a miner reaches it with."""

    store: ObjectStore
    client: ObjectClient


class Stranger:
    """Sends anything at all, and checks replies that are signed."""

    def __init__(self, door: Any, keypair: Any, receiver: str | None = None) -> None:
        self.door = door
        self.signer = RequestSigner(keypair, Hotkey(receiver or door.handler.orchestrator), door.runtime.now)

    def signed(self, body: bytes = BODY) -> dict[str, str]:
        headers, self.nonce = self.signer.sign(PATH, body)
        return headers

    async def post(self, headers: dict[str, str], body: Any = BODY, path: str = PATH) -> tuple[int, Refusal, Any]:
        async with self.door.session.open().post(self.door.url + path, data=body, headers=headers) as answer:
            return answer.status, msgspec.json.decode(await answer.read(), type=Reply), answer.headers


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def runtime(clock: Clock) -> TestRuntime:
    return TestRuntime(clock)


@pytest.fixture(scope="session")
def keys() -> Callable[[str], Keypair]:
    return lambda name: Keypair.create_from_uri(f"//{name}")


@pytest.fixture
async def open_door(
    clock: Clock, runtime: TestRuntime, keys: Callable[[str], Keypair]
) -> AsyncIterator[Callable[..., Awaitable[Door]]]:
    """Opens servers with any objects and limits, and closes them after the test."""
    opened: list[Door] = []

    async def open_one(objects: MemoryObjectStore | FileObjectStore | None = None, **limits: float) -> Door:
        keypair, session = keys("Orchestrator"), HttpSession()
        handler = Handler(Hotkey(keypair.ss58_address))
        server = ControlServer(handler, objects, keypair, clock, Limits(**limits))
        port = await server.start("127.0.0.1", 0)
        session.retain()
        opened.append(Door(server, handler, f"http://127.0.0.1:{port}", keypair, session, runtime))
        if objects is not None:
            objects.base_url = opened[-1].url
        return opened[-1]

    yield open_one
    for door in opened:
        await door.session.release()
        await door.server.stop()


@pytest.fixture(scope="session")
def nanio_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server that checks signatures, in a thread of this process, on a free port."""
    folder = tmp_path_factory.mktemp("nanio")
    credentials = StaticCredentialResolver({ACCESS_KEY: SECRET_KEY})
    app = build_app(Settings(data_dir=folder, credentials=credentials, access_log=False))
    listening = socket.create_server(("127.0.0.1", 0))  # listens from now on: nobody has to wait for the thread
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    s3 = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    s3.create_bucket(Bucket=BUCKET)
    s3.close()
    yield url
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def s3_store(nanio_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., S3ObjectStore]]:
    """Makes S3 stores on the test server, whose clock is the test's."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(clock(), tz)

    monkeypatch.setattr("nanio.auth.sigv4.datetime", Shifted)
    stores: list[S3ObjectStore] = []

    def make(
        prefix: str = "", bucket: str = BUCKET, secret_key: str = SECRET_KEY, endpoint_url: str = nanio_url
    ) -> S3ObjectStore:
        access = {"access_key": ACCESS_KEY, "secret_key": secret_key}
        stores.append(
            S3ObjectStore(bucket, clock, endpoint_url=endpoint_url, region="us-east-1", prefix=prefix, **access)
        )
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture(params=["memory", "files", "s3"])
async def shelf(
    request: pytest.FixtureRequest,
    clock: Clock,
    runtime: TestRuntime,
    tmp_path: Path,
    open_door: Callable[..., Awaitable[Door]],
) -> AsyncIterator[Shelf]:
    """Every object store, each reached the way a miner reaches it."""
    if request.param == "memory":
        memory = MemoryObjectStore(clock)
        yield Shelf(memory, MemoryObjectClient(memory))
        return
    session = HttpSession()
    client = HttpObjectClient(session, runtime)
    if request.param == "files":
        files = FileObjectStore(tmp_path / "objects", "", b"secret of the test", clock)
        await open_door(files)
        yield Shelf(files, client)
        files.close()
    else:
        make = request.getfixturevalue("s3_store")
        yield Shelf(make(prefix=f"{tmp_path.name.replace('_', '-')}/"), client)
    await client.close()


@pytest.fixture
def stranger(keys: Callable[[str], Any]) -> Callable[..., Stranger]:
    return lambda door, name="Stranger", receiver=None: Stranger(door, keys(name), receiver)


@pytest.fixture(params=JOURNAL_KINDS)
def journal_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=JOURNAL_KINDS[1:])
def sql_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The database that the environment names, or a server of our own on a Unix socket, gone after the session."""
    if url := os.environ.get("IOTA_TEST_POSTGRES_URL"):
        yield url
        return
    assert _INITDB is not None
    folder = Path(tempfile.mkdtemp(prefix="iota-pg-"))  # a short path: socket names are at most 107 bytes
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())  # it refuses to run as root
    os.chown(folder, user.pw_uid, user.pw_gid)
    data, options = folder / "data", {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    if os.geteuid() != 0:
        options = {}
    initdb = [_INITDB, "-D", data, "-U", "iota", "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, **quiet, **options)
    command = [_INITDB.with_name("pg_ctl"), "-D", data, "-w", "-m", "fast"]
    settings_ = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    subprocess.run([*command, "-o", settings_, "start"], check=True, **quiet, **options)
    yield f"postgresql://iota@/postgres?host={folder}"
    subprocess.run([*command, "stop"], check=True, **quiet, **options)
    shutil.rmtree(folder, ignore_errors=True)
