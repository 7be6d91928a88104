"""What a validator does with the chain: follows the journal, keeps its weights, tells of them, looks at the anchors.

Law: the journal and the chain may be away, each without the other: weights of the last record that is folded are kept
fresh while no newer one comes, and what the chain missed follows at its first answer. Each state is said once. A
journal that breaks ends it all.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

from loguru import logger

from subnet.errors import PeerFault, Unavailable
from subnet.protocol.messages import Message, Noted, Reply, WeightsSet
from subnet.protocol.reasons import REMEDY, Reason
from subnet.runtime import Runtime
from subnet.validator.anchors import AnchorWatch
from subnet.validator.follower import Follower, JournalBroken
from subnet.validator.weight_setter import WeightSetter, limit_blocks

LOOK_EVERY_S = 1.0
TELL_AGAIN_MAX_S = 30.0
"""Between two tries of a report that the orchestrator does not take: it may learn of our permit later than we do."""
LAST_WEIGHTS_S = 60.0
"""After the run's end, beside the chain's rate limit: a chain that refuses for longer keeps the weights it has."""

Call = Callable[[Message], Awaitable[Reply | None]]
"""One message to the orchestrator; None when there was no answer."""


class Settler:
    """One validator's."""

    def __init__(
        self, follower: Follower, weights: WeightSetter, anchors: AnchorWatch, call: Call, runtime: Runtime
    ) -> None:
        self._follower, self._weights, self._anchors = follower, weights, anchors
        self._call, self._runtime = call, runtime
        self._untold: WeightsSet | None = None
        self._stands: tuple[tuple[int, float], ...] = ()
        self._tell_at, self._tell_pause_s = 0.0, LOOK_EVERY_S
        self._away_since: float | None = None
        self._journal_said = ""

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Until the run `is_over` and its last weights are set and told. Raises JournalBroken."""
        ends_at = math.inf
        while True:
            over = is_over()  # asked first: what was true before the looks below is in them
            await self._follow()
            await self._look_at_chain()
            await self._tell()
            if over:
                ends_at = min(ends_at, self._runtime.monotonic() + self._patience_s())
                current = self._untold is None and self._follower.caught_up and self._weights.is_current(self._follower)
                if current or self._runtime.monotonic() >= ends_at:
                    return
            await self._runtime.sleep(LOOK_EVERY_S)

    async def _follow(self) -> None:
        try:
            await self._follower.catch_up()
        except JournalBroken:
            raise
        except (Unavailable, PeerFault) as error:
            if str(error) != self._journal_said:
                logger.warning("the journal waits: {}", error)
            self._journal_said = str(error)
        else:
            self._journal_said = ""

    async def _look_at_chain(self) -> None:
        now, seen_before = self._runtime.monotonic(), self._weights.subnet
        try:
            report = await self._weights.look(self._follower, now)
            if report is not None:
                self._note(report)
            subnet = self._weights.subnet
            asked = subnet is not seen_before
            if subnet is not None:
                asked |= await self._anchors.look(subnet.owner_hotkey, subnet.block.number, self._runtime.now())
        except Unavailable as error:
            if self._away_since is None:
                logger.warning("{}: {}; {}", Reason.CHAIN_AWAY.value, error, REMEDY[Reason.CHAIN_AWAY])
                self._away_since = now
            return
        if asked and self._away_since is not None:
            logger.info("the chain answers again, after {:.0f} s", self._runtime.monotonic() - self._away_since)
            self._away_since = None

    def _note(self, report: WeightsSet) -> None:
        """What the chain took must be told; a refusal is worth a word, unless something else is to be told."""
        if report.block:
            # set again unchanged, they are worth a line to nobody
            logger.log("DEBUG" if report.weights == self._stands else "INFO", "{}", report.sentence)
            self._stands = report.weights
        else:
            logger.warning("no weights are set: {}{}", report.sentence, _remedy(report.sentence))
        if report.block or self._untold is None or not self._untold.block:
            self._untold, self._tell_at, self._tell_pause_s = report, 0.0, LOOK_EVERY_S

    async def _tell(self) -> None:
        now = self._runtime.monotonic()
        if self._untold is None or now < self._tell_at:
            return
        reply = await self._call(self._untold)
        if isinstance(reply, Noted) or (reply is not None and not self._untold.block):
            self._untold = None
            return
        if reply is not None:
            self._tell_pause_s = min(2 * self._tell_pause_s, TELL_AGAIN_MAX_S)
        self._tell_at = now + self._tell_pause_s

    def _patience_s(self) -> float:
        seen = self._weights.subnet
        return LAST_WEIGHTS_S + (0.0 if seen is None else limit_blocks(seen) * seen.block_s)


def _remedy(sentence: str) -> str:
    """Of a refusal, which begins with its reason."""
    reason = sentence.partition(":")[0]
    return f" -> {REMEDY[Reason(reason)]}" if reason in set(Reason) else ""
