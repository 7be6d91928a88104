"""A folder that belongs to one process at a time.

Law: the lock is the operating system's, so it ends with its holder, however that ends; the file itself stays. Where
there is no `fcntl` nobody is kept out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from subnet.errors import ConfigError

if sys.platform != "win32":
    import fcntl


@contextmanager
def held(path: Path, field: str, problem: str, remedy: str) -> Iterator[None]:
    """Hold the lock file `path` until the end of the block.

    Raises ConfigError naming `field`: with `problem` and `remedy` when somebody else holds it, or when it cannot be
    written.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise ConfigError(field, f"{path}: {error.strerror}", "name a folder that can be written") from None
    with file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(field, problem, remedy) from None
        yield
