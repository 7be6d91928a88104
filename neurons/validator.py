"""A validator: `python neurons/validator.py --netuid N --network finney --wallet NAME --wallet-hotkey HK`.

Parses the flags, builds the parts, runs. The subnet owner says on chain where the orchestrator is; with --orchestrator
URL it is found there instead. With --host-orchestrator the owner's hotkey hosts it too, as its own process. Exit codes:
0 the run is over or the validator was stopped, 1 the journal contradicts itself, 2 the operator must act (one line says
how).
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from pathlib import Path

import torch
from loguru import logger

from subnet import config, telemetry
from subnet.chain.admission import Entrant, admitted, owner_of
from subnet.chain.subtensor import SubtensorChain
from subnet.config import ValidatorConfig
from subnet.errors import ConfigError
from subnet.localnet.processes import Processes
from subnet.orchestrator.anchoring import at_start, check_owner
from subnet.orchestrator.hosting import LEAN, Address, Ended, Hosting
from subnet.protocol.ids import Hotkey
from subnet.runtime import Runtime, SystemRuntime, cancel_on_signals
from subnet.transport.rendezvous import ByNetuid, ByUrl, Meeting, opened
from subnet.transport.signing import Keypair, open_hotkey
from subnet.validator.follower import Follower, JournalBroken
from subnet.validator.validator import Validator
from subnet.validator.weight_setter import WeightSetter


async def validate(settings: ValidatorConfig, keypair: Keypair, runtime: Runtime, hosted: Address | None) -> None:
    """Until the run is over."""
    chain = SubtensorChain(settings.network, settings.netuid, keypair, runtime)
    hotkey, named = Hotkey(keypair.ss58_address), (settings.wallet, settings.wallet_hotkey, settings.wallet_path)
    entrant = Entrant(hotkey, settings.netuid, settings.network, *named)
    meeting: Meeting = ByNetuid(partial(owner_of, chain), chain.commitment, runtime)
    if hosted is not None:
        meeting = ByUrl(hosted.url, runtime, hosted.public)
    elif settings.orchestrator:
        meeting = ByUrl(settings.orchestrator, runtime)
    try:
        await admitted(chain, entrant, runtime, validates=True)
        async with opened(meeting, keypair, runtime) as lines:
            validator = Validator(
                control=lines.control,
                objects=lines.objects,
                follower=Follower(lines.journal),
                weights=WeightSetter(chain, hotkey),
                runtime=runtime,
                work_dir=Path(settings.work_dir),
                device=settings.device,
            )
            await validator.run()
    finally:
        await chain.close()


def orchestrator(settings: ValidatorConfig) -> list[str]:
    """Its command line: the run, the subnet and the identity are the validator's."""
    options = {
        "--run-dir": settings.run_dir,
        "--network": settings.network,
        "--netuid": str(settings.netuid),
        "--host": settings.host,
        "--port": str(settings.port),
        "--wallet": settings.wallet,
        "--wallet-hotkey": settings.wallet_hotkey,
        "--wallet-path": settings.wallet_path,
        "--config": settings.config,
        "--log-level": settings.log_level,
    }
    urls = [word for url in settings.public_url.split(",") if url for word in ("--public-url", url)]
    given = [word for flag, value in options.items() if value for word in (flag, value)]
    return ["-m", "subnet.orchestrator", *given, *urls, "--resume"]  # where its journal is empty, the run begins


async def check_is_owner(settings: ValidatorConfig, keypair: Keypair, runtime: Runtime) -> None:
    """Before anything is started; where the chain is away, the orchestrator finds out later. Raises ConfigError."""
    chain = SubtensorChain(settings.network, settings.netuid, keypair, runtime)
    try:
        check = partial(check_owner, chain, Hotkey(keypair.ss58_address), settings.netuid)
        await at_start(check, runtime, goes_on=True)
    finally:
        await chain.close()


async def run(settings: ValidatorConfig, keypair: Keypair) -> None:
    """Until the run is over, or SIGTERM or Ctrl-C."""
    cancel_on_signals()
    runtime = SystemRuntime()
    if not settings.host_orchestrator:
        await validate(settings, keypair, runtime, None)
        return
    folder = Path(settings.run_dir)
    if not folder.is_dir():
        problem = f"there is no {folder}"
        raise ConfigError("--run-dir", problem, "prepare a run with python -m subnet.prepare, and name its folder")
    await check_is_owner(settings, keypair, runtime)
    processes = Processes(folder / "logs", config.child_environment())
    hosting = Hosting(
        start=lambda: processes.start("orchestrator", orchestrator(settings), **LEAN),
        stop=lambda child: processes.stop([child]),
        file=folder / "orchestrator.json",
        runtime=runtime,
    )
    await hosting.beside(lambda address: validate(settings, keypair, runtime, address))


def main(argv: list[str]) -> int:
    with config.one_line_errors():
        settings = config.parse(ValidatorConfig, argv, "neurons/validator.py")
        keypair = open_hotkey(settings.wallet_path, settings.wallet, settings.wallet_hotkey)
        telemetry.set_up("validator", keypair.ss58_address, settings.log_level)
        try:
            torch.zeros(1, device=settings.device)
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
            problem = f"{settings.device}: {str(error).splitlines()[0]}"
            raise ConfigError("--device", problem, "use a device of this machine, such as cpu") from None
        torch.set_num_threads(settings.threads)
        try:
            asyncio.run(telemetry.counted(run(settings, keypair), Path(settings.work_dir)))
        except asyncio.CancelledError:
            logger.info("stopped")
        except JournalBroken as error:
            print(f"error: the orchestrator's journal cannot be trusted: {error}", file=sys.stderr)
            return 1
        except Ended as error:
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # a computation under way in the worker thread cannot be interrupted and is of no use any more
    os._exit(code)
