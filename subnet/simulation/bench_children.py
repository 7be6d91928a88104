"""Child processes of `make bench`: a program's lines are passed on under its name, and none outlives the bench.

Law: each child leads a session of its own, so a Ctrl-C reaches the bench alone, which asks its children to stop and
forces those that do not; the local net's launcher has then ended its own processes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence

from subnet import config
from subnet.errors import SubnetError
from subnet.localnet.processes import SOURCES

STOP_GRACE_S = 12.0
"""The local net ends its processes within 10 s."""
LAST_LINES = 5


class BenchFailed(SubnetError):
    """A measurement ended without a result."""


async def run_child(name: str, arguments: Sequence[str], threads: int, say: Callable[[str], None]) -> None:
    """`python <arguments>` to its end. Raises BenchFailed with its last lines when it fails."""
    count = str(threads)
    environment = config.child_environment(OMP_NUM_THREADS=count, MKL_NUM_THREADS=count, TOKENIZERS_PARALLELISM="false")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=SOURCES,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        async for line in process.stdout:
            last.append(line.decode(errors="replace").rstrip())
            say(f"{name:>14} | {last[-1]}")
        code = await process.wait()
    finally:
        await _end(process)
    if code:
        raise BenchFailed(f"{name} ended with code {code}: " + " / ".join(last))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask, wait, force: the child and whatever it started in its session."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await process.wait()
        except TimeoutError:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nobody is left
    await process.wait()
