"""Measures the merged model once an epoch: `python -m subnet.validator.evaluator --orchestrator URL --run-dir DIR`.

Builds the parts and runs them; no logic. Runs beside the orchestrator, whose store it reads. Exit codes: 0 stopped,
2 the operator must act (one line says how).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
from loguru import logger

from subnet import config, telemetry
from subnet.config import EvaluatorConfig
from subnet.errors import ConfigError
from subnet.protocol.messages import RunOpened
from subnet.runtime import SystemRuntime
from subnet.storage.files import FileObjectStore
from subnet.transport.http_client import HttpControlClient, HttpSession, discover, read_status
from subnet.transport.signing import Keypair, open_hotkey
from subnet.validator.evaluation import watch


async def run(settings: EvaluatorConfig, keypair: Keypair) -> None:
    """Until cancelled."""
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    folder, runtime = Path(settings.run_dir), SystemRuntime()
    try:
        opened = msgspec.json.decode((folder / "opening.json").read_bytes(), type=RunOpened)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError("--run-dir", f"{folder}: {error}", "name the folder of a prepared run") from None
    run_id, orchestrator = await discover(settings.orchestrator)
    store = FileObjectStore(folder / "objects", "", runtime.random_bytes(32), runtime.now)
    control = HttpControlClient(HttpSession(), settings.orchestrator, keypair, orchestrator, run_id, runtime)

    async def status() -> Any:
        return msgspec.json.decode(await read_status(settings.orchestrator))

    try:
        await watch(opened.spec, store, control, status, settings.device, runtime)
    finally:
        await control.close()
        store.close()


def main(argv: list[str]) -> int:
    with config.one_line_errors():
        settings = config.parse(EvaluatorConfig, argv, "python -m subnet.validator.evaluator")
        keypair = open_hotkey(settings.wallet_path, settings.wallet, settings.wallet_hotkey)
        telemetry.set_up("evaluator", keypair.ss58_address, settings.log_level)
        torch.set_num_threads(settings.threads)
        try:
            asyncio.run(run(settings, keypair))
        except asyncio.CancelledError:
            logger.info("stopped")
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # a computation under way in the worker thread cannot be interrupted and is of no use any more
    os._exit(code)
