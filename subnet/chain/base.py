"""Seam of the settlement plane: the chain as one subnet's neurons see it.

Law: a chain is asked and told, never trusted with more than it holds: uids, stake, permits, weights, one commitment per
hotkey. `Unavailable` means that it does not answer now: training goes on and weights follow later. What it refuses is
an `Outcome` with a reason, not an exception. On-chain weights are "weights"; model tensors never are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Neuron
from subnet.protocol.reasons import Reason


class Block(NamedTuple):
    number: int
    hash: str
    """Lower-case hex without 0x, 64 digits."""


class Pay(NamedTuple):
    """What the chain shows of one uid's earnings."""

    incentive: float
    """Share of the miners' part, 0 to 1."""
    dividends: float
    """Share of the validators' part, 0 to 1."""
    emission_alpha: float
    """Alpha of the last chain epoch (tempo)."""


class Subnet(NamedTuple):
    """One reading of the subnet, all at one block."""

    block: Block
    tempo: int
    """Blocks between two chain epochs."""
    block_s: float
    """Seconds between two blocks."""
    owner_uid: int
    owner_hotkey: Hotkey
    """Whose commitment says where the orchestrator is, whether or not it has a uid."""
    neurons: tuple[Neuron, ...]
    pay: Mapping[int, Pay]
    """By uid."""
    hyperparameters: Mapping[str, float | int | bool]
    """On-chain ones, by btcli's names: tempo, immunity_period, weights_rate_limit, commit_reveal_enabled, ..."""


class Row(NamedTuple):
    """One validator's weights as the chain holds them."""

    shares: Mapping[int, float]
    """By target uid; they sum to 1."""
    block: int
    """In which they were set (`LastUpdate`)."""


class Outcome(NamedTuple):
    """What became of something told to the chain."""

    done: bool
    reason: Reason
    sentence: str
    block: int = 0
    """Where it stands; 0 when it was refused."""


class Chain(Protocol):
    """One hotkey's line to one subnet. Every method raises Unavailable when the chain does not answer."""

    async def wait_for_block(self, number: int) -> Block:
        """Block `number`, waited for if it is still to come; the newest one when `number` is 0."""
        ...

    async def subnet(self) -> Subnet:
        """Everything about the subnet, at the newest block."""
        ...

    async def set_weights(self, weights: Mapping[int, float]) -> Outcome:
        """This hotkey's weights by uid: non-negative; the chain normalises them. Plain or commit-reveal as it says."""
        ...

    async def commit(self, data: str) -> Outcome:
        """Put this hotkey's one commitment, at most 128 bytes; the one before is overwritten."""
        ...

    async def commitment(self, hotkey: Hotkey) -> str | None:
        """What a hotkey has committed; None when it has nothing."""
        ...

    async def committed_in(self, number: int, hotkey: Hotkey) -> str | None:
        """What a hotkey told the chain to commit in block `number`: signed by it, and never overwritten there.

        None when it committed nothing then. Raises Unavailable when the node holds that block's body no more.
        """
        ...

    async def weights(self) -> Mapping[int, Row]:
        """The weights that stand now, by validator uid; validators without any are left out."""
        ...

    async def close(self) -> None: ...
