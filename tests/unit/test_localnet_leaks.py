"""Leaks: a planted one is caught, whatever restarts and noise there are; what only breathes is left in peace."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subnet.localnet import closing, leaks, resources
from subnet.localnet.folder import RunFolder
from subnet.localnet.leaks import Course, Point, course, leak, slope
from subnet.localnet.resources import Resources, disk_use, judged, measured, role_of
from subnet.protocol.draw import draw_below
from subnet.telemetry import CENSUS_FILE, counted, read_census

HALF_HOUR_S = 1800


def noise(number: int, size: float) -> float:
    """Between -size and size, always the same."""
    return size * (2 * draw_below(b"noise", 10_001, number) / 10_000 - 1)


def sampled(value: Callable[[float, float], float], lives_s: int = HALF_HOUR_S, source: str = "p") -> list[Point]:
    """Every five seconds for half an hour, by processes that live so long; `value` of age and time."""
    return [
        Point(f"{source}{at_s // lives_s}", float(at_s % lives_s), float(at_s), value(at_s % lives_s, at_s))
        for at_s in range(0, HALF_HOUR_S, 5)
    ]


def caught(points: list[Point], bound_per_h: float) -> bool:
    return leak("miner", "rss_mb", course(points), bound_per_h) is not None


def test_a_planted_leak_is_caught() -> None:
    """1. 100 MB in an hour, with noise of 20 MB on every sample: caught by its growth, and said in words."""
    found = course(sampled(lambda age_s, at_s: 300 + 100 * at_s / 3600 + noise(int(at_s), 20)))
    assert found is not None and found.slope is not None
    assert found.slope.per_h == pytest.approx(100, abs=30)
    said = str(leak("orchestrator", "rss_mb", found, 48.0))
    assert said.startswith("orchestrator: rss_mb grow by ") and said.endswith(", allowed 48.0")


def test_a_process_that_only_breathes_is_no_leak() -> None:
    """2. Memory goes up and down by 50 MB with every epoch of 45 seconds, and never further up."""
    assert not caught(sampled(lambda age_s, at_s: 300 + 50 * math.sin(at_s / 45 * 2 * math.pi)), 48.0)


def test_a_start_is_no_leak() -> None:
    """3. In its first minute a process loads its libraries: of miners that live four minutes, every one does so."""
    assert not caught(sampled(lambda age_s, at_s: min(400.0, 30 + age_s * 8), lives_s=240), 48.0)


def test_restarts_hide_no_leak() -> None:
    """4. A killed process gives everything back, so the level never rises; each of them leaks all the same."""
    points = sampled(lambda age_s, at_s: 300 + 360 * age_s / 3600 + noise(int(at_s), 5), lives_s=300)
    assert max(point.value for point in points) < 340
    assert caught(points, 48.0)


def test_restarts_invent_no_leak() -> None:
    """5. Later processes happen to be larger ones, but none of them grows."""
    points = sampled(lambda age_s, at_s: 300 + 40 * (at_s // 300) + noise(int(at_s), 5), lives_s=300)
    assert not caught(points, 48.0)


def test_a_descriptor_a_minute() -> None:
    """6. One socket is left open for each of the miners that die: sixty an hour."""
    found = course(sampled(lambda age_s, at_s: 20 + at_s // 60))
    assert found is not None and leak("orchestrator", "sockets", found, 8.0) is not None
    assert (found.first, found.last) == (21, 49)


def test_what_grew_in_the_first_half_only_is_no_leak() -> None:
    """7. A cache fills for ten minutes and is full then."""
    assert not caught(sampled(lambda age_s, at_s: min(200.0, 100 + at_s / 6)), 8.0)


def test_too_little_is_not_judged() -> None:
    """8. Nobody lived long enough to know a slope; nothing measured is nothing said."""
    assert course([]) is None
    found = course(sampled(lambda age_s, at_s: age_s, lives_s=60))
    assert found is not None and found.slope is None and leak("miner", "rss_mb", found, 0.0) is None


@given(st.floats(-1e4, 1e4), st.floats(-500, 500), st.integers(1, 4))
def test_a_straight_line_is_its_own_slope(level: float, per_h: float, processes: int) -> None:
    """9. Whatever the level and however many processes: the slope of lines is the slope."""
    points = [
        point
        for number in range(processes)
        for point in sampled(lambda age_s, at_s, n=number: level + n * 50 + per_h * at_s / 3600, source=f"{number}.")  # type: ignore[misc]
    ]
    found = slope(points)
    assert found is not None and found.per_h == pytest.approx(per_h, abs=1e-3)
    assert found.error_per_h == pytest.approx(0, abs=1e-3)


def test_disk_that_grows_by_design_is_named_and_not_judged() -> None:
    """10. The journal grows for ever, as it should; the text of miners and the objects of dropped epochs must not."""
    grows = course(sampled(lambda age_s, at_s: 10 + at_s))
    assert grows is not None
    epochs = course(sampled(lambda age_s, at_s: 5 + at_s // 120))
    assert epochs is not None
    found = judged({}, {"journal": grows, "miners' data": grows, "objects": grows, "epochs of objects": epochs})
    assert [one.measure for one in found] == ["miners' data", "epochs of objects"]


# ---- measuring -------------------------------------------------------------------------------------------------------


def test_roles() -> None:
    """11. Miners are measured together, however many there are."""
    assert [role_of(name) for name in ("miner-3", "validator-0", "chain-watch", "chain")] == [
        "miner", "validator", "chain-watch", "chain",
    ]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_this_process_is_measured(tmp_path: Path) -> None:
    """12. A file that is opened is one descriptor more; a process that is gone has no figures."""
    before = measured(os.getpid(), 7)
    with (tmp_path / "open").open("wb"):
        after = measured(os.getpid(), 7)
    assert after["descriptors"] == before["descriptors"] + 1 and after["sockets"] == before["sockets"]
    assert after["rss_mb"] > 10 and after["threads"] >= 1 and after["tasks"] == 7
    assert measured(2**22 + 1, None) == {}


async def test_a_program_says_how_many_tasks_it_has(tmp_path: Path) -> None:
    """13. Its census is there as soon as it runs, and names the process, so that an older one's is not taken for it."""
    import asyncio

    async def program() -> str:
        while read_census(tmp_path / CENSUS_FILE) is None:
            await asyncio.sleep(0)
        return "done"

    before = len(asyncio.all_tasks())
    assert await counted(program(), tmp_path) == "done"
    census = read_census(tmp_path / CENSUS_FILE)
    assert census is not None and (census.pid, census.tasks) == (os.getpid(), before + 1)
    (tmp_path / CENSUS_FILE).write_text("{")
    assert read_census(tmp_path / CENSUS_FILE) is None
    assert await counted(program_without_folder(), tmp_path / "none") == 3


async def program_without_folder() -> int:
    return 3


def test_the_run_folder_by_part(tmp_path: Path) -> None:
    """14. Each part by its own size; what is not there takes nothing."""
    folder = RunFolder(tmp_path)
    states = folder.miner("miner-1") / "snapshots" / "run"
    sizes = (folder.journal, 2_000_000), (states / "000001-a", 250_000), (states / "000002-b", 250_000)
    for path, size in sizes:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    found = disk_use(folder)
    assert (found["journal"], found["snapshots"], found["objects"]) == (2.0, 0.5, 0)
    assert (found["epochs of snapshots"], found["epochs of objects"]) == (2, 0)


async def test_a_short_run_is_measured_but_not_judged(tmp_path: Path) -> None:
    """15. Ten seconds of training say nothing about leaks; half an hour of steady figures says that there are none."""
    seen = Resources(RunFolder(tmp_path))
    for now_s in range(0, 60, 5):
        seen.training_began(10.0)
        await seen.look(float(now_s), [])
    assert seen.report()["leaks"] is None
    await seen.look(10.0 + leaks.JUDGED_FROM_S, [])
    assert seen.report()["leaks"] == []
    assert set(seen.report()["resources"]["launcher"]) >= {"tasks"}


def test_closing_lines() -> None:
    """16. The operator reads goodput with what took the rest, each role's course, and one line for each leak."""
    flat = resources.shown(Course(10.0, 11.0, 12.0, leaks.Slope(3.0, 1.0)))
    report = {
        "goodput": 0.8,
        "passes": {"started": 1000, "merged": 800, "open": 150, "progress-gone": 49, "withdrawn": 1, "failed": 0},
        "resources": {"miner": {"rss_mb": flat}},
        "disk": {"journal": {**flat, "grows_by_design": "every record is kept for ever"}},
        "leaks": ["miner: sockets grow by 60.0 an hour (± 1.0), allowed 8.0"],
        "leaks_not_judged": [],
    }
    assert closing.lines(report) == [
        "goodput   80.0%: 800 of 1,000 passes given out are in a merge; open 15.0%, progress-gone 4.9%, withdrawn 0.1%",
        "miner     rss_mb 10 → 12 (median 11, +3/h ± 1)",
        "disk      journal 10 → 12 (median 11, +3/h ± 1) MB (every record is kept for ever)",
        "leak      miner: sockets grow by 60.0 an hour (± 1.0), allowed 8.0",
    ]
    assert closing.lines({**report, "goodput": None, "leaks": None}) == []
    assert closing.lines({**report, "leaks": []})[-1] == "leaks     none: nothing is known to grow beyond its bound"
    unsure = closing.lines({**report, "leaks": [], "leaks_not_judged": ["miner: rss_mb"]})
    assert unsure[-1].endswith("miner: rss_mb")
