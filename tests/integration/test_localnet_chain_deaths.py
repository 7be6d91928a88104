"""The local chain is killed again and again in the middle of a run, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from subnet.localnet.folder import RunFolder
from subnet.localnet.record import fold
from subnet.protocol.draw import choose
from subnet.storage.sql import SqlJournal

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_S = 240
"""For a run of less than a minute, with room for a machine that runs other things."""
EPOCHS = 4
MICRO_BATCHES = 45
SMALL = f"--miners 2 --stages 2 --seq-len 32 --micro-batch-size 4 --num-microbatches-min {MICRO_BATCHES}".split()
HARD = "--kill-chain-every 4s --audit-rate 1".split()
WORDS = ["and", "light", "was", "there", "waters", "upon", "evening", "morning", "day", "earth", "heaven", "seed"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )


async def test_a_chain_that_is_killed_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Somebody stops the node while the subnet works: training goes on, receipts stay, audits are drawn by blocks of
    after it, weights are set after it, block numbers go on, and everything can be recomputed. All in the terminal of
    somebody who reaches the world by a proxy, and has a run of another subnet at work."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("IOTA_JOURNAL_URL", f"sqlite:///{tmp_path}/other.sqlite")
    text, folder, report = tmp_path / "text.txt", RunFolder(tmp_path / "run"), tmp_path / "report.json"
    text.write_text("\n".join(" ".join(choose(b"text", WORDS, n, k) for k in range(9)) for n in range(900)))
    places = ["--text", str(text), "--run-dir", str(folder.root), "--report", str(report)]
    places += ["--cache-dir", str(tmp_path / "cache")]
    done = run("subnet.localnet", *SMALL, *HARD, *places, "--epochs", str(EPOCHS))
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = msgspec.json.decode(report.read_bytes())

    deaths = [one for one in told["faults"]["each"] if one["fault"] == "chain-killed"]
    assert len(deaths) >= 2 and told["faults"]["survived"] == told["faults"]["injected"] == len(deaths), done.stdout
    blocks = [one["block"] for one in deaths] + [told["chain"]["block"]]
    assert blocks == sorted(set(blocks)), "block numbers go on"

    assert told["epochs"] == EPOCHS and told["micro_batches"] >= EPOCHS * MICRO_BATCHES
    assert {miner["lost_work_units"] for miner in told["miners"].values()} == {0.0}
    assert told["audits"]["failed"] == told["audits"]["unreadable"] == told["audits"]["not_revealed"] == 0
    assert told["audits"]["passed"] == 2 * EPOCHS and told["audits"]["open"] == 0
    assert told["weights_set"]["validator-0"]["block"] > deaths[0]["block"]
    assert min(told["payout_correlation"], told["incentive_correlation"]) > 0.99
    assert [anchor["epoch"] for anchor in told["chain"]["anchors"]][-1] == EPOCHS

    assert not (tmp_path / "other.sqlite").exists()
    journal = await SqlJournal.open(f"sqlite:///{folder.journal}")
    try:
        state = (await fold(journal)).state
    finally:
        await journal.close()
    assert state.pay.drawn == EPOCHS - 1 and state.pay.chain.block > deaths[0]["block"], "audits went on"
    receipts = str(folder.miner("miner-0"))
    verified = run("subnet.verify", "--journal", str(folder.journal), "--receipts", receipts)
    assert verified.returncode == 0, verified.stdout + verified.stderr
