"""`make bench`: the numbers of the README, measured side by side in one run.

    python -m subnet.simulation.bench [--quick] [--out bench.json]
    python -m subnet.simulation.bench --readme        fill the README's block from bench.json; measures nothing

What is compared with what:

speed      baselines, swarm on the laptop preset, baselines, swarm on the bench preset, baselines. A swarm's rate runs
           from its first micro-batch to the end of its last merge: merges, journal and evaluations are in it. The
           baselines train the same model uncut (no boundary, so nothing to encode or quantise) on micro-batches of the
           same shape, with a step for each joint batch of the swarm's replicas (k x replicas micro-batches), warmed up
           first; the ratio divides by the faster one, each taken as the mean of before and after. Everything runs on
           the same two cores.
learning   the swarm's last merged model against references trained on micro-batches 0 to n - 1, n being what the swarm
           completed. A reference trains all stages in one process, in order, with the run's own RunSpec (cut,
           bottleneck, quantiser, AdamW, clip), a step every k micro-batches, no merges and no resets, and the learning
           rate's course stretched over its steps. The replicas of a stage step in parallel and are averaged, so at
           equal tokens the reference takes `replicas` times as many steps one after the other; a second one, with a
           step for each joint batch, takes as many as a replica.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Awaitable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from subnet import config
from subnet.config import Config
from subnet.errors import ConfigError
from subnet.localnet.folder import make_writable
from subnet.localnet.processes import SOURCES
from subnet.runtime import SystemRuntime
from subnet.simulation.bench_children import BenchFailed
from subnet.simulation.bench_figures import Bench, Machine
from subnet.simulation.bench_order import CORES, FULL, QUICK, Measuring
from subnet.simulation.bench_table import fill, headline, markdown_table, rows, text_table


class BenchConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.simulation.bench`: measures speed, learning, start-up, memory and bytes side by side."""

    quick: Annotated[bool, Meta(description="three minutes instead of ten: that it works, not what to quote")] = False
    out: Annotated[str, Meta(description="where the figures go", extra={"metavar": "PATH"})] = "bench.json"
    readme: Annotated[bool, Meta(description="only fill README.md's block from the figures at --out")] = False


def _pin() -> None:
    """This process, and so every process of the bench, onto two cores: a swarm must not use more than a baseline."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def _machine() -> Machine:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
    return Machine(
        cores=cores,
        processor=_processor(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=version("torch"),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or "an unnamed processor"


async def _stoppable(work: Awaitable[Bench]) -> Bench:
    """The first SIGTERM or Ctrl-C ends the children in order; that takes seconds, and more of them change nothing."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    caught = False

    def stop() -> None:
        nonlocal caught
        if not caught:
            task.cancel()
        caught = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return await work


def run(quick: bool, out: Path) -> None:
    """Measure, print the table, write the file. Raises BenchFailed."""
    _pin()
    with tempfile.TemporaryDirectory(prefix="iota-bench-") as scratch:
        measuring = Measuring(QUICK if quick else FULL, Path(scratch), SystemRuntime())
        bench = asyncio.run(_stoppable(measuring.all(quick, _machine())))
    bench = msgspec.structs.replace(bench, table=rows(bench))
    out.write_bytes(msgspec.json.format(msgspec.json.encode(bench)) + b"\n")
    print(f"\n{headline(bench)}\n\n{text_table(bench.table)}\n\nfigures   {out}")


def fill_readme(figures: Path, readme: Path) -> None:
    """Put the table of a bench.json into the README. Raises ConfigError."""
    try:
        bench = msgspec.json.decode(figures.read_bytes(), type=Bench)
    except OSError as error:
        raise ConfigError("--out", f"{figures}: {error.strerror}", "run the bench first") from None
    except msgspec.MsgspecError as error:
        raise ConfigError("--out", f"{figures}: {error}", "run the bench again") from None
    filled = fill(readme.read_text(encoding="utf-8"), markdown_table(bench, rows(bench)))
    readme.write_text(filled, encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """The exit code: 0 measured, whether or not targets are met; 1 failed; 2 an operator's mistake; 130 interrupted."""
    with config.one_line_errors():
        asked = config.parse(BenchConfig, argv, "python -m subnet.simulation.bench")
        out = Path(asked.out).expanduser().absolute()
        if asked.readme:
            fill_readme(out, SOURCES / "README.md")
            return 0
        make_writable("--out", out.parent)
        try:
            run(asked.quick, out)
        except BenchFailed as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 1
        except asyncio.CancelledError:
            print("stopped: nothing was written", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
