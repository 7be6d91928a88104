"""Puts a local run's subnet on its chain, and reads it from then on: `python -m subnet.localnet.chain_watch`.

Its own process: the launcher stays small, what the SDK says goes to a log file, and its caches are the run's own. Law:
after the set-up it only reads, and is never in the way: a chain that does not answer leaves the last reading standing.
reading.json is moved into place whole.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
from loguru import logger
from msgspec import Meta

from subnet import config
from subnet.chain.base import Chain, Subnet
from subnet.chain.subtensor import SubtensorChain
from subnet.config import Config
from subnet.errors import ConfigError, Unavailable
from subnet.localnet.chain_setup import set_up
from subnet.localnet.folder import RunFolder
from subnet.runtime import Runtime, SystemRuntime, cancel_on_signals

LOOK_EVERY_S = 1.5


class ChainWatchConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.localnet.chain_watch`: puts a local run's subnet on its chain, and reads it from then on."""

    run_dir: Annotated[str, Meta(description="run folder with participants.json", extra={"metavar": "DIR"})]


async def watch(chain: Chain, path: Path, runtime: Runtime) -> NoReturn:
    """Until cancelled: the newest reading of the subnet is in `path`."""
    said = ""
    while True:
        try:
            write(await chain.subnet(), path)
            said = ""
        except Unavailable as error:
            if str(error) != said:
                said = str(error)
                logger.info("the last reading stands: {}", error)
        await runtime.sleep(LOOK_EVERY_S)


def write(reading: Subnet, path: Path) -> None:
    beside = path.with_name(f"{path.name}.partial")
    beside.write_bytes(msgspec.json.encode(reading))
    os.replace(beside, path)


def read(path: Path) -> Subnet | None:
    """The newest reading; None before the first."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Subnet)
    except FileNotFoundError:
        return None


async def run(folder: RunFolder, runtime: Runtime) -> None:
    cancel_on_signals()
    network = str(msgspec.json.decode(folder.chain_address.read_bytes())["url"])
    try:
        found = await set_up(folder, network, runtime)
    except Unavailable as error:
        raise ConfigError("--run-dir", str(error), "try again") from None
    chain = SubtensorChain(network, found.netuid, None, runtime)
    try:
        await watch(chain, folder.reading, runtime)
    finally:
        await chain.close()


def main(argv: Sequence[str]) -> int:
    with config.one_line_errors():
        asked = config.parse(ChainWatchConfig, argv, "python -m subnet.localnet.chain_watch")
        try:
            asyncio.run(run(RunFolder(Path(asked.run_dir).expanduser().absolute()), SystemRuntime()))
        except asyncio.CancelledError:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
