"""A miner: `python neurons/miner.py --orchestrator URL --wallet NAME --wallet-hotkey HK`.

Parses the flags, builds the parts, runs. Exit codes: 0 the run is over or the miner was stopped, 2 the operator must
act (one line says how).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import numpy as np
import torch
from loguru import logger

from subnet import config, telemetry
from subnet.data.sampling import Batches
from subnet.data.token_shards import open_file
from subnet.errors import ConfigError, PeerFault, Unavailable
from subnet.merging.shards import ShardReduction
from subnet.miner.line import Ending
from subnet.miner.miner import Miner, data_path
from subnet.model.trainer import Trainer
from subnet.protocol.ids import Hotkey, RunId, Stage
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import SlowedRuntime, SystemRuntime, cancel_on_signals
from subnet.transport.http_client import HttpControlClient, HttpObjectClient, HttpSession, discover
from subnet.transport.signing import Keypair, open_hotkey

DISCOVERY_PAUSE_S = 2.0
CLOSE_TIMEOUT_S = 1.0


def trainer(kind: type[Trainer], spec: RunSpec, stage: Stage, work_dir: Path, device: str) -> Trainer:
    """The stage's trainer over the training files that the miner downloaded."""
    files = [open_file(data_path(work_dir, file), spec.model.vocab_size) for file in spec.data.train]
    tokens = files[0] if len(files) == 1 else np.concatenate(files)
    return kind(spec, stage, device, Batches(tokens, spec.seed, spec.data.micro_batch_size, spec.data.seq_len))


def check_machine(settings: config.MinerConfig) -> Path:
    """The work folder, made; the device, tried. Raises ConfigError."""
    work_dir = Path(settings.work_dir)
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        (work_dir / "writable").write_bytes(b"")
        (work_dir / "writable").unlink()
    except OSError as error:
        raise ConfigError("--work-dir", f"{work_dir}: {error.strerror}", "name a folder that can be written") from None
    try:
        torch.zeros(1, device=settings.device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        problem = f"{settings.device}: {str(error).splitlines()[0]}"
        raise ConfigError("--device", problem, "use a device of this machine, such as cpu") from None
    torch.set_num_threads(settings.threads)
    return work_dir


async def find_run(url: str, runtime: SystemRuntime) -> tuple[RunId, Hotkey]:
    """Ask the orchestrator which run it hosts; waits for one that is not up yet."""
    said = False
    while True:
        try:
            return await discover(url)
        except (Unavailable, PeerFault) as error:
            if not said:
                logger.info("waiting for an orchestrator at {}: {}", url, error)
            said = True
        await runtime.sleep(DISCOVERY_PAUSE_S)


def parts(adversary: str) -> tuple[type[Trainer], type[ShardReduction]]:
    """What trains and what reduces: honest ones, but for an adversary of a local net. Raises ConfigError."""
    if not adversary:
        return Trainer, ShardReduction
    from subnet.adversaries import catalogue  # an honest miner's process does not even load it

    return catalogue.find(adversary)


async def run(settings: config.MinerConfig, keypair: Keypair, work_dir: Path) -> Ending:
    """Until the run is over, or SIGTERM or Ctrl-C."""
    trainer_type, reduction = parts(settings.adversary)
    cancel_on_signals()
    runtime = SystemRuntime() if settings.slow_factor == 1 else SlowedRuntime(settings.slow_factor)
    run_id, orchestrator = await find_run(settings.orchestrator, runtime)
    session = HttpSession()
    control = HttpControlClient(session, settings.orchestrator, keypair, orchestrator, run_id, runtime)
    objects = HttpObjectClient(session, runtime)
    miner = Miner(
        control=control,
        objects=objects,
        runtime=runtime,
        trainer_factory=lambda spec, stage: trainer(trainer_type, spec, stage, work_dir, settings.device),
        work_dir=work_dir,
        device=f"{settings.device}, {settings.threads} threads",
        reduction=reduction,
    )
    try:
        return await miner.run()
    finally:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await control.close()
            await objects.close()


def main(argv: list[str]) -> int:
    with config.one_line_errors():
        settings = config.parse(config.MinerConfig, argv, "neurons/miner.py")
        keypair = open_hotkey(settings.wallet_path, settings.wallet, settings.wallet_hotkey)
        telemetry.set_up("miner", keypair.ss58_address, settings.log_level)
        work_dir = check_machine(settings)
        try:
            ending = asyncio.run(run(settings, keypair, work_dir))
        except asyncio.CancelledError:
            logger.info("stopped")
            return 0
        if ending.reason is not Reason.TARGET_REACHED:
            print(f"error: {ending.reason.value}: {ending.sentence}; {ending.remedy}", file=sys.stderr)
            return 2
        return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # a computation under way in the worker thread cannot be interrupted and is of no use any more
    os._exit(code)
