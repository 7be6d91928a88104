"""One shard from the uploads' chunks: the arithmetic and the checks that owner and orchestrator share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.errors import PeerFault
from subnet.merging import compression as codec
from subnet.merging.butterfly import assign
from subnet.merging.reduction import reduce_shard
from subnet.merging.shards import PIECE_CHUNKS, ShardReduction, range_digest, reduced_range
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Hotkey, RunId, Values
from subnet.protocol.messages import ManifestEntry, Shard, Source
from subnet.protocol.reasons import Reason

WEIGHTS, SCALES = (12.0, 10.0, 17.0), (1.0, 0.5, float(np.float32(0.3)))


def swarm(values: Values, count: int) -> tuple[tuple[ManifestEntry, ...], list[bytes]]:
    """A closed manifest of three uploads, and their bytes."""
    rng = np.random.default_rng(count)
    manifest, uploads = [], []
    for number, (weight, scale) in enumerate(zip(WEIGHTS, SCALES, strict=True)):
        data = codec.encode(values, rng.standard_normal(count).astype(np.float32))
        key = keys.make(RunId("run"), 3, 1, f"hk{number}", keys.Kind.UPLOAD)
        source = Source(key=key, digest=Digest(hashlib.sha256(data).hexdigest()), size_bytes=len(data))
        digests = codec.chunk_digests(data, values, count)
        manifest.append(
            ManifestEntry(
                hotkey=Hotkey(f"hk{number}"), weight=weight, scale=scale, source=source, chunk_digests=digests
            )
        )
        uploads.append(data)
    return tuple(manifest), uploads


def reduced(
    manifest: tuple[ManifestEntry, ...], uploads: list[bytes], shards: Sequence[Shard], values: Values, count: int
) -> list[np.ndarray]:
    job = ShardReduction(manifest, shards, values, count)
    for piece in job.pieces:
        reads = zip(uploads, job.reads(piece), strict=True)
        job.add(piece, [data[read.offset : read.offset + read.size_bytes] for data, read in reads])
    return job.results()


def whole_vector(count: int) -> tuple[Shard, ...]:
    return (Shard(index=0, start=0, length=count),)


@pytest.mark.parametrize("values", list(Values))
@given(st.integers(1, 60_000), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_shards_are_slices_of_the_whole_reduction(values: Values, count: int, num_owners: int, copies: int) -> None:
    """1. Any number of owners, any cut: put together, the shards are the whole vectors' reduction, bit for bit;
    an owner that reduces all its shards and the orchestrator that reduces one get the same."""
    manifest, uploads = swarm(values, count)
    whole_P = reduce_shard([codec.decode(data, values, count) for data in uploads], WEIGHTS, SCALES)
    owners = [Hotkey(f"hk{i}") for i in range(num_owners)]
    assignments = assign(b"s" * 32, 1, 3, owners, count, copies)
    for owner in owners:
        own = [shard for shard, group in assignments if owner in group]
        for shard, g_S in zip(own, reduced(manifest, uploads, own, values, count), strict=True):
            assert g_S.tobytes() == whole_P[shard.start : shard.start + shard.length].tobytes()
    for shard, _ in assignments[:2]:
        (g_S,) = reduced(manifest, uploads, [shard], values, count)
        assert g_S.tobytes() == whole_P[shard.start : shard.start + shard.length].tobytes()


def test_a_big_shard_is_read_in_bounded_pieces() -> None:
    """2. One replica owns millions of values: no read is longer than a piece, and no chunk is read twice."""
    count = 3 * PIECE_CHUNKS * codec.CHUNK_VALUES + 1_000
    manifest = tuple(
        msgspec.structs.replace(
            entry,
            source=msgspec.structs.replace(entry.source, size_bytes=codec.encoded_size(Values.INT8, count)),
            chunk_digests=(entry.chunk_digests[0],) * codec.num_chunks(count),
        )
        for entry in swarm(Values.INT8, 300)[0]
    )
    job = ShardReduction(manifest, whole_vector(count), Values.INT8, count)
    assert [piece.start for piece in job.pieces] == [i * PIECE_CHUNKS * codec.CHUNK_VALUES for i in range(4)]
    assert sum(piece.length for piece in job.pieces) == count and job.pieces[-1].length == 1_000
    with pytest.raises(ValueError):
        job.results()  # nothing was added yet: never zeros in place of a result


def test_only_covering_chunks_are_read() -> None:
    """3. Shards in the middle of the vector cost their chunks, not the object; chunks that shards share come once."""
    count = 200_000
    manifest, _ = swarm(Values.INT8, count)
    shards = [Shard(index=i, start=start, length=256) for i, start in enumerate((20_480, 25_600, 40_960, 180_224))]
    job = ShardReduction(manifest, shards, Values.INT8, count)
    chunk = codec.CHUNK_VALUES
    assert job.pieces == ((chunk, 2 * chunk), (11 * chunk, chunk))  # chunks 1 and 2 in one read, then chunk 11
    for piece in job.pieces:
        assert [read.entry.hotkey for read in job.reads(piece)] == ["hk0", "hk1", "hk2"]
        assert {read.size_bytes for read in job.reads(piece)} == {codec.body_size(Values.INT8, piece.length)}


def change(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("at", [0, 1_000, -1])
def test_other_bytes_than_uploaded_blame_the_uploader(at: int) -> None:
    """4. A replica swaps its object after the manifest closed: named by its object's key, whichever byte it was."""
    manifest, uploads = swarm(Values.INT8, 30_000)
    job = ShardReduction(manifest, whole_vector(30_000), Values.INT8, 30_000)
    bodies = [data[codec.HEADER_BYTES :] for data in uploads]
    bodies[1] = change(bodies[1], at % len(bodies[1]))
    with pytest.raises(PeerFault) as fault:
        job.add(job.pieces[0], bodies)
    assert fault.value.code == Reason.BAD_DIGEST and fault.value.evidence == manifest[1].source.key


@pytest.mark.parametrize(
    ("bad", "code"), [(np.nan, Reason.NOT_FINITE), (np.inf, Reason.NOT_FINITE), (-3e38, Reason.NOT_FINITE)]
)
def test_nan_under_a_true_digest_blames_the_uploader(bad: float, code: Reason) -> None:
    """5. A replica uploads NaN and digests it honestly: the digest is right, the object is still refused."""
    count = 300
    manifest, uploads = swarm(Values.FP32, count)
    raw = np.frombuffer(uploads[2], np.float32, offset=codec.HEADER_BYTES).copy()
    raw[299] = bad
    uploads[2] = uploads[2][: codec.HEADER_BYTES] + raw.tobytes()
    entry = manifest[2]
    forged = ManifestEntry(
        hotkey=entry.hotkey,
        weight=entry.weight,
        scale=entry.scale,
        source=entry.source,
        chunk_digests=codec.chunk_digests(uploads[2], Values.FP32, count),
    )
    with pytest.raises(PeerFault) as fault:
        reduced((*manifest[:2], forged), uploads, whole_vector(count), Values.FP32, count)
    assert fault.value.code == code and fault.value.evidence == entry.source.key


def test_a_short_body_is_a_size_fault() -> None:
    """6. The store hands out less than was asked for: no index error, a fault with the key."""
    manifest, uploads = swarm(Values.FP32, 300)
    job = ShardReduction(manifest, whole_vector(300), Values.FP32, 300)
    bodies = [data[codec.HEADER_BYTES :] for data in uploads]
    with pytest.raises(PeerFault) as fault:
        job.add(job.pieces[0], [bodies[0][:-4], *bodies[1:]])
    assert (fault.value.code, fault.value.evidence) == (Reason.BAD_SIZE, manifest[0].source.key)


def replaced(entry: ManifestEntry, **fields: object) -> ManifestEntry:
    return msgspec.structs.replace(entry, **fields)


def test_a_manifest_that_does_not_fit_is_refused_before_reading() -> None:
    """7. Wrong size, missing chunk digests, no weight, a shard outside the vector: refused with nothing fetched."""
    count = 300
    manifest, _ = swarm(Values.FP32, count)
    good = Shard(index=0, start=0, length=count)
    first = manifest[0]
    cases = [
        ((replaced(first, chunk_digests=()), *manifest[1:]), good, Reason.BAD_OBJECT),
        ((replaced(first, source=msgspec.structs.replace(first.source, size_bytes=9)),), good, Reason.BAD_SIZE),
        ((replaced(first, weight=0.0),), good, Reason.MALFORMED),
        ((replaced(first, weight=-1.0), *manifest[1:]), good, Reason.MALFORMED),
        ((replaced(first, scale=1.5), *manifest[1:]), good, Reason.MALFORMED),
        ((), good, Reason.MALFORMED),
        (manifest, Shard(index=0, start=256, length=256), Reason.MALFORMED),
        (manifest, Shard(index=0, start=-256, length=300), Reason.MALFORMED),
    ]
    for entries, shard, code in cases:
        with pytest.raises(PeerFault) as fault:
            ShardReduction(entries, [shard], Values.FP32, count)
        assert fault.value.code == code


def test_reduced_ranges_are_where_the_object_has_them() -> None:
    """8. An owner writes its shards one after the other; the range of each holds its values and has its digest."""
    shards = [Shard(index=i, start=i * 1_024, length=length) for i, length in ((1, 512), (4, 1_024), (9, 77))]
    values = [np.random.default_rng(i).standard_normal(s.length).astype(np.float32) for i, s in enumerate(shards)]
    data = codec.encode(Values.FP32, np.concatenate(values))
    for position, g_S in enumerate(values):
        offset, size_bytes = reduced_range(shards, position)
        body = data[offset : offset + size_bytes]
        assert np.array_equal(codec.decode_range(body, Values.FP32, len(g_S)), g_S)
        assert hashlib.sha256(body).hexdigest() == range_digest(g_S)
