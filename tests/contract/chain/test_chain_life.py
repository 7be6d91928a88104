"""What befalls neurons on a real chain, seen through the SDK: uids run out, hotkeys are swapped, coldkeys run dry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

import bittensor as bt
import pytest

from subnet.chain.base import Subnet
from subnet.chain.coldkey import Coldkey
from subnet.chain.subtensor import SubtensorChain
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason
from subnet.runtime import SystemRuntime

if TYPE_CHECKING:
    from conftest import Machine

OWNER, VALIDATOR, MINER, OTHER = range(4)


class Town(NamedTuple):
    """A subnet of its own: owner, validator (nearly all stake), miner, other; the stranger has a coldkey and TAO."""

    url: str
    netuid: int
    wallets: dict[str, bt.Wallet]
    chains: dict[str, SubtensorChain]
    coldkeys: dict[str, Coldkey]

    def chain(self, name: str) -> SubtensorChain:
        if name not in self.chains:
            signer = self.wallets[name].hotkey
            self.chains[name] = SubtensorChain(self.url, self.netuid, signer, SystemRuntime())
        return self.chains[name]

    def coldkey(self, name: str) -> Coldkey:
        if name not in self.coldkeys:
            self.coldkeys[name] = Coldkey(self.url, self.wallets[name], SystemRuntime())
        return self.coldkeys[name]

    def hotkey(self, name: str) -> Hotkey:
        return Hotkey(self.wallets[name].hotkey.ss58_address)

    async def execute(self, who: str, intent: bt.Intent) -> None:
        async with bt.Subtensor(self.url, fallback_endpoints=[], archive_endpoints=[]) as client:
            result = await client.execute(intent, self.wallets[who])
            assert result.success, result

    async def later(self, blocks: int) -> Subnet:
        chain = self.chain("validator")
        await chain.wait_for_block((await chain.wait_for_block(0)).number + blocks)
        return await chain.subnet()

    async def weigh(self, weights: dict[int, float]) -> Subnet:
        """The validator's, and the reading after a chain epoch that was all theirs."""
        chain = self.chain("validator")
        seen = await chain.subnet()
        while not seen.neurons[VALIDATOR].permit:
            seen = await self.later(1)
        await self.later(int(seen.hyperparameters["weights_rate_limit"]))
        outcome = await chain.set_weights(weights)
        assert outcome.done, outcome
        return await self.later(seen.tempo + 1)

    async def tune(self, **rules: int) -> None:
        for name, value in rules.items():
            assert (await self.coldkey("owner").set_hyperparameter(self.netuid, name, value)).done


@pytest.fixture
async def town(machine: Machine, people: Any) -> AsyncIterator[Town]:
    wallets, netuid = await people(machine, "--block-s", "0.1")
    made = Town(machine.url, netuid, wallets, {}, {})
    yield made
    for line in (*made.chains.values(), *made.coldkeys.values()):
        await line.close()


async def test_more_miners_than_uids(town: Town) -> None:
    """1. Four uids, all taken, and a fifth miner registers: the one that earned least loses its uid, and its running
    process is told so. The newcomer has neither its pay nor its weights, until a validator weighs it."""
    before = await town.weigh({MINER: 3.0, OTHER: 1.0})
    assert before.pay[OTHER].incentive == pytest.approx(0.25, abs=1e-3)
    assert (await town.chain("other").commit("here I am")).done
    await town.tune(immunity_period=1, max_allowed_uids=4)
    fewer = await town.coldkey("owner").set_hyperparameter(town.netuid, "max_allowed_uids", 3)
    assert fewer.reason is Reason.CHAIN_REFUSED and "LessThanCurrentUIds" in fewer.sentence, "trimming does that"
    assert (await town.coldkey("stranger").register(town.netuid, town.hotkey("stranger"))).done
    seen = await town.chain("other").subnet()
    assert [n.hotkey for n in seen.neurons[:OTHER]] == [town.hotkey(name) for name in ("owner", "validator", "miner")]
    assert seen.neurons[OTHER].hotkey == town.hotkey("stranger") and len(seen.neurons) == 4
    assert seen.pay[OTHER].incentive == 0 and seen.pay[OTHER].emission_alpha == 0 and seen.neurons[OTHER].stake == 0
    for refused in (await town.chain("other").set_weights({MINER: 1.0}), await town.chain("other").commit("still")):
        assert not refused.done and refused.reason is Reason.NOT_REGISTERED, refused
    assert await town.chain("miner").commitment(town.hotkey("other")) is None
    seen = await town.later(seen.tempo + 1)
    assert (await town.chain("miner").weights())[VALIDATOR].shares[OTHER] == pytest.approx(0.25, abs=1e-3)
    assert seen.pay[OTHER].incentive == 0 and seen.neurons[OTHER].stake == 0, "that weight was meant for another"
    assert seen.pay[MINER].incentive == pytest.approx(1.0, abs=1e-3)
    seen = await town.weigh({MINER: 1.0, OTHER: 1.0})
    assert seen.pay[OTHER].incentive == pytest.approx(0.5, abs=1e-3)


async def test_the_owner_trims(town: Town) -> None:
    """2. The owner wants three uids: the miner, who earned nothing, goes; `other`, registered after it, stays and is
    found under the smaller uid, with its pay, its stake and the weights given to it."""
    before = await town.weigh({OTHER: 1.0, OWNER: 1.0})
    await town.tune(immunity_period=1)
    await town.execute("owner", bt.TrimSubnet(netuid=town.netuid, max_n=3))
    seen = await town.chain("owner").subnet()
    assert [n.hotkey for n in seen.neurons] == [town.hotkey(name) for name in ("owner", "validator", "other")]
    assert seen.hyperparameters["max_allowed_uids"] == 3 and set(seen.pay) == {0, 1, 2}
    assert seen.pay[2].incentive == before.pay[OTHER].incentive > 0
    assert (await town.chain("owner").weights())[VALIDATOR].shares == pytest.approx({0: 0.5, 2: 0.5}, abs=1e-3)
    assert (await town.chain("miner").set_weights({0: 1.0})).reason is Reason.NOT_REGISTERED
    seen = await town.later(seen.tempo + 1)
    assert seen.pay[2].incentive == pytest.approx(0.5, abs=1e-3)


async def test_a_hotkey_is_swapped(town: Town) -> None:
    """3. The miner's machine was broken into: its coldkey puts another hotkey in its place. Uid, stake and pay go on;
    the old hotkey's process is told that it is not registered. The owner's swapped hotkey is the owner's still."""
    before = await town.weigh({MINER: 1.0})
    for name in ("miner", "owner"):
        fresh = bt.Wallet(name=name, hotkey="fresh", path=town.wallets[name].path)
        fresh.create_new_hotkey(suppress=True)
        await town.execute(name, bt.SwapHotkey(new_hotkey_ss58=fresh.hotkey.ss58_address))
        town.wallets[f"fresh {name}"] = fresh
    seen = await town.chain("fresh miner").subnet()
    assert seen.neurons[MINER].hotkey == town.hotkey("fresh miner")
    assert seen.neurons[MINER].stake >= before.neurons[MINER].stake > 0
    assert (seen.owner_hotkey, seen.owner_uid) == (town.hotkey("fresh owner"), OWNER)
    assert (await town.chain("miner").commit("me")).reason is Reason.NOT_REGISTERED
    assert (await town.chain("fresh miner").commit("me")).done
    assert (await town.later(seen.tempo + 1)).pay[MINER].incentive == pytest.approx(1.0, abs=1e-3)


async def test_a_validator_misses_chain_epochs(town: Town) -> None:
    """4. The validator is away for two chain epochs: those before pay by the weights that stand. Back, it sets others,
    and they pay from the next one on."""
    await town.weigh({MINER: 1.0})
    missed = await town.later(25)
    assert missed.pay[MINER].incentive == pytest.approx(1.0, abs=1e-3) and missed.pay[VALIDATOR].dividends > 0.9
    assert (await town.weigh({OTHER: 1.0})).pay[OTHER].incentive == pytest.approx(1.0, abs=1e-3)


async def test_a_coldkey_runs_dry(town: Town) -> None:
    """5. The fee of a hotkey's calls is its coldkey's: with nothing left there the chain says why, and once there is
    TAO again the same call goes through. A registration that costs more than is there says the same."""
    coldkey = town.coldkey("miner")
    assert (await coldkey.transfer(town.coldkey("owner").address, await coldkey.balance_tao() - 0.0002)).done
    refused = await town.chain("miner").commit("me")
    assert not refused.done and refused.reason is Reason.NO_FUNDS, refused
    fresh = await coldkey.register(town.netuid, town.hotkey("stranger"))
    assert not fresh.done and fresh.reason is Reason.NO_FUNDS, fresh
    assert (await town.coldkey("owner").transfer(coldkey.address, 1.0)).done
    assert (await town.chain("miner").commit("me")).done
