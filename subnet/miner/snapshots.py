"""Committed training states on the miner's disk, until nobody can ask for them any more.

    <work dir>/snapshots/<run>/<epoch>-<digest>     the four parts one after the other, equal in length
    <work dir>/snapshots/<run>/progress.json        the log up to the newest state that training may go on from

Law: named by the commitment's digest, so a restarted miner still finds what it committed before, and goes on from it. A
write is whole or absent. States older than KEPT_EPOCHS go when a newer epoch's first one comes: the disk holds a
bounded number.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from subnet.coordination.dossiers import KEPT_EPOCHS
from subnet.protocol.ids import Digest, Epoch, RunId
from subnet.protocol.messages import STATE_PARTS, Resumes
from subnet.scoring.audit import state_digest
from subnet.transport.transfer import digest_of

PROGRESS_FILE = "progress.json"


class Snapshots(Protocol):
    """Where a miner keeps the states it committed."""

    def keep(self, epoch: Epoch, digest: str, parts: tuple[bytes, ...]) -> None: ...

    def parts(self, digest: str) -> tuple[bytes, ...] | None:
        """None when it is not here (any more)."""
        ...

    def note(self, progress: Resumes | None) -> None:
        """What another process may go on from, its state kept before; None: nothing any more."""
        ...

    def drop(self) -> None:
        """The run is over and every audit of it settled: nobody can ask for a state any more."""
        ...


class MemorySnapshots:
    """For simulations: the same bounds, no disk."""

    def __init__(self) -> None:
        self._states: dict[str, tuple[Epoch, tuple[bytes, ...]]] = {}
        self.progress: Resumes | None = None

    def keep(self, epoch: Epoch, digest: str, parts: tuple[bytes, ...]) -> None:
        self._states = {d: kept for d, kept in self._states.items() if kept[0] >= epoch - KEPT_EPOCHS}
        self._states[digest] = epoch, parts

    def parts(self, digest: str) -> tuple[bytes, ...] | None:
        kept = self._states.get(digest)
        return kept[1] if kept else None

    def note(self, progress: Resumes | None) -> None:
        self.progress = progress

    def drop(self) -> None:
        self._states.clear()


class FolderSnapshots:
    """Files below the miner's work folder."""

    def __init__(self, folder: Path, run_id: RunId) -> None:
        self._folder = folder / run_id
        self._newest = Epoch(-1)
        for other in folder.glob("*"):
            if other != self._folder:
                shutil.rmtree(other, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)

    def keep(self, epoch: Epoch, digest: str, parts: tuple[bytes, ...]) -> None:
        path = self._folder / f"{epoch:06d}-{digest}"
        beside = self._folder / ".partial"
        with beside.open("wb") as file:
            for part in parts:
                file.write(part)
        os.replace(beside, path)
        if epoch > self._newest:
            self._newest = epoch
            for old in self._folder.glob("*-*"):
                if int(old.name.partition("-")[0]) < epoch - KEPT_EPOCHS:
                    old.unlink(missing_ok=True)

    def parts(self, digest: str) -> tuple[bytes, ...] | None:
        return _parts(self._folder, digest)

    def note(self, progress: Resumes | None) -> None:
        path = self._folder / PROGRESS_FILE
        if progress is None:
            path.unlink(missing_ok=True)
            return
        beside = path.with_name(f".{PROGRESS_FILE}")
        beside.write_bytes(msgspec.json.encode(progress))
        os.replace(beside, path)

    def drop(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _parts(folder: Path, digest: str) -> tuple[bytes, ...] | None:
    path = next(folder.glob(f"*-{Digest(digest)}"), None)
    if path is None:
        return None
    data = path.read_bytes()
    size = len(data) // len(STATE_PARTS)
    return tuple(data[i * size : (i + 1) * size] for i in range(len(STATE_PARTS)))


class Found(NamedTuple):
    """What an earlier process left, whole: its log, and the parts of the state at its end."""

    progress: Resumes
    parts: tuple[bytes, ...]


def progress_notes(folder: Path) -> list[Path]:
    """What processes wrote down in a miner's folder of snapshots, by run, the latest last."""
    return sorted(folder.glob(f"*/{PROGRESS_FILE}"), key=lambda file: file.stat().st_mtime)


def found(note: Path) -> Found | None:
    """What there is to go on from; None when something is not, byte for byte, as it was committed."""
    try:
        progress = msgspec.json.decode(note.read_bytes(), type=Resumes)
        last = progress.commitments[-1]
        parts = _parts(note.parent, last.digest)
    except (OSError, msgspec.MsgspecError):
        return None
    if parts is None:
        return None
    digest = state_digest(last.version, last.step, last.optimizer_steps, [digest_of(part) for part in parts])
    return Found(progress, parts) if digest == last.digest else None
