"""One codec for flat vectors: pseudo-gradients, parameters, momentum, reduced shards.

    object = header (32 bytes) + blocks of BLOCK_VALUES values, the last block shorter
    fp32   4 bytes a value, little-endian
    bf16   2 bytes a value, fp32 rounded to nearest-even
    int8   per block a 2-byte scale s, then one signed byte q a value; value = q * s

The int8 scale is a bfloat16, not a float16: pseudo-gradients span about 1e-12 to 1e4, float16 ends at 6e-8 below and
6.5e4 above, bfloat16 has the exponents of fp32. It is absmax / 127 rounded UP, so |q| <= 127 always holds without
clipping; q is rounded to nearest-even. q has 7 bits and s has 8, so q * s is exact in fp32 and never subnormal: every
reader decodes the same bits on any machine.

Law: pure; equal input gives equal bytes. A block-aligned range of values is one contiguous range of bytes, so a shard
is read without the rest of its object. Bytes of a peer raise PeerFault and nothing else. What decodes is finite and at
most about MAGNITUDE_MAX, so that a weighted sum over many replicas cannot overflow either.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from subnet.errors import PeerFault
from subnet.protocol.ids import Digest, Values
from subnet.protocol.reasons import Reason

BLOCK_VALUES = 256
"""Values that share one int8 scale; every range starts at a multiple of it."""
CHUNK_VALUES = 16_384
"""Values under one digest, so that a range can be checked without the whole object."""
HEADER_BYTES = 32
MAGNITUDE_MAX = 2.0**100
"""1.3e30; larger values are refused like infinities: weighted and summed over replicas they must stay below 3e38."""

_MAGIC = b"IOTAvec1"
_HEADER = struct.Struct("<8sBxH4xQ8x")
_KIND = {Values.FP32: 1, Values.BF16: 2, Values.INT8: 3}
_VALUE_BYTES = {Values.FP32: 4, Values.BF16: 2, Values.INT8: 1}
_SCALE_BYTES = 2
_Q_MAX = 127
_SCALE_MIN = np.float32(2.0**-126)
"""Smallest normal number: also the scale of an all-zero block, so nothing divides by zero."""
_SCALE_MAX = np.float32(2.0**93 * (1 + 2.0**-6))
"""MAGNITUDE_MAX / 127 rounded up to bfloat16."""
_BLOCK = np.dtype([("scale", "<u2"), ("q", "i1", (BLOCK_VALUES,))])


# ---- sizes and ranges ------------------------------------------------------------------------------------------------


def body_size(values: Values, length: int) -> int:
    """Bytes of `length` values that start at a block boundary, without header."""
    scales = -(-length // BLOCK_VALUES) * _SCALE_BYTES if values is Values.INT8 else 0
    return length * _VALUE_BYTES[values] + scales


def encoded_size(values: Values, count: int) -> int:
    """Bytes of the whole object for a vector of `count` values."""
    return HEADER_BYTES + body_size(values, count)


def byte_range(values: Values, start: int, length: int, count: int) -> tuple[int, int]:
    """(offset, size) in bytes of values [start, start + length) inside the object of a `count`-value vector.

    `start` is a multiple of BLOCK_VALUES; so is `length`, unless the range ends at `count`. ValueError otherwise.
    """
    end = start + length
    aligned = start % BLOCK_VALUES == 0 and (length % BLOCK_VALUES == 0 or end == count)
    if not (aligned and 0 <= start and 0 <= length and end <= count):
        raise ValueError(f"values [{start}, {end}) of {count} are not a block-aligned range")
    return HEADER_BYTES + body_size(values, start), body_size(values, length)


def num_chunks(count: int) -> int:
    """How many chunk digests a vector of `count` values has."""
    return -(-count // CHUNK_VALUES)


def covering_chunks(start: int, length: int) -> range:
    """Indices of the chunks that hold values [start, start + length)."""
    return range(start // CHUNK_VALUES, -(-(start + length) // CHUNK_VALUES))


def chunk_digests(data: bytes, values: Values, count: int) -> tuple[Digest, ...]:
    """SHA-256 of each chunk's bytes, the header left out. Raises PeerFault(BAD_SIZE)."""
    _check_size(len(data), encoded_size(values, count))
    view = memoryview(data)
    digests = []
    for start in range(0, count, CHUNK_VALUES):
        offset, size_bytes = byte_range(values, start, min(CHUNK_VALUES, count - start), count)
        digests.append(Digest(hashlib.sha256(view[offset : offset + size_bytes]).hexdigest()))
    return tuple(digests)


# ---- encode ----------------------------------------------------------------------------------------------------------


def encode(values: Values, vector_P: np.ndarray) -> bytes:
    """The object of one float32 vector.

    Raises PeerFault(NOT_FINITE) when a value is not finite or exceeds MAGNITUDE_MAX: the caller is the faulty peer.
    """
    if vector_P.dtype != np.float32 or vector_P.ndim != 1:
        raise ValueError(f"a flat float32 vector is encoded, not {vector_P.dtype} of shape {vector_P.shape}")
    vector_P = np.ascontiguousarray(vector_P)
    _check_finite(vector_P)
    return _header(values, len(vector_P)) + _encode_body(values, vector_P)


def _header(values: Values, count: int) -> bytes:
    return _HEADER.pack(_MAGIC, _KIND[values], BLOCK_VALUES, count)


def _encode_body(values: Values, vector_P: np.ndarray) -> bytes:
    match values:
        case Values.FP32:
            return to_fp32_bytes(vector_P)
        case Values.BF16:
            return to_bf16(vector_P).tobytes()
        case Values.INT8:
            whole = len(vector_P) // BLOCK_VALUES * BLOCK_VALUES
            return _encode_blocks(vector_P[:whole]) + _encode_tail(vector_P[whole:])


def _encode_blocks(vector_P: np.ndarray) -> bytes:
    x_NV = vector_P.reshape(-1, BLOCK_VALUES)
    blocks = np.empty(len(x_NV), dtype=_BLOCK)
    bits_N, scale_N = _scales(x_NV)
    blocks["scale"] = bits_N
    q_NV = x_NV / scale_N[:, None]
    blocks["q"] = np.rint(q_NV, out=q_NV)  # |q| <= 127 by the rounding of the scale, so the cast cannot wrap
    body: bytes = blocks.tobytes()
    return body


def _encode_tail(vector_P: np.ndarray) -> bytes:
    """The last, shorter block."""
    if not len(vector_P):
        return b""
    bits_N, scale_N = _scales(vector_P[None])
    body: bytes = bits_N.tobytes() + np.rint(vector_P / scale_N).astype(np.int8).tobytes()
    return body


def _scales(x_NV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per block absmax / 127 rounded up to bfloat16: its 16 bits, and its value as float32."""
    absmax_N = np.maximum(x_NV.max(axis=1), -x_NV.min(axis=1))
    ideal_N = np.maximum(absmax_N / np.float32(_Q_MAX), _SCALE_MIN)
    bits_N = ((ideal_N.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype("<u2")
    return bits_N, from_bf16(bits_N)


def to_fp32_bytes(x: np.ndarray) -> bytes:
    """Raw little-endian float32."""
    raw: bytes = x.astype("<f4", copy=False).tobytes()
    return raw


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Finite float32 rounded to nearest-even bfloat16, as little-endian uint16 bits."""
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits to float32, exactly."""
    wide: np.ndarray = bits.astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32)


# ---- decode ----------------------------------------------------------------------------------------------------------


def decode(data: bytes, values: Values, count: int) -> np.ndarray:
    """The float32 vector of an object of exactly this kind and count, as a new array.

    Raises PeerFault: BAD_SIZE, BAD_OBJECT (header or scale that `encode` cannot have written) or NOT_FINITE.
    """
    _check_size(len(data), encoded_size(values, count))
    if bytes(data[:HEADER_BYTES]) != _header(values, count):
        raise PeerFault(Reason.BAD_OBJECT, f"the header does not say {values} with {count} values")
    return decode_range(memoryview(data)[HEADER_BYTES:], values, count)


def decode_range(body: bytes | memoryview, values: Values, length: int) -> np.ndarray:
    """`length` values from the bytes of a block-aligned range, header not included. Raises PeerFault as `decode`."""
    _check_size(len(body), body_size(values, length))
    match values:
        case Values.FP32:
            x = np.frombuffer(body, dtype="<f4").astype(np.float32)
            _check_finite(x)
            return x
        case Values.BF16:
            x = from_bf16(np.frombuffer(body, dtype="<u2"))
            _check_finite(x)
            return x
        case Values.INT8:
            return _decode_blocks(body, length)


def _decode_blocks(body: bytes | memoryview, length: int) -> np.ndarray:
    x = np.empty(length, dtype=np.float32)
    whole = length // BLOCK_VALUES
    blocks = np.frombuffer(body, dtype=_BLOCK, count=whole)
    scale_N = _checked_scales(blocks["scale"])
    np.multiply(blocks["q"], scale_N[:, None], out=x[: whole * BLOCK_VALUES].reshape(whole, BLOCK_VALUES))
    if whole * BLOCK_VALUES < length:
        tail = memoryview(body)[whole * _BLOCK.itemsize :]
        scale_1 = _checked_scales(np.frombuffer(tail, dtype="<u2", count=1))
        np.multiply(np.frombuffer(tail, dtype="i1", offset=_SCALE_BYTES), scale_1, out=x[whole * BLOCK_VALUES :])
    return x


def _checked_scales(bits_N: np.ndarray) -> np.ndarray:
    """Scales as float32; positive, normal and small enough that no q * s exceeds the range."""
    scale_N = from_bf16(bits_N)
    if not np.all(np.isfinite(scale_N)):
        raise PeerFault(Reason.NOT_FINITE, "a block's scale is NaN or infinite")
    if not np.all((scale_N >= _SCALE_MIN) & (scale_N <= _SCALE_MAX)):
        raise PeerFault(Reason.BAD_OBJECT, "a block's scale is outside what the codec writes")
    return scale_N


def _check_size(actual: int, expected: int) -> None:
    if actual != expected:
        raise PeerFault(Reason.BAD_SIZE, f"{actual} bytes where {expected} were due")


def _check_finite(x: np.ndarray) -> None:
    """NaN fails every comparison, so one bound on the extremes finds NaN, infinities and absurd values."""
    low, high = x.min(initial=0.0), x.max(initial=0.0)
    if not (-MAGNITUDE_MAX <= low and high <= MAGNITUDE_MAX):
        raise PeerFault(Reason.NOT_FINITE, f"a value is NaN, infinite or beyond {MAGNITUDE_MAX:g}")
