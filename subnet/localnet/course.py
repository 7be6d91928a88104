"""How a run went so far: what a single status does not tell.

Law: pure and bounded; it knows the statuses it was shown, in their order, and nothing else.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from subnet.localnet.public_status import Status

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS_MAX = 24
SPARK_MAX = 1e100
LOSSES_KEPT = 4 * SPARKS_MAX
SPEED_OVER_S = 20.0


class Course:
    """What one status does not tell: how fast it goes, and how the training loss went."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        """Seconds since the launch and tokens, over the last `SPEED_OVER_S`."""
        self.now_s = 0.0
        self.losses: list[float] = []
        """Evenly spread over the run so far, `LOSSES_KEPT` at most."""
        self._every = self._skipped = 1
        self._micro_batches = 0

    def note(self, status: Status, now_s: float) -> None:
        self.now_s = now_s
        self._seen.append((now_s, status.tokens))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= SPEED_OVER_S:
            self._seen.popleft()
        if status.loss is None or status.micro_batches == self._micro_batches:
            return
        self._micro_batches, self._skipped = status.micro_batches, self._skipped + 1
        if self._skipped >= self._every:
            self._skipped = 0
            self.losses.append(status.loss)
        if len(self.losses) > LOSSES_KEPT:
            self.losses, self._every = self.losses[::2], 2 * self._every

    @property
    def tokens_per_s(self) -> float | None:
        (since_s, before), (now_s, tokens) = self._seen[0] if self._seen else (0.0, 0), (self.now_s, self._tokens)
        return (tokens - before) / (now_s - since_s) if now_s > since_s else None

    @property
    def _tokens(self) -> int:
        return self._seen[-1][1] if self._seen else 0


def sparks(values: Sequence[float], width: int = SPARKS_MAX) -> str:
    """A course in so many letters at most; what is not finite is left out, what is beyond all sense is cut."""
    numbers = [min(SPARK_MAX, max(-SPARK_MAX, value)) for value in values if math.isfinite(value)]
    size = min(width, len(numbers))
    bounds = [index * len(numbers) // size for index in range(size + 1)] if size else []
    means = [sum(numbers[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    if not means or max(means) == min(means):
        return BLOCKS[0] * size
    low, high = min(means), max(means)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in means)
