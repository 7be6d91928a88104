"""What the machine asks of its shell besides answers: secrets, looks at objects, own reductions, deletions.

Law: an errand changes no state. It ends in an own record for the journal, or in none, and waits out a store that is
away: the machine's deadlines go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, assert_never

from loguru import logger

from subnet.chain.base import Block, Chain, Subnet
from subnet.coordination.effects import CheckObject, DrawSecret, DropEpoch, ReadChain, RecomputeShard
from subnet.coordination.merge_state import InspectMerge
from subnet.errors import InvariantViolation, Unavailable
from subnet.orchestrator import inspection, merge_inspection
from subnet.protocol import keys
from subnet.protocol.ids import Epoch
from subnet.protocol.messages import ChainSeen, OwnRecord, SecretDrawn
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import Runtime
from subnet.storage.base import ObjectStore

Errand = CheckObject | RecomputeShard | InspectMerge | ReadChain | DrawSecret | DropEpoch
SECRET_BYTES = 32
RETRY_S = 2.0
"""Between two tries of a store or a chain that is away."""
MOVING_BY_THEMSELVES = {
    "difficulty": "rises with every proof-of-work registration and falls back from block to block (burn_half_life)",
    "burn": "the same for the price in TAO; the runtimes known so far list min_burn and max_burn instead",
}
"""Figures among the chain's hyperparameters that nobody sets, with what moves them: no news to the run."""
_INT_MAX = 2**63 - 1
"""Larger whole numbers do not travel in every encoding."""

T = TypeVar("T")


async def carry_out(
    errand: Errand, spec: RunSpec, store: ObjectStore, chain: Chain | None, runtime: Runtime
) -> OwnRecord | None:
    """The record that says what came of it."""
    match errand:
        case DrawSecret():
            return SecretDrawn(epoch=errand.epoch, secret=runtime.random_bytes(SECRET_BYTES).hex())
        case CheckObject():
            return await patiently(lambda: inspection.check(spec, store, errand, runtime), runtime)
        case RecomputeShard():
            return await patiently(lambda: inspection.recompute(spec, store, errand, runtime), runtime)
        case InspectMerge():
            return await patiently(lambda: merge_inspection.inspect(spec, store, errand, runtime), runtime)
        case ReadChain():
            if chain is None:
                raise InvariantViolation("this run has audits, and no chain whose blocks could draw them")
            return await read_chain(chain, errand.closes, errand.above, runtime)
        case DropEpoch():
            prefix = keys.epoch_prefix(spec.run_id, errand.epoch)
            dropped = await patiently(lambda: store.delete_prefix(prefix), runtime)
            logger.debug("epoch {} is behind the window: {} objects deleted", errand.epoch, dropped)
            return None
        case _ as never:
            assert_never(never)


async def read_chain(chain: Chain, closes: Epoch, above: int, runtime: Runtime) -> ChainSeen:
    """The reading that draws an epoch's audits, at the first block that nobody could know when it closed.

    The chain's first answer settles which one: whatever is away afterwards, no later block may take its place. `above`
    was known before, perhaps from another node that is ahead of ours.
    """
    newest = await patiently(lambda: chain.wait_for_block(0), runtime)
    block = await patiently(lambda: chain.wait_for_block(max(newest.number, above) + 1), runtime)
    return chain_seen(block, await patiently(chain.subnet, runtime), closes)


def chain_seen(block: Block, subnet: Subnet, closes: Epoch | None) -> ChainSeen:
    """The record of a reading. Hyperparameters are those that somebody sets: what moves by itself is left out."""
    return ChainSeen(
        block=block.number,
        block_hash=block.hash,
        owner_uid=subnet.owner_uid,
        neurons=tuple(sorted(subnet.neurons, key=lambda neuron: neuron.uid)),
        closes=closes,
        tempo=subnet.tempo,
        hyperparameters={
            name: float(value) if value > _INT_MAX else value  # fixed-point bits may have 128
            for name, value in sorted(subnet.hyperparameters.items())
            if name not in MOVING_BY_THEMSELVES
        },
    )


async def patiently(attempt: Callable[[], Awaitable[T]], runtime: Runtime) -> T:
    """What `attempt` gives, tried again while the outside is away; one log line for each change of what is wrong."""
    said = ""
    while True:
        try:
            return await attempt()
        except Unavailable as error:
            if str(error) != said:
                said = str(error)
                logger.warning("no answer, trying again: {}", said)
            await runtime.sleep(RETRY_S)
