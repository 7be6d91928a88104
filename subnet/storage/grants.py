"""Grants: the signed URLs of a store that has no server of its own, and the checks behind them.

Law: a grant allows one method on one key, of one exact size, until one second; the orchestrator that made it is the
only one who can make it (HMAC-SHA256 over method, key, size and expiry). Nothing is remembered per grant, so memory
does not grow with traffic; a grant may be used again until it expires, which is harmless: a slot's accepted digest
binds, not who wrote last. The clock is injected.
"""

from __future__ import annotations

import hmac
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from subnet.errors import PeerFault
from subnet.protocol.keys import ObjectKey, parse
from subnet.protocol.reasons import Reason

_SIGNATURE_CHARS = 32
"""128 bits of the HMAC: unforgeable, and URLs stay short."""
_ANY_SIZE = "any"
OBJECTS_PATH = "/objects/"
"""Where in a URL the key begins."""


class Grants:
    """Makes and checks the query part of granted URLs."""

    def __init__(self, secret: bytes, now: Callable[[], float]) -> None:
        if len(secret) < 16:
            raise ValueError("a grant secret has at least 16 bytes")
        self._secret, self._now = secret, now

    def query(self, method: str, key: ObjectKey, size_bytes: int | None, expires_at: float) -> str:
        """The query that allows `method` on `key`; `size_bytes` None grants any range."""
        size, expires = _ANY_SIZE if size_bytes is None else str(size_bytes), str(math.floor(expires_at))
        return f"expires={expires}&size={size}&sig={self._signature(method, key, size, expires)}"

    def check(self, method: str, key: str, query: Mapping[str, str]) -> int | None:
        """The granted size. Raises PeerFault: not a key, not granted, or expired."""
        try:
            parse(key)
        except ValueError as error:
            raise PeerFault(Reason.MALFORMED, str(error)) from None
        size, expires, given = (query.get(name, "") for name in ("size", "expires", "sig"))
        expected = self._signature(method, key, size, expires)
        if not hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace")):
            raise PeerFault(Reason.NOT_ALLOWED, f"this URL does not grant {method} of {key} at that size", key)
        if self._now() >= int(expires):
            raise PeerFault(Reason.STALE, f"the URL for {key} expired at {expires}", key)
        return None if size == _ANY_SIZE else int(size)

    def _signature(self, method: str, key: str, size: str, expires: str) -> str:
        text = f"{method}|{key}|{size}|{expires}".encode("utf-8", "replace")
        return hmac.digest(self._secret, text, "sha256").hex()[:_SIGNATURE_CHARS]


class GrantedStore(ABC):
    """What memory and files share: granting URLs, and serving them as an `ObjectEndpoint` through put and get."""

    def __init__(self, base_url: str, secret: bytes, now: Callable[[], float]) -> None:
        self.base_url = base_url.rstrip("/")
        """Set it again once the server's port is known."""
        self._grants = Grants(secret, now)

    @abstractmethod
    async def put(self, key: ObjectKey, data: bytes) -> None: ...

    @abstractmethod
    async def get(self, key: ObjectKey, offset: int = 0, length: int | None = None) -> bytes: ...

    def grant_put(self, key: ObjectKey, size_bytes: int, expires_at: float) -> str:
        return f"{self.base_url}{OBJECTS_PATH}{key}?{self._grants.query('PUT', key, size_bytes, expires_at)}"

    def grant_get(self, key: ObjectKey, expires_at: float) -> str:
        return f"{self.base_url}{OBJECTS_PATH}{key}?{self._grants.query('GET', key, None, expires_at)}"

    async def read(self, key: str, query: dict[str, str], offset: int, length: int | None) -> bytes:
        self._grants.check("GET", key, query)
        return await self.get(ObjectKey(key), offset, length)

    async def write(self, key: str, query: dict[str, str], data: bytes) -> None:
        if len(data) != (size := self.write_size_bytes(key, query)):
            raise PeerFault(Reason.BAD_SIZE, f"{key} is granted for {size} bytes, got {len(data)}", key)
        await self.put(ObjectKey(key), data)

    def write_size_bytes(self, key: str, query: dict[str, str]) -> int:
        size = self._grants.check("PUT", key, query)
        if size is None:
            raise PeerFault(Reason.NOT_ALLOWED, f"a PUT of {key} needs a grant with its size", key)
        return size
