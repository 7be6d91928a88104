"""The local chain as a process: started, asked by the real btcli, killed, started again, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bittensor as bt
import msgspec
import pytest
from websockets.sync.client import connect

from subnet.chain.local.genesis import Genesis

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S, END_TIMEOUT_S = 30.0, 10.0
PEOPLE = ("owner", "miner")
RULES = {"tempo": 10, "weights_rate_limit": 0, "commit_reveal_weights_enabled": False}


class Machine:
    """One state folder and the process on it."""

    def __init__(self, folder: Path) -> None:
        self.state, self.folder = folder / "state", folder
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self, *flags: str) -> None:
        command = [sys.executable, "-m", "subnet.chain.local", "--state", str(self.state), "--port", "0", *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=(self.folder / "log").open("ab"))
        deadline = time.monotonic() + START_TIMEOUT_S
        said: dict[str, Any] = {}
        while said.get("pid") != self.process.pid:  # a killed chain leaves its own chain.json behind
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)
            with contextlib.suppress(FileNotFoundError):
                said = json.loads((self.state / "chain.json").read_text())
        self.url = said["url"]

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(END_TIMEOUT_S)

    def ask(self, method: str, *params: Any) -> Any:
        with connect(self.url) as socket:
            socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}))
            return json.loads(socket.recv(5))["result"]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end(signal.SIGKILL)


def test_killed_and_started_again(machine: Machine) -> None:
    """1. kill -9 in the middle of a block: every block that anybody heard of is there after the restart, and the chain
    goes on from it. SIGTERM ends it with 0, though a client is connected."""
    machine.start("--block-s", "0.02")
    while (seen := machine.ask("chain_getHeader"))["number"] < "0x5":
        time.sleep(0.01)
    hashes = machine.ask("chain_getBlockHash", [0, 1, 2, 3, 4, 5])
    assert machine.end(signal.SIGKILL) == -signal.SIGKILL
    machine.start("--block-s", "0.02")
    assert machine.ask("chain_getBlockHash", [0, 1, 2, 3, 4, 5]) == hashes
    number = int(seen["number"], 16)
    assert machine.ask("chain_getHeader", machine.ask("chain_getBlockHash", number))["parentHash"] == seen["parentHash"]
    assert int(machine.ask("chain_getHeader")["number"], 16) >= number
    with connect(machine.url):
        assert machine.end(signal.SIGTERM) == 0
    assert not (machine.state / "chain.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--genesis", "nowhere.json"], "error: --genesis: nowhere.json"),
        (["--endow", "me=5"], "error: --endow: 'me' is no ss58 address"),
        (["--block-s", "soon"], "error: --block: 'soon' is no duration"),
        (["--port", "1"], "error: --port"),
    ],
)
def test_an_operator_s_mistake(tmp_path: Path, flags: list[str], said: str) -> None:
    """2. One line that names the flag, exit code 2, no traceback."""
    if flags[0] == "--port":
        holder = Machine(tmp_path / "holder")
        holder.folder.mkdir()
        holder.start("--block-s", "0")
        flags = ["--port", holder.url.rpartition(":")[2]]
    command = [sys.executable, "-m", "subnet.chain.local", "--state", str(tmp_path / "state"), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(said)
    assert "Traceback" not in done.stderr
    if said == "error: --port":
        holder.end(signal.SIGTERM)


async def btcli(machine: Machine, *words: str) -> str:
    """Its output; the command must succeed."""
    settings = {
        "BT_NETWORK": machine.url,
        "BT_FALLBACK_ENDPOINTS": "none",
        "BT_ARCHIVE_ENDPOINTS": "none",
        "BT_WALLET_PATH": str(machine.folder / "wallets"),
        "BITTENSOR_RUNTIME_CACHE_DIR": str(machine.folder / "cache"),
        "BTCLI_TOKEN_SYMBOLS_CACHE": str(machine.folder / "symbols.json"),
        "HOME": str(machine.folder),
        "COLUMNS": "160",
    }
    program = str(Path(sys.executable).with_name("btcli"))
    process = await asyncio.create_subprocess_exec(
        program, *words, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, f"btcli {' '.join(words)}\n{output.decode()}"
    return output.decode()


async def test_btcli(machine: Machine) -> None:
    """3. What a newcomer types: create and start a subnet, register (shielded), stake, tune, pay; then look at all of
    it: balance, overview, stake list and show, metagraph, hyperparameters."""
    wallets = {}
    for who in PEOPLE:
        wallets[who] = bt.Wallet(name=who, hotkey="default", path=str(machine.folder / "wallets"))
        wallets[who].create_new_coldkey(use_password=False, suppress=True)
        wallets[who].create_new_hotkey(suppress=True)
    endowed = {str(wallet.coldkeypub.ss58_address): 5_000.0 for wallet in wallets.values()}
    machine.state.mkdir()
    genesis = msgspec.json.encode(Genesis(endowed=endowed, new_subnets=RULES))
    (machine.state / "genesis.json").write_bytes(genesis)
    machine.start("--block-s", "0.1")
    hotkey = str(wallets["owner"].hotkey.ss58_address)
    dest = str(wallets["miner"].coldkeypub.ss58_address)
    for words in (
        "subnets create -w owner -y",
        "hparams start --netuid 1 -w owner -y",
        f"stake add --hotkey {hotkey} --netuid 1 --amount 10 -w owner -y",
        "subnet register --netuid 1 -w miner -H default -y",
        "hparams set --netuid 1 --name immunity_period --value 77 -w owner -y",
        f"wallet transfer --dest {dest} --amount 5 -w owner -y",
    ):
        assert "✓" in await btcli(machine, *words.split())
    looks = {
        "wallet balance -w miner": "τ5,00",
        "wallet overview -w owner": "stake_value",
        "stake list -w owner": "default",
        "stake show --netuid 1 --hotkey default -w owner": "stake_amount",
        "subnets metagraph 1": "owner_coldkey",
        "hparams get --netuid 1": "77",
    }
    outputs = await asyncio.gather(*(btcli(machine, *words.split()) for words in looks))
    for (words, expected), output in zip(looks.items(), outputs, strict=True):
        assert expected in output, f"btcli {words}\n{output}"
    assert machine.end(signal.SIGTERM) == 0
