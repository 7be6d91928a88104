"""The journal as anyone may read it: records with their bodies up to the live secret, heads alone from there on.

Law: a body travels byte for byte as the journal holds it (it is JSON inside JSON), so a reader can recompute every
head of the chain; a sealed record still commits to its body, because its head is made of it.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Raw, Struct, field

from subnet.protocol.ids import Digest
from subnet.protocol.messages import Hex64

PAGE_RECORDS_MAX = 1000
"""Records in one page at most."""
PAGE_BYTES_MAX = 4 << 20
"""Bytes of bodies in one page at most; a single larger record still makes a page."""
_SEALED = Raw(b"null")


class PublicRecord(Struct, frozen=True, kw_only=True):
    """One record of the journal."""

    index: Annotated[int, Meta(ge=0)]
    head: Hex64
    """Head of the chain after this record."""
    raw: Raw = field(name="body", default=_SEALED)

    @property
    def body(self) -> bytes | None:
        """An Envelope as JSON, as it was hashed; None while the record is sealed."""
        data = bytes(self.raw)
        return None if data == b"null" else data


class PublicPage(Struct, frozen=True, kw_only=True):
    """Some records in a row, and how far the journal goes."""

    records: tuple[PublicRecord, ...]
    sealed_from: Annotated[int, Meta(ge=0)]
    """The first sealed record; `index` + 1 when all are open."""
    head: Hex64
    """Of the newest record."""
    index: Annotated[int, Meta(ge=-1)]
    """Of the newest record; -1 while the journal is empty."""


def opened(index: int, head: Digest, body: bytes) -> PublicRecord:
    return PublicRecord(index=index, head=head, raw=Raw(body))


def sealed(index: int, head: Digest) -> PublicRecord:
    return PublicRecord(index=index, head=head)
