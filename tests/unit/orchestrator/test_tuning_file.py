"""The owner's rules file as the orchestrator reads it: at start, when it changes, and when it is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from subnet.errors import ConfigError
from subnet.orchestrator import tuning
from subnet.protocol import messages as m

Host = Callable[..., Awaitable[Any]]
pytestmark = pytest.mark.looptime


async def test_a_changed_file_becomes_a_version_and_a_bad_one_nothing(host: Host, tmp_path: Path) -> None:
    """1. The owner edits the file twice, once wrongly: two records for two sound changes, none for a file that says
    what holds already, and the run goes on by what it has while the file is wrong or gone."""
    run, path = await host(), tmp_path / "rules.toml"
    path.write_text("[merge]\nquorum = 0.5\n")
    await tuning.update(tuning.read(path), run.service)
    await tuning.update(tuning.read(path), run.service)
    watch = asyncio.create_task(tuning.watch(path, run.service, run.runtime))
    for text in ("[merge]\nquorum = 0.5  # as before\n", "[merge]\nquorum = 7\n", "[merge]\nquorum = 0.25\n"):
        path.write_text(text)
        await asyncio.sleep(3 * tuning.LOOK_EVERY_S)
    for half in ("", "[merge]\n", "[merge]\nquorum = 0."):  # an editor that takes its time
        path.write_text(half)
        await asyncio.sleep(0.9 * tuning.LOOK_EVERY_S)
    path.unlink()
    await asyncio.sleep(3 * tuning.LOOK_EVERY_S)
    watch.cancel()
    tuned = [one.spec for one in run.messages() if isinstance(one, m.Tuned)]
    assert [(spec.version, spec.merge.quorum) for spec in tuned] == [(2, 0.5), (3, 0.25)]
    assert run.state.versions[1:] == tuned and run.folded() == run.state_bytes()


async def test_requests_under_every_version_are_heard(host: Host, tmp_path: Path) -> None:
    """2. Work opened under the first digest is answered under it after the rules were tuned; a digest that the run
    never had is refused, and the refusal names the newest one."""
    run, path = await host(), tmp_path / "rules.toml"
    await run.join("one")
    path.write_text("[merge]\nquorum = 0.5\n")
    await tuning.update(tuning.read(path), run.service)
    old, new = run.state.digests
    message = m.Exchange(session="s", free_slots=0, holding=(), results=())
    assert isinstance(await run.ask("one", message, digest=old), m.ExchangeReply)
    assert isinstance(await run.ask("one", message, digest=new), m.ExchangeReply)
    refused = await run.ask("one", message, digest="f" * 64)
    assert isinstance(refused, m.Refusal) and new in refused.notice.sentence


@pytest.mark.parametrize("content", [None, b"[merge]\ncopies = 3\n", b"#" * (tuning.FILE_BYTES_MAX + 1)])
async def test_a_start_with_a_bad_file(host: Host, tmp_path: Path, content: bytes | None) -> None:
    """3. Not there, not tunable, too long: the start ends with a line."""
    run, path = await host(), tmp_path / "rules.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError):
        await tuning.update(tuning.read(path), run.service)
    assert len(run.state.versions) == 1
