"""State as values: reads and writes storage items by name.

Law: a `Storage` is either the present, which can be written, or a past block, which cannot. Values are what `Interface`
decodes. The short forms (`number`, `flag`, `row` ...) are for the SubtensorModule pallet, where nearly all of it lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from subnet.chain.local.ledger.state import State
from subnet.chain.local.spec.interface import Interface
from subnet.errors import InvariantViolation

SUBTENSOR = "SubtensorModule"


class Storage:
    def __init__(self, state: State, interface: Interface, block: int | None = None) -> None:
        self.state, self.interface, self._block = state, interface, block

    def at(self, block: int | None) -> Storage:
        """The same state after an earlier block."""
        return Storage(self.state, self.interface, block)

    # ---- bytes

    def raw(self, key: bytes) -> bytes | None:
        return self.state.get(key, self._block)

    def raw_keys(self, prefix: bytes) -> list[bytes]:
        return self.state.keys(prefix, self._block)

    # ---- any pallet

    def get(self, pallet: str, name: str, *params: Any) -> Any:
        """The value; the item's default, or None for an optional item, when the key is absent."""
        codec = self.interface.item(pallet, name)
        raw = self.state.get(self.interface.storage_key(pallet, name, params), self._block)
        if raw is None:
            if codec.default is None:
                return None
            raw = codec.default
        return self.interface.decode(codec.value_type, raw)

    def put(self, pallet: str, name: str, params: Sequence[Any], value: Any) -> None:
        if self._block is not None:
            raise InvariantViolation("the past is read only")
        codec = self.interface.item(pallet, name)
        key = self.interface.storage_key(pallet, name, params)
        self.state.put(key, self.interface.encode(codec.value_type, value))

    def drop(self, pallet: str, name: str, params: Sequence[Any]) -> None:
        self.state.put(self.interface.storage_key(pallet, name, params), None)

    def pairs(self, pallet: str, name: str, *params: Any) -> list[tuple[Any, Any]]:
        """(rest of the key, value) of every present entry below some first parameters; one-part keys are bare."""
        codec = self.interface.item(pallet, name)
        found = []
        for key in self.state.keys(self.interface.storage_key(pallet, name, params), self._block):
            rest = self.interface.key_params(pallet, name, key, len(params))
            raw = self.state.get(key, self._block)
            assert raw is not None
            value = self.interface.decode(codec.value_type, raw)
            found.append((rest[0] if len(rest) == 1 else tuple(rest), value))
        return found

    # ---- SubtensorModule

    def value(self, name: str, *params: Any) -> Any:
        return self.get(SUBTENSOR, name, *params)

    def number(self, name: str, *params: Any) -> int:
        return int(self.get(SUBTENSOR, name, *params))

    def flag(self, name: str, *params: Any) -> bool:
        return bool(self.get(SUBTENSOR, name, *params))

    def account(self, name: str, *params: Any) -> str:
        return str(self.get(SUBTENSOR, name, *params))

    def row(self, name: str, *params: Any) -> list[Any]:
        return list(self.get(SUBTENSOR, name, *params))

    def has(self, name: str, *params: Any) -> bool:
        """Whether the key is present, default or not."""
        return self.state.get(self.interface.storage_key(SUBTENSOR, name, params), self._block) is not None

    def write(self, name: str, params: Sequence[Any], value: Any) -> None:
        self.put(SUBTENSOR, name, params, value)

    def add(self, name: str, params: Sequence[Any], amount: int) -> int:
        """Adds to a number and returns the sum."""
        total = self.number(name, *params) + amount
        self.put(SUBTENSOR, name, params, total)
        return total

    def remove(self, name: str, params: Sequence[Any]) -> None:
        self.drop(SUBTENSOR, name, params)
