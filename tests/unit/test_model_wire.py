"""The boundary codec: what a neighbour sends is either exactly what the RunSpec implies, or a PeerFault."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from subnet import presets
from subnet.errors import PeerFault
from subnet.model import wire
from subnet.protocol.ids import Digest, RunId, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import BoundarySpec, DataFile, DataSpec, ModelSpec, RunSpec

FILE = DataFile(key=ObjectKey("run/0/0/text/data"), digest=Digest("0" * 64), size_bytes=1)
BASE = presets.laptop(presets.Size(2, 2, 1))


def make_spec(
    values: Values, width: int = 3, batch: int = 2, seq_len: int = 10, group: int = 8, d_model: int = 16
) -> RunSpec:
    model = ModelSpec(vocab_size=32, d_model=d_model, num_layers=2, num_heads=2, num_kv_heads=1, d_ff=16)
    boundary = BoundarySpec(width=width, hidden=4, values=values, scale_group_tokens=group, token_table=False)
    data = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=batch, seq_len=seq_len)
    preset = BASE._replace(model=model, boundary=boundary)
    return presets.run_spec(preset, run_id=RunId("run"), seed=7, num_stages=2, data=data)


def steps(spec: RunSpec, z_BTK: np.ndarray) -> np.ndarray:
    """The quantiser's step for each value, from the law in the module: absmax / 127, up to bfloat16's 1/128 more."""
    group, width = spec.boundary.scale_group_tokens, spec.boundary.width
    z_NK = z_BTK.reshape(-1, width)
    absmax = [np.abs(z_NK[at : at + group]).max() for at in range(0, len(z_NK), group)]
    step_N = np.repeat(np.maximum(np.array(absmax) / 127, 2.0**-126) * (1 + 2**-7), group)[: len(z_NK)]
    return np.broadcast_to(step_N[:, None], z_NK.shape).reshape(z_BTK.shape)


TENSORS = hnp.arrays(np.float32, (2, 10, 3), elements=st.floats(-1e6, 1e6, width=32))


@settings(max_examples=80, deadline=None)
@given(
    z_BTK=TENSORS, scale=st.sampled_from([1.0, 1e-6, 1e-25, 1e-38, 1e8]), seed=st.none() | st.integers(0, 2**128 - 1)
)
def test_int8_errs_by_half_a_step(z_BTK: np.ndarray, scale: float, seed: int | None) -> None:
    """1. Activations and gradients of any magnitude: half a step to nearest, less than one step when stochastic."""
    spec = make_spec(Values.INT8)
    z_BTK = (z_BTK * np.float32(scale)).astype(np.float32)
    data = wire.encode(spec, z_BTK, seed)
    assert len(data) == wire.encoded_size(spec) == spec.boundary_size_bytes
    received_BTK = wire.decode(spec, data)
    allowed = steps(spec, z_BTK) * (0.5 if seed is None else 1.0) * (1 + 1e-5)
    assert received_BTK.dtype == np.float32
    assert (np.abs(received_BTK.astype(np.float64) - z_BTK) <= allowed).all()
    assert np.array_equal(wire.through(spec, z_BTK, seed), received_BTK)


@settings(max_examples=40, deadline=None)
@given(z_BTK=TENSORS, seed=st.none() | st.integers(0, 2**64))
def test_fp32_is_exact_and_bf16_errs_by_its_mantissa(z_BTK: np.ndarray, seed: int | None) -> None:
    """2. fp32 carries every bit; bf16 is within half a unit of its eight bits (a whole one when stochastic)."""
    exact, short = make_spec(Values.FP32), make_spec(Values.BF16)
    assert np.array_equal(wire.decode(exact, wire.encode(exact, z_BTK, seed)), z_BTK)
    data = wire.encode(short, z_BTK, seed)
    received_BTK = wire.decode(short, data)
    assert len(data) == wire.encoded_size(short)
    unit = np.maximum(np.abs(z_BTK) * 2.0**-7, 2.0**-133)
    assert (np.abs(received_BTK - z_BTK) <= unit * (0.5 if seed is None else 1.0)).all()
    assert np.array_equal(wire.through(short, z_BTK, seed), received_BTK)


@pytest.mark.parametrize("values", [Values.INT8, Values.BF16])
def test_stochastic_rounding_is_unbiased_and_repeatable(values: Values) -> None:
    """3. An auditor repeats the rounding bit by bit; over many micro-batches the mean gradient is the true one."""
    spec = make_spec(values)
    z_BTK = np.random.default_rng(1).normal(size=(2, 10, 3)).astype(np.float32)
    seeds = [wire.rounding_seed(spec, micro_batch, 1) for micro_batch in range(1_000)]
    one, again, other = (wire.encode(spec, z_BTK, seed) for seed in (seeds[0], seeds[0], seeds[1]))
    assert one == again != other
    mean_BTK = np.mean([wire.through(spec, z_BTK, seed) for seed in seeds], axis=0)
    step = steps(spec, z_BTK) if values is Values.INT8 else np.abs(z_BTK) * 2.0**-7
    # standard error of a mean of 1,000: at most step / 2 / sqrt(1000) = 0.016 steps; five of them
    assert (np.abs(mean_BTK - z_BTK) <= 0.08 * step).all()
    nearest = np.abs(wire.through(spec, z_BTK, None) - z_BTK)
    assert (nearest > 0.2 * step).any(), "rounding to nearest does not average out"


def test_rounding_seeds_differ_by_micro_batch_stage_and_run() -> None:
    """4. No two gradients of a run share their noise."""
    spec = make_spec(Values.INT8)
    seeds = {wire.rounding_seed(spec, micro_batch, stage) for micro_batch in range(50) for stage in range(4)}
    assert len(seeds) == 200 and all(0 <= seed < 2**128 for seed in seeds)


@pytest.mark.parametrize("values", list(Values))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e16])
def test_numbers_that_are_none_do_not_leave(values: Values, bad: float) -> None:
    """5. One NaN in a tensor: the sender itself refuses."""
    spec = make_spec(values)
    z_BTK = np.ones((2, 10, 3), np.float32)
    z_BTK[1, 4, 2] = bad
    for send in (wire.encode, wire.through):
        with pytest.raises(PeerFault) as caught:
            send(spec, z_BTK, None)
        assert caught.value.code == Reason.NOT_FINITE


@pytest.mark.parametrize(("values", "bits"), [(Values.FP32, b"\0\0\xc0\x7f"), (Values.BF16, b"\x80\x7f")])
def test_numbers_that_are_none_do_not_arrive(values: Values, bits: bytes) -> None:
    """6. A peer writes NaN (fp32) or infinity (bf16) where a value was due."""
    spec = make_spec(values)
    data = bytearray(wire.encode(spec, np.ones((2, 10, 3), np.float32), None))
    data[wire.HEADER_BYTES : wire.HEADER_BYTES + len(bits)] = bits
    with pytest.raises(PeerFault) as caught:
        wire.decode(spec, bytes(data))
    assert caught.value.code == Reason.NOT_FINITE


@pytest.mark.parametrize(
    ("offset", "bits", "reason"),
    [
        (0, b"IOTAbnd0", Reason.BAD_OBJECT),
        (12, struct.pack("<I", 3), Reason.BAD_OBJECT),
        (31, b"\1", Reason.BAD_OBJECT),
        (wire.HEADER_BYTES, b"\x80\x7f", Reason.NOT_FINITE),
        (wire.HEADER_BYTES, b"\x23\x7c", Reason.NOT_FINITE),
        (wire.HEADER_BYTES, b"\x00\xbf", Reason.BAD_OBJECT),
        (wire.HEADER_BYTES, b"\x00\x00", Reason.BAD_OBJECT),
        (wire.HEADER_BYTES + 6, b"\x80", Reason.BAD_OBJECT),
    ],
    ids="magic,another B,padding,infinite scale,absurd scale,negative scale,zero scale,code -128".split(","),
)
def test_int8_objects_that_no_encoder_writes(offset: int, bits: bytes, reason: Reason) -> None:
    """7. Right size, wrong content: each forgery has its reason."""
    spec = make_spec(Values.INT8)
    data = bytearray(wire.encode(spec, np.ones((2, 10, 3), np.float32), None))
    data[offset : offset + len(bits)] = bits
    with pytest.raises(PeerFault) as caught:
        wire.decode(spec, bytes(data))
    assert caught.value.code == reason


@settings(max_examples=250, deadline=None)
@given(values=st.sampled_from(list(Values)), junk=st.data())
def test_garbage_raises_nothing_but_a_peer_fault(values: Values, junk: st.DataObject) -> None:
    """8. Truncated, padded, random, or random behind a good header: decoded to finite numbers or refused."""
    spec = make_spec(values)
    size = wire.encoded_size(spec)
    header = wire.encode(spec, np.zeros((2, 10, 3), np.float32), None)[: wire.HEADER_BYTES]
    body = junk.draw(st.binary(min_size=size - wire.HEADER_BYTES, max_size=size - wire.HEADER_BYTES))
    data = junk.draw(st.sampled_from([header + body, header + body[:-1], header + body + b"\0", body, b"", header]))
    try:
        received_BTK = wire.decode(spec, data)
    except PeerFault as fault:
        assert fault.code in (Reason.BAD_SIZE, Reason.BAD_OBJECT, Reason.NOT_FINITE)
    else:
        assert len(data) == size and received_BTK.shape == (2, 10, 3) and np.isfinite(received_BTK).all()


@pytest.mark.parametrize("values", list(Values))
def test_the_control_sends_a_header_only(values: Values) -> None:
    """9. Width 0: nothing crosses, and the object is as long as its header."""
    spec = make_spec(values, width=0)
    data = wire.encode(spec, np.zeros((2, 10, 0), np.float32), None)
    assert len(data) == wire.encoded_size(spec) == wire.HEADER_BYTES
    assert wire.decode(spec, data).shape == (2, 10, 0)
    assert wire.through(spec, np.zeros((1, 4, 0), np.float32), 3).shape == (1, 4, 0)


def test_128x_is_counted_with_framing() -> None:
    """10. D = 2048, K = 30 at int8 with scales over 64 tokens: 128x against bf16, all bytes included; K = 32 is not.

    The promise is bytes per token <= 2 D / 128 = 32: 30 values, 2/64 bytes of scale and 32/800 of header.
    """
    size = {"batch": 1, "seq_len": 800, "group": 64, "d_model": 2048}
    thin, plain = make_spec(Values.INT8, width=30, **size), make_spec(Values.INT8, width=32, **size)
    assert wire.encoded_size(plain) == 32 + 13 * 2 + 800 * 32
    assert wire.bytes_per_token(plain) == pytest.approx(32.0725)
    assert wire.ratio_vs_bf16(thin) > 128 > wire.ratio_vs_bf16(plain)
    dense = make_spec(Values.BF16, width=2048, **size)
    assert wire.ratio_vs_bf16(dense) == pytest.approx(1.0, abs=1e-4)
    assert wire.encoded_size(dense) - wire.HEADER_BYTES == 3_276_800


def test_scales_are_shared_by_groups_alone() -> None:
    """11. One loud token costs its own group precision, never another."""
    spec = make_spec(Values.INT8)
    z_BTK = np.full((2, 10, 3), 0.01, np.float32)
    z_BTK[0, 0, 0] = 1_000.0
    received_NK = wire.through(spec, z_BTK, None).reshape(20, 3)
    assert (received_NK[1:8] == 0).all()
    assert np.allclose(received_NK[8:], 0.01, rtol=0.01)
