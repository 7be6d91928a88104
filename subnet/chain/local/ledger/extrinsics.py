"""Signed extrinsics: what they say, and whether their signer said it.

Law: nothing reaches a block unless its signature holds for this chain, this interface and, when mortal, a block that is
not too old. A refusal is a `Refused` with the code and sentence a Substrate node gives.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple

import bittensor_core as core  # type: ignore[import-untyped]

from subnet.chain.local.spec.interface import Interface

BAD_PROOF, STALE, FUTURE, PAYMENT, ANCIENT = (
    "Transaction has a bad signature",
    "Transaction is outdated",
    "Transaction will be valid in the future",
    "Inability to pay some fees , e.g. account balance too low",
    "Transaction has an ancient birth block",
)
INVALID_CODE, TEMPORARILY_BANNED_CODE, POOL_FULL_CODE = 1010, 1012, 1016
IMMORTAL = 2**64 - 1
SCHEMES = {"Sr25519": core.CRYPTO_SR25519, "Ed25519": core.CRYPTO_ED25519}
SIGNED_BYTES = 1 + 1 + 32 + 1 + 64
"""Version, address and signature."""


class Refused(Exception):
    """An extrinsic that does not enter the pool."""

    def __init__(self, sentence: str, code: int = INVALID_CODE, message: str = "Invalid Transaction") -> None:
        super().__init__(sentence)
        self.sentence, self.code, self.message = sentence, code, message


class Call(NamedTuple):
    pallet: str
    name: str
    args: dict[str, Any]


class Extrinsic(NamedTuple):
    data: bytes
    digest: str
    """0x-hex, by which clients find it."""
    who: str
    nonce: int
    last_block: int
    """In which it may still be included."""
    call: Call


def digest_of(data: bytes) -> str:
    return "0x" + blake2b(data, digest_size=32).hexdigest()


def call_of(decoded: Any) -> Call:
    """A decoded call, at any depth."""
    args = {arg["name"]: arg["value"] for arg in decoded["call_args"]}
    return Call(decoded["call_module"], decoded["call_function"], args)


class Verifier:
    """Checks extrinsics against one chain. `hash_at` gives a block's hash, None when it is unknown or too old."""

    def __init__(self, interface: Interface, hash_at: Callable[[int], str | None]) -> None:
        self._interface, self._hash_at = interface, hash_at
        self._genesis: str | None = None

    def verify(self, data: bytes, block: int) -> Extrinsic:
        """Read and checked, as of `block`. Raises Refused."""
        try:
            decoded = self._interface.decode_extrinsic(data)
            found = self._verified(data, decoded, block)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise Refused(f"{BAD_PROOF} ({error})") from None
        return found

    def _verified(self, data: bytes, decoded: dict[str, Any], block: int) -> Extrinsic:
        if not decoded.get("address"):
            raise Refused(BAD_PROOF)
        era, born, last = _era(decoded["era"], block)
        self._genesis = genesis = self._genesis or self._hash_at(0)
        birth = self._hash_at(born)
        if birth is None or genesis is None:
            raise Refused(ANCIENT)
        parts = {
            "era": era,
            "nonce": decoded["nonce"],
            "tip": decoded["tip"],
            "tip_asset_id": None,
            "genesis_hash": bytes.fromhex(genesis[2:]),
            "era_block_hash": bytes.fromhex(birth[2:]),
            "metadata_hash": None,
        }
        call = data[_length_prefix(data) + SIGNED_BYTES + len(self._interface.signed_extra(**parts)) :]
        payload = self._interface.signature_payload(call, **parts)
        kind, signature = next(iter(decoded["signature"].items()))
        signed = core.verify(payload, bytes.fromhex(signature[2:]), decoded["address"], SCHEMES[kind])
        if not signed:
            raise Refused(BAD_PROOF)
        who, nonce = str(decoded["address"]), int(decoded["nonce"])
        return Extrinsic(data, digest_of(data), who, nonce, last, call_of(decoded["call"]))


def _era(decoded: Any, block: int) -> tuple[Any, int, int]:
    """(era as the codec takes it, number of the block whose hash was signed, last block of the era)."""
    if decoded == "00":
        return decoded, 0, IMMORTAL
    period, phase = (decoded["period"], decoded["phase"]) if isinstance(decoded, dict) else decoded
    born = (max(block, phase) - phase) // period * period + phase
    return {"period": period, "phase": phase}, born, born + period - 1


def _length_prefix(data: bytes) -> int:
    """Bytes of the compact length in front."""
    return {0: 1, 1: 2, 2: 4}[data[0] & 3]
