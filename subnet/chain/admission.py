"""What a neuron asks the chain before anything else: can it be used, and may this hotkey take part?

Law: what an operator must do is one line with the very command. A chain that is away is waited for: that is said once
for each change of the sentence, and no neuron ends of it.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple, Protocol

from loguru import logger

from subnet.chain.base import Chain, Subnet
from subnet.errors import ConfigError, Unavailable
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import REMEDY, Reason
from subnet.runtime import Runtime

RETRY_S = 5.0
"""After a call that found no chain, which has waited with back-off itself."""
_USUAL_WALLETS = "~/.bittensor/wallets"


class Checked(Chain, Protocol):
    """A chain that can say whether it fits this program."""

    async def check(self) -> None:
        """Raises ConfigError when this chain or this subnet cannot be used, Unavailable when it is away."""
        ...


class Entrant(NamedTuple):
    """Who wants in, as the command line names it."""

    hotkey: Hotkey
    netuid: int
    network: str
    wallet: str
    wallet_hotkey: str
    wallet_path: str

    @property
    def register_command(self) -> str:
        """What registers it."""
        words = ["btcli", "subnet", "register", "--netuid", str(self.netuid)]
        words += ["-w", self.wallet, "-H", self.wallet_hotkey, "-n", self.network]
        if Path(self.wallet_path).expanduser() != Path(_USUAL_WALLETS).expanduser():
            words += ["--wallet-path", self.wallet_path]
        return shlex.join(words)


async def admitted(chain: Checked, entrant: Entrant, runtime: Runtime, *, validates: bool = False) -> Subnet:
    """The subnet, once the chain answers. Raises ConfigError when it cannot be used or the hotkey is not registered."""
    said = ""
    logger.info("asking the chain at {}", entrant.network)
    while True:
        try:
            await chain.check()
            subnet = await chain.subnet()
            break
        except Unavailable as error:
            if str(error) != said:
                said = str(error)
                logger.warning("waiting for the chain: {}", said)
        await runtime.sleep(RETRY_S)
    own = next((neuron for neuron in subnet.neurons if neuron.hotkey == entrant.hotkey), None)
    if own is None:
        problem = f"{entrant.hotkey} is not registered on subnet {entrant.netuid} of {entrant.network}"
        raise ConfigError("--wallet-hotkey", problem, f"register it: {entrant.register_command}")
    logger.info("uid {} on subnet {} of {}", own.uid, entrant.netuid, entrant.network)
    if validates and not own.permit and entrant.hotkey != subnet.owner_hotkey:
        said = f"uid {own.uid} has {own.stake:.6g} alpha of stake and no validator permit: its audits and weights wait"
        logger.warning("{}: {}; {}", Reason.NO_PERMIT.value, said, REMEDY[Reason.NO_PERMIT])
    return subnet


async def owner_of(chain: Chain) -> Hotkey:
    """Whose commitment names the orchestrator. Raises Unavailable."""
    return (await chain.subnet()).owner_hotkey
