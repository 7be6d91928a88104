"""Logs: one line per state change, with the same bound fields everywhere.

Law: only the shell logs (bands 4 and 5); the pure bands return reasons and the shell writes them down. A process calls
`set_up` once, binds its role and hotkey, and everything below it logs through loguru's `logger`. No secret and no URL
with a grant in it is ever an argument of a log line. `counted` says how many tasks a program has, for a soak to watch.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from loguru import logger

if TYPE_CHECKING:
    from loguru import Record

T = TypeVar("T")

CENSUS_FILE = "census.json"
CENSUS_EVERY_S = 5.0
_SHOWN_FIRST = ("role", "hotkey", "stage", "epoch", "micro_batch")


def set_up(role: str, hotkey: str = "", level: str = "INFO", file: Path | None = None) -> None:
    """Send this process's log to `file`, or to stderr, with role and hotkey on every line.

    Further fields are bound where they become known: `with logger.contextualize(epoch=3): ...`.
    """
    logger.remove()
    bound = {"role": role} | ({"hotkey": hotkey} if hotkey else {})
    logger.configure(extra=bound)
    # diagnose=False: a traceback must not print the values of variables, which may be keys
    logger.add(file or sys.stderr, level=level, format=_line, colorize=False, backtrace=False, diagnose=False)


def _line(record: Record) -> str:
    """2026-01-02 03:04:05.678 INFO role=miner hotkey=5F3s… epoch=2 | merged 6 shards, none lost"""
    extra = record["extra"]
    names = [name for name in _SHOWN_FIRST if name in extra] + [name for name in extra if name not in _SHOWN_FIRST]
    fields = " ".join(f"{name}={_short(name, extra[name])}" for name in names)
    # the result is a template for str.format: braces that belong to a value are doubled
    escaped = fields.replace("{", "{{").replace("}", "}}").replace("<", r"\<")
    return "{time:YYYY-MM-DD HH:mm:ss.SSS} {level:<7} " + escaped + " | {message}\n{exception}"


def _short(name: str, value: object) -> str:
    text = str(value).replace("\n", " ")
    return f"{text[:8]}…" if name == "hotkey" and len(text) > 12 else text


# ---- tasks -----------------------------------------------------------------------------------------------------------


class Census(msgspec.Struct):
    """How many tasks the event loop of a process has."""

    pid: int
    tasks: int


async def counted(program: Coroutine[Any, Any, T], folder: Path) -> T:
    """Run a program, and meanwhile keep its newest `Census` in the folder's CENSUS_FILE, once there is that folder."""
    census = asyncio.create_task(_count(folder / CENSUS_FILE), name="census")
    try:
        return await program
    finally:
        census.cancel()


async def _count(file: Path) -> None:
    beside = file.with_name(f"{file.name}.partial")
    while True:
        try:
            beside.write_bytes(msgspec.json.encode(Census(os.getpid(), len(asyncio.all_tasks()))))
            os.replace(beside, file)
        except OSError:
            pass  # no folder yet, or a full disk: whoever watches sees that nothing new is said
        await asyncio.sleep(CENSUS_EVERY_S)


def read_census(file: Path) -> Census | None:
    """The newest one; None where there is none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Census)
    except (OSError, msgspec.MsgspecError):
        return None
