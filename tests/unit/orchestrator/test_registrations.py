"""Who may join, as the file beside the run says it; and what the chain says of uids and rules."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from subnet.chain.base import Subnet
from subnet.chain.memory import MemoryChain, MemoryLedger
from subnet.errors import ConfigError
from subnet.orchestrator import registrations
from subnet.orchestrator.errands import MOVING_BY_THEMSELVES
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey
from subnet.runtime import LoopRuntime

pytestmark = pytest.mark.looptime(end=3_600)
Host = Callable[..., Awaitable[Any]]


async def test_the_file_is_followed(host: Host, tmp_path: Path) -> None:
    """1. A hotkey is added to the file while the run goes on; then the file is half written, then it is gone: only what
    can be read changes anything, and nothing is journaled twice."""
    run, path = await host(), tmp_path / "registered.json"
    path.write_text('["one", "two", "three"]')
    await registrations.update(path, run.service)
    length = len(run.records)
    watch = asyncio.create_task(registrations.watch(path, run.service, run.runtime))
    await asyncio.sleep(10.0)
    assert len(run.records) == length
    path.write_text('["one", "late"]')
    await asyncio.sleep(3.0)
    assert run.state.registered == {"one", "late"}
    for content in ('["one", "la', '{"one": 1}', None):
        path.unlink() if content is None else path.write_text(content)
        await asyncio.sleep(3.0)
    assert run.state.registered == {"one", "late"}
    assert [x.hotkeys for x in run.messages() if isinstance(x, m.Registered)][-1] == ("late", "one")
    watch.cancel()


async def test_a_run_does_not_begin_without_it(host: Host, tmp_path: Path) -> None:
    """2. At the start a missing file is the operator's to put right: one line says what it must hold."""
    run = await host()
    with pytest.raises(ConfigError, match="--run-dir.*JSON list of hotkeys"):
        await registrations.update(tmp_path / "registered.json", run.service)


# ---- as the chain tells it -------------------------------------------------------------------------------------------


async def chain_of(*miners: str, block_s: float = 1.0) -> tuple[MemoryLedger, MemoryChain]:
    """A block a second, or as told; permits are given, and nobody's stake moves."""
    runtime, owner = LoopRuntime(b"chain"), Hotkey("orchestrator")
    parts = {"random_bytes": runtime.random_bytes, "now": runtime.now, "block_s": block_s, "alpha_per_block": 0.0}
    ledger = MemoryLedger(owner, **parts, tempo=10)
    for name in miners:
        ledger.register(Hotkey(name))
    await asyncio.sleep(15.0 * block_s)
    return ledger, MemoryChain(ledger, owner)


def seen(run: Any) -> list[m.ChainSeen]:
    return [message for message in run.messages() if isinstance(message, m.ChainSeen)]


async def test_the_owners_hyperparameters_are_noticed(host: Host) -> None:
    """3. The owner shortens the tempo and switches commit-reveal on while the run goes on: one record each that has
    them all in the order of their names, and none while nothing changes."""
    run, (ledger, chain) = await host(), await chain_of("one")
    watch = asyncio.create_task(registrations.watch_chain(chain, run.service, run.runtime))
    await asyncio.sleep(60.0)
    (first,) = seen(run)
    assert first.tempo == 10 and not first.hyperparameters["commit_reveal_weights_enabled"]
    assert list(first.hyperparameters) == sorted(first.hyperparameters)
    for name, value in (("tempo", 20), ("commit_reveal_weights_enabled", True)):
        ledger.set_hyperparameter(name, value)
        await asyncio.sleep(60.0)
    assert [(one.tempo, one.hyperparameters["commit_reveal_weights_enabled"]) for one in seen(run)[1:]] == [
        (20, False),
        (20, True),
    ]
    assert (run.state.pay.chain.tempo, run.folded()) == (20, run.state_bytes())
    watch.cancel()


async def test_what_moves_by_itself_is_no_news(host: Host) -> None:
    """4. The difficulty falls from block to block, and a future runtime lists a figure of which nobody here has heard
    that does the same: no record of the one, and no record every two seconds of the other."""
    run, (_, chain) = await host(), await chain_of("one")

    class Drifting:
        """The same chain, seen through that runtime."""

        wait_for_block = staticmethod(chain.wait_for_block)

        def __init__(self, *names: str) -> None:
            self.names = names

        async def subnet(self) -> Subnet:
            subnet = await chain.subnet()
            moving = dict.fromkeys(self.names, subnet.block.number)
            return subnet._replace(hyperparameters={**subnet.hyperparameters, **moving})

    known: Any = Drifting(*MOVING_BY_THEMSELVES)
    watch = asyncio.create_task(registrations.watch_chain(known, run.service, run.runtime))
    await asyncio.sleep(120.0)
    assert len(seen(run)) == 1 and not set(MOVING_BY_THEMSELVES) & set(seen(run)[0].hyperparameters)
    watch.cancel()
    unknown: Any = Drifting("tide")
    watch = asyncio.create_task(registrations.watch_chain(unknown, run.service, run.runtime))
    await asyncio.sleep(120.0)
    assert 2 < len(seen(run)) <= 1 + 120 // registrations.RULES_EVERY_BLOCKS
    watch.cancel()


async def test_a_newcomer_is_told_at_once(host: Host) -> None:
    """5. Somebody registers two seconds after the owner tuned: a uid waits for no hyperparameter's turn."""
    run, (ledger, chain) = await host(), await chain_of("one")
    await registrations.update_from_chain(chain, run.service)
    ledger.set_hyperparameter("tempo", 20)
    ledger.register(Hotkey("late"))
    await registrations.update_from_chain(chain, run.service)
    assert "late" in run.state.registered and run.state.pay.chain.tempo == 20


async def test_a_fixed_point_number_fits_every_encoding(host: Host) -> None:
    """6. burn_increase_mult is 128 bits of fixed point on the chain: the journal and the state hold it all the same."""
    run, (_, chain) = await host(), await chain_of("one")
    bits = int(1.26 * 2**64)

    class Wide:
        wait_for_block = staticmethod(chain.wait_for_block)

        async def subnet(self) -> Subnet:
            subnet = await chain.subnet()
            return subnet._replace(hyperparameters={**subnet.hyperparameters, "burn_increase_mult": bits})

    wide: Any = Wide()
    await registrations.update_from_chain(wide, run.service)
    await asyncio.sleep(60.0)
    await registrations.update_from_chain(wide, run.service)
    (one,) = seen(run)
    assert one.hyperparameters["burn_increase_mult"] == pytest.approx(1.26 * 2**64)
    assert run.folded() == run.state_bytes()


class Counted:
    """A chain that counts how often the whole subnet is read."""

    def __init__(self, chain: MemoryChain) -> None:
        self._chain, self.reads = chain, 0
        self.wait_for_block = chain.wait_for_block

    async def subnet(self) -> Subnet:
        self.reads += 1
        return await self._chain.subnet()


@pytest.mark.parametrize(("block_s", "reads", "noticed_s"), [(0.5, 300, 2.5), (12.0, 50, 24.0)])
async def test_a_public_node_is_spared(host: Host, block_s: float, reads: int, noticed_s: float) -> None:
    """7. Ten minutes on finney: the metagraph is read once a block. On a local net a newcomer is seen at once."""
    run, (ledger, chain) = await host(), await chain_of("one", block_s=block_s)
    counted: Any = Counted(chain)
    watch = asyncio.create_task(registrations.watch_chain(counted, run.service, run.runtime))
    await asyncio.sleep(600.0)
    assert abs(counted.reads - reads) <= 1
    ledger.register(Hotkey("late"))
    await asyncio.sleep(noticed_s)
    assert "late" in run.state.registered
    watch.cancel()


async def test_a_chain_that_stands_still_is_read_once(host: Host) -> None:
    """8. No block comes for a while: there is nothing new to read, until there is a block."""
    run, (_, chain) = await host(), await chain_of("one", block_s=60.0)
    counted: Any = Counted(chain)
    await asyncio.sleep(1.0)
    last = await registrations.update_from_chain(counted, run.service)
    assert await registrations.update_from_chain(counted, run.service, last) is last and counted.reads == 1
    await asyncio.sleep(60.0)
    assert await registrations.update_from_chain(counted, run.service, last) is not last and counted.reads == 2
