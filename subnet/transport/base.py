"""Seams of the control and data planes as their users see them.

Law: a role talks to the orchestrator through `ControlClient` and moves tensors through `ObjectClient`; the orchestrator
answers behind `ControlHandler` and, when it serves the files itself, `ObjectEndpoint`. Signatures, nonces, framing and
size limits are the adapters' business: what reaches a handler is authenticated and typed.
"""

from __future__ import annotations

from typing import Protocol

from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.messages import Message, Refused, Reply, Request
from subnet.protocol.public import PublicPage


class ControlClient(Protocol):
    """One party's signed line to the orchestrator."""

    async def call(self, message: Message, spec_digest: Digest | None, timeout_s: float) -> Reply:
        """Send and wait for the answer; a refusal is an answer.

        Raises Unavailable when there was none (the same message may be sent again: results are idempotent), and
        PeerFault when the reply is not signed by the orchestrator or does not fit the protocol.
        """
        ...

    async def close(self) -> None: ...


class JournalReader(Protocol):
    """Reads the public journal, wherever it is kept. What it says is the other side's word: see who verifies it."""

    async def read(self, start: int, limit: int, timeout_s: float) -> PublicPage:
        """Up to `limit` records (at most `public.PAGE_RECORDS_MAX`) from index `start` on.

        Raises Unavailable when it is away or asks for patience, PeerFault when the answer is not a page.
        """
        ...

    async def close(self) -> None: ...


class ObjectClient(Protocol):
    """Moves bytes by granted URL, whoever runs the store."""

    async def get(self, url: str, offset: int, size_bytes: int, timeout_s: float) -> bytes:
        """Exactly `size_bytes` bytes from `offset`. Raises PeerFault when the object is of another size or missing,
        Unavailable when the store is away."""
        ...

    async def put(self, url: str, data: bytes, timeout_s: float) -> None:
        """Raises PeerFault when the grant does not allow it, Unavailable when the store is away."""
        ...

    async def close(self) -> None: ...


class ControlHandler(Protocol):
    """What a server calls; the orchestrator's service implements it."""

    async def handle(self, sender: Hotkey, request: Request) -> Reply:
        """`sender` has signed the request. May take as long as an exchange is held open."""
        ...

    async def refuse(self, refused: Refused) -> Reply:
        """Record a request that did not pass the door and say what to answer. Cheap: floods come through here."""
        ...

    def status(self) -> bytes:
        """The public view as JSON."""
        ...

    async def journal(self, start: int, limit: int) -> bytes:
        """A `public.PublicPage` as JSON, of bounded size. Raises Unavailable when the journal is away."""
        ...


class ObjectEndpoint(Protocol):
    """The serving side of a store that has no server of its own."""

    async def read(self, key: str, query: dict[str, str], offset: int, length: int | None) -> bytes:
        """Raises PeerFault when the URL does not grant it, KeyError when there is no such object."""
        ...

    async def write(self, key: str, query: dict[str, str], data: bytes) -> None:
        """Raises PeerFault when the URL does not grant exactly this."""
        ...

    def write_size_bytes(self, key: str, query: dict[str, str]) -> int:
        """The exact size a PUT must have, checked before a single byte of the body is read. Raises PeerFault."""
        ...
