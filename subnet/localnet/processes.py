"""Child processes of the launcher: started with a log file each, and certain to end.

Law: no child outlives the launcher. Each runs in a session of its own, so a Ctrl-C in the terminal reaches the launcher
alone, which ends the others in order: asked first (SIGTERM), forced (SIGKILL) when the time is up. On Linux the kernel
kills them when the launcher itself dies in any way. A process is ended by its id, and only while it is known to be
ours and not yet reaped.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from subnet import config
from subnet.localnet.folder import make_writable

STOP_GRACE_S = 4.0
"""How long a child may take after SIGTERM. The launcher stops twice, miners and then orchestrator: 8 s in all."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
SOURCES = Path(__file__).resolve().parent.parent.parent
"""The folder that holds subnet/ and neurons/."""


class Child:
    """One process and what the report wants to know about it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self.process, self.log = name, process, log

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self.process.returncode

    def signal(self, number: signal.Signals) -> None:
        """To the child and whatever it started itself: it leads its own process group."""
        if self.exit_code is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                pass  # it ended a moment ago and the event loop has not heard of it yet

    def last_line(self) -> str:
        """Of its log, the last one in words: what it said before it ended, without a traceback's ruling."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip().lstrip("| ") for line in reversed(lines) if any(map(str.isalpha, line))), "")


class Processes:
    """Every child that was ever started, by name; a restarted one takes its name over."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        make_writable("--run-dir", logs)
        self._logs, self._environment = logs, {**environment, "PYTHONPATH": _python_path()}
        self._children: list[Child] = []
        self.rss_peak_bytes: dict[str, int] = {}
        """Largest resident memory seen, by name."""

    async def start(self, name: str, arguments: Sequence[str], **variables: str) -> Child:
        """`python <arguments>`; what it says goes to logs/<name>.log, after what an earlier one of that name said.

        `variables` are environment variables of this child alone.
        """
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self._environment, **variables},
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()) if _LIBC else None,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def running(self) -> list[Child]:
        return [child for child in self._children if child.exit_code is None]

    def measure(self) -> None:
        """Note the memory of those that run."""
        for child in self.running():
            seen = resident_peak_bytes(child.pid)
            self.rss_peak_bytes[child.name] = max(seen, self.rss_peak_bytes.get(child.name, 0))

    async def stop(self, children: Iterable[Child], grace_s: float = STOP_GRACE_S) -> None:
        """Ask, wait, force. Returns when all of them are gone."""
        stopping = [child for child in children if child.exit_code is None]
        for child in stopping:
            child.signal(signal.SIGTERM)
        await ended(stopping, grace_s)
        for child in stopping:
            child.signal(signal.SIGKILL)
        await ended(stopping, None)

    def kill_all(self) -> None:
        """At once and unasked: the operator's second Ctrl-C."""
        for child in self.running():
            child.signal(signal.SIGKILL)


async def ended(children: Sequence[Child], timeout_s: float | None) -> bool:
    """Whether all of them ended in time."""
    waits = [asyncio.ensure_future(child.process.wait()) for child in children]
    if not waits:
        return True
    try:
        _, late = await asyncio.wait(waits, timeout=timeout_s)
    finally:
        for wait in waits:
            wait.cancel()
    return not late


def resident_peak_bytes(pid: int) -> int:
    """VmHWM, the largest resident size so far; 0 where there is no /proc or the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def _die_with(parent: int) -> Callable[[], None]:
    """Runs in the child before it becomes another program (prctl(2), PR_SET_PDEATHSIG)."""

    def ask_the_kernel() -> None:
        assert _LIBC is not None
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the launcher died between fork and prctl
            os._exit(1)

    return ask_the_kernel


def _python_path() -> str:
    """Children find our sources wherever they run, installed or not."""
    before = config.child_environment().get("PYTHONPATH", "")
    return f"{SOURCES}{os.pathsep}{before}" if before else str(SOURCES)
