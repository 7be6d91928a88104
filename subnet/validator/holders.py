"""Who held which uid, as the orchestrator's looks at the chain tell it in the journal.

Law: pure, fed with every look in order. A uid is a place, not a person: whoever it belonged to at one record may be
somebody else at the next. Only changes are kept, and where each look stands.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import ChainSeen


class Look(NamedTuple):
    record: int
    block: int


class Change(NamedTuple):
    """From this look on a uid belongs to somebody else."""

    record: int
    block: int
    hotkey: Hotkey | None
    """None: to nobody."""


class Holders:
    def __init__(self) -> None:
        self._looks: list[Look] = []
        self._changes: dict[int, list[Change]] = {}

    @property
    def first_block(self) -> int | None:
        """Of the first look; None while there is none."""
        return self._looks[0].block if self._looks else None

    def note(self, record: int, seen: ChainSeen) -> None:
        self._looks.append(Look(record, seen.block))
        now: dict[int, Hotkey | None] = dict.fromkeys(self._changes)
        now |= {neuron.uid: neuron.hotkey for neuron in seen.neurons}
        for uid, hotkey in now.items():
            changes = self._changes.setdefault(uid, [])
            if not changes or changes[-1].hotkey != hotkey:
                changes.append(Change(record, seen.block, hotkey))

    def changes(self, uid: int) -> tuple[Change, ...]:
        """Every holder so far, the first one too, oldest first."""
        return tuple(self._changes.get(uid, ()))

    def everybody(self) -> set[Hotkey]:
        """Who ever held one."""
        return {c.hotkey for changes in self._changes.values() for c in changes if c.hotkey is not None}

    def holder_at(self, uid: int, block: int) -> Hotkey | None:
        """Who held a uid in a block, as far as the looks tell."""
        found = [change.hotkey for change in self._changes.get(uid, ()) if change.block <= block]
        return found[-1] if found else None

    def went_on(self, uid: int, hotkey: Hotkey, record: int, block: int) -> bool | None:
        """Whether a uid that was `hotkey`'s after `record` was somebody else's at `block`.

        The first look after the record at that block or a later one decides; None while there is no such look.
        """
        start = bisect_right(self._looks, record, key=lambda look: look.record)
        decides = next((look.record for look in self._looks[start:] if look.block >= block), None)
        for change in self._changes.get(uid, ()):
            if change.record > record and (decides is None or change.record <= decides) and change.hotkey != hotkey:
                return True
        return None if decides is None else False

    def uids_of(self, hotkey: Hotkey) -> dict[int, tuple[Change, Change | None]]:
        """Every uid that a hotkey holds or held: since when, and what ended it (None: it holds it still); the latest
        time of each."""
        found: dict[int, tuple[Change, Change | None]] = {}
        for uid, changes in self._changes.items():
            for number, change in enumerate(changes):
                if change.hotkey == hotkey:
                    found[uid] = change, changes[number + 1] if number + 1 < len(changes) else None
        return found
