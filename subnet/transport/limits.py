"""Limits of the server's door, as plain arithmetic: sizes, rates, bytes in flight.

Law: no clock and no I/O (`now` is an argument), and every table here has a largest size, so that no traffic can make
the process grow.
"""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one server takes. The defaults fit a few hundred miners on a small machine."""

    request_bytes_max: int = _MIB
    """Largest control request."""
    hotkey_rate_per_s: float = 100.0
    """Sustained signed requests of one hotkey."""
    hotkey_burst: int = 200
    held_per_hotkey_max: int = 16
    """Requests of one hotkey that may be open at once; an exchange is held open for seconds."""
    address_rate_per_s: float = 10.0
    """Sustained unauthenticated requests of one network address; signed requests and granted URLs do not count."""
    address_burst: int = 100
    table_entries_max: int = 10_000
    """Hotkeys or addresses remembered at once; the longest silent one is forgotten first."""
    max_age_s: float = 10.0
    """How old a signed request may be."""
    skew_s: float = 2.0
    """How far a caller's clock may run ahead."""
    nonces_max: int = 100_000
    """Requests accepted within max_age_s + skew_s, over all hotkeys."""
    read_bytes_max: int = 16 * _MIB
    """Largest object or range served by one GET; longer ones are read in ranges."""
    objects_in_flight_bytes_max: int = 48 * _MIB
    """Object bytes in memory at once, both ways; above it a transfer is told to come again (a lone one passes)."""
    transfer_timeout_s: float = 60.0
    """Longest time one request or object body may take to arrive or to leave."""


class TokenBuckets:
    """One token bucket per name: `burst` requests at once, `rate_per_s` in the long run."""

    def __init__(self, rate_per_s: float, burst: int, entries_max: int) -> None:
        self._rate_per_s, self._burst, self._entries_max = rate_per_s, float(burst), entries_max
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, now: float) -> bool:
        """Whether `name` may do one more thing now; if so, it is counted."""
        tokens, then = self._buckets.pop(name, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - then) * self._rate_per_s)
        allowed = tokens >= 1.0
        self._buckets[name] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > self._entries_max:
            del self._buckets[next(iter(self._buckets))]
        return allowed

    def __len__(self) -> int:
        return len(self._buckets)


class ByteBudget:
    """Bytes that may be held at once. One holder may exceed it alone, so that nothing is refused for ever."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max, self.held = bytes_max, 0

    def take(self, size_bytes: int) -> bool:
        if self.held and self.held + size_bytes > self._bytes_max:
            return False
        self.held += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        self.held -= size_bytes
