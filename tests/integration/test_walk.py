"""The README's walk with btcli, run as it is written: every command line between its marks, in its order.

Law: README.md is the only source. A mark, `<!-- walk: terminal 2, stays -->`, says how the block below it is run. Lines
that begin with `$ ` are typed; the others must be seen after them, in that order, where … stands for anything. Only
ports and folders are replaced, by free ones. Marks: `everywhere`, typed first in every terminal; `stays`, the last
command goes on while others are typed; `again REGEX`, it is typed again until what it shows matches; `exit 2`, it ends
with that code; `ctrl-c 3 4`, these terminals are interrupted.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
BEGIN, END = "<!-- walk:begin -->", "<!-- walk:end -->"
MARK = re.compile(r"^<!-- walk: (.*) -->$", re.MULTILINE)
TYPED = "    $ "
SEEN_WITHIN_S = 200.0
"""A chain epoch, an audit and a chain epoch again, with room for a machine that runs other things."""
STOPPED_WITHIN_S = 30.0
STATIONS = """\
btcli wallet create
btcli subnets create
btcli hparams start
btcli subnet register
btcli stake add
--host-orchestrator
neurons/miner.py --netuid
neurons/validator.py --netuid
btcli subnets metagraph
btcli hparams set
subnet.verify""".splitlines()


class Typed(NamedTuple):
    """A command, and what must be seen after it."""

    command: str
    shown: tuple[str, ...]


class Step(NamedTuple):
    """One marked block."""

    terminal: int
    """0 for what is typed everywhere."""
    typed: tuple[Typed, ...] = ()
    stays: bool = False
    again: str = ""
    """The last command is typed again until what it shows matches this."""
    exit_code: int = 0
    interrupted: tuple[int, ...] = ()
    """Terminals of a ctrl-c; nothing is typed then."""


# ---- from the README to steps ----------------------------------------------------------------------------------------


def steps(readme: str) -> list[Step]:
    """The walk, in order."""
    _, *marked = MARK.split(readme.split(BEGIN)[1].split(END)[0])
    return [_step(mark, _block(text)) for mark, text in zip(marked[::2], marked[1::2], strict=True)]


def _block(text: str) -> list[str]:
    """The first indented block: what is not indented ends it."""
    found = re.search(r"(?:^    .*\n)+", text, re.MULTILINE)
    return found[0].splitlines() if found else []


def _step(mark: str, block: Sequence[str]) -> Step:
    options = {name: value for name, _, value in (word.partition(" ") for word in mark.split(", "))}
    assert options.keys() <= {"everywhere", "terminal", "stays", "again", "exit", "ctrl-c"}, mark
    typed: list[tuple[str, list[str]]] = []
    for before, line in zip(["", *block], block, strict=False):
        if line.startswith(TYPED):
            typed.append((line.removeprefix(TYPED), []))
        elif before.endswith("\\"):
            typed[-1] = (f"{typed[-1][0]}\n{line.strip()}", [])
        else:
            typed[-1][1].append(line.strip())
    return Step(
        terminal=int(options.get("terminal", 0)),
        typed=tuple(Typed(command, tuple(shown)) for command, shown in typed),
        stays="stays" in options,
        again=options.get("again", ""),
        exit_code=int(options.get("exit", 0)),
        interrupted=tuple(int(number) for number in options.get("ctrl-c", "").split()),
    )


def missing(shown: Sequence[str], lines: Sequence[str]) -> str:
    """The first line of `shown` that `lines` do not have in that order; '' when they have all."""
    rest: Iterator[str] = iter(lines)
    for one in shown:
        pattern = re.compile(r"\s+".join(re.escape(word).replace("…", ".*") for word in one.split()))
        if not any(pattern.search(line) for line in rest):
            return one
    return ""


# ---- terminals -------------------------------------------------------------------------------------------------------


class Running:
    """One command in a terminal: its lines so far, and a word to whom waits for more of them."""

    def __init__(self, process: asyncio.subprocess.Process, title: str) -> None:
        self.process, self.title = process, title
        self.lines: list[str] = []
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode(errors="replace").rstrip())
            async with self._changed:
                self._changed.notify_all()
        await self.process.wait()
        async with self._changed:
            self._changed.notify_all()

    async def ended(self) -> int:
        await self._reader
        assert self.process.returncode is not None
        return self.process.returncode

    async def seen(self, shown: Sequence[str]) -> None:
        """Until it has shown all of it; fails when it ends before."""
        async with self._changed:
            await self._changed.wait_for(lambda: not missing(shown, self.lines) or self._reader.done())
        assert not missing(shown, self.lines), self.told(f"ended before it showed: {missing(shown, self.lines)}")

    def told(self, problem: str) -> str:
        return "\n".join([f"{self.title}: {problem}", *self.lines[-40:]])

    def interrupt(self, kind: signal.Signals = signal.SIGINT) -> None:
        """What Ctrl-C does: to the whole foreground group, which is ours."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, kind)


class Desk:
    """All terminals of one newcomer, in a home folder where nothing was before."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self._folder, self._ports = folder, ports
        self._everywhere: list[str] = []
        self._staying: dict[int, Running] = {}
        self._started_here: list[Running] = []
        home = folder / "home"
        home.mkdir()
        self._environment = {
            "HOME": str(home),
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
            "LANG": "C.UTF-8",
            "COLUMNS": "240",  # a wide terminal: no line is broken
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),  # a checkout that is not installed will do
        }

    def _placed(self, command: str) -> str:
        """With this test's folder and ports."""
        placed = command.replace("$PWD/runs/walk", str(self._folder / "walk")).replace("$PWD/.venv/bin", str(BIN))
        for written, free in self._ports.items():
            placed = placed.replace(written, str(free))
        return placed

    async def _started(self, step: Step, command: str) -> Running:
        typed = self._placed("\n".join([*self._everywhere, command]))
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-ec",
            typed,
            cwd=ROOT,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=2**22,
        )
        self._started_here.append(Running(process, f"terminal {step.terminal} $ {command}"))
        return self._started_here[-1]

    async def walk(self, step: Step) -> None:
        for number in step.interrupted:
            await self._stopped(self._staying.pop(number))
        if not step.interrupted and step.terminal == 0:
            self._everywhere += [one.command for one in step.typed]
            return
        for typed in step.typed:
            async with asyncio.timeout(SEEN_WITHIN_S):
                await self._typed(step, typed, [self._placed(line) for line in typed.shown])

    async def _typed(self, step: Step, typed: Typed, shown: Sequence[str]) -> None:
        is_last = typed is step.typed[-1]
        running = await self._started(step, typed.command)
        if step.stays and is_last:
            assert step.terminal not in self._staying
            self._staying[step.terminal] = running
            await running.seen(shown)
            return
        code = await running.ended()
        while step.again and is_last and not re.search(step.again, "\n".join(running.lines)):
            running = await self._started(step, typed.command)
            code = await running.ended()
        assert code == step.exit_code, running.told(f"exit code {code}")
        assert not missing(shown, running.lines), running.told(f"did not show: {missing(shown, running.lines)}")

    async def _stopped(self, running: Running) -> None:
        running.interrupt()
        async with asyncio.timeout(STOPPED_WITHIN_S):
            code = await running.ended()
        assert code in (0, 130, -signal.SIGINT), running.told(f"exit code {code} after Ctrl-C")

    async def leave(self) -> None:
        """Nobody outlives the walk, whatever became of it."""
        for running in self._started_here:
            if running.process.returncode is None:
                running.interrupt(signal.SIGKILL)
            await running.ended()

    def logs(self) -> str:
        return "\n".join(running.told("so far") for running in self._staying.values())


# ---- tests -----------------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def readme() -> str:
    return (ROOT / "README.md").read_text()


@pytest.mark.skipif(not (BIN / "btcli").exists(), reason="btcli is not installed: pip install -r requirements.txt")
async def test_a_newcomer_does_what_the_readme_says(tmp_path: Path) -> None:
    """1. Wallets, subnet, registration, stake, a run that pays, tuning, a uid that changes hands: line by line."""
    chain, orchestrator = free_ports(2)
    desk = Desk(tmp_path, {"9944": chain, "8091": orchestrator})
    try:
        for step in steps(readme()):
            await desk.walk(step)
    except (AssertionError, TimeoutError):
        print(desk.logs())
        raise
    finally:
        await desk.leave()


def test_the_walk_has_every_station() -> None:
    """2. Somebody shortens the README: what the walk promises is still typed in it."""
    typed = "\n".join(typed.command for step in steps(readme()) for typed in step.typed)
    assert [station for station in STATIONS if station not in typed] == []


def test_what_is_shown_is_looked_for_in_order() -> None:
    """3. The matcher itself: … stands for anything, spaces do not count, order does, and absence is named."""
    lines = ["✓ subnet 1 registered", "  netuid     1", "done"]
    assert missing(["✓ subnet … registered", "netuid 1"], lines) == ""
    assert missing(["netuid 1", "✓ subnet 1 registered"], lines) == "✓ subnet 1 registered"
    assert missing(["netuid 2"], lines) == "netuid 2"


def test_marks_and_blocks() -> None:
    """4. The reader of marks itself: terminals, continued lines, what is typed and what is seen."""
    block = f"{TYPED}a \\\n        b\n      seen\n\nMore words.\n"
    one, two = steps(
        f"{BEGIN}\n<!-- walk: terminal 3, stays, exit 2 -->\nWords.\n\n{block}<!-- walk: ctrl-c 3 4 -->\n{END}"
    )
    assert one == Step(3, (Typed("a \\\nb", ("seen",)),), stays=True, exit_code=2)
    assert two.interrupted == (3, 4)
