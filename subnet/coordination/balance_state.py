"""What the run state knows for rebalancing: a part of it, under the same law as `state`."""

from __future__ import annotations

from msgspec import Struct, field

from subnet.protocol.ids import Hotkey


class Balance(Struct):
    """When stages were compared, since when one starves, who moved."""

    look_at: float = 0.0
    """When the stages' strengths are compared next."""
    starving_since: float | None = None
    """Since when, at every look, a move would have helped."""
    moved_at: dict[Hotkey, float] = field(default_factory=dict)
    """Who moved lately, and when."""
