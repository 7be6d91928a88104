"""What a miner says when its disk takes nothing more.

Law: files are the only thing of the outside that a role touches without an adapter in between, so an OSError that ends
a miner is its disk's. States that were committed must be shown when an audit asks for them, so a miner that cannot keep
them ends with one line for its operator; the orchestrator gives its work to others and keeps its credit and its stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from subnet.errors import ConfigError

REMEDY = "free space there and start the miner again: it keeps its credit and its stage"


def failure(failures: BaseExceptionGroup[BaseException], work_dir: Path) -> ConfigError | None:
    """The line for the operator, where a file is what ended the tasks."""
    error = next((one for one in _leaves(failures) if isinstance(one, OSError)), None)
    if error is None:
        return None
    return ConfigError("--work-dir", f"{error.filename or work_dir}: {error.strerror or error}", REMEDY)


def _leaves(failures: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for one in failures.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _leaves(one)
        else:
            yield one
