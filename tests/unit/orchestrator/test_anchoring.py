"""The owner's commitment: when it is made, what it says, and what happens while the chain will not have it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from loguru import logger

from subnet.chain.memory import MemoryChain, MemoryLedger
from subnet.chain.memory_commitments import FLOOR_BYTES, LIMIT_BYTES
from subnet.errors import ConfigError, Unavailable
from subnet.orchestrator import anchoring
from subnet.orchestrator.anchoring import RETRY_S, START_PATIENCE_S, Publisher, Schedule, urls_of
from subnet.protocol import messages as m
from subnet.protocol.anchor import decode
from subnet.protocol.ids import Epoch, Hotkey
from subnet.runtime import LoopRuntime
from subnet.storage.base import JournalRecord

pytestmark = pytest.mark.looptime(end=36_000)
Host = Callable[..., Awaitable[Any]]
OWNER, URL = Hotkey("orchestrator"), "http://127.0.0.1:8091"


def head(index: int) -> str:
    return f"{index:064x}"


def record(index: int) -> JournalRecord:
    return JournalRecord(index, head(index), b"")


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged as a warning."""
    found: list[str] = []
    logger.enable("subnet")
    sink = logger.add(lambda message: found.append(message.record["message"]), level="WARNING")
    yield found
    logger.remove(sink)


# ---- when ------------------------------------------------------------------------------------------------------------


def test_once_at_the_start_and_once_an_epoch() -> None:
    """1. Nothing before there is a journal; then the newest head; then none until every stage has closed one more."""
    schedule = Schedule()
    assert schedule.due(Epoch(0), None, 0.0) is None
    first = schedule.due(Epoch(0), record(3), 0.0)
    assert first is not None and (first.epoch, first.index, first.head) == (0, 3, head(3))
    schedule.taken(first)
    assert schedule.due(Epoch(0), record(900), 1e6) is None
    second = schedule.due(Epoch(1), record(901), 1e6)
    assert second is not None and (second.epoch, second.index) == (1, 901)


def test_a_run_that_goes_on_says_where_it_is_now() -> None:
    """2. A new process knows nothing of what an earlier one committed: its address may be another."""
    assert Schedule().due(Epoch(7), record(5_000), 0.0) is not None


def test_a_refusal_is_said_once_and_tried_again_with_the_newest_head() -> None:
    """3. The chain is away for a minute, then it refuses, then it takes what the journal has come to meanwhile."""
    schedule, now = Schedule(), 100.0
    assert schedule.refused("away", now) == "away"
    assert schedule.due(Epoch(0), record(1), now + RETRY_S - 0.1) is None
    assert schedule.due(Epoch(0), record(1), now + RETRY_S) is not None
    assert schedule.refused("away", now + RETRY_S) is None
    assert schedule.refused("too fast", now + 2 * RETRY_S) == "too fast"
    later = schedule.due(Epoch(2), record(77), now + 3 * RETRY_S)
    assert later is not None and (later.epoch, later.index) == (2, 77)
    schedule.taken(later)
    assert schedule.refused("too fast", now) == "too fast", "after a success the same trouble is news again"


# ---- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("public_url", "host", "network", "urls"),
    [
        ("", "127.0.0.1", "ws://127.0.0.1:9944", (URL,)),
        ("", "localhost", "local", ("http://localhost:8091",)),
        ("", "203.0.113.5", "finney", ("http://203.0.113.5:8091",)),
        ("", "::1", "ws://localhost:9944", ("http://[::1]:8091",)),
        ("https://iota.example.org/,http://203.0.113.5:80", "0.0.0.0", "finney", None),
        ("http://127.0.0.1:8091", "127.0.0.1", "finney", (URL,)),
        ("", "0.0.0.0", "", (URL,)),
    ],
)
def test_what_is_published(public_url: str, host: str, network: str, urls: tuple[str, ...] | None) -> None:
    """4. Where it listens, unless the owner says otherwise; what is said twice is both."""
    assert urls_of(public_url, host, 8091, network) == (urls or ("https://iota.example.org", "http://203.0.113.5:80"))


@pytest.mark.parametrize(
    ("public_url", "host", "network"),
    [
        ("", "127.0.0.1", "finney"),
        ("", "localhost", "wss://node.example.org:443"),
        ("", "0.0.0.0", "test"),
        ("", "0.0.0.0", "ws://127.0.0.1:9944"),
        ("ftp://iota.example.org", "0.0.0.0", "finney"),
        ("http://a,http://b,http://c", "0.0.0.0", "finney"),
        (f"http://{'a' * 100}.example.org", "0.0.0.0", "finney"),
    ],
)
def test_what_nobody_could_reach_is_an_operators_mistake(public_url: str, host: str, network: str) -> None:
    """5. The owner forgot --public-url: on finney a loopback address would send every miner to its own machine."""
    with pytest.raises(ConfigError, match="^--public-url"):
        urls_of(public_url, host, 8091, network)


# ---- who -------------------------------------------------------------------------------------------------------------


def ledger_of(owner: Hotkey = OWNER) -> MemoryLedger:
    runtime = LoopRuntime(b"chain")
    return MemoryLedger(owner, random_bytes=runtime.random_bytes, now=runtime.now, block_s=12.0, tempo=100)


async def test_only_the_owner_hosts() -> None:
    """6. A second validator tries it too: a line with both hotkeys. The owner may; a chain that is away cannot say."""
    ledger = ledger_of()
    chain = MemoryChain(ledger, OWNER)
    await anchoring.check_owner(chain, OWNER, 12)
    with pytest.raises(
        ConfigError, match="rival is not the owner's hotkey of subnet 12, which is orchestrator;.*rival"
    ):
        await anchoring.check_owner(chain, Hotkey("rival"), 12)
    ledger.answers = False
    with pytest.raises(Unavailable):
        await anchoring.check_owner(chain, OWNER, 12)


async def test_who_waits_for_the_chain_at_the_start(lines: list[str]) -> None:
    """7. The chain is away, or hangs: a run that goes on does without after some seconds, a new one waits for it."""
    ledger, runtime, loop = ledger_of(), LoopRuntime(b"start"), asyncio.get_running_loop()
    ledger.answers = False

    async def ask() -> None:
        await anchoring.check_owner(MemoryChain(ledger, OWNER), OWNER, 12)

    assert not await anchoring.at_start(ask, runtime, goes_on=True)
    assert lines[0].startswith("chain-away: the chain in memory does not answer; none needed")
    began = loop.time()
    assert not await anchoring.at_start(lambda: asyncio.sleep(3_600), runtime, goes_on=True)
    assert loop.time() - began == pytest.approx(START_PATIENCE_S)
    new = asyncio.create_task(anchoring.at_start(ask, runtime, goes_on=False))
    await asyncio.sleep(60.0)
    assert not new.done() and len(lines) == 3, "it waits, and says so once"
    ledger.answers = True
    assert await new


# ---- doing it --------------------------------------------------------------------------------------------------------


def anchored(run: Any) -> list[m.Anchored]:
    return [message for message in run.messages() if isinstance(message, m.Anchored)]


async def close_epoch(run: Any) -> None:
    """Every stage goes on to its next epoch, as far as the publisher looks."""
    for stage in run.state.stages:
        stage.epoch = Epoch(stage.epoch + 1)
    await run.service.submit(m.Tick())


async def test_an_epoch_on_chain_and_in_the_journal(host: Host) -> None:
    """8. At the start and after an epoch: the commitment names our address and the head, and the record says where the
    chain holds it. Whoever looks into that block finds the same, whatever was committed since."""
    run, ledger = await host(), ledger_of()
    chain = MemoryChain(ledger, OWNER)
    publisher = Publisher(chain, run.service, OWNER, (URL,), run.runtime)
    task = asyncio.create_task(publisher.run())
    await asyncio.sleep(30.0)
    (first,) = anchored(run)
    assert (first.epoch, first.head) == (0, run.records[first.index].head)
    assert run.records[first.index + 1].body.count(b'"anchored"') == 1, "it named the newest head"
    await close_epoch(run)
    await asyncio.sleep(30.0)
    _, second = anchored(run)
    newest = decode(await chain.commitment(OWNER))
    assert newest is not None and newest == ((URL,), 1, second.head) and second.index > first.index
    for one in (first, second):
        held = decode(await chain.committed_in(one.block, OWNER))
        assert held is not None and (held.epoch, held.head) == (one.epoch, one.head)
    assert run.state.pay.chain.anchor == second
    task.cancel()


async def test_training_does_not_wait_for_the_chain(host: Host, lines: list[str]) -> None:
    """9. The chain is away for ten minutes, two epochs close meanwhile: one line, and the newest epoch's head follows
    when the chain is back; the ones that nobody committed are no records."""
    run, ledger = await host(), ledger_of()
    task = asyncio.create_task(Publisher(MemoryChain(ledger, OWNER), run.service, OWNER, (URL,), run.runtime).run())
    await asyncio.sleep(5.0)
    ledger.answers = False
    for _ in range(2):
        await close_epoch(run)
        await asyncio.sleep(300.0)
    assert [one.epoch for one in anchored(run)] == [0]
    assert len(lines) == 1 and "chain-away" in lines[0]
    ledger.answers = True
    await asyncio.sleep(RETRY_S + 2.0)
    assert [one.epoch for one in anchored(run)] == [0, 2]
    task.cancel()


async def test_what_the_chain_refuses_is_tried_again(host: Host, lines: list[str]) -> None:
    """10. The owner's hotkey has written as much as it may between two chain epochs: the next one takes it."""
    run, ledger = await host(), ledger_of()
    chain = MemoryChain(ledger, OWNER)
    for _ in range(LIMIT_BYTES // FLOOR_BYTES):
        assert (await chain.commit("noise")).done
    task = asyncio.create_task(Publisher(chain, run.service, OWNER, (URL,), run.runtime).run())
    await asyncio.sleep(100.0)
    assert anchored(run) == [] and len(lines) == 1 and "rate-limited" in lines[0]
    await asyncio.sleep(100 * 12.0)
    assert len(anchored(run)) == 1
    task.cancel()


async def test_an_owner_that_changed_its_hotkey(host: Host, lines: list[str]) -> None:
    """11. The owner swaps its hotkey while the run goes on: nothing is published under a key that nobody looks at, and
    the operator hears why."""
    run, ledger = await host(), ledger_of()
    ledger.swap_hotkey(OWNER, Hotkey("successor"))
    task = asyncio.create_task(Publisher(MemoryChain(ledger, OWNER), run.service, OWNER, (URL,), run.runtime).run())
    await asyncio.sleep(100.0)
    assert anchored(run) == [] and len(lines) == 1 and "successor" in lines[0]
    task.cancel()
