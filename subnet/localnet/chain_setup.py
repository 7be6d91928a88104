"""Puts a local run's subnet on its local chain: `python -m subnet.localnet.chain_setup --run-dir DIR`.

Its own process, so that the launcher stays small and Ctrl-C ends it at any point. Law: the way is the one that an owner
goes with btcli: create and start the subnet, register every neuron, stake to the validators. Every step that
is done already is skipped; subnet.json is written last.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from loguru import logger
from msgspec import Meta, Struct

from subnet import config
from subnet.chain.base import Outcome
from subnet.chain.coldkey import Coldkey
from subnet.chain.local.genesis import Genesis
from subnet.config import Config
from subnet.errors import ConfigError, Unavailable
from subnet.localnet import wallets
from subnet.localnet.folder import Participants, RunFolder
from subnet.protocol.ids import Hotkey
from subnet.runtime import SystemRuntime

BLOCK_S = 0.5
TUNED: dict[str, int | bool] = {
    "tempo": 20,
    "weights_rate_limit": 10,
    "commit_reveal_weights_enabled": False,
    "immunity_period": 200,
}
"""On-chain hyperparameters of the local subnet: a chain epoch every ten seconds, so that pay is seen to follow work. A
new local chain is told them in its genesis; an owner on a public network sets them with btcli."""
COLDKEYS = {"orchestrator": 100_000.0, "validator": 50_000.0, "miners": 50_000.0}
"""Wallets and the TAO the chain begins with for each."""
STAKE_TAO = 8_000.0
"""Of the first validator; every further one has half of the one before."""


class ChainSetupConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.localnet.chain_setup`: puts a local run's subnet on its chain."""

    run_dir: Annotated[str, Meta(description="run folder with participants.json", extra={"metavar": "DIR"})]


class OnChain(Struct, frozen=True, kw_only=True):
    """Where the subnet is; written by this command."""

    network: str
    netuid: int


def genesis(folder: RunFolder) -> Genesis:
    """What the local chain begins with."""
    return Genesis(
        endowed={coldkey_address(folder, wallet): tao for wallet, tao in COLDKEYS.items()}, new_subnets=TUNED
    )


def coldkey_address(folder: RunFolder, wallet: str) -> str:
    return str(wallets.opened(folder.wallets, wallet).coldkeypub.ss58_address)


async def set_up(folder: RunFolder, network: str, runtime: SystemRuntime) -> OnChain:
    """Everything that is still missing. Raises ConfigError and Unavailable."""
    participants = msgspec.json.decode(folder.participants.read_bytes(), type=Participants)
    owner, staker, payer = (Coldkey(network, wallets.opened(folder.wallets, name), runtime) for name in COLDKEYS)
    try:
        netuid = _known(folder)
        if netuid is None:
            created = await owner.create_subnet(participants.orchestrator)
            netuid = _checked(created.outcome, created.netuid)
            _checked(await owner.start_subnet(netuid))
        await _register(staker, netuid, participants.validators.values())
        await _register(payer, netuid, participants.miners.values())
        if not folder.subnet.exists():
            for number, hotkey in enumerate(participants.validators.values()):
                _checked(await staker.stake(netuid, hotkey, STAKE_TAO / 2**number))
    finally:
        for line in (owner, staker, payer):
            await line.close()
    return OnChain(network=network, netuid=netuid)


def _known(folder: RunFolder) -> int | None:
    if not folder.subnet.exists():
        return None
    return msgspec.json.decode(folder.subnet.read_bytes(), type=OnChain).netuid


async def _register(coldkey: Coldkey, netuid: int, hotkeys: Iterable[Hotkey]) -> None:
    for hotkey in hotkeys:
        _checked(await coldkey.register(netuid, hotkey))


def _checked(outcome: Outcome, value: int = 0) -> int:
    """The value of a step that was done. Raises ConfigError with the chain's own sentence."""
    if not outcome.done:
        raise ConfigError("--run-dir", f"the local chain refused: {outcome.sentence}", "start a new run")
    logger.info("{}", outcome.sentence)
    return value


def main(argv: Sequence[str]) -> int:
    with config.one_line_errors():
        asked = config.parse(ChainSetupConfig, argv, "python -m subnet.localnet.chain_setup")
        folder = RunFolder(Path(asked.run_dir).expanduser().absolute())
        network = str(msgspec.json.decode(folder.chain_address.read_bytes())["url"])
        try:
            found = asyncio.run(set_up(folder, network, SystemRuntime()))
        except Unavailable as error:
            raise ConfigError("--run-dir", f"the local chain does not answer: {error}", "try again") from None
        beside = folder.subnet.with_name("subnet.json.partial")
        beside.write_bytes(msgspec.json.encode(found))
        os.replace(beside, folder.subnet)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
