"""One hotkey's machine in a crowd: how fast it computes, how far its line carries, and what is wrong with it now.

Law: the machine outlives its processes, and so do the states that they committed (`snapshots`: its disk). What is
planned for one process never happens to the next one; what is due while the machine is paused happens when it goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from subnet.miner.snapshots import MemorySnapshots
from subnet.protocol.ids import Hotkey, Pass
from subnet.simulation.crowd_events import Events, Stream
from subnet.simulation.crowd_spec import FORWARD_S, STANDS_FOR, TIMES

SPEED_SIGMA, PASS_SIGMA = 0.3, 0.1
"""How much miners differ, and how much the passes of one."""
UP_BYTES_S, DOWN_BYTES_S, LINE_SIGMA = 15e6, 40e6, 0.6
LATENCY_S = 0.06
MERGE_COMPUTE_S = 2.0
"""The arithmetic of an upload, a reduction, an outer step or a load, on a median machine."""


class Machine:
    """`draws` is the stream of all machines' passes."""

    __slots__ = (
        "cheats_reducing",
        "cheats_training",
        "cut_until",
        "delayed_until",
        "delays_s",
        "down_bytes_s",
        "draws",
        "events",
        "hotkey",
        "in_trouble",
        "latency_s",
        "life",
        "losing",
        "number",
        "paused_until",
        "seconds",
        "slow_factor",
        "slow_until",
        "snapshots",
        "up_bytes_s",
    )

    def __init__(self, hotkey: Hotkey, number: int, events: Events, hardware: Stream, draws: Stream) -> None:
        self.hotkey, self.number, self.events, self.draws = hotkey, number, events, draws
        self.seconds = FORWARD_S * hardware.factor(SPEED_SIGMA)
        self.up_bytes_s = UP_BYTES_S / STANDS_FOR * hardware.factor(LINE_SIGMA)
        self.down_bytes_s = DOWN_BYTES_S / STANDS_FOR * hardware.factor(LINE_SIGMA)
        self.latency_s = LATENCY_S * hardware.factor(LINE_SIGMA)
        self.snapshots = MemorySnapshots()
        self.cheats_training = self.cheats_reducing = False
        self.life = 0
        """Number of the process that runs now; negative when none does."""
        self.paused_until = self.slow_until = self.cut_until = self.delayed_until = 0.0
        self.slow_factor, self.delays_s, self.losing = 1.0, (0.0, 0.0), 0
        self.in_trouble = False
        """Whether `way_s` has to be asked: its line was struck, perhaps long ago."""

    # ---- processes ---------------------------------------------------------------------------------------------------

    def begins(self) -> int:
        """A new process; its number."""
        self.life = abs(self.life) + 1
        return self.life

    def ends(self) -> None:
        self.life = -abs(self.life)
        self.paused_until = 0.0

    def later(self, life: int, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Plan something for one of its processes."""
        events = self.events
        events.at(events.now + delay_s, self._happens, life, action, arguments)

    def _happens(self, life: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if life != self.life:
            return
        if self.events.now < self.paused_until:
            self.events.at(self.paused_until, self._happens, life, action, arguments)
            return
        action(*arguments)

    # ---- how long things take ----------------------------------------------------------------------------------------

    def pass_s(self, kind: Pass, recomputes: bool) -> float:
        """One pass; a backward without its graph runs the forward first."""
        times = TIMES[kind] + (TIMES[Pass.FORWARD] if recomputes else 0.0)
        lazy = 0.1 if self.cheats_training else 1.0
        return self.seconds * times * self.draws.factor(PASS_SIGMA) * self._slowed() * lazy

    def merge_s(self) -> float:
        return self.seconds / FORWARD_S * MERGE_COMPUTE_S * self._slowed()

    def up_s(self, size_bytes: int) -> float:
        return self.latency_s + size_bytes / self.up_bytes_s

    def down_s(self, size_bytes: int) -> float:
        return self.latency_s + size_bytes / self.down_bytes_s

    def _slowed(self) -> float:
        return self.slow_factor if self.events.now < self.slow_until else 1.0

    # ---- the line ----------------------------------------------------------------------------------------------------

    def way_s(self) -> float | None:
        """Seconds for one message, there or back; None when it is lost."""
        now = self.events.now
        if now < self.cut_until:
            return None
        if self.losing:
            self.losing -= 1
            return None
        if now < self.delayed_until:
            return self.latency_s + self.draws.between(*self.delays_s)
        return self.latency_s
