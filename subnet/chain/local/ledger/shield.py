"""The shield: extrinsics that travel encrypted until they are in a block.

Law: a client encrypts to the chain's ML-KEM-768 key (FIPS 203) and XChaCha20-Poly1305; only the chain opens it. The key
is made from a persisted seed, so that it outlives a restart. Decapsulation leaves out the standard's re-encryption,
which guards a key against chosen ciphertexts: what is inside is authenticated all the same, and this key guards play
money.
"""

from __future__ import annotations

import hashlib

import numpy as np
from Crypto.Cipher import ChaCha20_Poly1305
from numpy.typing import NDArray

Poly = NDArray[np.int64]
"""256 coefficients modulo Q; the last axis of every array here."""
N, Q, K = 256, 3329, 3
DU, DV = 10, 4
SEED_BYTES = 64
KEY_HASH_BYTES, NONCE_BYTES, TAG_BYTES = 16, 24, 16
CIPHERTEXT_BYTES = 32 * (DU * K + DV)


def _bit_reversed(value: int) -> int:
    return int(f"{value:07b}"[::-1], 2)


ZETAS = [pow(17, _bit_reversed(i), Q) for i in range(128)]
GAMMAS = np.array([pow(17, 2 * _bit_reversed(i) + 1, Q) for i in range(128)], dtype=np.int64)


class Shield:
    def __init__(self, seed: bytes) -> None:
        """`seed`: 64 secret bytes."""
        assert len(seed) == SEED_BYTES
        rho, sigma = _split(hashlib.sha3_512(seed[:32] + bytes([K])).digest())
        matrix = np.array([[_sample_ntt(rho, column, row) for column in range(K)] for row in range(K)])
        self._secret = _ntt(np.array([_sample_small(sigma, at) for at in range(K)]))
        error = _ntt(np.array([_sample_small(sigma, K + at) for at in range(K)]))
        public = (sum_products(matrix, self._secret) + error) % Q
        self.public_key = b"".join(_pack(poly, 12) for poly in public) + rho
        self._public_hash = hashlib.sha3_256(self.public_key).digest()

    def open(self, data: bytes) -> bytes:
        """The extrinsic inside: key hash, length and ciphertext of the key, nonce, sealed bytes. Raises ValueError."""
        body = data[KEY_HASH_BYTES:]
        size = int.from_bytes(body[:2], "little")
        kem, rest = body[2 : 2 + size], body[2 + size :]
        if size != CIPHERTEXT_BYTES or len(rest) < NONCE_BYTES + TAG_BYTES:
            raise ValueError("not a shielded extrinsic")
        nonce, sealed = rest[:NONCE_BYTES], rest[NONCE_BYTES:]
        cipher = ChaCha20_Poly1305.new(key=self._decapsulate(kem), nonce=nonce)
        return cipher.decrypt_and_verify(sealed[:-TAG_BYTES], sealed[-TAG_BYTES:])

    def _decapsulate(self, kem: bytes) -> bytes:
        width = 32 * DU
        u = np.array([_unpack(kem[at * width : (at + 1) * width], DU) for at in range(K)])
        v = _unpack(kem[K * width :], DV)
        product = sum_products(self._secret[None], _ntt(_decompress(u, DU)))[0]
        noisy = (_decompress(v, DV) - _inverse_ntt(product)) % Q
        message = np.packbits(((2 * noisy + Q // 2) // Q % 2).astype(np.uint8), bitorder="little").tobytes()
        return hashlib.sha3_512(message + self._public_hash).digest()[:32]


def _split(data: bytes) -> tuple[bytes, bytes]:
    return data[:32], data[32:]


def _sample_ntt(rho: bytes, column: int, row: int) -> Poly:
    """Uniform coefficients by rejection from SHAKE128."""
    stream = hashlib.shake_128(rho + bytes([column, row])).digest(3 * 336)
    triples = np.frombuffer(stream, dtype=np.uint8).reshape(-1, 3).astype(np.int64)
    low = triples[:, 0] + 256 * (triples[:, 1] % 16)
    high = triples[:, 1] // 16 + 16 * triples[:, 2]
    drawn = np.stack([low, high], axis=1).ravel()
    return drawn[drawn < Q][:N]


def _sample_small(sigma: bytes, counter: int) -> Poly:
    """Centred binomial, eta 2: of each four bits, the first two minus the last two."""
    stream = hashlib.shake_256(sigma + bytes([counter])).digest(128)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), bitorder="little").reshape(N, 4).astype(np.int64)
    return (bits[:, 0] + bits[:, 1] - bits[:, 2] - bits[:, 3]) % Q


def _ntt(polys: Poly) -> Poly:
    values, index, length = polys.copy(), 1, 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            left, right = slice(start, start + length), slice(start + length, start + 2 * length)
            turned = ZETAS[index] * values[..., right] % Q
            values[..., right] = (values[..., left] - turned) % Q
            values[..., left] = (values[..., left] + turned) % Q
            index += 1
        length //= 2
    return values


def _inverse_ntt(polys: Poly) -> Poly:
    values, index, length = polys.copy(), 127, 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            left, right = slice(start, start + length), slice(start + length, start + 2 * length)
            before = values[..., left].copy()
            values[..., left] = (before + values[..., right]) % Q
            values[..., right] = ZETAS[index] * (values[..., right] - before) % Q
            index -= 1
        length *= 2
    scaled: Poly = values * 3303 % Q  # 3303 is 1/128
    return scaled


def sum_products(rows: Poly, vector: Poly) -> Poly:
    """Matrix times vector in the transformed domain: products of pairs modulo X^2 - gamma."""
    a0, a1 = rows[..., 0::2], rows[..., 1::2]
    b0, b1 = vector[..., 0::2], vector[..., 1::2]
    out = np.empty(rows.shape, dtype=np.int64)
    out[..., 0::2] = (a0 * b0 + a1 * b1 % Q * GAMMAS) % Q
    out[..., 1::2] = (a0 * b1 + a1 * b0) % Q
    total: Poly = out.sum(axis=-2) % Q
    return total


def _decompress(values: Poly, bits: int) -> Poly:
    return (values * Q + (1 << bits - 1)) >> bits


def _pack(poly: Poly, bits: int) -> bytes:
    spread = (poly[:, None] >> np.arange(bits)) & 1
    return np.packbits(spread.astype(np.uint8).ravel(), bitorder="little").tobytes()


def _unpack(data: bytes, bits: int) -> Poly:
    spread = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little").reshape(N, bits).astype(np.int64)
    values: Poly = (spread << np.arange(bits)).sum(axis=1)
    return values
