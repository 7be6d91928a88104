"""A replica that was killed goes on from its last committed state: bit for bit where it had stood."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from subnet import presets
from subnet.data.sampling import Batches
from subnet.data.token_shards import encode as encode_tokens
from subnet.data.token_shards import open_file
from subnet.merging import compression
from subnet.miner.replica import Replica
from subnet.miner.snapshots import PROGRESS_FILE, FolderSnapshots, Found, found, progress_notes
from subnet.model import wire
from subnet.model.initial import initial_parameters
from subnet.model.trainer import Trainer
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Epoch, ItemId, MicroBatchId, Pass, RunId, Stage, Values
from subnet.protocol.keys import Kind
from subnet.protocol.messages import PassWork, Source, Target
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.scoring.audit import check_log

if TYPE_CHECKING:
    from collections.abc import Iterable

RUN, STAGE = RunId("run"), Stage(1)
FILE = DataFile(key=keys.make(RUN, 0, 0, "text", Kind.DATA), digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=2, seq_len=16)


def make_spec() -> RunSpec:
    preset = presets.equivalence(presets.Size(3, 3, 3), width=8)
    preset = preset._replace(
        inner=msgspec.structs.replace(preset.inner, micro_batches_per_step=2, reset_each_epoch=False),
        audit=msgspec.structs.replace(preset.audit, rate=1.0, segment_steps=1),
    )
    return presets.run_spec(preset, run_id=RUN, seed=7, num_stages=3, data=DATA)


SPEC = make_spec()
SOURCE = Source(key=keys.make(RUN, 0, 1, "start", Kind.PARAMETERS), digest=Digest("a" * 64), size_bytes=1)


def tensor(seed: int, scale: float) -> bytes:
    z_BTK = np.random.default_rng(seed).standard_normal((2, 16, SPEC.boundary.width)).astype(np.float32)
    return wire.encode(SPEC, z_BTK * np.float32(scale), None)


class Process:
    """One process of the miner, on a disk that outlives it. The epoch's parameters are loaded."""

    def __init__(self, disk: Path, text: Path) -> None:
        tokens = encode_tokens(np.random.default_rng(1).integers(0, 256, 2_000), 256)
        text.write_bytes(tokens)
        batches = Batches(open_file(text, 256), SPEC.seed, 2, 16)
        self.replica = Replica(SPEC, STAGE, Trainer(SPEC, STAGE, "cpu", batches), FolderSnapshots(disk, RUN))
        start_P = initial_parameters(SPEC, STAGE)
        encoded = tuple(compression.encode(Values.FP32, vector) for vector in (start_P, np.zeros_like(start_P)))
        self.load = lambda: self.replica.load(Epoch(0), (SOURCE, SOURCE), (encoded[0], encoded[1]))

    def run(self, micro_batches: Iterable[int]) -> None:
        """Forward and backward of each."""
        for number in micro_batches:
            self.replica.run_pass(self._work(Pass.FORWARD, number), tensor(number, 1.0), None)
            self.replica.run_pass(self._work(Pass.BACKWARD, number), tensor(number, 1.0), tensor(99 + number, 1e-3))

    def _work(self, kind: Pass, number: int) -> PassWork:
        item, made = f"{kind.value[0]}{number}.1.0", Kind.GRADIENT if kind is Pass.BACKWARD else Kind.BOUNDARY
        return PassWork(
            item=ItemId(item),
            kind=kind,
            micro_batch=MicroBatchId(number),
            stage=STAGE,
            epoch=Epoch(0),
            stage_input=SOURCE,
            gradient=SOURCE if kind is Pass.BACKWARD else None,
            output=Target(key=keys.make(RUN, 0, 1, item, made), size_bytes=SPEC.boundary_size_bytes),
            deadline_s=60.0,
        )


def found_on(disk: Path) -> Found | None:
    notes = progress_notes(disk)
    return found(notes[-1]) if notes else None


@pytest.fixture
def started(tmp_path: Path) -> Process:
    process = Process(tmp_path / "disk", tmp_path / "text")
    process.load()
    return process


def test_it_stands_where_the_dead_one_stood(started: Process, tmp_path: Path) -> None:
    """1. Killed with one micro-batch after its last step: two steps are there again, the one micro-batch is done anew,
    and parameters, optimizer and log are those of a miner that nobody had killed."""
    unhurt = Process(tmp_path / "other", tmp_path / "text")
    unhurt.load()
    unhurt.run(range(8))
    started.run(range(5))
    after = Process(tmp_path / "disk", tmp_path / "text")
    left = found_on(tmp_path / "disk")
    assert left is not None and len(left.progress.log) == 8 and len(left.progress.commitments) == 3
    assert (left.progress.run_id, left.progress.stage, left.progress.epoch) == (RUN, STAGE, 0)
    after.load()
    after.replica.resume(left)
    after.run(range(4, 8))
    assert after.replica.close_epoch(Epoch(0)).digest == unhurt.replica.close_epoch(Epoch(0)).digest
    told = after.replica.told()
    assert told == unhurt.replica.told()
    assert check_log(told.log, told.commitments, 0, 2, 1, loaded=True, merged=False, reset_each_epoch=False) is None


def test_killed_again_and_again(started: Process, tmp_path: Path) -> None:
    """2. Each life does a step and a half: every step of all of them is in the upload."""
    started.run(range(3))
    for first in (2, 4, 6):
        process = Process(tmp_path / "disk", tmp_path / "text")
        left = found_on(tmp_path / "disk")
        assert left is not None and len(left.progress.log) == 2 * first
        process.load()
        process.replica.resume(left)
        assert found_on(tmp_path / "disk") == left, "killed before its first step: nothing is lost"
        process.run(range(first, first + 3))
    assert len(process.replica.told().log) == 18 and process.replica.close_epoch(Epoch(0)).norm > 0


def test_what_was_dropped_is_not_gone_on_from(started: Process, tmp_path: Path) -> None:
    """3. It was told to load the stage's parameters anew: what it had before is not offered again."""
    started.run(range(4))
    assert found_on(tmp_path / "disk") is not None
    started.load()
    assert found_on(tmp_path / "disk") is None


@pytest.mark.parametrize("harm", ["state cut", "state changed", "state gone", "log cut"])
def test_a_disk_that_lost_something(started: Process, tmp_path: Path, harm: str) -> None:
    """4. The machine lost power: what is not whole, byte for byte as committed, is not there."""
    started.run(range(4))
    folder = tmp_path / "disk" / RUN
    state = sorted(folder.glob("0*-*"), key=lambda file: file.stat().st_mtime_ns)[-1]
    match harm:
        case "state cut":
            state.write_bytes(state.read_bytes()[:-8])
        case "state changed":
            state.write_bytes(bytes([state.read_bytes()[0] ^ 1]) + state.read_bytes()[1:])
        case "state gone":
            state.unlink()
        case "log cut":
            (folder / PROGRESS_FILE).write_bytes((folder / PROGRESS_FILE).read_bytes()[:-20])
    assert found_on(tmp_path / "disk") is None
