"""Keeps the chain's weights what the public journal says they should be.

Law: the weights are `coordination.settlement.sheet` of our own fold, nothing else; they are set when they changed and
the chain's rate limit allows it, at most once per tempo, and every setting is reported with the journal record it
follows from. What the chain refuses is tried again later; training never waits for it.
"""

from __future__ import annotations

from subnet.chain.base import Chain
from subnet.coordination.settlement import Sheet, sheet
from subnet.protocol.messages import WeightsSet
from subnet.validator.follower import Follower

RETRY_S = 5.0


class WeightSetter:
    """One validator's. `chain` is its own line to the subnet."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._set: dict[int, float] | None = None
        """What the chain took last."""
        self._next_at = 0.0
        self._refused = ""
        self.sheet: Sheet | None = None
        self._index = -1

    def is_current(self, follower: Follower) -> bool:
        """Whether the chain holds what follows from all that is folded."""
        return self._set is not None and self._set == self._weights(follower)

    async def look(self, follower: Follower, now: float) -> WeightsSet | None:
        """Set the weights if it is time; what to report of it. Raises Unavailable."""
        weights = self._weights(follower)
        if now < self._next_at or weights == self._set or follower.index < 0:
            return None
        outcome = await self._chain.set_weights(weights)
        if not outcome.done:
            self._next_at = now + RETRY_S
            if outcome.sentence == self._refused:
                return None
            self._refused = outcome.sentence
        else:
            subnet = await self._chain.subnet()
            limit = float(subnet.hyperparameters.get("weights_rate_limit", subnet.tempo))
            self._next_at = now + max(1.0, limit) * subnet.block_s
            self._set, self._refused = weights, ""
        return WeightsSet(
            index=follower.index,
            head=follower.head,
            weights=tuple(sorted(weights.items())),
            block=outcome.block if outcome.done else 0,
            sentence=outcome.sentence[:300],
        )

    def _weights(self, follower: Follower) -> dict[int, float]:
        if self._index != follower.index and follower.state is not None:
            self.sheet, self._index = sheet(follower.state), follower.index
        return self.sheet.emission.weights if self.sheet is not None else {}
