"""`python -m subnet.localnet`: the whole subnet as processes on this machine, one command.

Law: only the way in. Until the launcher takes signals over nothing is running, so a Ctrl-C may simply end us.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """The exit code: 0 finished, 1 failed or something leaks, 2 an operator's mistake, 130 interrupted."""
    from subnet import config
    from subnet.localnet.launcher import launch
    from subnet.localnet.plan import open_plan
    from subnet.runtime import SystemRuntime

    runtime = SystemRuntime()
    with config.one_line_errors():
        given = config.given(config.LocalnetConfig, argv, "python -m subnet.localnet")
        with open_plan(given, runtime.now()) as plan:
            return launch(plan, runtime)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
