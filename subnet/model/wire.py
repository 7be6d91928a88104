"""How a boundary tensor z_BTK, and its gradient, travel: a fixed header and raw little-endian values. numpy only.

Law: an object's size and header are functions of the RunSpec alone, so a reader knows every byte it does not have to
trust. What `decode` returns is what both sides of a link train on. Anything else is refused with a PeerFault: wrong
size, wrong header, NaN or infinity, a code the encoder never writes. No peer's bytes raise another exception.

    header   32 bytes: magic, values kind, B, T, K, tokens per scale; rest zero
    fp32     B*T*K float32
    bf16     B*T*K bfloat16
    int8     one bfloat16 scale per group of `scale_group_tokens` tokens (tokens counted through the batch), then B*T*K
             codes in [-127, 127]; value = scale * code

A scale is absmax / 127 rounded up to bfloat16, which has fp32's range: gradients of 1e-30 survive, and no code clips.
Its least value is the smallest normal number, also for zeros: nothing divides by zero, nothing is subnormal.
Values beyond MAGNITUDE_MAX count as infinite: their squares must not overflow in the reader's first norm.
Rounding is to nearest (ties to even), or stochastic when a seed is given: floor(x + u), u uniform, unbiased. Its bits
come straight from the Philox counter, so they are the same on every machine.
"""

from __future__ import annotations

import hashlib
import struct
from typing import assert_never

import numpy as np

from subnet.errors import PeerFault
from subnet.merging.compression import from_bf16, to_bf16
from subnet.protocol.ids import Values
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import BoundarySpec, RunSpec

HEADER_BYTES = 32
_MAGIC = b"IOTAbnd1"
_CODES = {Values.FP32: 0, Values.BF16: 1, Values.INT8: 2}
_VALUE_BYTES = {Values.FP32: 4, Values.BF16: 2, Values.INT8: 1}
_SCALE_BYTES = 2
_CODE_MAX = 127
_SCALE_MIN = np.float32(2.0**-126)
MAGNITUDE_MAX = 1e15


def encoded_size(spec: RunSpec) -> int:
    """Bytes of one encoded boundary or boundary gradient, header included."""
    return boundary_size_bytes(spec.boundary, spec.data.micro_batch_size, spec.data.seq_len)


def boundary_size_bytes(boundary: BoundarySpec, micro_batch_size: int, seq_len: int) -> int:
    """`encoded_size` before there is a RunSpec: what its field of this name must hold."""
    tokens = micro_batch_size * seq_len
    scales = _num_groups(boundary, tokens) * _SCALE_BYTES if boundary.values is Values.INT8 else 0
    return HEADER_BYTES + scales + tokens * boundary.width * _VALUE_BYTES[boundary.values]


def bytes_per_token(spec: RunSpec) -> float:
    """What one token costs at one boundary in one direction, framing included."""
    return encoded_size(spec) / spec.micro_batch_tokens


def ratio_vs_bf16(spec: RunSpec) -> float:
    """How many times fewer bytes than x_BTD in bf16, framing included; twice this against fp32."""
    return 2 * spec.model.d_model / bytes_per_token(spec)


def rounding_seed(spec: RunSpec, micro_batch: int, stage: int) -> int:
    """Seeds the rounding of the gradient that `stage` sends back for one micro-batch: anyone can repeat it."""
    purpose = f"rounding\x1f{spec.seed}\x1f{micro_batch}\x1f{stage}"
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:16], "little")


def encode(spec: RunSpec, z_BTK: np.ndarray, rounding_seed: int | None) -> bytes:
    """`rounding_seed` None rounds to nearest; an integer in [0, 2^128) rounds stochastically (gradients).

    Raises PeerFault(NOT_FINITE) when z holds NaN, infinity or a magnitude above MAGNITUDE_MAX: it must not leave.
    """
    assert z_BTK.shape == _shape(spec), f"{z_BTK.shape} is not {_shape(spec)}"
    z_NK = np.ascontiguousarray(z_BTK, np.float32).reshape(spec.micro_batch_tokens, spec.boundary.width)
    _check_range(z_NK, MAGNITUDE_MAX, "the tensor to send")
    match spec.boundary.values:
        case Values.FP32:
            body = z_NK.astype("<f4").tobytes()
        case Values.BF16:
            body = _to_bf16(z_NK, rounding_seed).tobytes()
        case Values.INT8:
            scales_G, codes_NK = _to_int8(z_NK, spec.boundary.scale_group_tokens, rounding_seed)
            body = scales_G[: _num_groups(spec.boundary, spec.micro_batch_tokens)].tobytes() + codes_NK.tobytes()
        case _:
            assert_never(spec.boundary.values)
    return _header(spec) + body


def decode(spec: RunSpec, data: bytes) -> np.ndarray:
    """float32 [B, T, K]. Raises PeerFault(BAD_SIZE | BAD_OBJECT | NOT_FINITE)."""
    if len(data) != encoded_size(spec):
        raise PeerFault(Reason.BAD_SIZE, f"a boundary object has {encoded_size(spec)} bytes, this one {len(data)}")
    if data[:HEADER_BYTES] != _header(spec):
        raise PeerFault(Reason.BAD_OBJECT, "the boundary object's header is not the one the RunSpec implies",
                        bytes(data[:HEADER_BYTES]).hex())
    z_NK = _decode_values(spec, memoryview(data)[HEADER_BYTES:])
    _check_range(z_NK, 2 * MAGNITUDE_MAX, "the boundary object")
    return z_NK.reshape(_shape(spec))


def through(spec: RunSpec, z_BTK: np.ndarray, rounding_seed: int | None) -> np.ndarray:
    """What arrives when z, of any batch and length, is sent: `decode(encode(z))` without the framing.

    Raises as `encode`.
    """
    z_NK = np.ascontiguousarray(z_BTK, np.float32).reshape(z_BTK.shape[0] * z_BTK.shape[1], z_BTK.shape[2])
    _check_range(z_NK, MAGNITUDE_MAX, "the tensor to send")
    match spec.boundary.values:
        case Values.FP32:
            return z_BTK
        case Values.BF16:
            return from_bf16(_to_bf16(z_NK, rounding_seed)).reshape(z_BTK.shape)
        case Values.INT8:
            group = spec.boundary.scale_group_tokens
            return _from_int8(*_to_int8(z_NK, group, rounding_seed), group).reshape(z_BTK.shape)
        case _:
            assert_never(spec.boundary.values)


def _shape(spec: RunSpec) -> tuple[int, int, int]:
    return spec.data.micro_batch_size, spec.data.seq_len, spec.boundary.width


def _check_range(z: np.ndarray, limit: float, what: str) -> None:
    """NaN fails every comparison, so one bound on the extremes finds NaN, infinities and absurd values."""
    low, high = z.min(initial=0.0), z.max(initial=0.0)
    if not (-limit <= low and high <= limit):
        raise PeerFault(Reason.NOT_FINITE, f"{what} holds NaN, infinity or a magnitude above {limit:g}")


def _num_groups(boundary: BoundarySpec, tokens: int) -> int:
    return -(-tokens // boundary.scale_group_tokens) if boundary.width else 0


def _header(spec: RunSpec) -> bytes:
    boundary = spec.boundary
    fields = struct.pack("<8sIIIII", _MAGIC, _CODES[boundary.values], *_shape(spec), boundary.scale_group_tokens)
    return fields.ljust(HEADER_BYTES, b"\0")


def _decode_values(spec: RunSpec, body: memoryview) -> np.ndarray:
    count, width = spec.micro_batch_tokens, spec.boundary.width
    match spec.boundary.values:
        case Values.FP32:
            return np.frombuffer(body, "<f4").astype(np.float32).reshape(count, width)
        case Values.BF16:
            return from_bf16(np.frombuffer(body, "<u2").reshape(count, width))
        case Values.INT8:
            end = _num_groups(spec.boundary, count) * _SCALE_BYTES
            scales_G = np.frombuffer(body[:end], "<u2")
            codes_NK = np.frombuffer(body[end:], np.int8).reshape(count, width)
            _check_range(from_bf16(scales_G), 2 * MAGNITUDE_MAX, "the boundary object's scales")
            if (scales_G >= 0x8000).any() or (scales_G < 0x0080).any() or (codes_NK == -128).any():
                raise PeerFault(Reason.BAD_OBJECT, "the boundary object holds a code that no encoder writes")
            return _from_int8(scales_G, codes_NK, spec.boundary.scale_group_tokens)
        case _:
            assert_never(spec.boundary.values)


def _to_int8(z_NK: np.ndarray, group: int, rounding_seed: int | None) -> tuple[np.ndarray, np.ndarray]:
    count, width = z_NK.shape
    num_groups = -(-count // group)
    padded = np.zeros((num_groups * group, width), np.float32)
    padded[:count] = z_NK
    grouped_GN = padded.reshape(num_groups, group * width)
    absmax_G = np.abs(grouped_GN).max(axis=1, initial=0.0)
    scales_G = _bf16_up(np.maximum(absmax_G / np.float32(_CODE_MAX), _SCALE_MIN))
    scaled_GN = grouped_GN / from_bf16(scales_G)[:, None]
    if rounding_seed is not None:
        bits = _random_u16(rounding_seed, scaled_GN.size).reshape(scaled_GN.shape)
        scaled_GN = np.floor(scaled_GN + (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-16))
    codes_GN = np.clip(np.rint(scaled_GN), -_CODE_MAX, _CODE_MAX).astype(np.int8)
    return scales_G, codes_GN.reshape(num_groups * group, width)[:count]


def _from_int8(scales_G: np.ndarray, codes_NK: np.ndarray, group: int) -> np.ndarray:
    if codes_NK.size == 0:
        return np.zeros(codes_NK.shape, np.float32)
    scales_N = np.repeat(from_bf16(scales_G), group)[: len(codes_NK)]
    return codes_NK.astype(np.float32) * scales_N[:, None]


def _to_bf16(z: np.ndarray, rounding_seed: int | None) -> np.ndarray:
    if rounding_seed is None:
        return to_bf16(z)
    bits = z.view(np.uint32) + _random_u16(rounding_seed, z.size).reshape(z.shape)
    return (bits >> np.uint32(16)).astype("<u2")


def _bf16_up(positive: np.ndarray) -> np.ndarray:
    """The least bfloat16 not below each positive value."""
    return ((positive.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype("<u2")


def _random_u16(seed: int, count: int) -> np.ndarray:
    return np.random.Philox(key=seed).random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
