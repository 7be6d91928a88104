"""Verifiable draws: every random choice is a hash that anyone can recompute once the epoch's secret is revealed.

    draw(secret, purpose) = HMAC-SHA256(secret, purpose)

The secret of an epoch is committed at its opening and revealed at its close (DESIGN 7), so neither miners nor the
orchestrator can choose freely. Pure: no other randomness may be used in bands 1 and 2.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def draw_bytes(secret: bytes, *purpose: object) -> bytes:
    """32 bytes bound to `purpose`, whose parts are written with an unambiguous separator."""
    text = "\x1f".join(str(part) for part in purpose)
    return hmac.digest(secret, text.encode(), "sha256")


def draw_below(secret: bytes, bound: int, *purpose: object) -> int:
    """A uniform integer in [0, bound); the bias of the 256-bit modulus is below 2^-190 for any bound in use."""
    if bound < 1:
        raise ValueError(f"bound must be positive, got {bound}")
    return int.from_bytes(draw_bytes(secret, *purpose), "big") % bound


def choose(secret: bytes, options: Sequence[T], *purpose: object) -> T:
    """One of `options`; callers pass them in an order everyone can reproduce."""
    return options[draw_below(secret, len(options), *purpose)]


def shuffled(secret: bytes, options: Sequence[T], *purpose: object) -> list[T]:
    """A permutation: options sorted by a hash of their position."""
    keys = [draw_bytes(secret, *purpose, position) for position in range(len(options))]
    return [options[i] for i in sorted(range(len(options)), key=keys.__getitem__)]


def commitment(secret: bytes) -> str:
    """What is published at the opening of an epoch; `secret` is revealed at its close."""
    return hashlib.sha256(b"iota-secret\x1f" + secret).hexdigest()
