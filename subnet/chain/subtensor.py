"""The real chain as one hotkey sees one subnet: `bittensor` 11 over a node's JSON-RPC.

Law: one adapter for finney, test and the local chain: what differs is read from the chain (block time, commit-reveal,
limits). Blocks and readings are final ones, so no reorganisation can take back what the journal holds of them. Weights
and commitments are told once; after a lost connection the chain is asked whether they stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import bittensor as bt
from bittensor import metagraph

from subnet.chain import refusals
from subnet.chain.base import Block, Outcome, Pay, Row, Subnet
from subnet.chain.link import PATIENCE_S, Line, Link, block_s_of, item
from subnet.errors import ConfigError, Unavailable
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Neuron
from subnet.protocol.reasons import Reason
from subnet.runtime import Runtime

_POLLS_PER_BLOCK = 4
_STILL_BLOCKS = 20
"""No new final block for so long, beside the patience: the chain stands still."""
_NO_UID = -1
"""`Subnet.owner_uid` when no hotkey of the owner is registered."""


class SubtensorChain:
    """Implements `base.Chain`. Without a hotkey it only reads. Nothing is opened before the first call."""

    def __init__(
        self,
        network: str,
        netuid: int,
        hotkey: bt.Signer | None,
        runtime: Runtime,
        *,
        weights_version: int = 0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`hotkey` is what signs: `wallet.hotkey`. Raises ConfigError for an unknown network."""
        self._link = Link(network, runtime, patience_s)
        self._netuid, self._signer, self._runtime = netuid, hotkey, runtime
        self._weights_version = weights_version

    async def check(self) -> None:
        """Once at start. Raises ConfigError when this chain or this subnet cannot be used, Unavailable when away."""
        await self._link.read(lambda line: check_usable(line.client, self._netuid, self._link.network))

    # ---- blocks and readings -----------------------------------------------------------------------------------------

    async def wait_for_block(self, number: int) -> Block:
        """Final blocks only: on finney two or three later than the newest. A chain that stands still is Unavailable."""
        loop, seen, block_s = asyncio.get_running_loop(), -1, await self._link.read(block_s_of)
        moved = loop.time()
        while (newest := await self._link.read(_final_number)) < number:
            if newest > seen:
                seen, moved = newest, loop.time()
            elif loop.time() - moved > self._link.patience_s + _STILL_BLOCKS * block_s:
                raise Unavailable(f"the chain at {self._link.network} has made no block since {newest}")
            await self._runtime.sleep(block_s * max(number - newest - 1, 1 / _POLLS_PER_BLOCK))

        async def ask(line: Line) -> Block:
            return await _block(line, number or newest)

        return await self._link.read(ask)

    async def subnet(self) -> Subnet:
        return await self._link.read(self._subnet)

    async def _subnet(self, line: Line) -> Subnet:
        view = await line.client.at(await _final_number(line))
        graph, hyperparameters, block, block_s = await asyncio.gather(
            metagraph.fetch(view, self._netuid, commitments=False),
            view.read("subnet_hyperparameters", netuid=self._netuid),
            _block(line, view.block),
            block_s_of(line),
        )
        if graph is None:
            raise ConfigError("--netuid", f"there is no subnet {self._netuid}", "see btcli subnets list")
        return Subnet(
            block=block,
            tempo=graph.tempo,
            block_s=block_s,
            owner_uid=owner_uid(graph),
            owner_hotkey=Hotkey(graph.owner_hotkey),
            neurons=tuple(
                Neuron(uid=n.uid, hotkey=Hotkey(n.hotkey), stake=_alpha(n.total_stake), permit=n.validator_permit)
                for n in graph.neurons
            ),
            pay={n.uid: Pay(n.incentive, n.dividends, _alpha(n.emission)) for n in graph.neurons},
            hyperparameters={k: v for k, v in (hyperparameters or {}).items() if isinstance(v, int | float)},
        )

    async def weights(self) -> Mapping[int, Row]:
        async def ask(line: Line) -> dict[int, Row]:
            view = await line.client.at(await _final_number(line))
            rows, updates = await asyncio.gather(
                view.read("weights", netuid=self._netuid), view.query(item("LastUpdate"), [self._netuid])
            )
            return {uid: Row(row, int(_at(updates, uid))) for uid, row in rows.items() if row}

        return await self._link.read(ask)

    # ---- weights -----------------------------------------------------------------------------------------------------

    async def set_weights(self, weights: Mapping[int, float]) -> Outcome:
        refusals.check_weights(weights)
        signer = self._signing()
        before = await self._link.read(self._standing)
        if (refusal := refusals.of_weights(before, weights)) is not None:
            return refusal
        intent = bt.SetWeights(netuid=self._netuid, weights=dict(weights), version_key=self._weights_version)

        async def tell(line: Line) -> bt.ExtrinsicResult:
            return await line.client.execute(intent, signer)

        async def stands(line: Line) -> int | None:
            now = await self._standing(line)
            return now.last_update if now.uid == before.uid and now.last_update > before.block else None

        told = await self._link.write(tell, stands)
        if not told.done:
            return refusals.by_chain(told.name, told.code, told.sentence)
        return Outcome(True, Reason.OK, f"weights for {len(weights)} uids stand at block {told.block}", told.block)

    async def _standing(self, line: Line) -> refusals.Standing:
        """At the newest block, final or not: the chain will judge by a later one."""
        view, hotkey = await line.client.at(), Hotkey(self._signing().ss58_address)
        subnet = [self._netuid]
        uid, permits, updates, limit, count, owner = await asyncio.gather(
            view.query(item("Uids"), [self._netuid, hotkey]),
            view.query(item("ValidatorPermit"), subnet),
            view.query(item("LastUpdate"), subnet),
            view.query(item("WeightsSetRateLimit"), subnet),
            view.query(item("SubnetworkN"), subnet),
            view.query(item("SubnetOwnerHotkey"), subnet),
        )
        return refusals.Standing(
            hotkey=hotkey,
            uid=uid,
            permit=bool(_at(permits, uid)),
            owner=owner == hotkey,
            block=view.block,
            last_update=int(_at(updates, uid)),
            rate_limit_blocks=int(limit or 0),
            num_uids=int(count or 0),
        )

    # ---- commitments -------------------------------------------------------------------------------------------------

    async def commit(self, data: str) -> Outcome:
        signer, raw = self._signing(), data.encode()
        if len(raw) > refusals.COMMITMENT_MAX_BYTES:
            return refusals.too_long(len(raw))
        hotkey = Hotkey(signer.ss58_address)
        if await self._link.read(self._uid_of_signer) is None:
            return refusals.not_registered(hotkey)
        start = (await self._link.read(_newest_number)) + 1
        call = bt.calls.Commitments.set_commitment(
            netuid=self._netuid, info={"fields": [{f"Raw{len(raw)}": "0x" + raw.hex()}]}
        )

        async def tell(line: Line) -> bt.ExtrinsicResult:
            return await line.client.submit_call(call, signer, signer="hotkey")

        async def stands(line: Line) -> int | None:
            found = await line.client.read("commitment", netuid=self._netuid, hotkey_ss58=hotkey)
            return found.block if found is not None and found.data == data and found.block >= start else None

        told = await self._link.write(tell, stands)
        if not told.done:
            return refusals.by_chain(told.name, told.code, told.sentence)
        return Outcome(True, Reason.OK, f"{len(raw)} bytes are committed at block {told.block}", told.block)

    async def commitment(self, hotkey: Hotkey) -> str | None:
        async def ask(line: Line) -> str | None:
            found = await line.client.read("commitment", netuid=self._netuid, hotkey_ss58=hotkey)
            return None if found is None else str(found.data)

        return await self._link.read(ask)

    async def committed_in(self, number: int, hotkey: Hotkey) -> str | None:
        found = None
        for extrinsic in (await self._link.block_info(number)).extrinsics:
            if isinstance(extrinsic, dict) and extrinsic.get("address") == hotkey:
                found = _committed(extrinsic["call"], self._netuid) or found
        return found

    async def close(self) -> None:
        await self._link.close()

    async def _uid_of_signer(self, line: Line) -> int | None:
        found = await line.client.query(item("Uids"), [self._netuid, self._signing().ss58_address])
        return None if found is None else int(found)

    def _signing(self) -> bt.Signer:
        if self._signer is None:
            raise ConfigError("--wallet", "this chain was opened for reading only", "name a wallet and its hotkey")
        return self._signer


async def check_usable(client: bt.Client, netuid: int, network: str) -> None:
    """Raises ConfigError when the chain is older than the SDK, or has no such subnet."""
    try:
        await client.query(item("SubnetEpochConsensus"), [netuid])
    except ValueError:
        problem = f"the chain's runtime (spec {await client.spec_version()}) is too old for this SDK"
        raise ConfigError("--network", problem, "use a node with spec 474 or newer") from None
    if not await client.query(item("NetworksAdded"), [netuid]):
        raise ConfigError("--netuid", f"there is no subnet {netuid} on {network}", "see btcli subnets list")


async def _newest_number(line: Line) -> int:
    return await line.client.block()


async def _final_number(line: Line) -> int:
    return await line.client.finalized_block()


async def _block(line: Line, number: int) -> Block:
    found = await line.substrate.block_hash(number)
    if not found:
        raise Unavailable(f"the chain holds no block {number} any more")
    return Block(number, found.removeprefix("0x").lower())


def _alpha(balance: bt.Balance) -> float:
    return balance.rao / 10**9


def _at(column: Any, uid: int | None) -> Any:
    return column[uid] if uid is not None and uid < len(column or ()) else 0


def owner_uid(graph: bt.Metagraph) -> int:
    """That of the subnet's owner hotkey; of the owner's first hotkey where that one has no uid."""
    named = [neuron.uid for neuron in graph.neurons if neuron.hotkey == graph.owner_hotkey]
    owned = [neuron.uid for neuron in graph.neurons if neuron.coldkey == graph.owner_coldkey]
    return next(iter(named + owned), _NO_UID)


def _committed(call: Mapping[str, Any], netuid: int) -> str | None:
    """The text of a set_commitment call for this subnet; None for any other call."""
    if (call.get("call_module"), call.get("call_function")) != ("Commitments", "set_commitment"):
        return None
    arguments = {argument["name"]: argument["value"] for argument in call["call_args"]}
    if arguments["netuid"] != netuid:
        return None
    raw = b""
    for data in arguments["info"]["fields"]:
        for kind, value in data.items():
            raw += bytes.fromhex(value.removeprefix("0x")) if kind.startswith("Raw") else b""
    return raw.decode("utf-8", errors="replace")
