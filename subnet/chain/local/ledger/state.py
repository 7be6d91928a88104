"""Raw state: SCALE bytes by storage key, with the recent past.

Law: knows keys, bytes and block numbers, nothing of what they mean. `attempt` undoes whatever its body wrote when the
body fails. After `seal`, the state at each of the last `keep_blocks` blocks can be read; what only older blocks need is
forgotten, so memory is bounded by the size of the present state and the changes of `keep_blocks` blocks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from subnet.errors import InvariantViolation

PREFIX_BYTES = 32
"""Pallet and item: what all keys of one map begin with."""


class Change(NamedTuple):
    """A key's new value at the block being sealed; None: it is gone."""

    key: bytes
    value: bytes | None


class Forget(NamedTuple):
    """Versions of `key` before `before` are needed by nobody any more."""

    key: bytes
    before: int


class State:
    def __init__(self, keep_blocks: int) -> None:
        self._keep_blocks = keep_blocks
        self._versions: dict[bytes, tuple[list[int], list[bytes | None]]] = {}
        self._keys: dict[bytes, set[bytes]] = {}
        self._undo: list[tuple[bytes, bytes | None]] | None = None
        self._changed: dict[bytes, None] = {}
        """Keys written in the block being made, in order."""
        self._recent: deque[tuple[int, tuple[bytes, ...]]] = deque()
        self.block = 0
        """The block being made."""

    # ---- reading

    @property
    def oldest(self) -> int:
        """First block whose state can still be read."""
        return max(0, self.block - self._keep_blocks)

    def get(self, key: bytes, block: int | None = None) -> bytes | None:
        """Now, or as it was after `block`."""
        found = self._versions.get(key)
        if found is None:
            return None
        blocks, values = found
        at = len(blocks) if block is None else bisect_right(blocks, block)
        return values[at - 1] if at else None

    def keys(self, prefix: bytes, block: int | None = None) -> list[bytes]:
        """Present keys that begin with `prefix`, sorted."""
        if len(prefix) < PREFIX_BYTES:
            groups = [keys for group, keys in self._keys.items() if group.startswith(prefix)]
        else:
            groups = [self._keys.get(prefix[:PREFIX_BYTES], set())]
        return sorted(
            key for keys in groups for key in keys if key.startswith(prefix) and self.get(key, block) is not None
        )

    # ---- writing

    def put(self, key: bytes, value: bytes | None) -> None:
        old = self.get(key)
        if old == value:
            return
        if self._undo is not None:
            self._undo.append((key, old))
        blocks, values = self._versions.setdefault(key, ([], []))
        if blocks and blocks[-1] == self.block:
            values[-1] = value
        else:
            blocks.append(self.block)
            values.append(value)
        self._changed[key] = None
        self._keys.setdefault(key[:PREFIX_BYTES], set()).add(key)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """All of the body's writes, or none when it raises. May be nested."""
        outer, self._undo = self._undo, []
        try:
            yield
        except BaseException:
            undo, self._undo = self._undo, None
            for key, old in reversed(undo):
                self.put(key, old)
            self._undo = outer
            raise
        if outer is not None:
            outer.extend(self._undo)
        self._undo = outer

    # ---- blocks

    def begin(self, block: int) -> None:
        if block != self.block + 1 and self._versions:
            raise InvariantViolation(f"block {block} after {self.block}")
        self.block = block

    def changes(self) -> list[Change]:
        """What the block being made has changed."""
        return [Change(key, self.get(key)) for key in self._changed]

    def seal(self) -> list[Forget]:
        """Ends the block; says which versions have become too old."""
        self._recent.append((self.block, tuple(self._changed)))
        self._changed = {}
        forgotten = []
        while self._recent and self._recent[0][0] <= self.oldest:
            block, keys = self._recent.popleft()
            for key in keys:
                self._forget(key, block)
                forgotten.append(Forget(key, block))
        return forgotten

    def restore(self, block: int, versions: Iterable[tuple[int, bytes, bytes | None]]) -> None:
        """Versions (block, key, value) in the order of their blocks, as they were when `block` was sealed."""
        self.block = block
        for at, key, value in versions:
            blocks, values = self._versions.setdefault(key, ([], []))
            blocks.append(at)
            values.append(value)
            self._keys.setdefault(key[:PREFIX_BYTES], set()).add(key)
            if self._recent and self._recent[-1][0] == at:
                self._recent[-1] = (at, (*self._recent[-1][1], key))
            else:
                self._recent.append((at, (key,)))

    def _forget(self, key: bytes, block: int) -> None:
        found = self._versions.get(key)
        if found is None:
            return
        blocks, values = found
        at = bisect_right(blocks, block) - 1
        if at > 0:
            del blocks[:at], values[:at]
        if len(blocks) == 1 and values[0] is None:
            del self._versions[key]
            group = self._keys[key[:PREFIX_BYTES]]
            group.discard(key)
            if not group:
                del self._keys[key[:PREFIX_BYTES]]
