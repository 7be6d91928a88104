"""Commitments in memory: one slot per hotkey, and what was told in each block.

Law: a new commitment overwrites the one before; a hotkey writes only so many bytes between two chain epochs.
"""

from __future__ import annotations

from subnet.chain import refusals
from subnet.chain.base import Outcome
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason

FLOOR_BYTES, LIMIT_BYTES = 100, 3_100
"""What one commitment counts for at least, and how much a hotkey may write between two chain epochs."""


class Commitments:
    def __init__(self) -> None:
        self._newest: dict[Hotkey, str] = {}
        self._told: dict[tuple[int, Hotkey], str] = {}
        self._used_bytes: dict[Hotkey, int] = {}
        self.oldest = 0
        """Blocks before it have no body any more: what was told in them is lost."""

    def commit(self, hotkey: Hotkey, data: str, block: int) -> Outcome:
        size_bytes, used_bytes = len(data.encode()), self._used_bytes.get(hotkey, 0)
        if size_bytes > refusals.COMMITMENT_MAX_BYTES:
            return refusals.too_long(size_bytes)
        if used_bytes + max(size_bytes, FLOOR_BYTES) > LIMIT_BYTES:
            sentence = f"{used_bytes} of {LIMIT_BYTES} bytes of commitments are used up until the next chain epoch"
            return Outcome(False, Reason.RATE_LIMITED, sentence)
        self._used_bytes[hotkey] = used_bytes + max(size_bytes, FLOOR_BYTES)
        self._newest[hotkey] = self._told[block, hotkey] = data
        return Outcome(True, Reason.OK, f"{size_bytes} bytes are committed at block {block}", block)

    def newest(self, hotkey: Hotkey) -> str | None:
        return self._newest.get(hotkey)

    def told_in(self, block: int, hotkey: Hotkey) -> str | None:
        return self._told.get((block, hotkey))

    def prune(self, before: int) -> None:
        """Plays a node that keeps no old blocks."""
        self.oldest = max(self.oldest, before)
        self._told = {key: data for key, data in self._told.items() if key[0] >= self.oldest}

    def chain_epoch(self) -> None:
        """Everybody may write again."""
        self._used_bytes.clear()
