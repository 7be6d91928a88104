"""`python -m subnet.simulation`: the subnet in virtual time.

    --miners 1000 --stages 8 --hours 24 --seed 7 [--faults mixed=2000] [--adversary NAME=N]      a crowd
    --seeds 100 [--first-seed 0] [--processes 2] [--faults kill,drop]                            small worlds
    --table [--seeds 20] [--readme]                                                              the README's faults

Law: only the way in; what each mode needs is imported when it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def _date() -> str:
    from subnet.runtime import SystemRuntime

    return datetime.fromtimestamp(SystemRuntime().now(), UTC).date().isoformat()


def main(argv: Sequence[str]) -> int:
    """The exit code: 0 every promise held, 1 one was broken, 2 an operator's mistake, 130 interrupted."""
    from subnet import config
    from subnet.simulation.settings import SimulationConfig

    try:
        with config.one_line_errors():
            asked = config.parse(SimulationConfig, argv, "python -m subnet.simulation")
            report = Path(asked.report).expanduser().absolute() if asked.report else None
            if report is not None:
                from subnet.localnet.folder import make_writable

                make_writable("--report", report.parent)
            if asked.table:
                from subnet.simulation import table

                seeds, readme = asked.seeds or table.SEEDS, README if asked.readme else None
                return table.main(seeds, asked.processes, _date(), readme)
            if asked.seeds:
                from subnet.simulation import storms

                return int(storms.run(asked.first_seed, asked.seeds, asked.processes, asked.faults or None, report))
            from subnet.runtime import SystemRuntime
            from subnet.simulation import crowd_run

            return crowd_run.run(asked, report, SystemRuntime().now)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
