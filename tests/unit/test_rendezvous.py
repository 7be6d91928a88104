"""Finding the orchestrator by netuid and following it, on a chain in memory and under virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import pytest
from bittensor.keyfiles import Keypair
from loguru import logger

from subnet.chain.admission import owner_of
from subnet.chain.memory import MemoryChain, MemoryLedger
from subnet.errors import ConfigError, PeerFault, Unavailable
from subnet.protocol.anchor import Anchor, encode
from subnet.protocol.ids import Digest, Epoch, Hotkey, RunId
from subnet.protocol.reasons import Reason
from subnet.runtime import LoopRuntime
from subnet.transport.rendezvous import LOOK_EVERY_S, ByNetuid, ByUrl, Found, Lines, opened

pytestmark = pytest.mark.looptime(end=3_600)
OWNER, RUN = Hotkey("owner"), RunId("run-1")
FIRST, SECOND, THIRD = "http://one.example.org", "http://two.example.org:8091", "https://three.example.org"


class Net:
    """What is published, and who answers where. `here` is what a URL's status says; others do not answer."""

    def __init__(self) -> None:
        self.runtime = LoopRuntime(b"net")
        self.ledger = MemoryLedger(OWNER, random_bytes=self.runtime.random_bytes, now=self.runtime.now)
        self.chain = MemoryChain(self.ledger, OWNER)
        self.here: dict[str, tuple[RunId, Hotkey] | Exception] = {}
        self.asked: list[str] = []
        self.epoch = 0
        self.meeting = ByNetuid(partial(owner_of, self.chain), self.chain.commitment, self.runtime, self.discover)

    async def discover(self, url: str) -> tuple[RunId, Hotkey]:
        self.asked.append(url)
        answer = self.here.get(url, Unavailable("no answer: connection refused"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def publish(self, *urls: str) -> None:
        self.epoch += 1
        assert (await self.chain.commit(encode(Anchor(urls, Epoch(self.epoch), Digest("0" * 64))))).done


class Neuron:
    """Lines that only remember."""

    def __init__(self) -> None:
        self.answers = True
        self.moves: list[tuple[str, set[str]]] = []

    def move(self, url: str, known: Collection[str]) -> None:
        self.moves.append((url, set(known)))
        self.answers = True


@pytest.fixture
async def net() -> Net:
    return Net()


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged, at every level."""
    found: list[str] = []
    logger.enable("subnet")
    sink = logger.add(lambda message: found.append(message.record["message"]), level="INFO")
    yield found
    logger.remove(sink)


# ---- finding it ------------------------------------------------------------------------------------------------------


async def test_a_miner_waits_for_what_is_missing(net: Net, said: list[str]) -> None:
    """1. The newcomer is early. The chain is away; nothing is published; something is, but does not answer; somebody
    else answers there; then the owner's orchestrator does. One line for each of it, however long it takes."""
    net.ledger.answers = False
    finding = asyncio.create_task(net.meeting.find())
    await asyncio.sleep(60.0)
    net.ledger.answers = True
    await asyncio.sleep(60.0)
    await net.publish(FIRST)
    await asyncio.sleep(60.0)
    net.here[FIRST] = (RUN, Hotkey("mallory"))
    await asyncio.sleep(60.0)
    assert not finding.done()
    assert [line.partition(":")[0] for line in said] == ["waiting for the chain"] + 3 * ["waiting for an orchestrator"]
    assert "owner has not published any yet" in said[1] and f"{FIRST}, which the owner has published, gives" in said[2]
    assert "answers with hotkey mallory, not the owner's owner" in said[3]
    net.here[FIRST] = (RUN, OWNER)
    assert await finding == Found(FIRST, RUN, OWNER, (FIRST,))


async def test_another_commitment_is_none(net: Net) -> None:
    """2. The owner's slot holds what some other tool wrote: nothing in it is asked."""
    await net.chain.commit("http://one.example.org")
    finding = asyncio.create_task(net.meeting.find())
    await asyncio.sleep(30.0)
    assert not finding.done() and net.asked == []
    finding.cancel()


@pytest.mark.parametrize(
    "first",
    [
        None,
        (RunId("other"), Hotkey("mallory")),
        PeerFault(Reason.MALFORMED, "it does not name a run"),
        ConfigError("--orchestrator", "is not a URL", "write it as http://HOST:PORT"),
    ],
)
async def test_the_second_url_stands_in(net: Net, first: Any) -> None:
    """3. Of two published URLs the first is dead, somebody else's, no orchestrator, or no URL that can be asked."""
    await net.publish(FIRST, SECOND)
    net.here = {SECOND: (RUN, OWNER)} | ({FIRST: first} if first else {})
    assert await net.meeting.find() == Found(SECOND, RUN, OWNER, (FIRST, SECOND))
    net.here[FIRST] = (RUN, OWNER)
    assert (await net.meeting.find()).url == FIRST, "the first one is preferred"


async def test_a_new_owner_is_found(net: Net) -> None:
    """4. The subnet is sold while a miner waits: it looks at the new owner's commitment."""
    finding = asyncio.create_task(net.meeting.find())
    await asyncio.sleep(30.0)
    net.ledger.swap_hotkey(OWNER, Hotkey("heir"))
    net.chain = MemoryChain(net.ledger, Hotkey("heir"))
    await net.publish(FIRST)
    net.here[FIRST] = (RUN, Hotkey("heir"))
    assert (await finding).orchestrator == "heir"


async def test_a_named_url_needs_no_chain(net: Net, said: list[str]) -> None:
    """5. --orchestrator URL: waited for, whoever's key it has; there is nothing to follow."""
    meeting = ByUrl(FIRST, net.runtime, (THIRD,), net.discover)
    finding = asyncio.create_task(meeting.find())
    await asyncio.sleep(60.0)
    assert said == [f"waiting for an orchestrator at {FIRST}: no answer: connection refused"]
    net.here[FIRST] = (RUN, Hotkey("anybody"))
    found = await finding
    assert found == Found(FIRST, RUN, Hotkey("anybody"), (FIRST, THIRD))
    neuron = Neuron()
    await meeting.follow(found, neuron)
    assert neuron.moves == []


# ---- following it ----------------------------------------------------------------------------------------------------


async def followed(net: Net, *urls: str) -> tuple[Neuron, asyncio.Task[None]]:
    """A neuron that was let in at the first of the URLs, and follows."""
    await net.publish(*urls)
    net.here[urls[0]] = (RUN, OWNER)
    neuron = Neuron()
    return neuron, asyncio.create_task(net.meeting.follow(await net.meeting.find(), neuron))


async def test_nobody_is_asked_while_all_is_well(net: Net) -> None:
    """6. A thousand miners work for an hour: none of them asks for the status page again, whatever the epoch."""
    neuron, follow = await followed(net, FIRST)
    asked = len(net.asked)
    for _ in range(6):
        await asyncio.sleep(300.0)
        await net.publish(FIRST)
    assert len(net.asked) == asked and neuron.moves == []
    follow.cancel()


async def test_the_orchestrator_moves(net: Net) -> None:
    """7. The owner publishes another address and the old one falls silent: within seconds the lines are at the new one,
    and what the orchestrator granted under the old address is looked for there too."""
    neuron, follow = await followed(net, FIRST)
    neuron.answers = False
    del net.here[FIRST]
    await asyncio.sleep(60.0)
    assert neuron.moves == []
    await net.publish(SECOND)
    net.here[SECOND] = (RUN, OWNER)
    await asyncio.sleep(LOOK_EVERY_S + 1.0)
    assert neuron.moves == [(SECOND, {FIRST, SECOND})]
    await net.publish(THIRD)
    net.here[THIRD] = (RUN, OWNER)
    await asyncio.sleep(LOOK_EVERY_S + 1.0)
    assert neuron.moves[1:] == [(THIRD, {FIRST, SECOND, THIRD})], "the old one answered still, but was withdrawn"
    follow.cancel()


async def test_it_stays_where_it_is_answered(net: Net, said: list[str]) -> None:
    """8. One call was lost, or the chain is away, or the new address is not up yet: no move. And one line of it."""
    neuron, follow = await followed(net, FIRST, SECOND)
    net.here[SECOND] = (RUN, OWNER)
    neuron.answers = False
    await asyncio.sleep(30.0)
    neuron.answers = True
    net.ledger.answers = False
    await asyncio.sleep(60.0)
    assert neuron.moves == [] and len(said) == 1
    net.ledger.answers = True
    await net.publish(THIRD)
    await asyncio.sleep(60.0)
    assert neuron.moves == [] and len(said) == 2 and THIRD in said[1]
    net.here[THIRD] = (RUN, OWNER)
    await asyncio.sleep(LOOK_EVERY_S + 1.0)
    assert neuron.moves == [(THIRD, {FIRST, SECOND, THIRD})]
    follow.cancel()


async def test_of_two_addresses_the_other_one_answers(net: Net) -> None:
    """9. The first of two published URLs fails while the miner works, and the chain is away too: what was published
    before is remembered."""
    neuron, follow = await followed(net, FIRST, SECOND)
    net.here = {SECOND: (RUN, OWNER)}
    net.ledger.answers = neuron.answers = False
    await asyncio.sleep(LOOK_EVERY_S + 1.0)
    assert neuron.moves == [(SECOND, {FIRST, SECOND})]
    follow.cancel()


@pytest.mark.parametrize("trick", ["another key", "another run", "another owner"])
async def test_who_else_answers_is_not_followed(net: Net, said: list[str], trick: str) -> None:
    """10. Where the orchestrator was, somebody else is now; or the owner has begun another run, or has another hotkey:
    the miner stays with its run and its operator hears what to do."""
    neuron, follow = await followed(net, FIRST)
    neuron.answers = False
    net.here[FIRST] = (RUN, Hotkey("mallory")) if trick != "another run" else (RunId("run-2"), OWNER)
    if trick == "another owner":
        net.ledger.swap_hotkey(OWNER, Hotkey("heir"))
    await asyncio.sleep(60.0)
    expected = {
        "another key": "answers with hotkey mallory",
        "another run": "hosts run run-2 now",
        "another owner": "heir",
    }
    assert neuron.moves == [] and len(said) == 2 and expected[trick] in said[1]
    assert ("start again" in said[1]) == (trick != "another key")
    follow.cancel()


# ---- the lines -------------------------------------------------------------------------------------------------------


async def test_lines_are_open_for_a_while(net: Net) -> None:
    """11. The miner ends, well or badly: nothing follows any more, and every line is closed."""
    await net.publish(FIRST)
    net.here[FIRST] = (RUN, OWNER)
    before = asyncio.all_tasks()
    for wrong in (None, ValueError("the miner failed")):
        try:
            async with opened(net.meeting, Keypair.create_from_uri("//Miner"), net.runtime) as lines:
                assert isinstance(lines, Lines) and lines.answers
                await asyncio.sleep(30.0)
                if wrong:
                    raise wrong
        except ValueError as error:
            assert error is wrong
        assert asyncio.all_tasks() == before
        with pytest.raises(Unavailable, match="closed"):
            await lines.journal.read(0, 1, 1.0)
