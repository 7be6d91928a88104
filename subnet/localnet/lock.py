"""A run folder belongs to one launcher at a time.

Law: the lock is the operating system's, so it ends with its holder, however that ends; the file itself stays. Where
there is no `fcntl` nobody is kept out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from subnet.errors import ConfigError
from subnet.localnet.folder import RunFolder

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(field: str, folder: RunFolder) -> Iterator[None]:
    """Until the end of the block. Raises ConfigError naming `field` when somebody else has it."""
    with folder.lock.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(field, f"{folder.root} runs already", "stop it first") from None
        yield
