"""The orchestrator is killed again and again in the middle of a run, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from subnet.localnet.folder import RunFolder
from subnet.localnet.record import fold
from subnet.miner.receipts import RECEIPTS_FILE, credited, load_receipts
from subnet.protocol.draw import choose
from subnet.protocol.ids import Hotkey
from subnet.storage.sql import SqlJournal

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_S = 600
"""For a run of about a minute, with room for a machine that runs other things."""
EPOCHS = 3
MICRO_BATCHES = 30
SMALL = f"--miners 2 --stages 2 --seq-len 32 --micro-batch-size 4 --num-microbatches-min {MICRO_BATCHES}".split()
HARD = "--kill-orchestrator-every 8s --audit-rate 1".split()
WORDS = ["and", "light", "was", "there", "waters", "upon", "evening", "morning", "day", "earth", "heaven", "seed"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )


async def test_an_orchestrator_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    """1. SIGKILL every few seconds: its keeper starts it again at the same port, the miners go on where they were and
    join no second time, every receipt is in the ledger and every credit has its receipt, all audits pass, weights are
    set, and everything can be recomputed."""
    text, folder, report = tmp_path / "text.txt", RunFolder(tmp_path / "run"), tmp_path / "report.json"
    text.write_text("\n".join(" ".join(choose(b"text", WORDS, n, k) for k in range(9)) for n in range(900)))
    places = ["--text", str(text), "--run-dir", str(folder.root), "--report", str(report)]
    places += ["--cache-dir", str(tmp_path / "cache")]
    done = run("subnet.localnet", *SMALL, *HARD, *places, "--epochs", str(EPOCHS))
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = msgspec.json.decode(report.read_bytes())

    deaths = [one for one in told["faults"]["each"] if one["fault"] == "orchestrator-killed"]
    assert len(deaths) >= 2 and told["faults"]["orchestrator_killed"] == len(deaths), done.stdout
    assert told["faults"]["survived"] == told["faults"]["injected"] == len(deaths)
    assert sum(one["started_again_at_s"] is not None for one in deaths) >= len(deaths) - 1
    assert "is started again at http" in done.stdout and "listens again after" in done.stdout

    assert told["epochs"] == EPOCHS and told["micro_batches"] >= EPOCHS * MICRO_BATCHES
    audits = told["audits"]
    assert audits["failed"] == audits["unreadable"] == audits["not_revealed"] == audits["open"] == 0
    assert audits["passed"] == 2 * EPOCHS
    journal = await SqlJournal.open(f"sqlite:///{folder.journal}")
    try:
        state = (await fold(journal)).state
        joins = sum(b'"type":"join"' in record.body for record in await journal.read(0, 100_000))
        last = await journal.last()
        assert last is not None and (snapshot := await journal.snapshots.newest(last.index)) is not None
        assert snapshot.index == last.index, "stopped in order at the end"
    finally:
        await journal.close()
    assert state.next_micro_batch - state.completed <= len(state.micro_batches) + state.abandoned
    assert joins == 2, "a miner whose orchestrator dies keeps its session"
    for name, miner in told["miners"].items():
        receipts = credited(load_receipts(folder.miner(name) / RECEIPTS_FILE))
        ledger = state.ledger.total(Hotkey(miner["hotkey"]))
        assert sum(receipts.values()) == pytest.approx(ledger, abs=1e-9) and ledger > 0
        credits = [by[miner["hotkey"]] for by in state.ledger.epochs.values() if miner["hotkey"] in by]
        assert sum(one.forwards + one.backwards + one.losses for one in credits) == len(receipts)
    for name in told["miners"]:
        verified = run("subnet.verify", "--journal", str(folder.journal), "--receipts", str(folder.miner(name)))
        assert verified.returncode == 0, verified.stdout + verified.stderr
