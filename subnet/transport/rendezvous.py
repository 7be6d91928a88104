"""Finding the orchestrator: under a URL that was given, or by what the subnet's owner has published on chain.

Law: the owner's commitment decides. It names at most two URLs, and only what answers there with the owner's hotkey as
its own is the orchestrator. No chain is known here: the owner's hotkey and a hotkey's commitment come from callables.
Whatever is away is waited for, with one log line for each change of what is missing; nothing is given up. A neuron that
was let in stays with its run: another address of the same orchestrator is taken over while it works.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple, NoReturn, Protocol

from loguru import logger

from subnet.errors import ConfigError, PeerFault, Unavailable
from subnet.protocol import anchor
from subnet.protocol.ids import Hotkey, RunId
from subnet.runtime import Runtime
from subnet.transport.backoff import backoff_s
from subnet.transport.http_client import HttpControlClient, HttpJournalReader, HttpObjectClient, HttpSession, discover
from subnet.transport.signing import Keypair

LOOK_EVERY_S = 12.0
"""Between two looks at what is published, once the orchestrator is found: about a block of a public network."""
CLOSE_TIMEOUT_S = 1.0

Discover = Callable[[str], Awaitable[tuple[RunId, Hotkey]]]
"""Who is at a URL; raises as `http_client.discover` does."""


class Found(NamedTuple):
    """An orchestrator that answered."""

    url: str
    run_id: RunId
    orchestrator: Hotkey
    known: tuple[str, ...]
    """Every URL under which it may be spoken of; `url` is one of them."""


class Lines:
    """All that a neuron has open to the orchestrator: opened, moved and closed together."""

    def __init__(self, found: Found, keypair: Keypair, runtime: Runtime) -> None:
        session = HttpSession()
        self.control = HttpControlClient(session, found.url, keypair, found.orchestrator, found.run_id, runtime)
        self.objects = HttpObjectClient(session, runtime)
        self.journal = HttpJournalReader(session, found.url)
        self.objects.move(found.url, found.known)

    @property
    def answers(self) -> bool:
        """Whether the last call had an answer."""
        return self.control.answers

    def move(self, url: str, known: Collection[str]) -> None:
        """The orchestrator is at `url` now, and was or is at the `known` ones too."""
        self.control.move(url)
        self.journal.move(url)
        self.objects.move(url, known)

    async def close(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                for line in (self.control, self.objects, self.journal):
                    await line.close()


class Movable(Protocol):
    """What `follow` needs of `Lines`."""

    @property
    def answers(self) -> bool: ...

    def move(self, url: str, known: Collection[str]) -> None: ...


class Meeting(Protocol):
    """A way to the orchestrator."""

    async def find(self) -> Found:
        """Wait for it."""
        ...

    async def follow(self, found: Found, lines: Movable) -> None:
        """While a neuron runs: keep its lines where the orchestrator is."""
        ...


@asynccontextmanager
async def opened(meeting: Meeting, keypair: Keypair, runtime: Runtime) -> AsyncIterator[Lines]:
    """Lines to the orchestrator once it is found; they follow it until the block is left."""
    found = await meeting.find()
    lines = Lines(found, keypair, runtime)
    follow = asyncio.create_task(meeting.follow(found, lines), name="follow the orchestrator")
    try:
        yield lines
    finally:
        follow.cancel()
        await asyncio.wait([follow])
        await lines.close()
        if not follow.cancelled() and (error := follow.exception()) is not None:
            raise error


class ByUrl:
    """The operator names the address: whoever answers there is the orchestrator, and stays it.

    `known`: other addresses of the same one, under which it may speak of its objects.
    """

    def __init__(self, url: str, runtime: Runtime, known: tuple[str, ...] = (), discover: Discover = discover) -> None:
        self._url, self._runtime, self._known, self._discover = url, runtime, known, discover

    async def find(self) -> Found:
        async def ask() -> Found | str:
            try:
                return Found(self._url, *await self._discover(self._url), (self._url, *self._known))
            except (Unavailable, PeerFault) as error:
                return f"waiting for an orchestrator at {self._url}: {error}"

        return await _until_found(ask, self._runtime)

    async def follow(self, found: Found, lines: Movable) -> None:
        """There is nowhere else to look."""


class ByNetuid:
    """The subnet's owner says on chain where it is. `owner` reads who that is, `commitment` what a hotkey committed.

    Both raise Unavailable when the chain does not answer.
    """

    def __init__(
        self,
        owner: Callable[[], Awaitable[Hotkey]],
        commitment: Callable[[Hotkey], Awaitable[str | None]],
        runtime: Runtime,
        discover: Discover = discover,
    ) -> None:
        self._owner, self._commitment, self._runtime, self._discover = owner, commitment, runtime, discover

    # ---- finding it --------------------------------------------------------------------------------------------------

    async def find(self) -> Found:
        """Wait for an orchestrator of the owner's. Raises ConfigError when there is no such subnet."""
        return await _until_found(self._look, self._runtime)

    async def _look(self) -> Found | str:
        try:
            owner = await self._owner()
            urls = await self._published(owner)
        except Unavailable as error:
            return f"waiting for the chain: {error}"
        if not urls:
            return f"waiting for an orchestrator: the subnet owner's hotkey {owner} has not published any yet"
        return await self._first_of(urls, owner, urls)

    async def _published(self, owner: Hotkey) -> tuple[str, ...]:
        found = anchor.decode(await self._commitment(owner))
        return () if found is None else found.urls

    async def _first_of(self, urls: Sequence[str], owner: Hotkey, known: tuple[str, ...]) -> Found | str:
        """The first URL where the owner's orchestrator answers, or what is wrong with each."""
        wrong = []
        for url in urls:
            try:
                run_id, hotkey = await self._discover(url)
            except (Unavailable, PeerFault, ConfigError) as error:
                wrong.append(f"{url}, which the owner has published, gives no answer ({error})")
                continue
            if hotkey == owner:
                return Found(url, run_id, owner, known)
            wrong.append(f"{url}, which the owner has published, answers with hotkey {hotkey}, not the owner's {owner}")
        return f"waiting for an orchestrator: {'; '.join(wrong)}"

    # ---- staying with it ---------------------------------------------------------------------------------------------

    async def follow(self, found: Found, lines: Movable) -> NoReturn:
        """Move the lines when the owner publishes another address, or when only another one of them answers."""
        urls, said = found.known, ""
        while True:
            await self._runtime.sleep(LOOK_EVERY_S)
            with suppress(Unavailable, ConfigError):  # a chain that is away says nothing new
                urls = await self._published(found.orchestrator) or urls
            found = found._replace(known=tuple(dict.fromkeys((*urls, *found.known))))
            if lines.answers and found.url in urls:
                said = ""
                continue
            moved = await self._elsewhere(found, urls)
            if isinstance(moved, Found):
                if moved.url != found.url:
                    logger.info("the orchestrator is at {} now, no longer at {}", moved.url, found.url)
                    lines.move(moved.url, moved.known)
                found, moved = moved, ""
            if moved and moved != said:
                logger.warning("{}", moved)
            said = moved

    async def _elsewhere(self, found: Found, urls: tuple[str, ...]) -> Found | str:
        """Where the same run of the same orchestrator answers: here, if it does after all."""
        here_first = sorted(urls, key=lambda url: url != found.url)
        answer = await self._first_of(here_first, found.orchestrator, found.known)
        if isinstance(answer, Found):
            if answer.run_id == found.run_id:
                return answer
            return f"{answer.url} hosts run {answer.run_id} now, not {found.run_id}: start again to take part in it"
        with suppress(Unavailable, ConfigError):
            if (owner := await self._owner()) != found.orchestrator:
                return f"the subnet owner's hotkey is {owner} now, not {found.orchestrator}: start again to follow it"
        return answer


async def _until_found(look: Callable[[], Awaitable[Found | str]], runtime: Runtime) -> Found:
    """Look again and again; what is missing is said whenever it is something else."""
    tries, said = 0, ""
    while True:
        found = await look()
        if isinstance(found, Found):
            logger.info("run {} of orchestrator {} at {}", found.run_id, found.orchestrator, found.url)
            return found
        if found != said:
            logger.info("{}", found)
        tries, said = tries + 1, found
        await runtime.sleep(backoff_s(tries, runtime.random_bytes(2)))
