"""Runs a chain on this machine: `python -m subnet.chain.local`, which btcli finds as the network `local`.

Builds the parts and runs them; no logic. A new chain begins with --genesis FILE (JSON of `genesis.Genesis`: endowed
addresses, sudo, hyperparameters of new subnets), or with DIR/genesis.json when that is there, DIR being --state.
DIR/chain.sqlite holds the chain, DIR/chain.json says {"url", "pid"} once it listens. Ends within two seconds of SIGTERM
or Ctrl-C, and loses nothing by SIGKILL. An emulator of what this subnet needs, not Subtensor.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
from loguru import logger
from msgspec import Meta

from subnet import config, telemetry
from subnet.chain.local import genesis as births
from subnet.chain.local.chain import Chain
from subnet.chain.local.genesis import Genesis
from subnet.chain.local.node.server import Node
from subnet.chain.local.store import Store
from subnet.config import Config, LogLevel
from subnet.errors import ConfigError
from subnet.runtime import SystemRuntime, cancel_on_signals

HOST = "127.0.0.1"


class LocalChainConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.chain.local`: a chain on this machine that btcli and the SDK talk to (an emulator, not
    Subtensor). TAO on it: the development key //Alice has a million; how btcli gets it is printed at the start. Or name
    a wallet's coldkey address with --endow when the chain is new."""

    state: Annotated[str, Meta(description="folder of the chain; made when missing", extra={"metavar": "DIR"})] = (
        "runs/chain"
    )
    port: Annotated[int, Meta(description="port on 127.0.0.1; 0: a free one", ge=0, le=65_535)] = 9944
    block_s: Annotated[float, Meta(description="time between blocks; 0: only on request", ge=0, le=60)] = 0.25
    genesis: Annotated[str, Meta(description="JSON file that a new chain begins with", extra={"metavar": "FILE"})] = ""
    endow: Annotated[
        str,
        Meta(
            description="ADDRESS=TAO that a new chain gives to an address; may be repeated",
            extra={"metavar": "ADDRESS=TAO", "repeatable": True},
        ),
    ] = ""
    keep_blocks: Annotated[
        int,
        Meta(description="newest blocks whose state can be read; blocks themselves stay for ever", ge=16, le=100_000),
    ] = 600
    log_level: LogLevel = "INFO"


def genesis(settings: LocalChainConfig, folder: Path) -> Genesis:
    """What a new chain begins with. Raises ConfigError."""
    path = Path(settings.genesis) if settings.genesis else folder / "genesis.json"
    if not settings.genesis and not path.exists():
        found = births.usual()
    else:
        try:
            found = births.read(path.read_bytes())
        except OSError as error:
            raise ConfigError("--genesis", f"{path}: {error.strerror}", "name a JSON file") from None
    if settings.endow:
        found = births.endow(found, settings.endow.split(","))
    if settings.block_s:
        found = msgspec.structs.replace(found, block_ms=max(1, round(settings.block_s * 1000)))
    return found


def first_steps(chain: Chain, url: str) -> str:
    """For whoever starts a chain by hand: how to get TAO on it."""
    if births.sudo_of(chain.genesis) != births.dev_address():
        return ""
    usual = url == f"ws://{HOST}:{LocalChainConfig().port}"
    network = "local" if usual else f"{url} BT_FALLBACK_ENDPOINTS=none BT_ARCHIVE_ENDPOINTS=none"
    return (
        f"for TAO, take the development key (everybody has it; it is worth nothing elsewhere):\n"
        f"  export BT_NETWORK={network}\n"
        f"  btcli wallet regen-coldkey -w alice --seed {births.DEV_SEED} --no-password\n"
        f"  btcli wallet transfer -w alice --dest YOUR_WALLET --amount 2000 -y"
    )


def announce(folder: Path, url: str) -> None:
    """Say where the chain is, once it listens."""
    beside = folder / "chain.json.partial"
    beside.write_bytes(msgspec.json.encode({"url": url, "pid": os.getpid()}))
    beside.replace(folder / "chain.json")


async def run(settings: LocalChainConfig, runtime: SystemRuntime) -> None:
    """Until cancelled."""
    folder = Path(settings.state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chain.json").unlink(missing_ok=True)  # of a chain that was killed
    except OSError as error:
        raise ConfigError("--state", f"{folder}: {error.strerror}", "name a writable folder") from None
    store = Store(folder / "chain.sqlite")
    try:
        begin = genesis(settings, folder)
        chain = Chain(
            store, begin, now=runtime.now, random_bytes=runtime.random_bytes, keep_blocks=settings.keep_blocks
        )
        node = Node(chain)
        try:
            port = await node.start(HOST, settings.port)
        except OSError as error:
            raise ConfigError("--port", f"{settings.port}: {error.strerror}", "choose another, or 0") from None
        try:
            logger.info("local chain at ws://{}:{}, block {}", HOST, port, chain.number)
            if steps := first_steps(chain, f"ws://{HOST}:{port}"):
                logger.info("{}", steps)
            announce(folder, f"ws://{HOST}:{port}")
            await node.author(settings.block_s)
        finally:
            (folder / "chain.json").unlink(missing_ok=True)
            await node.stop()
    finally:
        store.close()


async def until_stopped(settings: LocalChainConfig) -> None:
    cancel_on_signals()
    await run(settings, SystemRuntime())


def main(argv: list[str]) -> int:
    with config.one_line_errors():
        written = ["--block" if word == "--block-s" else word for word in argv]  # the unit may stand in the name too
        settings = config.parse(LocalChainConfig, written, "python -m subnet.chain.local")
        telemetry.set_up("chain", "", settings.log_level)
        try:
            asyncio.run(telemetry.counted(until_stopped(settings), Path(settings.state)))
        except asyncio.CancelledError:
            logger.info("stopped; the chain is on disk")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
