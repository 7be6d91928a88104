"""What the chain says to a neuron that wants in: a uid, a line with the command, or nothing yet."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator

import pytest
from loguru import logger

from subnet.chain.admission import Entrant, admitted, owner_of
from subnet.chain.memory import MemoryChain, MemoryLedger
from subnet.errors import ConfigError, Unavailable
from subnet.protocol.ids import Hotkey
from subnet.runtime import LoopRuntime

pytestmark = pytest.mark.looptime(end=3_600)
OWNER, ME = Hotkey("owner"), Hotkey("me")
ENTRANT = Entrant(ME, 12, "finney", "cold", "hot", "~/.bittensor/wallets")


class Checked(MemoryChain):
    """In memory, every chain fits."""

    fits = True

    async def check(self) -> None:
        await self.subnet()
        if not self.fits:
            raise ConfigError("--netuid", "there is no subnet 12 on finney", "see btcli subnets list")


@pytest.fixture
def warned() -> Iterator[list[str]]:
    yield from logged("WARNING")


@pytest.fixture
def said() -> Iterator[list[str]]:
    yield from logged("INFO")


def logged(level: str) -> Iterator[list[str]]:
    found: list[str] = []
    logger.enable("subnet")
    sink = logger.add(lambda message: found.append(message.record["message"]), level=level)
    yield found
    logger.remove(sink)


def make_ledger() -> MemoryLedger:
    """On the test's own time."""
    runtime = LoopRuntime(b"chain")
    return MemoryLedger(OWNER, random_bytes=runtime.random_bytes, now=runtime.now, block_s=1.0, tempo=10)


@pytest.mark.parametrize(
    ("change", "command"),
    [
        ({}, "btcli subnet register --netuid 12 -w cold -H hot -n finney"),
        ({"wallet": "my cold", "network": "test"}, "btcli subnet register --netuid 12 -w 'my cold' -H hot -n test"),
        ({"wallet_path": "/keys"}, "btcli subnet register --netuid 12 -w cold -H hot -n finney --wallet-path /keys"),
    ],
)
async def test_who_has_no_uid_is_told_how_to_get_one(change: dict[str, str], command: str) -> None:
    """1. The hotkey was never registered: one line that names it, the subnet, the network and the very command."""
    ledger = make_ledger()
    entrant = ENTRANT._replace(**change)
    with pytest.raises(ConfigError) as error:
        await admitted(Checked(ledger, ME), entrant, LoopRuntime(b"me"))
    assert str(error.value) == (
        f"--wallet-hotkey: me is not registered on subnet 12 of {entrant.network}; register it: {command}"
    )
    assert shlex.split(command)[5:9] == ["-w", entrant.wallet, "-H", "hot"]


async def test_a_chain_that_is_away_is_waited_for(warned: list[str]) -> None:
    """2. The node is restarted while the miner starts: said once, and then it goes on."""
    ledger = make_ledger()
    ledger.register(ME)
    ledger.answers = False
    waiting = asyncio.create_task(admitted(Checked(ledger, ME), ENTRANT, LoopRuntime(b"me")))
    await asyncio.sleep(600.0)
    assert not waiting.done() and len(warned) == 1 and warned[0].startswith("waiting for the chain: ")
    ledger.answers = True
    subnet = await waiting
    assert subnet.owner_hotkey == await owner_of(Checked(ledger, ME)) == OWNER
    ledger.answers = False
    with pytest.raises(Unavailable):
        await owner_of(Checked(ledger, ME))


async def test_a_chain_that_does_not_fit() -> None:
    """3. A wrong netuid, or a node that is too old: the operator's to mend, so nobody waits."""
    chain = Checked(make_ledger(), ME)
    chain.fits = False
    with pytest.raises(ConfigError, match="^--netuid"):
        await admitted(chain, ENTRANT, LoopRuntime(b"me"))


async def test_a_validator_without_a_permit_goes_on(warned: list[str]) -> None:
    """4. Registered, but with too little stake: it runs, and hears why nothing it says counts. With stake it has a
    permit at the next chain epoch. The owner needs none, and a miner is not asked."""
    ledger = make_ledger()
    ledger.register(ME)
    await admitted(Checked(ledger, ME), ENTRANT, LoopRuntime(b"me"))
    await admitted(Checked(ledger, OWNER), ENTRANT._replace(hotkey=OWNER), LoopRuntime(b"me"), validates=True)
    assert warned == []
    await admitted(Checked(ledger, ME), ENTRANT, LoopRuntime(b"me"), validates=True)
    assert warned[0].startswith("no-permit: uid 1 has 0 alpha of stake and no validator permit")
    assert "btcli stake add" in warned[0]
    ledger.add_stake(ME, 100.0)
    await asyncio.sleep(11.0)
    await admitted(Checked(ledger, ME), ENTRANT, LoopRuntime(b"me"), validates=True)
    assert len(warned) == 1


async def test_silence_is_explained(said: list[str]) -> None:
    """5. A dead chain says nothing for half a minute: the operator reads at once who is being asked."""

    class Silent(Checked):
        async def check(self) -> None:
            await asyncio.Event().wait()

    waiting = asyncio.create_task(admitted(Silent(make_ledger(), ME), ENTRANT, LoopRuntime(b"me")))
    await asyncio.sleep(0.0)
    assert said == ["asking the chain at finney"]
    waiting.cancel()
