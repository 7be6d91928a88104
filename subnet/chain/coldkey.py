"""What a coldkey does: an owner creates, starts and tunes a subnet; a newcomer registers a hotkey and stakes to it.

Law: the local net and the tests go the way that `btcli` goes on finney: the SDK's own intents, signed by the coldkey.
Neurons never hold a coldkey and never import this. What is already as it was asked for (a hotkey that is registered, a
subnet that runs) is done. Calls of one object follow one another, because they share the coldkey's nonce.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import bittensor as bt

from subnet.chain import refusals
from subnet.chain.base import Outcome
from subnet.chain.link import PATIENCE_S, Line, Link, Told, item
from subnet.errors import ConfigError
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason
from subnet.runtime import Runtime

_ALREADY = ("HotKeyAlreadyRegisteredInSubNet", "FirstEmissionBlockNumberAlreadySet")
"""Refusals that mean that it is so already."""
_UNCHECKED = {
    "tempo": bt.calls.AdminUtils.sudo_set_tempo,
    "weights_rate_limit": bt.calls.AdminUtils.sudo_set_weights_set_rate_limit,
}
"""Hyperparameters that the SDK sets within finney's limits or not at all: here the chain itself is the judge, so that a
local chain may have a short tempo. Each call takes netuid and value."""


class Created(NamedTuple):
    outcome: Outcome
    netuid: int
    """0 when it was refused."""


class Coldkey:
    """One coldkey's line to a network. Every method raises Unavailable when the chain does not answer or confirm."""

    def __init__(
        self, network: str, signer: bt.WalletLike, runtime: Runtime, *, patience_s: float = PATIENCE_S
    ) -> None:
        """`signer`: a wallet whose coldkey can sign, or a coldkey's keypair. Raises ConfigError."""
        self._link = Link(network, runtime, patience_s)
        self._signer = signer
        self._address = str(bt.public_view(signer, "coldkey").ss58_address)
        self._turn = asyncio.Lock()

    @property
    def address(self) -> str:
        return self._address

    async def balance_tao(self) -> float:
        async def ask(line: Line) -> float:
            return float((await line.client.balances.get(self._address)).tao)

        return await self._link.read(ask)

    async def transfer(self, address: str, amount_tao: float) -> Outcome:
        """Free TAO to another coldkey."""
        told = await self._execute(bt.Transfer(dest_ss58=address, amount_tao=amount_tao))
        return _outcome(told, f"{amount_tao:g} TAO went to {address}")

    async def create_subnet(self, hotkey: Hotkey) -> Created:
        """A subnet owned by this coldkey, with `hotkey` as the owner's hotkey and uid 0."""
        told = await self._execute(bt.RegisterSubnet(hotkey_ss58=hotkey))
        return Created(_outcome(told, f"subnet {told.netuid} is created"), told.netuid)

    async def owned_subnet(self, hotkey: Hotkey) -> int | None:
        """The oldest subnet whose owner hotkey this is."""

        async def ask(line: Line) -> int | None:
            owners = await line.client.query_map(item("SubnetOwnerHotkey"))
            return min((int(netuid) for netuid, owner in owners if owner == hotkey), default=None)

        return await self._link.read(ask)

    async def start_subnet(self, netuid: int) -> Outcome:
        """Emission begins, and stake can be added."""
        return _outcome(await self._execute(bt.StartCall(netuid=netuid)), f"subnet {netuid} is started")

    async def register(self, netuid: int, hotkey: Hotkey) -> Outcome:
        """A uid for a hotkey, against the burn; shielded, as the chain wants it."""

        async def stands(line: Line) -> int | None:
            uid = await line.client.query(item("Uids"), [netuid, hotkey])
            return None if uid is None else await line.client.block()

        intent = bt.BurnedRegister(netuid=netuid, hotkey_ss58=hotkey)
        told = await self._execute(intent, stands)
        return _outcome(told, f"{hotkey} is registered on subnet {netuid}")

    async def stake(self, netuid: int, hotkey: Hotkey, amount_tao: float) -> Outcome:
        """Free TAO becomes alpha behind a hotkey, at the pool's price."""
        told = await self._execute(
            bt.AddStake(hotkey_ss58=hotkey, netuid=netuid, amount_tao=amount_tao, slippage_protection=False)
        )
        return _outcome(told, f"{amount_tao:g} TAO are staked to {hotkey} on subnet {netuid}")

    async def hyperparameters(self, netuid: int) -> Mapping[str, float | int | bool]:
        """Raw on-chain values by btcli's names. Raises ConfigError when there is no such subnet."""

        async def ask(line: Line) -> dict[str, float | int | bool]:
            found = await line.client.read("subnet_hyperparameters", netuid=netuid)
            if found is None:
                raise ConfigError("--netuid", f"there is no subnet {netuid}", "see btcli subnets list")
            return {name: value for name, value in found.items() if isinstance(value, int | float)}

        return await self._link.read(ask)

    async def set_hyperparameter(self, netuid: int, name: str, value: float | int | bool) -> Outcome:
        """As the subnet's owner, by btcli's names; whole numbers are raw values. Raises ConfigError for bad ones."""
        if (builder := _UNCHECKED.get(name)) is not None:
            call = builder(netuid, int(value))

            async def tell(line: Line) -> bt.ExtrinsicResult:
                return await line.client.submit_call(call, self._signer, signer="coldkey")

            async with self._turn:
                told = await self._link.write(tell)
        else:
            try:
                intent = bt.SetHyperparameter(netuid=netuid, name=name, value=value)
            except ValueError as error:
                raise ConfigError(name, str(error).split(";")[0], "see btcli hparams get") from None
            told = await self._execute(intent)
        return _outcome(told, f"{name} is {value} on subnet {netuid}")

    async def close(self) -> None:
        await self._link.close()

    async def _execute(
        self,
        intent: bt.Intent,
        stands: Callable[[Line], Awaitable[int | None]] | None = None,
    ) -> Told:
        async def tell(line: Line) -> bt.ExtrinsicResult:
            return await line.client.execute(intent, self._signer)

        async with self._turn:
            return await self._link.write(tell, stands)


def _outcome(told: Told, done: str) -> Outcome:
    if told.done or told.name in _ALREADY:
        return Outcome(True, Reason.OK, done if told.done else f"{done} already", told.block)
    return refusals.by_chain(told.name, told.code, told.sentence)
