"""Who said what: requests signed by btauth/1 (`bittensor.http_auth`), and replies signed back.

Law: the only module of the transport that knows `bittensor`. A request's signature covers method, path, body, a fresh
nonce, sender and receiver. A reply's covers the same with the method REPLY and the path `<path>#<nonce of the
request>`, so a reply answers one request of one sender and nothing else: an old one cannot be played again, whatever
the clocks say. Time is injected; every failure is a `PeerFault` with a reason of `protocol.reasons`.

The payload is specified at https://www.bittensor.com/docs/guides/signed-requests.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from bittensor import http_auth
from bittensor.wallets import Wallet, is_bittensor_address

from subnet.errors import ConfigError, PeerFault
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason

SIGNATURE_HEADER = http_auth.HEADER_SIGNATURE
_HEADERS = (
    http_auth.HEADER_VERSION,
    http_auth.HEADER_HOTKEY,
    http_auth.HEADER_RECEIVER,
    http_auth.HEADER_NONCE,
    http_auth.HEADER_CRYPTO,
    http_auth.HEADER_SIGNATURE,
)
_REASONS: dict[type[http_auth.AuthError], Reason] = {
    http_auth.MalformedAuth: Reason.UNSIGNED,
    http_auth.BadSignature: Reason.UNSIGNED,
    http_auth.WrongReceiver: Reason.WRONG_RECEIVER,
    http_auth.StaleRequest: Reason.STALE,
    http_auth.ReplayedRequest: Reason.REPLAYED,
}
_REPLY = "REPLY"
_NONCE_DIGITS_MAX = 20
_NS = 1_000_000_000


class Keypair(Protocol):
    """What signs: a hotkey's keypair (`wallet.hotkey`), never the wallet, which is read from disk at each use."""

    @property
    def ss58_address(self) -> str: ...

    @property
    def public_key(self) -> bytes: ...

    @property
    def crypto_type(self) -> int: ...

    def sign(self, payload: bytes) -> bytes: ...


class Caller(NamedTuple):
    """Who sent a request, and the nonce that its reply must name."""

    hotkey: Hotkey
    nonce: int


class RequestSigner:
    """The caller's half: signs requests for one receiver and checks that receiver's replies."""

    def __init__(self, keypair: Keypair, receiver: Hotkey, now: Callable[[], float]) -> None:
        self._keypair, self._receiver, self._now = keypair, receiver, now
        self._last_nonce = 0

    def sign(self, path: str, body: bytes) -> tuple[dict[str, str], int]:
        """Headers for one POST of `body`, and its nonce; each call takes a new nonce, so a retry signs afresh."""
        self._last_nonce = nonce = max(self._last_nonce + 1, int(self._now() * _NS))
        headers = http_auth.sign(
            self._keypair, method="POST", path=path, body=body, receiver_ss58=self._receiver, nonce_ns=nonce
        )
        return headers, nonce

    def check_reply(self, headers: Mapping[str, str], path: str, nonce: int, body: bytes) -> None:
        """Raises PeerFault unless the receiver signed `body` as its answer to the request with this nonce."""
        if headers.get(http_auth.HEADER_HOTKEY) != self._receiver:
            raise PeerFault(Reason.UNSIGNED, f"the reply is not signed by {self._receiver}")
        try:
            http_auth.verify(
                _auth_headers(headers),
                body,
                method=_REPLY,
                path=f"{path}#{nonce}",
                self_hotkey_ss58=self._keypair.ss58_address,
                max_age=math.inf,  # the request's nonce in the path says which moment it belongs to
                allowed_skew=math.inf,
                nonce_store=_BOUND_BY_PATH,
                now_ns=0,
            )
        except http_auth.AuthError as error:
            raise PeerFault(_REASONS[type(error)], f"the reply's signature does not hold: {error}") from None


class RequestVerifier:
    """The receiver's half: checks requests, each at most once, and signs the replies.

    A request is fresh for `max_age_s` (and may be `skew_s` ahead); accepted nonces are kept for that long, at most
    `nonces_max` of them, so memory is bounded whatever arrives.
    """

    def __init__(
        self,
        keypair: Keypair,
        now: Callable[[], float],
        max_age_s: float = 10.0,
        skew_s: float = 2.0,
        nonces_max: int = 100_000,
    ) -> None:
        self._keypair, self._now = keypair, now
        self._max_age_s, self._skew_s = max_age_s, skew_s
        self._seen = _SeenNonces(now, max_age_s + skew_s, nonces_max)
        self._last_nonce = 0
        self.hotkey = Hotkey(keypair.ss58_address)

    def verify(self, headers: Mapping[str, str], path: str, body: bytes) -> Caller:
        """Who signed this POST. Raises PeerFault: UNSIGNED, WRONG_RECEIVER, STALE, REPLAYED or RATE_LIMITED."""
        try:
            caller = http_auth.verify(
                _auth_headers(headers),
                body,
                method="POST",
                path=path,
                self_hotkey_ss58=self.hotkey,
                max_age=self._max_age_s,
                allowed_skew=self._skew_s,
                nonce_store=self._seen,
                now_ns=int(self._now() * _NS),
            )
        except http_auth.AuthError as error:
            raise PeerFault(_REASONS[type(error)], str(error)) from None
        return Caller(Hotkey(caller.hotkey_ss58), caller.nonce_ns)

    def sign_reply(self, path: str, caller: Caller, body: bytes) -> dict[str, str]:
        """Headers of the one reply to the caller's request."""
        self._last_nonce = nonce = max(self._last_nonce + 1, int(self._now() * _NS))
        return http_auth.sign(
            self._keypair,
            method=_REPLY,
            path=f"{path}#{caller.nonce}",
            body=body,
            receiver_ss58=caller.hotkey,
            nonce_ns=nonce,
        )


def claim(headers: Mapping[str, str]) -> Caller | None:
    """Who a request says it is from, unchecked; None unless it is well formed."""
    hotkey, nonce = headers.get(http_auth.HEADER_HOTKEY, ""), headers.get(http_auth.HEADER_NONCE, "")
    if len(nonce) > _NONCE_DIGITS_MAX or not (nonce.isascii() and nonce.isdecimal()) or not _is_hotkey(hotkey):
        return None
    return Caller(Hotkey(hotkey), int(nonce))


def _is_hotkey(text: str) -> bool:
    return len(text) <= 64 and is_bittensor_address(text)


def _auth_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name in _HEADERS if (value := headers.get(name)) is not None}


class _SeenNonces:
    """Accepted (hotkey, nonce) pairs of one freshness window, oldest first."""

    def __init__(self, now: Callable[[], float], keep_s: float, nonces_max: int) -> None:
        self.retention = keep_s
        self._now, self._nonces_max = now, nonces_max
        self._seen: set[tuple[str, int]] = set()
        self._order: deque[tuple[float, tuple[str, int]]] = deque()

    def check_and_store(self, hotkey_ss58: str, nonce_ns: int) -> bool:
        if not _is_hotkey(hotkey_ss58):
            raise PeerFault(Reason.UNSIGNED, "the hotkey is not an address of this network")
        entry, now = (hotkey_ss58, nonce_ns), self._now()
        while self._order and self._order[0][0] < now:
            self._seen.discard(self._order.popleft()[1])
        if entry in self._seen:
            return False
        if len(self._seen) >= self._nonces_max:
            raise PeerFault(Reason.RATE_LIMITED, f"{self._nonces_max} requests within {self.retention:g} s")
        self._seen.add(entry)
        self._order.append((now + self.retention, entry))
        return True


class _BoundByPath:
    """For replies: the path names the request's nonce, which was never used before."""

    def check_and_store(self, hotkey_ss58: str, nonce_ns: int) -> bool:
        return True


_BOUND_BY_PATH = _BoundByPath()


def open_hotkey(wallet_path: str, name: str, hotkey: str) -> Keypair:
    """The keypair of a wallet's hotkey. Raises ConfigError where there is none that can be read."""
    try:
        keypair: Keypair = Wallet(name=name, hotkey=hotkey, path=str(Path(wallet_path).expanduser())).hotkey
    except Exception as error:  # the wallet library raises what it likes: missing, unreadable, locked
        problem = f"{name}/{hotkey} cannot be opened ({error})"
        raise ConfigError("--wallet-hotkey", problem, "create it: btcli wallet new-hotkey") from None
    return keypair
