"""The vector codec: what one replica encodes, every other reads the same; what a stranger sends, it survives."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.errors import PeerFault
from subnet.merging import compression as codec
from subnet.protocol.ids import Values
from subnet.protocol.reasons import Reason

EVERY_KIND = pytest.mark.parametrize("values", list(Values))


def random_vector(count: int, seed: int = 0) -> np.ndarray:
    """Magnitudes over many decades, as pseudo-gradients have them."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(count) * 10.0 ** rng.uniform(-12, 4, count)).astype(np.float32)


def int8_by_hand(x: np.ndarray) -> np.ndarray:
    """The definition, block by block in float64: slow and obvious."""
    out = np.empty_like(x)
    for start in range(0, len(x), codec.BLOCK_VALUES):
        block = x[start : start + codec.BLOCK_VALUES].astype(np.float64)
        ideal = max(np.abs(block).max() / 127, 2.0**-126)
        step = 2.0 ** (np.floor(np.log2(ideal)) - 7)  # bfloat16 holds 8 significant bits
        scale = np.ceil(np.float64(np.float32(ideal)) / step) * step
        out[start : start + codec.BLOCK_VALUES] = np.rint(block / scale) * scale
    return out


@EVERY_KIND
@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 511, 16_384, 16_385, 50_000])
def test_round_trip_has_the_promised_size_and_error(values: Values, count: int) -> None:
    """1. A replica uploads a vector of any length; readers get it back within the quantiser's step."""
    x_P = random_vector(count)
    data = codec.encode(values, x_P)
    assert len(data) == codec.encoded_size(values, count)
    y_P = codec.decode(data, values, count)
    assert y_P.dtype == np.float32 and y_P.shape == x_P.shape
    if values is Values.FP32:
        assert np.array_equal(x_P, y_P)
    elif values is Values.BF16:
        assert np.all(np.abs(x_P - y_P) <= np.abs(x_P) * 2.0**-8)
    else:
        for start in range(0, count, codec.BLOCK_VALUES):
            block = slice(start, start + codec.BLOCK_VALUES)
            # half a step of a scale that rounding up made at most 1/128 larger than absmax / 127
            assert np.abs(x_P[block] - y_P[block]).max() <= np.abs(x_P[block]).max() / 127 * 0.5 * (1 + 1 / 64)


@pytest.mark.parametrize("seed", range(5))
def test_int8_is_what_its_definition_says(seed: int) -> None:
    """2. Somebody writes another miner from the docstring alone: it decodes our objects to the same numbers."""
    x_P = random_vector(3_000, seed)
    assert np.array_equal(codec.decode(codec.encode(Values.INT8, x_P), Values.INT8, 3_000), int8_by_hand(x_P))


def test_bf16_rounds_ties_to_even() -> None:
    """2b. Halfway between two bfloat16 numbers the even one is taken, as torch does; signs alike."""
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-20], np.float32)
    assert codec.from_bf16(codec.to_bf16(x)).tolist() == [1.0, 1 + 2**-6, -1.0, 1 + 2**-7]


def test_size_on_the_wire() -> None:
    """3. An int8 upload is 4 x smaller than fp32, scales and header included to within one percent."""
    count = 1_000_000
    assert codec.encoded_size(Values.FP32, count) == 32 + 4 * count
    assert 3.96 < codec.encoded_size(Values.FP32, count) / codec.encoded_size(Values.INT8, count) <= 4


@EVERY_KIND
@given(
    st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True), min_size=1, max_size=codec.BLOCK_VALUES + 5
    )
)
@settings(max_examples=60, deadline=None)
def test_any_allowed_vector_survives(values: Values, numbers: list[float]) -> None:
    """4. Zeros, subnormals and the largest allowed values in one block: no division by zero, overflow or wrap."""
    x_P = np.array(numbers, np.float32)
    y_P = codec.decode(codec.encode(values, x_P), values, len(x_P))
    assert np.all(np.isfinite(y_P))
    assert np.all((x_P == 0) <= (y_P == 0)) and np.all(x_P.astype(np.float64) * y_P >= 0)
    again_P = codec.decode(codec.encode(values, x_P), values, len(x_P))
    assert np.array_equal(y_P, again_P)


@EVERY_KIND
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_range_decodes_like_the_whole_sliced(values: Values, data: st.DataObject) -> None:
    """5. An owner reads only its shard's bytes and sees exactly the values a reader of the whole object sees."""
    count = data.draw(st.integers(1, 40 * codec.BLOCK_VALUES))
    num_blocks = -(-count // codec.BLOCK_VALUES)
    first = data.draw(st.integers(0, num_blocks - 1))
    end = data.draw(st.integers(first + 1, num_blocks))
    start, length = first * codec.BLOCK_VALUES, min(count, end * codec.BLOCK_VALUES) - first * codec.BLOCK_VALUES
    whole = codec.encode(values, random_vector(count))
    offset, size_bytes = codec.byte_range(values, start, length, count)
    part_S = codec.decode_range(whole[offset : offset + size_bytes], values, length)
    assert np.array_equal(part_S, codec.decode(whole, values, count)[start : start + length])


@EVERY_KIND
@pytest.mark.parametrize("count", [1, 16_384, 40_000])
def test_chunk_digests_tile_the_object(values: Values, count: int) -> None:
    """6. Ranges are checked by chunk: the chunks' bytes are the body, each exactly once, in order."""
    data = codec.encode(values, random_vector(count))
    digests = codec.chunk_digests(data, values, count)
    assert len(digests) == codec.num_chunks(count) == len(codec.covering_chunks(0, count))
    at = codec.HEADER_BYTES
    for chunk, digest in enumerate(digests):
        start = chunk * codec.CHUNK_VALUES
        offset, size_bytes = codec.byte_range(values, start, min(codec.CHUNK_VALUES, count - start), count)
        assert offset == at and hashlib.sha256(data[offset : offset + size_bytes]).hexdigest() == digest
        at += size_bytes
    assert at == len(data)


@pytest.mark.parametrize(
    ("start", "length", "chunks"),
    [(0, 1, [0]), (0, 16_384, [0]), (16_128, 512, [0, 1]), (16_384, 256, [1]), (256, 40_000, [0, 1, 2])],
)
def test_covering_chunks(start: int, length: int, chunks: list[int]) -> None:
    """7. A shard that ends at a chunk's end does not fetch the next chunk."""
    assert list(codec.covering_chunks(start, length)) == chunks


@pytest.mark.parametrize(("start", "length"), [(1, 256), (0, 255), (256, 300), (-256, 256), (0, 1_280)])
def test_ranges_that_cut_a_block_are_a_bug(start: int, length: int) -> None:
    """8. A range that would split a scale from its values is refused where it is made, not where it is read."""
    with pytest.raises(ValueError):
        codec.byte_range(Values.INT8, start, length, 1_024)


@EVERY_KIND
@given(st.binary(max_size=700), st.integers(1, 600))
@settings(max_examples=80, deadline=None)
def test_garbage_raises_peer_fault_only(values: Values, garbage: bytes, count: int) -> None:
    """9. A stranger uploads noise: refused with a reason, never a numpy error."""
    with pytest.raises(PeerFault):
        codec.decode(garbage, values, count)


@EVERY_KIND
@given(st.data())
@settings(max_examples=80, deadline=None)
def test_one_wrong_byte_or_length_is_harmless(values: Values, data: st.DataObject) -> None:
    """10. A damaged object is refused, or decodes to other finite numbers for the digest to catch."""
    whole = bytearray(codec.encode(values, random_vector(300)))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(PeerFault) as fault:
        codec.decode(bytes(whole[:cut]), values, 300)
    assert fault.value.code == Reason.BAD_SIZE
    try:
        y_P = codec.decode(bytes(whole), values, 300)
    except PeerFault as damaged:
        assert damaged.code in (Reason.BAD_OBJECT, Reason.NOT_FINITE)
    else:
        assert at >= codec.HEADER_BYTES and np.all(np.isfinite(y_P))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -2e30])
@pytest.mark.parametrize("place", [0, 299])
def test_not_finite_and_absurd_values_are_refused_at_both_ends(bad: float, place: int) -> None:
    """11. A replica diverged: it learns so from its own encoder; if it sends raw bytes anyway, the reader refuses."""
    x_P = random_vector(300)
    x_P[place] = bad
    for values in Values:
        with pytest.raises(PeerFault) as fault:
            codec.encode(values, x_P)
        assert fault.value.code == Reason.NOT_FINITE
    with pytest.raises(PeerFault) as fault:
        codec.decode_range(x_P.tobytes(), Values.FP32, 300)
    assert fault.value.code == Reason.NOT_FINITE


@pytest.mark.parametrize(
    ("scale_bits", "reason"),
    [
        (0x7F80, Reason.NOT_FINITE),  # infinity
        (0x7FC0, Reason.NOT_FINITE),  # NaN
        (0x0000, Reason.BAD_OBJECT),  # zero
        (0x007F, Reason.BAD_OBJECT),  # subnormal
        (0xBF80, Reason.BAD_OBJECT),  # -1
        (0x7F00, Reason.BAD_OBJECT),  # 1.7e38: times 127 would be infinite
    ],
)
@pytest.mark.parametrize("block", [0, 1])
def test_forged_scales_are_refused(scale_bits: int, reason: Reason, block: int) -> None:
    """12. An attacker writes a scale no encoder writes, in a whole block or in the short last one."""
    data = bytearray(codec.encode(Values.INT8, random_vector(300)))
    at = codec.HEADER_BYTES + block * (codec.BLOCK_VALUES + 2)
    data[at : at + 2] = scale_bits.to_bytes(2, "little")
    with pytest.raises(PeerFault) as fault:
        codec.decode(bytes(data), Values.INT8, 300)
    assert fault.value.code == reason


def test_an_object_of_another_kind_is_refused() -> None:
    """13. Same size, other meaning: a header of another kind or count does not pass."""
    data = codec.encode(Values.BF16, random_vector(512))
    assert len(data) == codec.encoded_size(Values.FP32, 256)
    with pytest.raises(PeerFault) as fault:
        codec.decode(data, Values.FP32, 256)
    assert fault.value.code == Reason.BAD_OBJECT
