"""What a local run's chain begins with: who has TAO, and the hyperparameters of its subnets.

Law: no SDK is loaded here, for the launcher writes this down before there is a chain to talk to.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from subnet.chain.local.genesis import Genesis
from subnet.localnet.folder import RunFolder

BLOCK_S = 0.5
PORTS = range(9945, 10_000)
"""Where a local run's chain listens: the first free one. Not a port that the system hands out by itself: while the
chain is being started again, nobody else may come to have it. 9944 is left to a chain that is started by hand."""
TUNED: dict[str, int | bool] = {
    "tempo": 20,
    "weights_rate_limit": 10,
    "commit_reveal_weights_enabled": False,
    "immunity_period": 200,
}
"""On-chain hyperparameters of the local subnet: a chain epoch every ten seconds, so that pay is seen to follow work. A
new local chain is told them in its genesis; an owner on a public network sets them with btcli."""
COLDKEYS = {"orchestrator": 100_000.0, "validator": 50_000.0, "miners": 50_000.0}
"""Wallets and the TAO the chain begins with for each."""


class _PublicKeyFile(Struct):
    """Of a wallet, as the SDK writes it."""

    ss58Address: str


def genesis(folder: RunFolder) -> Genesis:
    """For a chain whose wallets are made."""
    return Genesis(endowed={coldkey(folder, wallet): tao for wallet, tao in COLDKEYS.items()}, new_subnets=TUNED)


def coldkey(folder: RunFolder, wallet: str) -> str:
    """Address of a wallet's coldkey."""
    file = folder.wallets / wallet / "coldkeypub.txt"
    return msgspec.json.decode(file.read_bytes(), type=_PublicKeyFile).ss58Address
