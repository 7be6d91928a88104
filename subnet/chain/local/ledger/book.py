"""The block in the making, as the pallets see it: storage, block number, events, and how a call fails.

Law: every pallet is a module of plain functions `call(book, who, **arguments)`; they change storage, deposit events, or
raise `CallFailed`, whereupon the caller undoes all they did. `who` is the signer's ss58 address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from subnet.chain.local.ledger.storage import SUBTENSOR, Storage

U16_MAX = 65_535


class CallFailed(Exception):
    """The chain's own refusal, by the name that clients know. Pallet '': the runtime's own, BadOrigin and Other."""

    def __init__(self, name: str, pallet: str = SUBTENSOR) -> None:
        super().__init__(f"{pallet}.{name}")
        self.name, self.pallet = name, pallet


class Book:
    """One for the whole life of a chain; `begin` turns the page."""

    def __init__(self, storage: Storage, new_subnets: Mapping[str, int]) -> None:
        self.storage = storage
        self.new_subnets = dict(new_subnets)
        """Hyperparameters that new subnets begin with, where they differ from the usual."""
        self.number = 0
        """Of the block being made."""
        self.events: list[dict[str, Any]] = []
        self.phase: Any = "Initialization"
        self.is_root = False
        """Inside a sudo call."""

    def begin(self, number: int) -> None:
        self.number, self.events, self.phase = number, [], "Initialization"

    def emit(self, pallet: str, name: str, attributes: Any = ()) -> None:
        """Attributes: a dict for named ones, a tuple otherwise, the bare value for a single one."""
        self.events.append({"phase": self.phase, "event": {pallet: {name: attributes}}, "topics": []})

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Writes and events of the body, or none of them when it raises."""
        mark = len(self.events)
        try:
            with self.storage.state.attempt():
                yield
        except BaseException:
            del self.events[mark:]
            raise

    @contextmanager
    def as_root(self) -> Iterator[None]:
        before, self.is_root = self.is_root, True
        try:
            yield
        finally:
            self.is_root = before


Handler = Callable[..., None]
"""`call(book, who, **arguments)`."""


def require(condition: object, error: str, pallet: str = SUBTENSOR) -> None:
    if not condition:
        raise CallFailed(error, pallet)


def require_origin(condition: object) -> None:
    """Whoever signed may not do this."""
    require(condition, "BadOrigin", "")


def require_subnet(book: Book, netuid: int) -> None:
    require(book.storage.flag("NetworksAdded", netuid), "SubnetNotExists")


def require_owner(book: Book, who: str, netuid: int, error: str = "BadOrigin") -> None:
    """The subnet's owner coldkey, or root."""
    require_subnet(book, netuid)
    is_owner = book.is_root or book.storage.account("SubnetOwner", netuid) == who
    require(is_owner, error, "" if error == "BadOrigin" else SUBTENSOR)
