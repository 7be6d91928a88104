"""Committed training states on the miner's disk, until nobody can ask for them any more.

    <work dir>/snapshots/<run>/<epoch>-<digest>     the four parts one after the other, equal in length

Law: named by the commitment's digest, so a restarted miner still finds what it committed before. A write is whole or
absent. States older than KEPT_EPOCHS go when a newer epoch's first one comes: the disk holds a bounded number.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol

from subnet.coordination.dossiers import KEPT_EPOCHS
from subnet.protocol.ids import Digest, Epoch, RunId
from subnet.protocol.messages import STATE_PARTS


class Snapshots(Protocol):
    """Where a miner keeps the states it committed."""

    def keep(self, epoch: Epoch, digest: str, parts: tuple[bytes, ...]) -> None: ...

    def parts(self, digest: str) -> tuple[bytes, ...] | None:
        """None when it is not here (any more)."""
        ...

    def drop(self) -> None:
        """The run is over and every audit of it settled: nobody can ask for a state any more."""
        ...


class MemorySnapshots:
    """For simulations: the same bounds, no disk."""

    def __init__(self) -> None:
        self._states: dict[str, tuple[Epoch, tuple[bytes, ...]]] = {}

    def keep(self, epoch: Epoch, digest: str, parts: tuple[bytes, ...]) -> None:
        self._states = {d: kept for d, kept in self._states.items() if kept[0] >= epoch - KEPT_EPOCHS}
        self._states[digest] = epoch, parts

    def parts(self, digest: str) -> tuple[bytes, ...] | None:
        kept = self._states.get(digest)
        return kept[1] if kept else None

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
        path = next(self._folder.glob(f"*-{Digest(digest)}"), None)
        if path is None:
            return None
        data = path.read_bytes()
        size = len(data) // len(STATE_PARTS)
        return tuple(data[i * size : (i + 1) * size] for i in range(len(STATE_PARTS)))

    def drop(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
