"""A miner: `python neurons/miner.py --netuid N --network finney --wallet NAME --wallet-hotkey HK`.

Parses the flags, builds the parts, runs. The subnet owner says on chain where the orchestrator is; with --orchestrator
URL it is found there instead, and without --netuid no chain is asked at all. Exit codes: 0 the run is over or the miner
was stopped, 2 the operator must act (one line says how).
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from loguru import logger

from subnet import config, telemetry
from subnet.chain.admission import Entrant, admitted, owner_of
from subnet.chain.subtensor import SubtensorChain
from subnet.data.sampling import Batches
from subnet.data.token_shards import open_file
from subnet.errors import ConfigError
from subnet.merging.shards import ShardReduction
from subnet.miner.line import Ending
from subnet.miner.miner import Miner, data_path
from subnet.model.trainer import Trainer
from subnet.protocol.ids import Hotkey, Stage
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import Runtime, SlowedRuntime, SystemRuntime, cancel_on_signals
from subnet.transport.rendezvous import ByNetuid, ByUrl, Lines, Meeting, opened
from subnet.transport.signing import Keypair, open_hotkey

JOIN_AGAIN_S = 3.0


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


def parts(adversary: str) -> tuple[type[Trainer], type[ShardReduction]]:
    """What trains and what reduces: honest ones, but for an adversary of a local net. Raises ConfigError."""
    if not adversary:
        return Trainer, ShardReduction
    from subnet.adversaries import catalogue  # an honest miner's process does not even load it

    return catalogue.find(adversary)


def build(settings: config.MinerConfig, lines: Lines, runtime: Runtime, work_dir: Path) -> Miner:
    trainer_type, reduction = parts(settings.adversary)
    return Miner(
        control=lines.control,
        objects=lines.objects,
        runtime=runtime,
        trainer_factory=lambda spec, stage: trainer(trainer_type, spec, stage, work_dir, settings.device),
        work_dir=work_dir,
        device=f"{settings.device}, {settings.threads} threads",
        reduction=reduction,
    )


async def run(settings: config.MinerConfig, keypair: Keypair, work_dir: Path) -> Ending:
    """Until the run is over, or SIGTERM or Ctrl-C."""
    cancel_on_signals()
    runtime = SystemRuntime() if settings.slow_factor == 1 else SlowedRuntime(settings.slow_factor)
    if settings.netuid < 0:
        async with opened(ByUrl(settings.orchestrator, runtime), keypair, runtime) as lines:
            return await build(settings, lines, runtime, work_dir).run()
    chain = SubtensorChain(settings.network, settings.netuid, keypair, runtime)
    named = settings.wallet, settings.wallet_hotkey, settings.wallet_path
    entrant = Entrant(Hotkey(keypair.ss58_address), settings.netuid, settings.network, *named)
    meeting: Meeting = ByNetuid(partial(owner_of, chain), chain.commitment, runtime)
    if settings.orchestrator:
        meeting = ByUrl(settings.orchestrator, runtime)
    try:
        await admitted(chain, entrant, runtime)
        async with opened(meeting, keypair, runtime) as lines:
            while True:
                ending = await build(settings, lines, runtime, work_dir).run()
                if ending.reason not in (Reason.NOT_REGISTERED, Reason.DEREGISTERED):
                    return ending
                await admitted(chain, entrant, runtime)  # the chain knows better, and earlier
                logger.info("the orchestrator has not seen the registration yet: joining again")
                await runtime.sleep(JOIN_AGAIN_S)
    finally:
        await chain.close()


def main(argv: list[str]) -> int:
    with config.one_line_errors():
        settings = config.parse(config.MinerConfig, argv, "neurons/miner.py")
        keypair = open_hotkey(settings.wallet_path, settings.wallet, settings.wallet_hotkey)
        telemetry.set_up("miner", keypair.ss58_address, settings.log_level)
        work_dir = check_machine(settings)
        try:
            ending = asyncio.run(telemetry.counted(run(settings, keypair, work_dir), work_dir))
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
