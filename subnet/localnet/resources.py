"""What a local run takes of the machine over its whole time: memory, files, sockets, threads, tasks, disk.

Law: measures from outside (/proc, the file system), but for the number of asyncio tasks, which each process says itself
(`telemetry.counted`). Where there is no /proc only tasks and disk are known. A measurement never disturbs the run.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from subnet.localnet import leaks
from subnet.localnet.folder import RunFolder
from subnet.localnet.leaks import Course, Leak, Point
from subnet.localnet.processes import Child
from subnet.telemetry import CENSUS_FILE, read_census

EVERY_S = 5.0
DISK_EVERY_S = 15.0
MB = 1e6
SAMPLES_FILE = "resources.jsonl"
"""In the run folder's logs: every measurement of a process."""


class Bound(NamedTuple):
    """How fast a measure may grow: so much an hour, or that share of its median, whichever is more."""

    per_h: float
    share_per_h: float = 0.0


PROCESS_BOUNDS = {
    "rss_mb": Bound(48.0, 0.15),
    "descriptors": Bound(32.0),
    "sockets": Bound(32.0),
    "threads": Bound(16.0),
    "tasks": Bound(32.0),
}
"""By measure, for every role. With a kill every 15 s, one left behind by each is 240 an hour."""
WARM_UP_S = {"miner": 180.0}
"""By role, where it is more than usual: a miner's memory finds its size with its second merge and its first audit."""
DISK_BOUND = Bound(64.0, 0.25)
EPOCHS_BOUND = Bound(8.0)
"""For the number of epochs of which anything is kept: whatever is not deleted by its rule stays, and one more comes
every minute."""
GROWS_BY_DESIGN = {
    "snapshots": "as large as the newest epochs make it: their number is judged",
    "objects": "as large as the newest epochs make it: their number is judged",
    "journal": "every record is kept for ever",
    "chain": "every block is kept for ever",
    "logs": "what processes say is kept for the operator",
    "receipts": "miners keep every receipt",
}
"""Parts of the run folder that are to grow, and why; their rate is reported."""


class Process(NamedTuple):
    """One look at one process; None: not known."""

    role: str
    pid: int
    age_s: float
    at_s: float
    measures: Mapping[str, float]


class Resources:
    """Of one run. `look` is called often and measures when it is time."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._born: dict[int, float] = {}
        self._looked_at_s = self._disk_looked_at_s = float("-inf")
        self._processes: list[Process] = []
        self._disk: defaultdict[str, list[Point]] = defaultdict(list)
        self._training_since_s: float | None = None

    def training_began(self, now_s: float) -> None:
        if self._training_since_s is None:
            self._training_since_s = now_s

    async def look(self, now_s: float, children: Iterable[Child]) -> None:
        """Measure what is due, `now_s` seconds after the launch."""
        if now_s - self._looked_at_s >= EVERY_S:
            self._looked_at_s = now_s
            alive = [("launcher", os.getpid()), *((child.name, child.pid) for child in children)]
            for name, pid in alive:
                age_s = now_s - self._born.setdefault(pid, now_s)
                tasks = len(asyncio.all_tasks()) if pid == os.getpid() else self._tasks(name, pid)
                if measures := measured(pid, tasks):
                    self._note(name, Process(role_of(name), pid, age_s, now_s, measures))
        if now_s - self._disk_looked_at_s >= DISK_EVERY_S:
            self._disk_looked_at_s = now_s
            for part, size in (await asyncio.to_thread(disk_use, self._folder)).items():
                self._disk[part].append(Point(part, now_s, now_s, size))

    def _note(self, name: str, one: Process) -> None:
        self._processes.append(one)
        self._folder.logs.mkdir(exist_ok=True)
        line = {"at_s": round(one.at_s, 1), "name": name, "pid": one.pid, "age_s": round(one.age_s, 1), **one.measures}
        with (self._folder.logs / SAMPLES_FILE).open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")

    def _tasks(self, name: str, pid: int) -> int | None:
        census = read_census(census_file(self._folder, name))
        return census.tasks if census is not None and census.pid == pid else None

    # ---- the outcome -------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """By role and measure; the run folder's parts in MB; what leaks, in words. `leaks` None: too short to judge."""
        courses, disk = dict(self._courses()), dict(self._disk_courses())
        by_role: dict[str, dict[str, Any]] = defaultdict(dict)
        for (role, measure), found in courses.items():
            by_role[role][measure] = shown(found)
        return {
            "resources": {role: by_role[role] for role in sorted(by_role)},
            "disk": {
                part: {**shown(found), "grows_by_design": GROWS_BY_DESIGN.get(part)} for part, found in disk.items()
            },
            "leaks": [str(one) for one in judged(courses, disk)] if self._is_long_enough() else None,
            "leaks_not_judged": [
                f"{role}: {measure}"
                for (role, measure), one in courses.items()
                if not leaks.is_known(one, allowed(PROCESS_BOUNDS[measure], one))
            ],
        }

    def _is_long_enough(self) -> bool:
        began_s = self._training_since_s
        return began_s is not None and self._looked_at_s - began_s >= leaks.JUDGED_FROM_S

    def _courses(self) -> Iterator[tuple[tuple[str, str], Course]]:
        points: defaultdict[tuple[str, str], list[Point]] = defaultdict(list)
        for one in self._processes:
            for measure, value in one.measures.items():
                points[one.role, measure].append(Point(str(one.pid), one.age_s, one.at_s, value))
        for key, some in sorted(points.items()):
            if found := leaks.course(some, WARM_UP_S.get(key[0], leaks.WARM_UP_S)):
                yield key, found

    def _disk_courses(self) -> Iterator[tuple[str, Course]]:
        for part, points in sorted(self._disk.items()):
            if found := leaks.course(points):
                yield part, found


def judged(courses: Mapping[tuple[str, str], Course], disk: Mapping[str, Course]) -> list[Leak]:
    """Everything that grows by more than its bound."""
    found = [
        leaks.leak(role, measure, one, allowed(PROCESS_BOUNDS[measure], one))
        for (role, measure), one in courses.items()
    ]
    found += [
        leaks.leak("run folder", part, one, allowed(EPOCHS_BOUND if part in EPOCHS else DISK_BOUND, one))
        for part, one in disk.items()
        if part not in GROWS_BY_DESIGN
    ]
    return [one for one in found if one is not None]


def allowed(bound: Bound, found: Course) -> float:
    return max(bound.per_h, bound.share_per_h * found.median)


def shown(found: Course) -> dict[str, Any]:
    """For the report."""
    slope = found.slope
    return {
        "first": round(found.first, 1),
        "median": round(found.median, 1),
        "last": round(found.last, 1),
        "slope_per_h": None if slope is None else round(slope.per_h, 1),
        "slope_error_per_h": None if slope is None else round(slope.error_per_h, 1),
    }


def role_of(name: str) -> str:
    """'miner-3' is a miner."""
    head, _, number = name.rpartition("-")
    return head if number.isdigit() else name


# ---- looking ---------------------------------------------------------------------------------------------------------


def measured(pid: int, tasks: int | None) -> dict[str, float]:
    """What is known of a process now; nothing when it is gone."""
    found = {} if tasks is None else {"tasks": float(tasks)}
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        links = [_link(entry) for entry in os.scandir(f"/proc/{pid}/fd")]
    except OSError:
        return found
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmRSS" not in fields:  # it has ended and waits to be reaped
        return {}
    found["rss_mb"] = int(fields["VmRSS"].split()[0]) * 1024 / MB
    found["threads"] = float(fields["Threads"])
    found["descriptors"] = float(len(links))
    found["sockets"] = float(sum(link.startswith("socket:") for link in links))
    return found


def _link(entry: os.DirEntry[str]) -> str:
    try:
        return os.readlink(entry.path)
    except OSError:
        return ""  # closed a moment ago


def census_file(folder: RunFolder, name: str) -> Path:
    """Where a process of that name says how many tasks it has."""
    match role_of(name):
        case "miner":
            return folder.miner(name) / CENSUS_FILE
        case "validator":
            return folder.validator(name) / CENSUS_FILE
        case "chain":
            return folder.chain / CENSUS_FILE
        case _:
            return folder.root / CENSUS_FILE


PARTS = (
    ("journal", "journal.sqlite*"),
    ("objects", "objects"),
    ("chain", "chain"),
    ("logs", "logs"),
    ("validators", "validators"),
    ("sdk", "sdk"),
    ("snapshots", "miners/*/snapshots"),
    ("receipts", "miners/*/receipts.jsonl"),
    ("miners' data", "miners/*/data"),
)
"""Part of the run folder → where it lies."""
EPOCHS = {"epochs of objects": "objects/*/*", "epochs of snapshots": "miners/*/snapshots/*/*-*"}
"""How many epochs there is something of → files or folders that begin with the epoch's number."""


def disk_use(folder: RunFolder) -> dict[str, float]:
    """MB by part, and of how many epochs something is kept."""
    found = {part: sum(sum(_sizes(path)) for path in folder.root.glob(pattern)) / MB for part, pattern in PARTS}
    for kept, pattern in EPOCHS.items():
        epochs = {path.name.partition("-")[0] for path in folder.root.glob(pattern)}
        found[kept] = float(len([epoch for epoch in epochs if epoch.isdigit()]))
    return found


def _sizes(path: Path) -> Iterator[int]:
    """Of a file, or of all files below a folder; what vanishes meanwhile is left out."""
    places = (
        [os.path.join(root, name) for root, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    )
    for place in places:
        try:
            yield os.stat(place).st_size
        except OSError:
            continue
