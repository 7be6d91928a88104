"""A validator: `python neurons/validator.py --netuid N --network NETWORK --orchestrator URL --wallet NAME`.

Parses the flags, builds the parts, runs. Exit codes: 0 the run is over or the validator was stopped, 1 the journal
contradicts itself, 2 the operator must act (one line says how).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Protocol

import torch
from loguru import logger

from subnet import config, telemetry
from subnet.chain.subtensor import SubtensorChain
from subnet.errors import ConfigError, PeerFault, Unavailable
from subnet.runtime import SystemRuntime, cancel_on_signals
from subnet.transport.http_client import (
    HttpControlClient,
    HttpJournalReader,
    HttpObjectClient,
    HttpSession,
    discover,
)
from subnet.transport.signing import Keypair, open_hotkey
from subnet.validator.follower import Follower, JournalBroken
from subnet.validator.validator import Validator
from subnet.validator.weight_setter import WeightSetter


class Closing(Protocol):
    """A line to the outside."""

    async def close(self) -> None: ...


DISCOVERY_PAUSE_S = 2.0
CLOSE_TIMEOUT_S = 1.0


async def run(settings: config.ValidatorConfig, keypair: Keypair) -> None:
    """Until the run is over, or SIGTERM or Ctrl-C."""
    cancel_on_signals()
    runtime = SystemRuntime()
    chain = SubtensorChain(settings.network, settings.netuid, keypair, runtime)
    session = HttpSession()
    lines: list[Closing] = [chain]
    try:
        await chain.check()
        while True:
            try:
                run_id, orchestrator = await discover(settings.orchestrator)
                break
            except (Unavailable, PeerFault) as error:
                logger.info("waiting for an orchestrator at {}: {}", settings.orchestrator, error)
            await runtime.sleep(DISCOVERY_PAUSE_S)
        control = HttpControlClient(session, settings.orchestrator, keypair, orchestrator, run_id, runtime)
        objects, journal = HttpObjectClient(session, runtime), HttpJournalReader(session, settings.orchestrator)
        lines += [control, objects, journal]
        validator = Validator(
            control=control,
            objects=objects,
            follower=Follower(journal),
            weights=WeightSetter(chain),
            runtime=runtime,
            work_dir=Path(settings.work_dir),
            device=settings.device,
        )
        await validator.run()
    finally:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            for line in lines:
                await line.close()


def main(argv: list[str]) -> int:
    with config.one_line_errors():
        settings = config.parse(config.ValidatorConfig, argv, "neurons/validator.py")
        keypair = open_hotkey(settings.wallet_path, settings.wallet, settings.wallet_hotkey)
        telemetry.set_up("validator", keypair.ss58_address, settings.log_level)
        try:
            torch.zeros(1, device=settings.device)
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
            problem = f"{settings.device}: {str(error).splitlines()[0]}"
            raise ConfigError("--device", problem, "use a device of this machine, such as cpu") from None
        torch.set_num_threads(settings.threads)
        try:
            asyncio.run(run(settings, keypair))
        except asyncio.CancelledError:
            logger.info("stopped")
        except JournalBroken as error:
            print(f"error: the journal of {settings.orchestrator} cannot be trusted: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # a computation under way in the worker thread cannot be interrupted and is of no use any more
    os._exit(code)
