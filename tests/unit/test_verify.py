"""`python -m subnet.verify`: an honest run passes, one value altered anywhere does not, and the record is named.

The run is a real one of the simulation: four miners, two stages, two epochs, the orchestrator killed in the middle; at
its end a validator reports its weights.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import looptime
import msgspec
import numpy as np
import pytest
from bittensor.keyfiles import Keypair
from loguru import logger

from subnet import presets
from subnet.coordination import machine
from subnet.coordination.notices import finished
from subnet.coordination.settlement import sheet
from subnet.errors import ConfigError
from subnet.miner.receipts import RECEIPTS_FILE, load_receipts
from subnet.orchestrator.restoring import restore
from subnet.orchestrator.service import Service
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.public import opened, sealed
from subnet.protocol.reasons import Reason
from subnet.runtime import LoopRuntime
from subnet.simulation.opening import text_spec
from subnet.simulation.world import ORCHESTRATOR, VALIDATOR, World
from subnet.storage.base import GENESIS_HEAD, JournalRecord, next_head
from subnet.storage.journal_files import as_line
from subnet.storage.memory import MemoryJournal, MemoryObjectStore
from subnet.storage.sql import SqlJournal
from subnet.transport.http_server import ControlServer
from subnet.validator.checks import Check
from subnet.validator.public_view import first_difference
from subnet.verify import VerifyConfig, main, verify

_decode = msgspec.json.Decoder(m.Envelope).decode
Verify = Callable[..., tuple[int, str]]


@dataclass
class Run:
    """A finished run: its journal, and where each miner keeps its receipts."""

    records: list[JournalRecord]
    miners: dict[str, Path]
    path: Path

    def find(self, met: Callable[[Any], bool], number: int = 0) -> int:
        """Index of a record by its message."""
        return [r.index for r in self.records if met(_decode(r.body).message)][number]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    logger.disable("subnet")
    folder = tmp_path_factory.mktemp("run")

    async def live() -> Run:
        tokens_N = np.minimum(np.random.default_rng(0).geometric(0.05, 20_000), 255).astype(np.uint16)
        preset = presets.equivalence(presets.Size(2, 2, 2, 6))
        routing = msgspec.structs.replace(preset.routing, flush=False, in_flight_per_replica=2, heartbeat_s=2.0)
        spec, text = text_spec(preset._replace(routing=routing), tokens_N, num_stages=2, micro_batch_size=2, seq_len=16)
        async with World(spec, text, folder, target_epochs=2) as world:
            for number in range(4):
                await world.start(f"miner{number}")
            await world.until(lambda state: state.completed > 4)
            world.stop_orchestrator()
            await asyncio.sleep(1.0)
            await world.start_orchestrator()
            await world.finished()
            return Run(world.records, {name: miner.folder for name, miner in world.miners.items()}, folder / "journal")

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0, end=20_000)) as runner:
        made = runner.run(live())
    made.records = chained([*(record.body for record in made.records), *map(report, weights_of(made.records))])
    save(made.records, made.path)
    yield made
    logger.enable("subnet")


def weights_of(records: list[JournalRecord]) -> list[m.Envelope]:
    """What the validator reports: weights of record 200, which the chain refused, and those at the end."""
    envelopes = [_decode(record.body) for record in records]
    return [
        m.Envelope(
            sender=VALIDATOR,
            at=envelopes[-1].at,
            message=m.WeightsSet(
                index=index,
                head=records[index].head,
                weights=tuple(sheet(machine.replay(envelopes[: index + 1])).emission.weights.items()),
                block=block,
                sentence="",
            ),
        )
        for index, block in ((200, 0), (len(records) - 1, 7))
    ]


report = msgspec.json.Encoder().encode


def save(records: list[JournalRecord], path: Path, sealed_from: int | None = None) -> Path:
    end = len(records) if sealed_from is None else sealed_from
    lines = [
        as_line(opened(*record) if record.index < end else sealed(record.index, record.head)) for record in records
    ]
    path.write_bytes(b"".join(lines))
    return path


def chained(bodies: list[bytes]) -> list[JournalRecord]:
    """A journal that holds: what a forger makes who recomputes every head."""
    head, records = GENESIS_HEAD, []
    for index, body in enumerate(bodies):
        head = next_head(head, index, body)
        records.append(JournalRecord(index, head, body))
    return records


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Verify:
    """Run the command; exit code, and everything it said."""

    def asked(*argv: object) -> tuple[int, str]:
        try:
            code = main([str(part) for part in argv])
        except SystemExit as left:
            code = int(left.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return asked


# ---- a journal in a file ---------------------------------------------------------------------------------------------


def test_an_honest_run(run: Run, ask: Verify) -> None:
    """1. A stranger has the saved journal of a finished run and nothing else: all of it can be recomputed."""
    code, said = ask("--journal", run.path)
    assert code == 0 and "FAIL" not in said
    assert f"{len(run.records)} records chained and recomputed, head {run.records[-1].head}" in said
    assert "weights      OK    2 settings of 1 validators" in said


async def sqlite(run: Run, path: Path) -> Path:
    journal = await SqlJournal.open(f"sqlite:///{path}")
    await journal.append([record.body for record in run.records])
    await journal.close()
    return path


@pytest.mark.parametrize("spelled", ["{}", "sqlite:///{}"])
def test_the_orchestrators_own_file(run: Run, ask: Verify, tmp_path: Path, spelled: str) -> None:
    """2. The owner verifies journal.sqlite where it lies, while the orchestrator writes and afterwards: nothing is
    written, nothing lies beside it that was not there."""

    async def while_it_runs() -> tuple[int, str]:
        journal = await SqlJournal.open(f"sqlite:///{tmp_path / 'live.sqlite'}")
        await journal.append([record.body for record in run.records])
        code = await asyncio.to_thread(ask, "--journal", spelled.format(tmp_path / "live.sqlite"))
        await journal.close()
        return code

    path = asyncio.run(sqlite(run, tmp_path / "journal.sqlite"))
    before, beside = path.read_bytes(), set(tmp_path.iterdir())
    assert ask("--journal", spelled.format(path))[0] == 0
    assert path.read_bytes() == before and set(tmp_path.iterdir()) == beside
    assert asyncio.run(while_it_runs())[0] == 0


@pytest.mark.parametrize("change", ["body", "head", "gone", "text"])
def test_a_changed_row(run: Run, ask: Verify, tmp_path: Path, change: str) -> None:
    """3. Somebody with access to the database changes one row."""
    path, index = asyncio.run(sqlite(run, tmp_path / "journal.sqlite")), len(run.records) // 2
    with sqlite3.connect(path) as connection:
        statement = {
            "body": "UPDATE journal SET body = replace(body, 'sender', 'Sender')",
            "head": f"UPDATE journal SET head = '{'a' * 64}'",
            "gone": "DELETE FROM journal",
            "text": "UPDATE journal SET body = 'nothing'",
        }[change]
        connection.execute(f'{statement} WHERE "index" = {index}')
    connection.close()
    code, said = ask("--journal", path)
    assert code == 1 and f"journal record {index}:" in said and said.startswith("journal  FAIL")


VALUES = {
    "a loss": (b'"loss":', b'"loss":1'),
    "a digest": (b'"digest":"', b'"digest":"e'),
    "a secret": (b'"secret":"', b'"secret":"f'),
    "a time": (b'"at":', b'"at":1'),
    "a sender": (b'"sender":"miner0"', b'"sender":"miner1"'),
    "a target": (b'"target_epochs":2', b'"target_epochs":3'),
}


@pytest.mark.parametrize("what", VALUES)
def test_one_altered_value(run: Run, ask: Verify, tmp_path: Path, what: str) -> None:
    """4. One value in the saved journal is altered, at its first and at its last place: the record is named."""
    old, new = VALUES[what]
    places = [record.index for record in run.records if old in record.body]
    for index in {places[0], places[-1]}:
        bodies = [r._replace(body=r.body.replace(old, new, 1)) if r.index == index else r for r in run.records]
        code, said = ask("--journal", save(bodies, tmp_path / "altered"))
        assert code == 1 and f"journal record {index}: " in said, said


def test_lines_that_were_moved(run: Run, ask: Verify, tmp_path: Path) -> None:
    """5. A line is missing, two are swapped, one is torn: each is named. A cut at the end shows in the head alone."""
    lines, path = run.path.read_bytes().splitlines(keepends=True), tmp_path / "moved"
    for index, moved in (
        (7, lines[:7] + lines[8:]),
        (7, [*lines[:7], lines[8], lines[7], *lines[9:]]),
        (7, [*lines[:7], lines[7][:-9] + b"\n", *lines[8:]]),
        (len(lines) - 1, [*lines[:-1], lines[-1][:-9]]),
    ):
        path.write_bytes(b"".join(moved))
        code, said = ask("--journal", path)
        assert code == 1 and f"journal record {index}: " in said, said
    path.write_bytes(b"".join(lines[:-5]))
    code, said = ask("--journal", path)
    assert code == 0 and run.records[-6].head in said


def test_a_journal_that_is_sealed_at_its_end(run: Run, ask: Verify, tmp_path: Path) -> None:
    """6. It was saved while the run went on: what is open is recomputed, and how much is not is said."""
    path = save(run.records, tmp_path / "sealed", sealed_from=len(run.records) - 20)
    code, said = ask("--journal", path)
    assert code == 0 and "20 more are sealed" in said
    code, said = ask("--journal", path, "--receipts", run.miners["miner0"])
    assert code == 0 and "receipts  " in said


def test_a_record_nobody_asked_for(run: Run, ask: Verify, tmp_path: Path) -> None:
    """7. The orchestrator does not like how the draws went and draws once more, every head recomputed after it."""
    index = len(run.records) // 2
    one_more = _decode(run.records[index].body)
    one_more = msgspec.structs.replace(one_more, sender=ORCHESTRATOR, message=m.SecretDrawn(epoch=0, secret="ab" * 32))
    bodies = [record.body for record in run.records]
    bodies.insert(index + 1, msgspec.json.encode(one_more))
    code, said = ask("--journal", save(chained(bodies), tmp_path / "forged"))
    assert code == 1 and f"record {index + 1}: the rules did not ask for a secret" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": ((0, 0.5),)}, "validator weighs uid 0 with 0.5, from record {0} follows 0."),
        ({"weights": ()}, "validator weighs uid 0 with 0.0, from record {0} follows 0."),
        ({"head": "d" * 64}, "names the head " + "d" * 64 + " for record {0}, it is"),
        ({"index": 10**6}, "names record 1000000, which did not exist yet"),
    ],
)
def test_weights_that_do_not_follow(run: Run, ask: Verify, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """8. A validator gives the chain other weights than the records it names lead to; its report is in the journal. One
    that may not set any is not listened to."""
    last = _decode(run.records[-1].body)
    bent = msgspec.structs.replace(last, message=msgspec.structs.replace(last.message, **change))
    bodies = [record.body for record in run.records[:-1]]
    path = save(chained([*bodies, report(bent)]), tmp_path / "forged")
    code, shown = ask("--journal", path)
    assert code == 1 and f"record {len(bodies)}: " in shown and said.format(last.message.index) in shown, shown
    stranger = msgspec.structs.replace(bent, sender=Hotkey("miner0"))
    assert ask("--journal", save(chained([*bodies, report(stranger)]), path))[0] == 0


# ---- a miner's receipts ----------------------------------------------------------------------------------------------


def test_receipts_of_everybody(run: Run, ask: Verify) -> None:
    """9. Each miner holds its receipts beside the public journal: every result is there, judged as it was told."""
    for name, folder in run.miners.items():
        code, said = ask("--journal", run.path, "--receipts", folder)
        count = len(load_receipts(folder / RECEIPTS_FILE))
        assert code == 0 and f"{count} of {count} receipts" in said and f"in the ledger of {name}" in said


def test_a_result_that_was_left_out(run: Run, ask: Verify, tmp_path: Path) -> None:
    """10. The orchestrator takes one result out of the journal and recomputes every head: the chain holds, the miner's
    receipt does not."""
    index = run.find(lambda message: isinstance(message, m.Exchange) and bool(message.results), 9)
    envelope = _decode(run.records[index].body)
    bodies = [record.body for record in run.records]
    robbed = msgspec.structs.replace(envelope.message, results=())
    bodies[index] = msgspec.json.encode(msgspec.structs.replace(envelope, message=robbed))
    path = save(chained(bodies), tmp_path / "forged")
    code, said = ask("--journal", path, "--receipts", run.miners[envelope.sender])
    assert code == 1 and f"receipts     FAIL  record {index}: its head is " in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"work_units": 9.5}, "for 9.5, the rules say applied/ok for"),
        ({"outcome": "ignored"}, "was receipted as ignored/ok"),
        ({"item": "f99999.0.0"}, "it holds no result for f99999.0.0"),
        ({"head": Digest("c" * 64)}, f"names {'c' * 64}"),
        ({"journal_index": 10**6}, "record 1000000 is missing"),
        ({"journal_index": 0}, "record 0: its head is"),
    ],
)
def test_a_receipt_that_says_something_else(
    run: Run, ask: Verify, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """11. One value of one receipt differs from the journal."""
    lines = load_receipts(run.miners["miner1"] / RECEIPTS_FILE)
    number = next(number for number, line in enumerate(lines) if line.work_units > 0)
    lines[number] = msgspec.structs.replace(lines[number], **change)
    (tmp_path / RECEIPTS_FILE).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    code, shown = ask("--journal", run.path, "--receipts", tmp_path)
    assert code == 1 and said in shown, shown


def test_receipts_of_two_hotkeys_or_of_another_run(run: Run, ask: Verify, tmp_path: Path) -> None:
    """12. The wrong folder: receipts of somebody else are among them, or all are of another run."""
    files = [(folder / RECEIPTS_FILE).read_bytes() for folder in run.miners.values()]
    (tmp_path / RECEIPTS_FILE).write_bytes(files[0] + files[1])
    code, said = ask("--journal", run.path, "--receipts", tmp_path)
    assert code == 1 and "earlier receipts are of" in said
    (tmp_path / RECEIPTS_FILE).write_bytes(files[0].replace(b'"run_id":"world"', b'"run_id":"other"'))
    code, said = ask("--journal", run.path, "--receipts", tmp_path)
    assert code == 1 and "receipts is of run world" in said


# ---- an orchestrator -------------------------------------------------------------------------------------------------


@dataclass
class Hosted:
    service: Service
    url: str


@pytest.fixture
async def host(run: Run) -> AsyncIterator[Callable[[int], Any]]:
    """An orchestrator on 127.0.0.1 that goes on with the run's first records."""
    key, started = Keypair.create_from_uri("//Orchestrator"), []

    async def start(count: int) -> Hosted:
        journal, runtime = MemoryJournal(run.records[:count]), LoopRuntime(b"orchestrator")
        restored = await restore(journal)
        service = Service(journal, MemoryObjectStore(runtime.now), runtime, ORCHESTRATOR, restored, lambda line: None)
        begun = asyncio.Event()

        async def begin() -> None:
            await service.submit(m.RunResumed(target_epochs=2))
            begun.set()

        server = ControlServer(service, None, key, runtime.now)
        url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
        task = asyncio.create_task(service.run(begin))
        started.append((server, task))
        await begun.wait()
        return Hosted(service, url)

    yield start
    for server, task in started:
        await server.stop()
        task.cancel()
        await asyncio.wait([task])


def rows(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.holds for check in checks}


async def test_a_finished_run_over_http(run: Run, host: Callable[[int], Any], tmp_path: Path) -> None:
    """13. A stranger verifies the orchestrator's public journal, status page included, and keeps what he saw."""
    hosted = await host(len(run.records))
    assert finished(hosted.service.state)
    settings = VerifyConfig(orchestrator=hosted.url, save=str(tmp_path / "kept"), receipts=str(run.miners["miner2"]))
    checks = await verify(settings, LoopRuntime(b"stranger"))
    assert set(rows(checks).values()) == {True}, checks
    assert set(rows(checks)) == {"journal", "own records", "state", "weights", "receipts", "public view"}
    assert (tmp_path / "kept").read_bytes().startswith(run.path.read_bytes())
    assert await verify(VerifyConfig(journal=str(tmp_path / "kept")), LoopRuntime(b"stranger")) == checks[:4]


async def test_a_status_page_that_says_something_else(run: Run, host: Callable[[int], Any]) -> None:
    """14. The journal is honest, the status page shows one miner with more credit than it has."""
    hosted = await host(len(run.records))
    true = hosted.service.status

    def bent() -> bytes:
        view = msgspec.json.decode(true())
        view["stages"][1]["replicas"][0]["credit"] += 1.0
        return msgspec.json.encode(view)

    hosted.service.status = bent
    (*good, view) = await verify(VerifyConfig(orchestrator=hosted.url), LoopRuntime(b"stranger"))
    assert set(rows(good).values()) == {True}
    assert (view.name, view.holds) == ("public view", False)
    assert view.sentence.startswith("stages[1].replicas[0].credit is ") and "recomputed: " in view.sentence


async def test_a_journal_that_grows_while_it_is_read(run: Run, host: Callable[[int], Any]) -> None:
    """15. The run is over, validators still ask now and then: page and journal are of one record all the same."""
    hosted = await host(len(run.records))
    asked = m.Refused(reason=Reason.STALE, claimed="somebody", sentence="")
    true, more = hosted.service.status, list[asyncio.Task[None]]()

    def status() -> bytes:
        view = true()
        if len(more) < 3:
            more.append(asyncio.get_running_loop().create_task(hosted.service.submit(asked)))
        return view

    hosted.service.status = status
    checks = await verify(VerifyConfig(orchestrator=hosted.url), LoopRuntime(b"stranger"))
    assert set(rows(checks).values()) == {True} and len(more) == 3


async def test_a_run_that_goes_on(run: Run, host: Callable[[int], Any], tmp_path: Path) -> None:
    """16. In the middle of the run: what is open is verified, the rest is heads, no secret of now is in the file."""
    hosted = await host(len(run.records) // 2)
    kept = tmp_path / "kept"
    checks = await verify(VerifyConfig(orchestrator=hosted.url, save=str(kept)), LoopRuntime(b"stranger"))
    assert rows(checks) == {"journal": True, "own records": True, "state": True, "weights": None}
    assert "sealed: heads only" in checks[0].sentence
    assert hosted.service.state.secret().hex().encode() not in kept.read_bytes()
    assert rows(await verify(VerifyConfig(journal=str(kept)), LoopRuntime(b"stranger"))) == rows(checks)


async def test_an_orchestrator_that_shows_another_journal(run: Run, host: Callable[[int], Any], tmp_path: Path) -> None:
    """17. It bends one value on the way out: named, and kept in the file as evidence."""
    hosted = await host(len(run.records))
    true, kept = hosted.service.journal, tmp_path / "kept"

    async def bent(start: int, limit: int) -> bytes:
        return (await true(start, limit)).replace(b'"free_slots":1', b'"free_slots":2', 1)

    hosted.service.journal = bent
    (check,) = await verify(VerifyConfig(orchestrator=hosted.url, save=str(kept)), LoopRuntime(b"stranger"))
    index = next(record.index for record in run.records if b'"free_slots":1' in record.body)
    assert check.holds is False and f"journal record {index}: " in check.sentence
    (again,) = await verify(VerifyConfig(journal=str(kept)), LoopRuntime(b"stranger"))
    assert f"journal record {index}: " in again.sentence


# ---- an operator's mistakes ------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(run: Run, ask: Verify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """18. Nothing named, nobody there, the wrong file, the wrong folder: one line that names the flag, exit code 2."""
    monkeypatch.delenv("IOTA_ORCHESTRATOR", raising=False)
    shutil.copy(run.path, tmp_path / "good")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "story.txt").write_text("In the beginning\n")
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE t (x)").connection.close()
    nobody = "http://127.0.0.1:9"
    for flag, argv in [
        ("--orchestrator", []),
        ("--orchestrator", ["--orchestrator", nobody]),
        ("--orchestrator", ["--orchestrator", "http://127.0.0.1:99999"]),
        ("--orchestrator", ["--orchestrator", "127.0.0.1:80"]),
        ("--journal", ["--journal", tmp_path / "missing"]),
        ("--journal", ["--journal", tmp_path]),
        ("--journal", ["--journal", tmp_path / "empty"]),
        ("--journal", ["--journal", tmp_path / "story.txt"]),
        ("--journal", ["--journal", tmp_path / "other.sqlite"]),
        ("--receipts", ["--journal", run.path, "--receipts", tmp_path]),
        ("--save", ["--journal", run.path, "--save", tmp_path / "copy"]),
        ("command line", ["--jurnal", run.path]),
    ]:
        code, said = ask(*argv)
        assert code == 2 and said.startswith(f"error: {flag}: ") and said.count("\n") == 1, said
    for name, value in (("IOTA_ORCHESTRATOR", nobody), ("BT_NETWORK", "ws://127.0.0.1:9"), ("BT_NETUID", "1")):
        monkeypatch.setenv(name, value)
    assert ask("--journal", tmp_path / "good")[0] == 0, "a file needs no network, unless the command line names one"
    monkeypatch.setenv("BT_NETUID", "abc")
    assert ask("--journal", tmp_path / "good")[0] == 0
    code, said = ask("--journal", tmp_path / "good", "--netuid", "1")
    assert code == 2 and said.startswith("error: --network: is missing; name the chain of subnet 1")


async def test_nowhere_to_save(run: Run, host: Callable[[int], Any], tmp_path: Path) -> None:
    """19. --save names a folder."""
    hosted = await host(len(run.records))
    with pytest.raises(ConfigError, match="--save"):
        await verify(VerifyConfig(orchestrator=hosted.url, save=str(tmp_path)), LoopRuntime(b"stranger"))


def test_the_first_difference_is_named() -> None:
    """20. Of two values as JSON knows them, wherever they differ first."""
    base = {"a": [1, {"b": 2.0}], "c": None, "d": "x" * 200}
    assert first_difference(base, {"a": [1.0, {"b": 2}], "c": None, "d": "x" * 200}) is None
    assert first_difference(base, {**base, "a": [1, {"b": 3}]}) == "a[1].b is 2.0, recomputed: 3"
    assert first_difference(base, {**base, "a": [1]}) == 'a is [1,{"b":2.0}], recomputed: [1]'
    assert first_difference({**base, "e": 1}, base) == "e is not in the recomputed one"
    assert first_difference(base, {"f": {}, **base}) == "f is missing"
    long = first_difference(base, {**base, "d": "y" * 200})
    assert long is not None and len(long) < 200
