"""The owner's one commitment on chain: where the orchestrator is, and the head of its journal after an epoch.

Law: at most 128 bytes of ASCII, one spelling for one anchor; what is not spelt exactly so is no anchor. Pure.

    i1 <epoch> <head in base 85, 40 digits>{ s<host and path of an https URL> | p<those of an http URL>}

With two URLs and epochs below a million that leaves 74 bytes for both hosts, ports and paths.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import NamedTuple

from subnet.errors import ConfigError
from subnet.protocol.ids import Digest, Epoch

ANCHOR_MAX_BYTES = 128
URLS_MAX = 2
_VERSION = "i1"
_SCHEMES = {"s": "https://", "p": "http://"}
_PLACE = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?"
_URL = re.compile(rf"(https?://)({_PLACE})")
_ANCHOR = re.compile(rf"{_VERSION} (0|[1-9][0-9]{{0,17}}) ([!-~]{{40}})((?: [sp]{_PLACE}){{1,{URLS_MAX}}})")
_EMPTY_BYTES = len(f"{_VERSION} 999999 ") + 40


class Anchor(NamedTuple):
    urls: tuple[str, ...]
    """Of the orchestrator, most preferred first; without a slash at the end."""
    epoch: Epoch
    """How many epochs every stage had closed: 0 when the run began."""
    head: Digest
    """Of the journal then."""


def check_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """As they will be published. Raises ConfigError for what cannot be: call it at start, not at the first epoch."""
    if not 1 <= len(urls) <= URLS_MAX:
        raise ConfigError("--public-url", f"{len(urls)} URLs were given", f"give one or {URLS_MAX}")
    plain = tuple(url.rstrip("/") for url in urls)
    for url in plain:
        if not _URL.fullmatch(url):
            remedy = "give http:// or https://, host, port and path, without user, query or fragment"
            raise ConfigError("--public-url", f"{url[:100]!r} cannot be published on chain", remedy)
    room = ANCHOR_MAX_BYTES - _EMPTY_BYTES - sum(len(_brief(url)) + 1 for url in plain)
    if room < 0:
        problem = f"{' and '.join(plain)} are {-room} bytes too long for one commitment"
        raise ConfigError("--public-url", problem, "give a shorter one, or one only")
    return plain


def encode(anchor: Anchor) -> str:
    """The commitment. Raises ConfigError as `check_urls` does."""
    head = base64.b85encode(bytes.fromhex(anchor.head)).decode()
    places = "".join(f" {_brief(url)}" for url in check_urls(anchor.urls))
    return f"{_VERSION} {anchor.epoch} {head}{places}"


def decode(commitment: str | None) -> Anchor | None:
    """None for a commitment that is no anchor, whatever it is."""
    found = _ANCHOR.fullmatch(commitment or "")
    if commitment is None or found is None:
        return None
    try:
        head = base64.b85decode(found[2]).hex()
    except ValueError:
        return None
    urls = tuple(_SCHEMES[place[0]] + place[1:] for place in found[3].split())
    anchor = Anchor(urls, Epoch(int(found[1])), Digest(head))
    return anchor if commitment.isascii() and all(not url.endswith("/") for url in urls) else None


def _brief(url: str) -> str:
    return next(letter + url.removeprefix(scheme) for letter, scheme in _SCHEMES.items() if url.startswith(scheme))
