"""How long to wait before the next try: exponential, capped, jittered, so that a thousand miners do not knock at once.

Law: pure; the randomness is an argument (`runtime.random_bytes(2)`).
"""

from __future__ import annotations

FIRST_S = 0.5
CAP_S = 8.0


def backoff_s(tries: int, jitter: bytes, cap_s: float = CAP_S) -> float:
    """Seconds before the try after `tries` >= 1 failed ones: half to the whole of min(cap, FIRST_S * 2^(tries - 1))."""
    assert tries >= 1 and len(jitter) == 2
    ceiling_s = min(cap_s, FIRST_S * 2.0 ** min(tries - 1, 16))
    return ceiling_s * (0.5 + int.from_bytes(jitter, "big") / 131_070)
