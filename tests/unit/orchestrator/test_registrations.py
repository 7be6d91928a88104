"""Who may join, as the file beside the run says it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from subnet.errors import ConfigError
from subnet.orchestrator import registrations
from subnet.protocol import messages as m

pytestmark = pytest.mark.looptime(end=3_600)


async def test_the_file_is_followed(host: Callable[..., Awaitable[Any]], tmp_path: Path) -> None:
    """1. A hotkey is added to the file while the run goes on; then the file is half written, then it is gone: only what
    can be read changes anything, and nothing is journaled twice."""
    run, path = await host(), tmp_path / "registered.json"
    path.write_text('["one", "two", "three"]')
    await registrations.update(path, run.service)
    length = len(run.records)
    watch = asyncio.create_task(registrations.watch(path, run.service, run.runtime))
    await asyncio.sleep(10.0)
    assert len(run.records) == length
    path.write_text('["one", "late"]')
    await asyncio.sleep(3.0)
    assert run.state.registered == {"one", "late"}
    for content in ('["one", "la', '{"one": 1}', None):
        path.unlink() if content is None else path.write_text(content)
        await asyncio.sleep(3.0)
    assert run.state.registered == {"one", "late"}
    assert [x.hotkeys for x in run.messages() if isinstance(x, m.Registered)][-1] == ("late", "one")
    watch.cancel()


async def test_a_run_does_not_begin_without_it(host: Callable[..., Awaitable[Any]], tmp_path: Path) -> None:
    """2. At the start a missing file is the operator's to put right: one line says what it must hold."""
    run = await host()
    with pytest.raises(ConfigError, match="--run-dir.*JSON list of hotkeys"):
        await registrations.update(tmp_path / "registered.json", run.service)
