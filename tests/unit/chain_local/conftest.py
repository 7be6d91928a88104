"""A local chain in memory, driven block by block, and people with keys who sign extrinsics for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import bittensor_core as core
import pytest

from subnet.chain.local.chain import Chain
from subnet.chain.local.genesis import Genesis
from subnet.chain.local.ledger import accounts, stake
from subnet.chain.local.ledger.storage import Storage
from subnet.chain.local.store import Store

TAO = 10**9
NETUID = 1
START = 1_700_000_000.0
RULES = {"tempo": 10, "weights_rate_limit": 0, "commit_reveal_weights_enabled": False, "immunity_period": 20}
PEOPLE = ("owner", "validator", "second", "miner", "other", "stranger")


@cache
def key(name: str) -> Any:
    """A key pair, the same for the same name."""
    return core.Keypair.create_from_uri(f"//{name}")


@cache
def address(name: str) -> str:
    return str(key(name).ss58_address)


def random_source(seed: bytes) -> Callable[[int], bytes]:
    drawn = 0

    def random_bytes(count: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.shake_256(seed + drawn.to_bytes(4, "big")).digest(count)

    return random_bytes


class Laboratory:
    """The chain and its people: `name` signs as a coldkey, `name/hot` as that person's hotkey."""

    def __init__(
        self, genesis: Genesis, path: Path | None = None, keep_blocks: int = 600, seed: bytes = b"lab"
    ) -> None:
        self.now = START
        self.store = Store(path)
        self.chain = Chain(
            self.store, genesis, now=lambda: self.now, random_bytes=random_source(seed), keep_blocks=keep_blocks
        )

    @property
    def storage(self) -> Storage:
        return self.chain.storage

    @staticmethod
    def address(who: str) -> str:
        return address(who)

    # ---- signing

    def extrinsic(
        self, who: str, pallet: str, call_name: str, /, nonce: int | None = None, era: Any = "00", **args: Any
    ) -> bytes:
        runtime = self.chain.interface._runtime
        call = self.chain.interface.compose_call(pallet, call_name, args)
        genesis = bytes.fromhex(str(self.chain.hash_at(0))[2:])
        born = era["current"] // era["period"] * era["period"] if isinstance(era, dict) else 0
        birth = bytes.fromhex(str(self.chain.hash_at(born))[2:])
        nonce = self.chain.next_nonce(address(who)) if nonce is None else nonce
        parts = {"era": era, "nonce": nonce, "tip": 0, "tip_asset_id": None}
        payload = bytes(runtime.signature_payload(call, genesis_hash=genesis, era_block_hash=birth, **parts))
        data, _ = runtime.encode_signed_extrinsic(
            call, public_key=key(who).public_key, signature=key(who).sign(payload), signature_version=1, **parts
        )
        return bytes(data)

    # ---- doing

    def submit(self, who: str, pallet: str, name: str, /, **args: Any) -> str:
        return self.chain.submit(self.extrinsic(who, pallet, name, **args))

    def do(self, who: str, pallet: str, name: str, /, **args: Any) -> str:
        """In a block of its own; '' when it succeeded, else the error's name."""
        digest = self.submit(who, pallet, name, **args)
        assert digest in self.block().included
        return self.errors()[-1]

    def block(self, count: int = 1) -> Any:
        for _ in range(count):
            self.now += 0.25
            produced = self.chain.produce()
        return produced

    # ---- seeing

    def events(self) -> list[tuple[str, str, Any]]:
        """(pallet, name, attributes) of the newest block."""
        events = self.storage.get("System", "Events")
        return [(event["module_id"], event["event_id"], event["attributes"]) for event in events]

    def event(self, name: str) -> Any:
        """Attributes of the newest block's one event of that name."""
        (found,) = [attributes for _, event, attributes in self.events() if event == name]
        return found

    def errors(self) -> list[str]:
        """What became of each signed extrinsic in the newest block."""
        found = []
        for _, name, attributes in self.events():
            if name == "ExtrinsicSuccess":
                found.append("")
            elif name == "ExtrinsicFailed":
                found.append(self.error_name(attributes["dispatch_error"]))
        return found[1:]  # without the block's own

    def error_name(self, error: Any) -> str:
        if isinstance(error, str):
            return error
        module = error["Module"]
        code = bytes.fromhex(module["error"][2:])[0]
        interface = self.chain.interface
        return next(name for (_, name), known in interface._errors.items() if known == (module["index"], code))

    def free(self, who: str) -> int:
        return accounts.free(self.storage, address(who))

    def uid(self, who: str) -> int | None:
        """Of a hotkey in the town."""
        found = self.storage.value("Uids", NETUID, address(f"{who}/hot"))
        return None if found is None else int(found)

    def alpha(self, hot: str, cold: str, netuid: int = NETUID) -> int:
        """Rao of one coldkey's alpha at one hotkey."""
        return stake.stake_of(self.storage, address(f"{hot}/hot"), address(cold), netuid)

    # ---- what people often do in the town

    def weigh(self, who: str, weights: dict[int, int], version_key: int = 0) -> str:
        return self.do(
            f"{who}/hot",
            "SubtensorModule",
            "set_weights",
            netuid=NETUID,
            dests=list(weights),
            weights=list(weights.values()),
            version_key=version_key,
        )

    def register(self, who: str, hotkey: str | None = None) -> str:
        hotkey = address(f"{hotkey or who}/hot")
        return self.do(who, "SubtensorModule", "burned_register", netuid=NETUID, hotkey=hotkey)

    def tune(self, setter: str, who: str = "owner", **args: Any) -> str:
        return self.do(who, "AdminUtils", f"sudo_set_{setter}", netuid=NETUID, **args)

    def to_epoch(self) -> None:
        """Blocks until the town's next epoch has been run."""
        before = self.storage.number("SubnetEpochIndex", NETUID)
        while self.storage.number("SubnetEpochIndex", NETUID) == before:
            self.block()


def fresh(**changes: Any) -> Genesis:
    endowed = {address(person): 100_000.0 for person in PEOPLE}
    values: dict[str, Any] = {"endowed": endowed, "new_subnets": RULES} | changes
    return Genesis(**values)


@pytest.fixture
def make() -> Iterator[Callable[..., Laboratory]]:
    """Makes laboratories: changes to the genesis by name; path, keep_blocks and seed as the class takes them."""
    made = []

    def one(**changes: Any) -> Laboratory:
        options = {name: changes.pop(name) for name in ("path", "keep_blocks", "seed") if name in changes}
        made.append(Laboratory(fresh(**changes), **options))
        return made[-1]

    yield one
    for laboratory in made:
        laboratory.store.close()


@pytest.fixture
def lab(make: Callable[..., Laboratory]) -> Laboratory:
    """A chain on which everybody is rich and nothing has happened."""
    return make()


@pytest.fixture
def town(lab: Laboratory) -> Laboratory:
    """A started subnet with owner (uid 0), validator (1), second (2), miner (3), other (4); 1 and 2 have stake."""
    assert lab.do("owner", "SubtensorModule", "register_network", hotkey=address("owner/hot")) == ""
    assert lab.do("owner", "SubtensorModule", "start_call", netuid=NETUID) == ""
    for person in PEOPLE[1:-1]:
        hotkey = address(f"{person}/hot")
        assert lab.do(person, "SubtensorModule", "burned_register", netuid=NETUID, hotkey=hotkey) == ""
    for person, tao in (("validator", 100), ("second", 50)):
        stake = {"hotkey": address(f"{person}/hot"), "netuid": NETUID, "amount_staked": tao * TAO}
        assert lab.do(person, "SubtensorModule", "add_stake", **stake) == ""
    return lab
