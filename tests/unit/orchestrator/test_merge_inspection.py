"""The orchestrator looks at all uploads of a merge that went wrong: against whole vectors held at once."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from subnet.coordination.merge_state import InspectMerge, Upload
from subnet.merging import compression
from subnet.orchestrator import errands, merge_inspection
from subnet.protocol import keys
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Epoch, Hotkey, Stage, Values
from subnet.protocol.keys import Kind
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import LoopRuntime
from subnet.storage.memory import MemoryObjectStore

pytestmark = pytest.mark.looptime(end=3_600)


class Bench:
    """A store, and uploads of stage 0 in it."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec, self.runtime = spec, LoopRuntime(b"inspection")
        self.store = MemoryObjectStore(self.runtime.now)
        self.count = spec.stages[0].num_params
        self._random = np.random.default_rng(3)

    def vector(self) -> np.ndarray:
        return self._random.standard_normal(self.count).astype(np.float32)

    def data(self) -> bytes:
        return compression.encode(Values.FP32, self.vector())

    def told(self, name: str, data: bytes) -> Upload:
        key = keys.make(self.spec.run_id, 0, 0, name, Kind.UPLOAD)
        source = m.Source(key=key, digest=Digest(hashlib.sha256(data).hexdigest()), size_bytes=len(data))
        chunks = compression.chunk_digests(data, Values.FP32, self.count)
        return Upload(source=source, norm=1.0, weight=1, chunk_digests=chunks)

    async def put(self, name: str, data: bytes) -> Upload:
        upload = self.told(name, data)
        await self.store.put(upload.source.key, data)
        return upload


@pytest.fixture
def bench(spec: RunSpec) -> Bench:
    return Bench(spec)


async def look(bench: Bench, uploads: dict[str, Upload], chunks: tuple[int, ...] = ()) -> dict[str, m.UploadSeen]:
    by = {Hotkey(name): upload for name, upload in uploads.items()}
    asked = InspectMerge(Stage(0), Epoch(0), 7, by, chunks)
    told = await errands.carry_out(asked, bench.spec, bench.store, None, bench.runtime)
    assert isinstance(told, m.MergeInspected) and (told.stage, told.epoch, told.number) == (0, 0, 7)
    return {one.hotkey: one for one in told.uploads}


def expected(vectors: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """The slow definition."""
    units = {name: v.astype(np.float64) / np.linalg.norm(v.astype(np.float64)) for name, v in vectors.items()}
    told = {}
    for name, unit in units.items():
        others = np.sum([other for of, other in units.items() if of != name], axis=0)
        norm = float(np.linalg.norm(vectors[name].astype(np.float64)))
        told[name] = norm, float(unit @ others / np.linalg.norm(others))
    return told


@pytest.mark.parametrize("piece_values", [2**21, 1])
async def test_norms_and_directions(bench: Bench, monkeypatch: pytest.MonkeyPatch, piece_values: int) -> None:
    """1. Read at once or chunk by chunk, the figures are those of the whole vectors."""
    monkeypatch.setattr(merge_inspection, "PIECE_VALUES", piece_values)
    vectors = {name: bench.vector() for name in "abc"}
    uploads = {name: await bench.put(name, compression.encode(Values.FP32, v)) for name, v in vectors.items()}
    seen = await look(bench, uploads)
    for name, (norm, cosine) in expected(vectors).items():
        assert seen[name].reason is Reason.OK
        assert (seen[name].norm, seen[name].cosine) == (pytest.approx(norm), pytest.approx(cosine))


async def test_drawn_chunks_only(bench: Bench) -> None:
    """2. Of a large merge only drawn chunks are read: the figures are theirs."""
    assert compression.num_chunks(bench.count) > 1
    vectors = {name: bench.vector() for name in "abc"}
    uploads = {name: await bench.put(name, compression.encode(Values.FP32, v)) for name, v in vectors.items()}
    seen = await look(bench, uploads, (1,))
    part = slice(compression.CHUNK_VALUES, 2 * compression.CHUNK_VALUES)
    for name, (norm, cosine) in expected({name: v[part] for name, v in vectors.items()}).items():
        assert (seen[name].norm, seen[name].cosine) == (pytest.approx(norm), pytest.approx(cosine))


async def test_bad_uploads_are_told_and_left_out(bench: Bench) -> None:
    """3. A NaN, other bytes than were said, a cut object, one that is gone: each with its reason; the good ones are
    compared as if those did not exist."""
    vectors = {name: bench.vector() for name in "ab"}
    uploads = {name: await bench.put(name, compression.encode(Values.FP32, v)) for name, v in vectors.items()}
    uploads["nan"] = await bench.put("nan", bench.data()[:-4] + np.float32(np.nan).tobytes())
    uploads["other"] = await bench.put("other", bench.data())
    await bench.store.put(uploads["other"].source.key, bench.data())
    uploads["cut"] = await bench.put("cut", bench.data())
    await bench.store.put(uploads["cut"].source.key, bench.data()[:-400])
    uploads["gone"] = bench.told("gone", bench.data())
    seen = await look(bench, uploads)
    assert {name: one.reason for name, one in seen.items() if one.reason is not Reason.OK} == {
        "nan": Reason.NOT_FINITE,
        "other": Reason.BAD_DIGEST,
        "cut": Reason.BAD_DIGEST,
        "gone": Reason.UNREADABLE,
    }
    for name, (norm, cosine) in expected(vectors).items():
        assert (seen[name].norm, seen[name].cosine) == (pytest.approx(norm), pytest.approx(cosine))
