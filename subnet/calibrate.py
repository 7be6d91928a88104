"""Measures how far honest machines are apart, and what the audits' tolerances catch: `python -m subnet.calibrate`.

    honest audits    segments of honest swarms, replayed at other thread counts and in other arithmetic
    tolerances       the RunSpec's defaults, and what these audits recommend; --write FILE keeps those
    cheats           how often each is caught, given an audit that holds the cheated item

Exit codes: 0 nobody honest was accused, 1 somebody was, 2 the operator must act (one line says how).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from subnet import config
from subnet.config import Config
from subnet.errors import ConfigError
from subnet.simulation import calibration, calibration_table
from subnet.simulation.calibration_specs import SIZES

PROGRAM = "python -m subnet.calibrate"
AUDITS_PER_CHEAT = 18
"""For each amount and kind of boundary values, at most."""


class CalibrateConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.calibrate`: audit honest miners, and say which tolerances they need."""

    preset: Annotated[
        str,
        Meta(
            description="model to train: tiny (0.1M parameters), or the local net's (3.2M; slow)",
            extra={"choices": tuple(SIZES)},
        ),
    ] = "tiny"
    segments: Annotated[
        int, Meta(description="honest segments to audit, at least; 0: 2000 of tiny, 40 of laptop", ge=0, le=10**6)
    ] = 0
    seed: Annotated[int, Meta(description="seed of the first swarm; the next ones count on", ge=0, le=2**31)] = 7
    safety: Annotated[
        float,
        Meta(
            description="recommended tolerances are so many times the worst honest figure",
            ge=1,
            le=1000,
            extra={"metavar": "X"},
        ),
    ] = 10.0
    no_cheats: Annotated[bool, Meta(description="leave out the audits of cheats")] = False
    report: Annotated[
        str, Meta(description="write everything measured to this file", extra={"metavar": "FILE.json"})
    ] = ""
    write: Annotated[
        str, Meta(description="write the recommended tolerances to this file", extra={"metavar": "FILE.json"})
    ] = ""


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


def _check_writable(flag: str, path: str) -> None:
    """Before minutes of measuring, not after."""
    if path:
        try:
            Path(path).expanduser().open("ab").close()
        except OSError as error:
            raise ConfigError(flag, f"{path}: {error.strerror}", "name a file that can be written") from None


def _write(path: str, content: Struct) -> None:
    if path:
        Path(path).expanduser().write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")


def main(argv: Sequence[str]) -> int:
    with config.one_line_errors():
        settings = config.parse(CalibrateConfig, argv, PROGRAM)
        _check_writable("--report", settings.report)
        _check_writable("--write", settings.write)
        try:
            report = calibration.measure(
                settings.preset,
                num_segments=settings.segments,
                seed=settings.seed,
                safety=settings.safety,
                audits_per_cheat=0 if settings.no_cheats else AUDITS_PER_CHEAT,
                say=_say,
            )
        except KeyboardInterrupt:
            return 130
    _write(settings.report, report)
    _write(settings.write, report.recommended)
    sys.stdout.write(calibration_table.text(report))
    return 1 if report.accusations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
