"""Puts a local run's subnet on its local chain.

Law: the way is the one that an owner goes with btcli: create and start the subnet, register every neuron, stake to the
validators. The chain itself says which steps are done already; subnet.json is written last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec
from loguru import logger

from subnet.chain.base import Outcome
from subnet.chain.coldkey import Coldkey
from subnet.chain.subtensor import SubtensorChain
from subnet.errors import ConfigError
from subnet.localnet import wallets
from subnet.localnet.chain_genesis import COLDKEYS
from subnet.localnet.folder import OnChain, Participants, RunFolder, load, on_chain
from subnet.protocol.ids import Hotkey
from subnet.runtime import Runtime

STAKE_TAO = 8_000.0
"""Of the first validator; every further one has half of the one before."""


async def set_up(folder: RunFolder, network: str, runtime: Runtime) -> OnChain:
    """Everything that is still missing. Raises ConfigError and Unavailable."""
    participants = load(folder.participants, Participants)
    owner, staker, payer = (Coldkey(network, wallets.opened(folder.wallets, name), runtime) for name in COLDKEYS)
    known = on_chain(folder)
    try:
        netuid = known.netuid if known is not None else await _subnet(owner, participants.orchestrator)
        await _register(staker, netuid, participants.validators.values())
        await _register(payer, netuid, participants.miners.values())
        staked = await _staked(network, netuid, runtime)
        for number, hotkey in enumerate(participants.validators.values()):
            if hotkey not in staked:
                _checked(await staker.stake(netuid, hotkey, STAKE_TAO / 2**number))
    finally:
        for line in (owner, staker, payer):
            await line.close()
    found = OnChain(network=network, netuid=netuid)
    beside = folder.subnet.with_name("subnet.json.partial")
    beside.write_bytes(msgspec.json.encode(found))
    os.replace(beside, folder.subnet)
    return found


async def _subnet(owner: Coldkey, hotkey: Hotkey) -> int:
    """Created and started; one that an interrupted set-up has left is found again."""
    netuid = await owner.owned_subnet(hotkey)
    if netuid is None:
        created = await owner.create_subnet(hotkey)
        netuid = _checked(created.outcome, created.netuid)
    _checked(await owner.start_subnet(netuid))
    return netuid


async def _staked(network: str, netuid: int, runtime: Runtime) -> set[Hotkey]:
    """Who of the subnet has stake."""
    chain = SubtensorChain(network, netuid, None, runtime)
    try:
        return {neuron.hotkey for neuron in (await chain.subnet()).neurons if neuron.stake > 0}
    finally:
        await chain.close()


async def _register(coldkey: Coldkey, netuid: int, hotkeys: Iterable[Hotkey]) -> None:
    for hotkey in hotkeys:
        _checked(await coldkey.register(netuid, hotkey))


def _checked(outcome: Outcome, value: int = 0) -> int:
    """The value of a step that was done. Raises ConfigError with the chain's own sentence."""
    if not outcome.done:
        raise ConfigError("--run-dir", f"the local chain refused: {outcome.sentence}", "start a new run")
    logger.info("{}", outcome.sentence)
    return value
