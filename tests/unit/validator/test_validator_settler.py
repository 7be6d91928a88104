"""A validator between journal and chain, each of which may be away: what it does, and what it says of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from subnet.coordination.members import notice, refusal
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.reasons import REMEDY, Reason
from subnet.validator.anchors import ANCHORS_FILE, AnchorWatch
from subnet.validator.follower import JournalBroken
from subnet.validator.settler import Settler

pytestmark = pytest.mark.looptime(end=100_000)
MakeNet = Callable[..., Any]
TEMPO, LIMIT, BLOCK_S = 20, 5, 12.0
NOTED = m.Noted(notice=notice(Reason.OK, "noted"))


class Desk:
    """The orchestrator's end of the line: what it was told, and what it answers."""

    def __init__(self) -> None:
        self.heard: list[m.WeightsSet] = []
        self.calls = 0
        self.answer: m.Reply | None = NOTED

    async def call(self, message: m.Message) -> m.Reply | None:
        self.calls += 1
        if isinstance(self.answer, m.Noted):
            assert isinstance(message, m.WeightsSet)
            self.heard.append(message)
        return self.answer


@asynccontextmanager
async def running(net: Any, desk: Desk, folder: Path) -> AsyncIterator[asyncio.Event]:
    """A settler at work until the event is set that the run is over, which happens at the end at the latest."""
    over = asyncio.Event()
    anchors = AnchorWatch(net.chain, folder / ANCHORS_FILE, net.follower)
    settler = Settler(net.follower, net.weights, anchors, desk.call, net.runtime)
    async with asyncio.TaskGroup() as group:
        group.create_task(settler.run(over.is_set))
        yield over
        over.set()


def of(lines: list[str], reason: Reason) -> list[str]:
    return [line for line in lines if reason.value in line]


async def at_work(make_net: MakeNet) -> Any:
    net = make_net()
    await net.open()
    await asyncio.sleep((TEMPO + 1) * BLOCK_S)
    await net.score(alice=3.0, bob=1.0)
    return net


async def test_the_chain_is_away_for_ten_minutes(make_net: MakeNet, tmp_path: Path, lines: list[str]) -> None:
    """1. The node goes down for ten minutes while the journal goes on: said once, with what to do (nothing). At the
    first answer the newest weights stand, and the report says what the chain did meanwhile."""
    net, desk = await at_work(make_net), Desk()
    async with running(net, desk, tmp_path):
        await asyncio.sleep(30.0)
        (before,) = desk.heard
        net.ledger.answers = False
        for number in range(10):
            await asyncio.sleep(60.0)
            await net.score(alice=3.0, bob=2.0 + number)
        assert len(of(lines, Reason.CHAIN_AWAY)) == 1 and REMEDY[Reason.CHAIN_AWAY] in lines[-1]
        net.ledger.answers = True
        answered_at = net.ledger.number()
        await asyncio.sleep(2.0)
        after = desk.heard[-1]
        assert len(desk.heard) == 2 and after.block - answered_at <= 1 and dict(after.weights)[3] > 0.7
        passed = (after.block - before.block) // TEMPO
        assert f"{passed} chain epochs were paid by the weights of block {before.block}" in after.sentence
        assert passed >= 2 and Reason.CHAIN_EPOCH_MISSED in after.sentence
        assert [line for line in lines if "the chain answers again, after 59" in line]
        net.ledger.answers = False
        await asyncio.sleep(2 * TEMPO * BLOCK_S)
        assert len(of(lines, Reason.CHAIN_AWAY)) == 2, "another time is another line"
        net.ledger.answers = True


async def test_the_journal_is_away(make_net: MakeNet, tmp_path: Path, lines: list[str]) -> None:
    """2. The orchestrator is gone for an hour: the weights of the last record stay fresh on chain, the reports wait
    and the newest is told when it is back."""
    net, desk = await at_work(make_net), Desk()
    async with running(net, desk, tmp_path):
        await asyncio.sleep(30.0)
        net.away, desk.answer = True, None
        started_at = net.ledger.number()
        await asyncio.sleep(3600.0)
        assert net.ledger.number() - net.ledger.weights()[1].block <= TEMPO
        assert len([line for line in lines if "the journal waits" in line]) == 1 and len(desk.heard) == 1
        net.away, desk.answer = False, NOTED
        await asyncio.sleep(2.0)
        assert desk.heard[-1].block == net.ledger.weights()[1].block > started_at


async def test_an_orchestrator_that_does_not_listen_yet(make_net: MakeNet, tmp_path: Path) -> None:
    """3. It learns of our permit later than the chain does and refuses: the report of what stands on chain is told
    again, less and less often; one of what was refused is not."""
    net, desk = await at_work(make_net), Desk()
    desk.answer = refusal(Reason.NOT_ALLOWED, "only uids with a validator permit set weights")
    async with running(net, desk, tmp_path):
        await asyncio.sleep(150.0)
        assert 5 <= desk.calls <= 12
        desk.answer = NOTED
        await asyncio.sleep(31.0)
        assert desk.heard[-1].block == net.ledger.weights()[1].block
        net.ledger.swap_hotkey(Hotkey("validator"), Hotkey("thief"))
        desk.answer = refusal(Reason.NOT_REGISTERED, "this hotkey is not registered on the subnet")
        calls = desk.calls
        await asyncio.sleep(10 * TEMPO * BLOCK_S)
        assert desk.calls == calls + 1
        net.ledger.swap_hotkey(Hotkey("thief"), Hotkey("validator"))
        desk.answer = NOTED


async def test_no_permit_is_said_once(make_net: MakeNet, tmp_path: Path, lines: list[str]) -> None:
    """4. The operator forgot to stake: one line with the command, not one a second."""
    net, desk = make_net(), Desk()
    net.ledger.add_stake(Hotkey("validator"), -1_000.0)
    await net.open()
    async with running(net, desk, tmp_path) as over:
        await asyncio.sleep(10 * TEMPO * BLOCK_S)
        (line,) = of(lines, Reason.NO_PERMIT)
        assert "btcli stake add" in line and desk.heard[-1].sentence.startswith("no-permit: ")
        over.set()
        ended_at = net.runtime.now()
    assert net.runtime.now() - ended_at >= 60.0, "it waits for a while still"


async def test_the_last_weights(make_net: MakeNet, tmp_path: Path) -> None:
    """5. The run ends while the rate limit runs: the last scores are set all the same, and told, before it ends."""
    net, desk = await at_work(make_net), Desk()
    async with running(net, desk, tmp_path) as over:
        await asyncio.sleep(5.0)
        await net.score(alice=1.0, bob=1.0)
        over.set()
    assert dict(desk.heard[-1].weights) == {2: 0.5, 3: 0.5} and net.weights.is_current(net.follower)
    assert desk.heard[-1].block == net.ledger.weights()[1].block


async def test_a_journal_without_what_was_anchored(make_net: MakeNet, tmp_path: Path) -> None:
    """6. The owner anchors a head that it never shows: the validator ends, and says where the journal breaks."""
    net, desk = await at_work(make_net), Desk()
    net.anchor(net.records[1])
    with pytest.raises(ExceptionGroup) as broken:
        async with running(net, desk, tmp_path):
            await asyncio.sleep(30.0)
            net.anchor(net.records[1]._replace(head=Digest("b" * 64)), epoch=1)
            await asyncio.sleep(30.0)
    (error,) = broken.value.exceptions
    assert isinstance(error, JournalBroken) and error.index == len(net.records)
