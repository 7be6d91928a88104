"""Free replicas, so filed that those with the fewest items in hand are found at once.

Law: a part of the index: what is in it follows from the state, and in which order things were filed does not matter.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection
from typing import TypeVar

from subnet.protocol.ids import Hotkey, MicroBatchId

T = TypeVar("T", MicroBatchId, float)


class Buckets:
    """Hotkeys by how many items they have in hand, each bucket in the order of names."""

    def __init__(self) -> None:
        self.count_of: dict[Hotkey, int] = {}
        self._names: dict[int, list[Hotkey]] = {}

    def file(self, hotkey: Hotkey, count: int | None) -> None:
        """Put a hotkey where it belongs now; None: nowhere."""
        before = self.count_of.get(hotkey)
        if before == count:
            return
        if before is not None:
            names = self._names[before]
            del names[bisect_left(names, hotkey)]
            if not names:
                del self._names[before]
            del self.count_of[hotkey]
        if count is not None:
            self.count_of[hotkey] = count
            insort(self._names.setdefault(count, []), hotkey)

    def __contains__(self, hotkey: Hotkey) -> bool:
        return hotkey in self.count_of

    def fewest(self, barred: Collection[Hotkey]) -> list[Hotkey]:
        """Those with the fewest items in hand that are not barred."""
        for count in sorted(self._names):
            names = self._names[count]
            free = [hotkey for hotkey in names if hotkey not in barred] if barred else names
            if free:
                return free
        return []


def remove(ordered: list[T], value: T) -> None:
    """Take a value out of a sorted list that holds it."""
    position = bisect_left(ordered, value)
    assert ordered[position] == value
    del ordered[position]
