"""How long an orchestrator takes to come back: `python -m subnet.simulation.restart --rows 1000000`.

Makes the journal of a long run (`long_journal`), with the snapshots that its orchestrator would have left behind, the
last one as old as it can be. Then starts the real orchestrator as the local net does, as its own process with --resume,
and takes the time until its public status answers; kills it (SIGKILL), and with --without-snapshot starts it again
without any snapshot. Two starts of one journal: what the second one reads, the first has read before.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from subnet import config
from subnet.config import Config
from subnet.localnet import public_status, wallets
from subnet.localnet.folder import RunFolder, make_writable
from subnet.localnet.processes import Child, Processes, resident_peak_bytes
from subnet.orchestrator.hosting import LEAN
from subnet.orchestrator.publication import Publication, live_secret
from subnet.orchestrator.restoring import SNAPSHOT_EVERY, Snapshooter
from subnet.protocol import messages as m
from subnet.runtime import SystemRuntime
from subnet.simulation.long_journal import LongRun
from subnet.storage.sql import SqlJournal

OWNER = "orchestrator"
BATCH = 2_000
"""Records appended together."""
SAID_EVERY = 50_000
LOOK_EVERY_S = 0.02


class RestartConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.simulation.restart`: measures a restart of the orchestrator over a long journal."""

    rows: Annotated[int, Meta(description="records of the journal", ge=100)] = 1_000_000
    miners: Annotated[int, Meta(description="miners of the run", ge=1, le=20_000)] = 16
    stages: Annotated[int, Meta(description="stages of its model", ge=1, le=6)] = 4
    run_dir: Annotated[
        str,
        Meta(
            description="where the journal is kept; one that lies there is used again; default: thrown away",
            extra={"metavar": "DIR"},
        ),
    ] = ""
    without_snapshot: Annotated[bool, Meta(description="measure the fold of the whole journal too: minutes")] = False


class Made(NamedTuple):
    """A journal on disk."""

    rows: int
    kinds: Counter[str]
    snapshots: int


class Start(NamedTuple):
    """One start of the orchestrator."""

    answers_after_s: float
    cpu_s: float
    """Of its process: the time above where nothing else ran."""
    rss_peak_mb: float
    restored: str
    """What it said about it."""


async def make(folder: RunFolder, rows: int, miners: int, stages: int, every: int = SNAPSHOT_EVERY) -> Made:
    """The journal of a run that is `rows` long, and its snapshots."""
    owner = wallets.ensure(folder.root / "wallets", OWNER, ["default"])["default"]
    runtime = SystemRuntime()
    run = LongRun(owner, miners, stages, begin_at=runtime.now() - 10 * rows)
    folder.opening.write_bytes(msgspec.json.encode(run.opened))
    folder.registered.write_bytes(msgspec.json.encode(run.hotkeys))
    journal = await SqlJournal.open(f"sqlite:///{folder.journal}")
    publication, kinds, count, snapshots = Publication(), Counter[str](), 0, 0
    snapshooter = Snapshooter(journal.snapshots, runtime, every, -1)
    encode, records = msgspec.json.Encoder().encode, run.records()
    while count < rows:
        # the last snapshot is as old as it can be but for what comes while one is written
        until_snapshot = (rows - count) % every or every
        # the secret that is live after each record: the state is at that record when it is yielded
        batch = [(one, live_secret(run.state)) for one in islice(records, min(BATCH, until_snapshot))]
        count += len(batch)
        appended = await journal.append([encode(envelope) for envelope, _ in batch])
        for record, (envelope, live) in zip(appended, batch, strict=True):
            publication.note(record, envelope.message, live, False)
            kinds.update(_kinds(envelope.message))
        if (rows - count) % every == 0 and count < rows:
            await snapshooter.take(run.state, publication)
            snapshots += 1
        if count % SAID_EVERY < len(batch):
            print(f"  {count:,} of {rows:,} records made", flush=True)
    await journal.close()
    return Made(rows, kinds, snapshots)


def _kinds(message: m.Message | m.OwnRecord) -> Iterator[str]:
    if isinstance(message, m.Exchange):
        yield "exchange with " + (" and ".join(sorted({type(r).__name__ for r in message.results})) or "nothing")
    else:
        yield type(message).__name__


# ---- starting --------------------------------------------------------------------------------------------------------


async def start(folder: RunFolder, processes: Processes) -> Start:
    """The orchestrator's process from its start to its first answer; killed then. Raises RuntimeError when it ends."""
    folder.address.unlink(missing_ok=True)
    runtime = SystemRuntime()
    began_at = runtime.now()
    places = ["--run-dir", str(folder.root), "--wallet", OWNER, "--wallet-hotkey", "default"]
    child = await processes.start(
        "orchestrator", ["-m", "subnet.orchestrator", *places, "--port", "0", "--resume"], **LEAN
    )
    try:
        while not await _answers(folder):
            if child.exit_code is not None:
                raise RuntimeError(f"the orchestrator ended: {child.last_line()}; see {child.log}")
            await runtime.sleep(LOOK_EVERY_S)
        took_s = runtime.now() - began_at
        return Start(took_s, cpu_s(child.pid), resident_peak_bytes(child.pid) / 1e6, _restored(child))
    finally:
        child.signal(signal.SIGKILL)
        await child.process.wait()


def cpu_s(pid: int) -> float:
    """Of a process, user and system; 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _answers(folder: RunFolder) -> bool:
    if not folder.address.exists():
        return False
    url = str(msgspec.json.decode(folder.address.read_bytes())["url"])
    return await public_status.fetch(url) is not None


def _restored(child: Child) -> str:
    lines = child.log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition("restored ")[2] for line in reversed(lines) if "restored " in line), "said nothing")


def forget_snapshots(folder: RunFolder) -> None:
    with closing(sqlite3.connect(folder.journal)) as connection, connection:
        connection.execute("DELETE FROM snapshot")


def snapshot_bytes(folder: RunFolder) -> int:
    """Of the newest one, packed."""
    with closing(sqlite3.connect(folder.journal)) as connection:
        found = connection.execute('SELECT length(body) FROM snapshot ORDER BY "index" DESC LIMIT 1').fetchone()
    return int(found[0]) if found else 0


# ---- the command -----------------------------------------------------------------------------------------------------


async def measure(asked: RestartConfig, root: Path) -> None:
    folder = RunFolder(root)
    processes = Processes(root / "logs", config.child_environment(OMP_NUM_THREADS="1"))
    if folder.journal.exists():
        print(f"the journal in {root} is used again")
    else:
        print(f"making {asked.rows:,} records of {asked.miners} miners on {asked.stages} stages")
        made = await make(folder, asked.rows, asked.miners, asked.stages)
        shares = ", ".join(f"{kind} {count / made.rows:.1%}" for kind, count in made.kinds.most_common(8))
        print(f"made: {shares}; {made.snapshots} snapshots taken")
    print(
        f"journal {folder.journal.stat().st_size / 1e6:,.0f} MB, snapshot {snapshot_bytes(folder) / 1e6:.2f} MB packed"
    )
    _say("with a snapshot", await start(folder, processes))
    if asked.without_snapshot:
        forget_snapshots(folder)
        _say("without one", await start(folder, processes))


def _say(how: str, start: Start) -> None:
    times = f"answers after {start.answers_after_s:.1f} s ({start.cpu_s:.1f} s of its own CPU time)"
    print(f"{how}: {times}, {start.rss_peak_mb:.0f} MB at most; restored {start.restored}")


def main(argv: list[str]) -> int:
    with config.one_line_errors():
        asked = config.parse(RestartConfig, argv, "python -m subnet.simulation.restart")
        with tempfile.TemporaryDirectory(prefix="iota-restart-") as scratch:
            root = Path(asked.run_dir or scratch).expanduser().absolute()
            make_writable("--run-dir", root)
            asyncio.run(measure(asked, root))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
