"""The miner's command line: an operator's mistake is one line that names the flag, and exit code 2."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import bittensor as bt
import pytest
from loguru import logger

PROGRAM = Path(__file__).parents[3] / "neurons" / "miner.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("neurons_miner", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wallets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wallets")
    wallet = bt.Wallet(name="me", hotkey="hk", path=str(folder))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(suppress=True)
    return folder


@pytest.mark.parametrize(
    ("flag", "extra"),
    [
        ("--wallet-hotkey", ["--wallet-hotkey", "nobody"]),
        ("--work-dir", ["--work-dir", "{file}/below"]),
        ("--device", ["--device", "cuda:99"]),
        ("--orchestrator", ["--orchestrator", "not a url"]),
        ("--threads", ["--threads", "0"]),
    ],
)
def test_a_mistake_is_one_line(
    program: ModuleType,
    wallets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    extra: list[str],
) -> None:
    """1. A hotkey that does not exist, a folder that cannot be made, a device that is not there, a bad value."""
    (tmp_path / "file").touch()
    argv = ["--orchestrator", "http://127.0.0.1:1", "--wallet", "me", "--wallet-hotkey", "hk"]
    argv += ["--wallet-path", str(wallets), "--work-dir", str(tmp_path / "work")]
    argv += [part.replace("{file}", str(tmp_path / "file")) for part in extra]
    try:
        with pytest.raises(SystemExit) as exit_:
            program.main(argv)
    finally:
        logger.remove()
        logger.configure(extra={})
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {flag}: ")
