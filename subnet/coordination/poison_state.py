"""What the run state knows about poisoned merges: a part of it, under the same law as `state`. Bounded."""

from __future__ import annotations

from msgspec import Struct, field

from subnet.protocol.ids import Epoch, Hotkey

HEARD_KEPT = 6
"""Windows of losses, the newest one included."""
ROLL_BACKS_KEPT = 50


class Heard(Struct):
    """One window: what passes said whose newest parameters are of some neighbouring generations."""

    first: int
    last: int
    count: int = 0
    losses: dict[Hotkey, list[float]] = field(default_factory=dict)
    """Sum and count by the last stage's replica that reported them."""
    through: dict[Hotkey, list[int]] = field(default_factory=dict)
    """By replica of the other stages: exploded losses that went through it, and all."""
    not_finite: dict[int, dict[Hotkey, int]] = field(default_factory=dict)
    """By stage and replica: passes that came to no finite number."""
    blamed: dict[Hotkey, int] = field(default_factory=dict)
    """Faults that were counted for such passes: forgiven when the merge is taken back."""
    reference: float | None = None
    """The loss of before; None while too little is known."""
    since: int = 0
    """The first generation that the reference knows nothing of."""


class RollBack(Struct):
    """One roll-back, in progress or settled."""

    at: float
    epoch: Epoch
    """The oldest epoch whose merge was taken back."""
    sentence: str
    stages: list[int] = field(default_factory=list)
    """Whose merge of that epoch was taken up again."""
    offenders: dict[Hotkey, str] = field(default_factory=dict)
    outcome: str = ""
    """Empty while the orchestrator looks at the uploads."""


class Poison(Struct):
    """Watching for poisoned merges, and what was done about them."""

    generation: int = 0
    """Merges of all stages so far, those that were taken back included."""
    heard: list[Heard] = field(default_factory=list)
    suspected: bool = False
    """Whether something bad was heard and not yet weighed."""
    good: int = 0
    """The newest generation that a loss as of before was heard of."""
    overflowing: int = -1
    """A stage whose merge somebody could not apply, likewise."""
    rolling: RollBack | None = None
    roll_backs: list[RollBack] = field(default_factory=list)
    count: int = 0
    counted_from: float = 0.0
    """Roll-backs before the operator last started the orchestrator do not count towards the pause."""
    named_at: dict[Hotkey, float] = field(default_factory=dict)
    """When an offender was named last."""
