"""The journal that a restart is measured over is one that the real machine made, and a restart folds its tail only."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from subnet.coordination.invariants import broken
from subnet.localnet.folder import RunFolder
from subnet.orchestrator.restoring import restore
from subnet.protocol.ids import Hotkey
from subnet.simulation.long_journal import LongRun
from subnet.simulation.restart import make
from subnet.storage.sql import SqlJournal

ROWS, EVERY = 2_000, 400


async def test_two_thousand_records(tmp_path: Path) -> None:
    """1. As `python -m subnet.simulation.restart` makes a million: mostly passes, epochs are merged, and from SQLite a
    restart folds what came after the last snapshot, which is as old as it can be."""
    folder = RunFolder(tmp_path)
    made = await make(folder, ROWS, miners=6, stages=2, every=EVERY)
    assert made.snapshots == ROWS // EVERY - 1 and sum(made.kinds.values()) == ROWS
    assert made.kinds["exchange with PassDone"] > ROWS * 0.4
    journal = await SqlJournal.open(f"sqlite:///{folder.journal}")
    restored = await restore(journal, journal.snapshots)
    await journal.close()
    assert restored is not None and restored.replayed == EVERY and restored.snapshot_index == ROWS - EVERY - 1
    assert min(stage.epoch for stage in restored.state.stages) >= 1


def test_a_sound_run() -> None:
    """2. Every promise of the state holds after every record of it, and every pass is accepted."""
    run = LongRun(Hotkey("owner"), 6, 2, begin_at=1.7e9)
    for envelope in islice(run.records(), 1_500):
        assert list(broken(run.state)) == [] and envelope.at == run.state.at
    assert set(run.state.outcomes) == {"applied/ok"}
