"""The command's crowd: progress while it runs, figures at its end, or the line that reproduces what broke.

Law: prints and writes, decides nothing. Wall time only paces the progress and is reported; nothing depends on it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from subnet.errors import ConfigError
from subnet.localnet.cast import adversaries
from subnet.localnet.processes import resident_peak_bytes
from subnet.simulation import crowd_report
from subnet.simulation.crowd import Crowd, Order
from subnet.simulation.crowd_spec import crowd_spec
from subnet.simulation.settings import SimulationConfig

PROGRESS_EVERY_S = 10.0


def run(asked: SimulationConfig, report: Path | None, now: Callable[[], float]) -> int:
    """The exit code: 0 every promise held, 1 one was broken. Raises ConfigError."""
    crowd = Crowd(order_of(asked))
    print(f"{asked.miners} miners on {asked.stages} stages for {asked.hours:g} virtual hours, seed {asked.seed}")
    began, told_at = now(), now()

    def looked() -> None:
        nonlocal told_at
        if now() - told_at >= PROGRESS_EVERY_S:
            told_at = now()
            print(crowd_report.progress(crowd, told_at - began, _peak_mb()), flush=True)

    try:
        crowd.run(looked)
    except Exception as error:  # whatever it is, the operator gets the line that shows it again
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        at = f"envelope {crowd.host.envelopes}, virtual hour {crowd.hours:.3f}"
        said = f"{type(error).__name__}: {error} ({where}; {at})"
        print(f"broken: {said}; again: {command(asked)}", file=sys.stderr)
        return 1
    figures = crowd_report.figures(crowd, now() - began, _peak_mb())
    print(crowd_report.text(figures))
    if report is not None:
        whole = {**figures, "settings": msgspec.to_builtins(asked), "command": command(asked)}
        report.write_bytes(msgspec.json.format(msgspec.json.encode(whole)) + b"\n")
        print(f"report              {report}")
    return 0


def order_of(asked: SimulationConfig) -> Order:
    """What the command line asks for. Raises ConfigError for adversaries that are not known, or too many."""
    names = adversaries(asked.adversary)
    training = reducing = 0
    if names:
        from subnet.adversaries.catalogue import find  # loads torch
        from subnet.merging.shards import ShardReduction

        reducing = sum(find(name).reduction is not ShardReduction for name in names)
        training = len(names) - reducing
    if len(names) > asked.miners:
        problem = f"{len(names)} adversaries among {asked.miners} miners"
        raise ConfigError("--adversary", problem, f"give at least {len(names)} --miners")
    return Order(
        spec=crowd_spec(asked.stages, asked.seed, asked.audit_rate),
        miners=asked.miners,
        hours=asked.hours,
        seed=asked.seed,
        faults=asked.faults,
        training_cheats=training,
        reducing_cheats=reducing,
        check_every_s=asked.check_every_s,
    )


def command(asked: SimulationConfig) -> str:
    """What shows the same run again."""
    words = [f"--miners {asked.miners} --stages {asked.stages} --hours {asked.hours:g} --seed {asked.seed}"]
    plain = SimulationConfig()
    words += [f"--faults {asked.faults}"] if asked.faults else []
    words += [f"--adversary {asked.adversary}"] if asked.adversary else []
    words += [f"--audit-rate {asked.audit_rate:g}"] if asked.audit_rate != plain.audit_rate else []
    words += [f"--check-every {asked.check_every_s:g}s"] if asked.check_every_s != plain.check_every_s else []
    return " ".join(["python -m subnet.simulation", *words])


def _peak_mb() -> float:
    """Largest resident size so far."""
    return resident_peak_bytes(os.getpid()) / 1e6
