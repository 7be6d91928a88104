"""The owner's one commitment on chain: where the orchestrator is, and the head of its journal after each epoch.

Law: only the owner's hotkey publishes, for a second orchestrator would be a rival. It commits once at the start and
once each time that every stage has closed one more epoch, always the newest head; what the chain took becomes the
record `Anchored`. A chain that is away or refuses costs one log line for each change of its sentence and another try:
training never waits for it. When to commit is decided by `Schedule`, which knows no clock and no chain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

from loguru import logger

from subnet.chain.base import Chain
from subnet.coordination.state import State
from subnet.errors import ConfigError, Unavailable
from subnet.orchestrator.errands import patiently
from subnet.orchestrator.service import Service
from subnet.protocol.anchor import Anchor, check_urls, encode
from subnet.protocol.ids import Digest, Epoch, Hotkey
from subnet.protocol.messages import Anchored
from subnet.protocol.reasons import REMEDY, Reason
from subnet.runtime import Runtime
from subnet.storage.base import JournalRecord

LOOK_EVERY_S = 1.0
RETRY_S = 4.0
"""After a refusal, or a chain that was away."""
START_PATIENCE_S = 5.0
"""How long a run that goes on waits for the chain before it does without."""
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""To listen on, not to be reached at; with where this machine reaches it."""


# ---- when ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Due:
    """A head that is to be committed now."""

    epoch: Epoch
    """How many epochs every stage has closed."""
    index: int
    head: Digest


class Schedule:
    """Decides when to commit. Pure: the time is an argument."""

    def __init__(self) -> None:
        self._taken, self._not_before, self._said = -1, 0.0, ""

    def due(self, closed: Epoch, newest: JournalRecord | None, now: float) -> Due | None:
        """The newest head, if the chain does not know one of this epoch from us, and may be asked."""
        if newest is None or closed <= self._taken or now < self._not_before:
            return None
        return Due(closed, newest.index, newest.head)

    def taken(self, due: Due) -> None:
        self._taken, self._said = due.epoch, ""

    def refused(self, sentence: str, now: float) -> str | None:
        """Try again later; what to log, unless it was said already."""
        self._not_before, said, self._said = now + RETRY_S, self._said, sentence
        return None if sentence == said else sentence


def closed_epochs(state: State) -> Epoch:
    """How many epochs every stage has closed."""
    return Epoch(min(stage.epoch for stage in state.stages))


# ---- where -----------------------------------------------------------------------------------------------------------


def urls_of(public_url: str, host: str, port: int, network: str) -> tuple[str, ...]:
    """What is published: the given URLs, comma-joined, or else where we listen. Raises ConfigError."""
    if public_url:
        return check_urls(public_url.split(","))
    chain_is_here = network == "local" or urlsplit(network).hostname in _THIS_MACHINE
    if network and (host in _EVERYWHERE or (host in _THIS_MACHINE and not chain_is_here)):
        problem = f"is missing, and nobody else on {network} can reach {host}"
        remedy = "give the address under which others reach this machine, and --host 0.0.0.0 to listen for them"
        raise ConfigError("--public-url", problem, remedy)
    return check_urls((local_url(host, port),))


def local_url(host: str, port: int) -> str:
    """Where this machine's own processes reach what listens on `host`."""
    host = _EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# ---- who -------------------------------------------------------------------------------------------------------------


async def check_owner(chain: Chain, hotkey: Hotkey, netuid: int) -> None:
    """Raises ConfigError unless `hotkey` is the subnet owner's, Unavailable when the chain is away."""
    owner = (await chain.subnet()).owner_hotkey
    if owner != hotkey:
        problem = f"{hotkey} is not the owner's hotkey of subnet {netuid}, which is {owner}"
        remedy = "a second orchestrator would be a rival: run without --host-orchestrator"
        raise ConfigError("--wallet-hotkey", problem, remedy)


async def at_start(ask: Callable[[], Awaitable[object]], runtime: Runtime, *, goes_on: bool) -> bool:
    """Whether `ask` was answered. A new run waits until it is; one that goes on does not wait for the chain."""
    if not goes_on:
        await patiently(ask, runtime)
        return True
    try:
        async with asyncio.timeout(START_PATIENCE_S):
            await ask()
    except (Unavailable, TimeoutError) as error:
        said = str(error) or f"no answer within {START_PATIENCE_S:g} s"
        logger.warning("{}: {}; {}", Reason.CHAIN_AWAY.value, said, REMEDY[Reason.CHAIN_AWAY])
        return False
    return True


# ---- doing it --------------------------------------------------------------------------------------------------------


class Publisher:
    """Keeps the owner's commitment what it should be. `hotkey` is ours, and what `chain` signs with."""

    def __init__(self, chain: Chain, service: Service, hotkey: Hotkey, urls: tuple[str, ...], runtime: Runtime) -> None:
        self._chain, self._service, self._hotkey, self._urls, self._runtime = chain, service, hotkey, urls, runtime
        self._schedule = Schedule()

    async def run(self) -> NoReturn:
        """Until cancelled."""
        while True:
            await self.look()
            await self._runtime.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Commit what is due."""
        due = self._schedule.due(closed_epochs(self._service.state), self._service.newest, self._runtime.now())
        if due is None:
            return
        told = await self._commit(due)
        if isinstance(told, int):
            self._schedule.taken(due)
            await self._service.submit(Anchored(epoch=due.epoch, index=due.index, head=due.head, block=told))
        elif (said := self._schedule.refused(told, self._runtime.now())) is not None:
            logger.warning("the journal's head of epoch {} is not on chain yet: {}", due.epoch, said)

    async def _commit(self, due: Due) -> int | str:
        """The block that holds it, or why there is none."""
        try:
            owner = (await self._chain.subnet()).owner_hotkey
            if owner != self._hotkey:
                return f"the subnet owner's hotkey is {owner} now, not ours: newcomers do not find us any more"
            outcome = await self._chain.commit(encode(Anchor(self._urls, due.epoch, due.head)))
        except Unavailable as error:
            return f"{Reason.CHAIN_AWAY.value}: {error}; {REMEDY[Reason.CHAIN_AWAY]}"
        if not outcome.done:
            return f"{outcome.reason.value}: {outcome.sentence}; {REMEDY[outcome.reason]}"
        return outcome.block
