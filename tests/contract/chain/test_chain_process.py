"""The local chain as a newcomer starts it: what it says, what it refuses, and every btcli command of his walk.

btcli's commands run inside this process, because starting the program takes longer than most of them; once it is the
program itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import bittensor_core as core
import click
import pytest
import typer
from click.testing import CliRunner
from websockets.sync.client import connect

from subnet.chain.local import genesis

if TYPE_CHECKING:
    from conftest import Machine

ROOT = Path(__file__).resolve().parents[3]
ALICE = f"wallet regen-coldkey -w alice --seed {genesis.DEV_SEED} --no-password"


class Said(NamedTuple):
    code: int
    text: str


Btcli = Callable[[str], Said]


@cache
def commands() -> click.Command:
    """All of btcli; made once, which takes a second or two."""
    from bittensor.cli.main import app

    return typer.main.get_command(app)


@pytest.fixture
def btcli(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Btcli:
    """Runs one command against a machine that is started; fails unless it ends with 0, or with `!` in front, does."""
    machine.start("--block-s", "0.1")
    settings = {
        "BT_NETWORK": machine.url,
        "BT_FALLBACK_ENDPOINTS": "none",
        "BT_ARCHIVE_ENDPOINTS": "none",
        "BT_WALLET_PATH": str(machine.folder / "wallets"),
        "HOME": str(machine.folder),
        "NO_COLOR": "1",
        "COLUMNS": "160",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    def run(command: str) -> Said:
        result = CliRunner().invoke(commands(), command.removeprefix("!").split())
        assert (result.exit_code != 0) is command.startswith("!"), f"{command}\n{result.output}"
        return Said(result.exit_code, result.output)

    return run


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--genesis", "nowhere.json"], "error: --genesis: nowhere.json"),
        (["--endow", "me=5"], "error: --endow: 'me' is no ss58 address"),
        (["--block-s", "soon"], "error: --block: 'soon' is no duration"),
        (["--port", "taken"], "error: --port"),
    ],
)
def test_an_operator_s_mistake(machine: Machine, tmp_path: Path, flags: list[str], said: str) -> None:
    """1. One line that names the flag, exit code 2, no traceback. With no mistake, SIGTERM ends it with 0, though a
    client is connected."""
    if flags == ["--port", "taken"]:
        machine.start("--block-s", "0")
        flags = ["--port", machine.url.rpartition(":")[2]]
    command = [sys.executable, "-m", "subnet.chain.local", "--state", str(tmp_path / "new"), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(said)
    assert "Traceback" not in done.stderr
    if machine.runs:
        with connect(machine.url):
            assert machine.end(signal.SIGTERM) == 0
        assert not (machine.state / "chain.json").exists()


def test_the_key_that_everybody_has() -> None:
    """2. The seed that is printed at the start is the development key's."""
    assert core.Keypair.create_from_seed(bytes.fromhex(genesis.DEV_SEED[2:])).ss58_address == genesis.dev_address()


def test_the_program_itself(machine: Machine) -> None:
    """3. btcli as it is installed, with the lines that the chain printed when it started."""
    machine.start("--block-s", "0.1")
    log = (machine.folder / "log").read_text()
    assert f"btcli {ALICE}" in log and f"export BT_NETWORK={machine.url} BT_FALL" in log
    settings = {"BT_NETWORK": machine.url, "BT_FALLBACK_ENDPOINTS": "none", "BT_ARCHIVE_ENDPOINTS": "none"}
    settings |= {"BT_WALLET_PATH": str(machine.folder / "wallets"), "HOME": str(machine.folder)}
    program = Path(sys.executable).with_name("btcli")
    for words, said in ((ALICE, genesis.dev_address()), ("wallet balance -w alice", "τ1,000,000.000")):
        done = subprocess.run(
            [str(program), *words.split()], env=os.environ | settings, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and said in done.stdout, done


def test_a_newcomer_s_walk(btcli: Btcli) -> None:
    """4. From nothing to a subnet that pays: TAO from the development key, wallets, a subnet created, started, joined,
    tuned and staked on, weights set and seen, and all of it looked at."""
    btcli(ALICE)
    for who in ("owner", "miner", "validator"):
        assert f"{who}" in btcli(f"wallet create -w {who} -H default --no-password").text
        assert "✓" in btcli(f"wallet transfer -w alice --dest {who} --amount 2500 -y").text
    assert "3 hotkeys" in btcli("wallet list").text
    assert "τ2,500.000" in btcli("wallet balance -w miner").text
    assert "τ1,000.0" in btcli("subnets create-cost").text
    assert "subnet 1 registered" in btcli("subnets create -w owner -H default -y").text
    assert "SubtokenDisabled" in btcli("!stake add --netuid 1 -w owner -H default --amount 1 -y").text
    btcli("hparams check-start --netuid 1")
    assert "✓" in btcli("hparams start --netuid 1 -w owner -y").text
    for who in ("miner", "validator"):
        assert "MEV-shielded" in btcli(f"subnets register --netuid 1 -w {who} -H default -y").text
    assert "✓" in btcli("stake add --netuid 1 -w validator -H default --amount 20 -y").text
    assert "✓" in btcli("stake add --netuid 1 -w validator -H default --amount 500 --no-slippage-protection -y").text
    assert "too" in btcli("!stake add --netuid 1 -w validator -H default --amount 9999 -y").text.lower()
    assert "validator" in btcli("stake list -w validator").text
    assert "stake_amount" in btcli("stake show --netuid 1 -w validator -H default").text
    assert "✓" in btcli("stake remove --netuid 1 -w validator -H default --amount 5 -y").text
    assert "uid 2" in btcli("wallet overview -w validator").text and "uid 2" in btcli("wallet overview --all").text
    assert "2 subnets" in btcli("subnets list").text
    assert "3/256" in btcli("subnets show 1").text and "neurons 3/256" in btcli("subnets metagraph 1").text
    assert "α" in btcli("subnets price --netuid 1").text and "τ" in btcli("subnets burn-cost 1").text
    assert "owner-unsettable" in btcli("!hparams set --netuid 1 -w owner --name weights_rate_limit --value 5 -y").text
    btcli('call AdminUtils.sudo_set_weights_set_rate_limit --args {"netuid":1,"weights_set_rate_limit":2} -w owner -y')
    btcli('call AdminUtils.sudo_set_tempo --args {"netuid":1,"tempo":5} -w owner -y')
    btcli('call SubtensorModule.trigger_epoch --args {"netuid":1} -w owner -y')
    assert "✓" in btcli("weights set --netuid 1 -w validator -H default --uids 0,1 --weights 0.25,0.75 -y").text
    assert "0.75" in btcli("query weights --netuid 1").text
    refused = btcli("!weights set --netuid 1 -w miner -H default --uids 0 --weights 1 -y").text
    assert "NeuronNoValidatorPermit" in refused or "rate_limited" in refused
    assert "blocks_remaining" in btcli("query epoch-status --netuid 1").text
    btcli("wallet inspect -w validator")


@pytest.fixture
def settled(btcli: Btcli) -> Btcli:
    """An owner with a running subnet, and a miner with two hotkeys on it."""
    btcli(ALICE)
    for who in ("owner", "miner"):
        btcli(f"wallet create -w {who} -H default --no-password")
        btcli(f"wallet transfer -w alice --dest {who} --amount 2500 -y")
    btcli("wallet new-hotkey -w miner -H second")
    btcli("wallet new-hotkey -w miner -H third")
    btcli("subnets create -w owner -H default -y")
    btcli("hparams start --netuid 1 -w owner -y")
    for hotkey in ("default", "second"):
        btcli(f"subnets register --netuid 1 -w miner -H {hotkey} -y")
    return btcli


TUNED = {
    "tempo": "400",
    "commit_reveal_weights_enabled": "true",
    "commit_reveal_period": "2",
    "min_burn": "1000000",
    "max_burn": "50000000000",
    "immunity_period": "77",
    "max_allowed_uids": "128",
    "min_allowed_weights": "2",
    "activity_cutoff_factor": "5000",
    "serving_rate_limit": "10",
    "liquid_alpha_enabled": "true",
    "bonds_moving_avg": "800000",
    "yuma3_enabled": "false",
    "registration_allowed": "false",
    "burn_half_life": "100",
    "weights_version": "7",
}


def test_an_owner_tunes(settled: Btcli) -> None:
    """5. Every hyperparameter that btcli lets an owner set is set, and read back."""
    for name, value in TUNED.items():
        assert "✓" in settled(f"hparams set --netuid 1 -w owner --name {name} --value {value} -y").text
    listed = json.loads(settled("--json hparams get --netuid 1").text)
    found = {name: listed[name] for name in TUNED}
    assert found == {name: json.loads(value) for name, value in TUNED.items()}
    for name in ("tempo", "weights_rate_limit"):
        assert name in settled(f"hparams get --netuid 1 --name {name}").text
    assert "360..50400" in settled("!hparams set --netuid 1 -w owner --name tempo --value 20 -y").text
    assert "yuma3_enabled" in settled("subnets hyperparameters 1").text


def test_a_miner_comes_and_goes(settled: Btcli) -> None:
    """6. A hotkey is swapped, an endpoint is served and taken away, the owner trims, stake is taken back."""
    assert "✓" in settled("wallet swap-hotkey -w miner -H default --new-hotkey miner/third -y").text
    placed = [line.split() for line in settled("wallet registrations -w miner").text.splitlines()]
    assert [words[:3] for words in placed if words[:1] in (["default"], ["second"], ["third"])] == [
        ["default", "—", "—"],
        ["second", "1", "2"],
        ["third", "1", "1"],
    ]
    axon = "axon set --netuid 1 -w miner -H third --port 8091 -y --ip"
    assert "InvalidIpAddress" in settled(f"!{axon} 127.0.0.1").text
    assert "✓" in settled(f"{axon} 1.2.3.4").text
    settled("hparams set --netuid 1 -w owner --name serving_rate_limit --value 0 -y")
    assert "✓" in settled("axon reset --netuid 1 -w miner -H third -y").text
    trim = "hparams trim --netuid 1 --max-n 2 -w owner -y"
    assert "TrimmingWouldExceedMaxImmunePercentage" in settled(f"!{trim}").text, "all are new, hence immune"
    settled("hparams set --netuid 1 -w owner --name immunity_period --value 1 -y")
    assert "✓" in settled(trim).text and "2/2" in settled("subnets show 1").text
    settled("stake add --netuid 1 -w miner -H third --amount 10 -y")
    assert "✓" in settled("stake unstake-all-alpha -w miner -H third -y").text
    assert "root" in settled("stake list -w miner").text
    assert "✓" in settled("stake unstake-all -w miner -H third -y").text
