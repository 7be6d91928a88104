"""Who may join, as the chain tells it, or without one a file: a JSON list of hotkeys, read again when it changes.

Law: the machine learns of registrations only through a journaled record, ChainSeen or Registered. A chain that is away
changes nothing: training goes on with whom it knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import msgspec
from loguru import logger

from subnet.chain.base import Chain, Subnet
from subnet.coordination.audit_state import Chain as Known
from subnet.errors import ConfigError, Unavailable
from subnet.orchestrator.errands import chain_seen
from subnet.orchestrator.service import Service
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import ChainSeen, Registered
from subnet.runtime import Runtime

LOOK_EVERY_S = 2.0
"""Or once a block, where blocks take longer: a reading is of the whole metagraph."""
STAKE_MOVED = 0.05
"""A stake is told again when it moved by this share: it only weighs verdicts."""
RULES_EVERY_BLOCKS = 5
"""Hyperparameters alone make a record this often at most: a new runtime may list one that moves by itself."""


async def update(path: Path, service: Service) -> None:
    """Submit the file's content when it differs from what the run knows. Raises ConfigError."""
    try:
        hotkeys = tuple(sorted(msgspec.json.decode(path.read_bytes(), type=list[Hotkey])))
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError("--run-dir", f"{path}: {error}", "it must hold a JSON list of hotkeys") from None
    if set(hotkeys) != service.state.registered:
        await service.submit(Registered(hotkeys=hotkeys))


async def update_from_chain(chain: Chain, service: Service, last: Subnet | None = None) -> Subnet:
    """Submit what the chain says when it differs from what the run knows. Raises Unavailable.

    Returns the reading, which is `last` again while the chain has no newer block than that.
    """
    newest = await chain.wait_for_block(0)
    if last is not None and newest == last.block:
        return last
    subnet = await chain.subnet()
    seen = chain_seen(newest, subnet, None)
    if is_news(seen, service.state.pay.chain):
        await service.submit(seen)
    return subnet


def is_news(seen: ChainSeen, known: Known) -> bool:
    """Whether uids, permits, stakes or hyperparameters are others than the run knows."""
    stakes = {n.hotkey: n.stake for n in seen.neurons}
    same_uids = known.uids == {n.hotkey: n.uid for n in seen.neurons}
    same_permits = known.permits == [n.hotkey for n in seen.neurons if n.permit]
    moved = any(abs(stake - known.stake.get(h, 0.0)) > STAKE_MOVED * max(1.0, stake) for h, stake in stakes.items())
    same_rules = (seen.tempo, seen.hyperparameters) == (known.tempo, known.hyperparameters)
    tuned = not same_rules and seen.block - known.block >= RULES_EVERY_BLOCKS
    return not same_uids or not same_permits or moved or tuned


async def watch_chain(chain: Chain, service: Service, runtime: Runtime) -> NoReturn:
    """Look again and again, at each block once at most."""
    last = None
    while True:
        await runtime.sleep(LOOK_EVERY_S if last is None else max(LOOK_EVERY_S, last.block_s))
        try:
            last = await update_from_chain(chain, service, last)
        except Unavailable as error:
            logger.warning("registrations stay as they are: {}", error)


async def watch(path: Path, service: Service, runtime: Runtime) -> NoReturn:
    """Look again and again; a file that cannot be read changes nothing."""
    while True:
        await runtime.sleep(LOOK_EVERY_S)
        try:
            await update(path, service)
        except ConfigError as error:
            logger.warning("registrations stay as they are: {}", error)
