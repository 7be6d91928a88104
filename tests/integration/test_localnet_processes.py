"""Child processes of the launcher: asked first, forced when the time is up."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from subnet import config
from subnet.localnet.processes import Child, Processes, ended, resident_peak_bytes

READY = "print('ready', flush=True)"
POLITE = f"import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); {READY}; signal.pause(); signal.pause()"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}; signal.pause()"
# a child that starts one of its own and says its id
PARENT = (
    f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']);"
    f" print('started', c.pid); {READY}; c.wait()"
)


async def begun(child: Child) -> Child:
    """The child when it has come to the point: its handlers are set."""
    async with asyncio.timeout(30):
        while child.last_line() != "ready":
            await asyncio.sleep(0.01)
    return child


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(tmp_path / "logs", config.child_environment())


async def test_the_polite_leave_and_the_stubborn_are_ended(processes: Processes) -> None:
    """1. At Ctrl-C one miner is deaf; it does not keep the others, or the operator, waiting."""
    polite = await begun(await processes.start("polite", ["-c", POLITE]))
    stubborn = await begun(await processes.start("stubborn", ["-c", STUBBORN]))
    assert {child.name for child in processes.running()} == {"polite", "stubborn"}
    processes.measure()
    await processes.stop([polite, stubborn], grace_s=1.0)
    assert (polite.exit_code, stubborn.exit_code) == (0, -signal.SIGKILL)
    assert processes.running() == []
    if sys.platform == "linux":
        assert 1e6 < processes.rss_peak_bytes["polite"] < 1e9


async def test_what_a_child_started_ends_with_it(processes: Processes) -> None:
    """2. A miner's own children are in its process group: killing the miner leaves none of them."""
    child = await begun(await processes.start("parent", ["-c", PARENT]))
    grandchild = int(child.log.read_text().split()[1])
    child.signal(signal.SIGKILL)
    assert await ended([child], 10.0)
    async with asyncio.timeout(10):
        while resident_peak_bytes(grandchild):
            await asyncio.sleep(0.01)


async def test_a_second_process_of_a_name_appends_to_its_log(processes: Processes) -> None:
    """3. A miner that was restarted: what it said before it died is still there."""
    for word in ("first", "second"):
        child = await processes.start("miner-0", ["-c", f"print('{word}')"])
        assert await ended([child], 30.0)
    assert child.log.read_text().split() == ["first", "second"]
    assert child.last_line() == "second"


async def test_the_last_words_are_words(processes: Processes) -> None:
    """3b. A validator ended by a traceback of a group of errors: its last line is a ruling, which tells nobody why."""
    child = await processes.start("validator-0", ["-c", "raise ExceptionGroup('many', [ValueError('no such thing')])"])
    assert await ended([child], 30.0)
    assert child.log.read_text().rstrip().endswith("-----") and child.last_line() == "ValueError: no such thing"


async def test_a_dead_child_is_not_signalled(processes: Processes) -> None:
    """4. Its process id may be somebody else's by now."""
    child = await processes.start("short", ["-c", "pass"])
    assert await ended([child], 30.0)
    child.signal(signal.SIGKILL)
    await processes.stop([child])
    assert child.exit_code == 0
