"""What a new local chain begins with.

Law: given once, when the chain is made, and kept with it; later starts on the same state ignore what they are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import bittensor_core as core  # type: ignore[import-untyped]
import msgspec
from msgspec import Struct

from subnet.chain.local.spec.hyperparameters import BY_NAME, LIMITS
from subnet.errors import ConfigError

RAO_PER_TAO = 10**9
DEV_URI = "//Alice"
"""The well-known development key: rich, and sudo, on chains that name no other. Never holds anything of worth."""
DEV_SEED = "0xe5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a"
"""The same key as btcli takes it: `btcli wallet regen-coldkey --seed`."""
DEV_TAO = 1_000_000


class Genesis(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    endowed: Mapping[str, float] = {}
    """Address → TAO."""
    sudo: str = ""
    """Root's address; '' for the development key."""
    block_ms: int = 250
    """What clients are told of the time between blocks."""
    lock_cost_tao: float = 1000.0
    """Least price of a new subnet."""
    new_subnets: Mapping[str, float | int | bool] = {}
    """Hyperparameters, by btcli's names, that new subnets begin with: {"tempo": 20, "weights_rate_limit": 10, ...}; raw
    integers, or true and false."""


def usual() -> Genesis:
    """For a chain that was given none. Sealed weights need a signature of the drand network, which nobody offline has:
    subnets here begin with plain ones, or no miner of theirs would ever be paid."""
    return Genesis(new_subnets={"commit_reveal_weights_enabled": False})


def read(data: bytes) -> Genesis:
    """From JSON. Raises ConfigError."""
    try:
        genesis = msgspec.json.decode(data, type=Genesis)
    except msgspec.MsgspecError as error:
        raise ConfigError("--genesis", str(error), "see subnet.chain.local.genesis.Genesis") from None
    check(genesis)
    return genesis


def endow(genesis: Genesis, written: Sequence[str]) -> Genesis:
    """With further `ADDRESS=TAO`. Raises ConfigError."""
    endowed = dict(genesis.endowed)
    for word in written:
        address, _, tao = word.partition("=")
        try:
            endowed[address] = float(tao)
        except ValueError:
            raise ConfigError("--endow", f"{word!r} does not fit", "write ADDRESS=TAO") from None
    richer = msgspec.structs.replace(genesis, endowed=endowed)
    check(richer, "--endow")
    return richer


def check(genesis: Genesis, field: str = "--genesis") -> None:
    """Raises ConfigError naming what does not fit."""
    for address in (*genesis.endowed, *([genesis.sudo] if genesis.sudo else [])):
        try:
            core.ss58_decode(address)
        except ValueError:
            raise ConfigError(field, f"{address!r} is no ss58 address", "copy it whole") from None
    for name, value in genesis.new_subnets.items():
        if name not in BY_NAME:
            raise ConfigError(field, f"no hyperparameter {name!r}", f"one of {', '.join(sorted(BY_NAME))}")
        low, high = LIMITS.get(name, (int(value), int(value)))
        if not low <= value <= high or value != int(value):
            raise ConfigError(field, f"{name} = {value!r}", f"give a whole number from {low} to {high}")


def sudo_of(genesis: Genesis) -> str:
    return genesis.sudo or dev_address()


def dev_address() -> str:
    return str(core.Keypair.create_from_uri(DEV_URI).ss58_address)


def balances_rao(genesis: Genesis) -> dict[str, int]:
    """Address → rao, with the development key's."""
    rich = {dev_address(): DEV_TAO * RAO_PER_TAO}
    return rich | {address: round(tao * RAO_PER_TAO) for address, tao in genesis.endowed.items()}
