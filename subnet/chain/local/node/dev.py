"""Methods that no public node has: for developers and tests.

Law: they do what a chain could do by itself, only sooner: the next block now, a time-locked commit opened now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from subnet.chain.local.chain import Chain
from subnet.chain.local.node.methods import BAD_PARAMS_CODE, RpcError

BLOCKS_MAX = 250
"""At once: whoever subscribes to heads must still be able to hear of each."""


def new_block(chain: Chain, produce: Callable[[], Any], count: int = 1) -> int:
    """Makes blocks at once; returns the newest number."""
    if not 1 <= count <= BLOCKS_MAX:
        raise RpcError(BAD_PARAMS_CODE, f"from 1 to {BLOCKS_MAX} blocks")
    for _ in range(count):
        produce()
    return chain.number


def reveal(
    chain: Chain, produce: Callable[[], Any], netuid: int, hotkey: str, uids: list[int], weights: list[int]
) -> bool:
    """Opens a hotkey's time-locked commits in the next block: offline there is no drand signature to do it."""
    del produce
    chain.reveal_later(netuid, hotkey, uids, weights)
    return True


Method = Callable[..., Any]
METHODS: dict[str, Method] = {"dev_newBlock": new_block, "dev_reveal": reveal}
