"""What a local run needs before it begins: identities, tokens, first parameters, and the opening record.

    python -m subnet.localnet.prepare --run-dir DIR

Its own process, so that the launcher stays small and Ctrl-C ends it at any point. Law: every step is skipped when its
result is there; the opening record is written last and moved into place whole, so it names only objects that exist.
`make` prepares any run's folder, an owner's on a public network too.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from subnet import config
from subnet.config import Config, LocalnetConfig
from subnet.data.prepare import Prepared
from subnet.errors import ConfigError
from subnet.localnet import wallets
from subnet.localnet.folder import (
    Participants,
    RunFolder,
    TextFacts,
    late_miner_name,
    load,
    miner_names,
    validator_names,
)
from subnet.orchestrator import opening
from subnet.orchestrator.opening import Order
from subnet.protocol.ids import Hotkey, RunId
from subnet.protocol.messages import RunOpened
from subnet.runtime import Runtime, SystemRuntime
from subnet.storage.files import FileObjectStore

RUN_ID_BYTES = 6


class PrepareConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.localnet.prepare`: makes what a local run needs before it begins."""

    run_dir: Annotated[str, Meta(description="run folder with localnet.json", extra={"metavar": "DIR"})]


def prepare(folder: RunFolder, settings: LocalnetConfig, runtime: Runtime) -> None:
    """Everything that is still missing. Raises ConfigError."""
    participants = make_participants(folder, settings)
    if folder.opening.exists():
        return
    _check_device(settings.device)
    order = opening.order_of(settings)
    make(folder, order, "localnet", runtime, evaluators=tuple(participants.validators.values()))


def make(
    folder: RunFolder, order: Order, name: str, runtime: Runtime, evaluators: tuple[Hotkey, ...] = ()
) -> tuple[RunOpened, Prepared]:
    """Text, objects, prepared.json and opening.json of a run whose id begins with `name`. Raises ConfigError."""
    prepared = opening.prepare_text(order)
    run_id = RunId(f"{name}-{runtime.random_bytes(RUN_ID_BYTES).hex()}")
    store = FileObjectStore(folder.objects, "http://unused", runtime.random_bytes(32), runtime.now)
    try:
        opened = asyncio.run(opening.put(order, run_id, prepared, store, evaluators))
    finally:
        store.close()
    facts = TextFacts(**{field: getattr(prepared, field) for field in TextFacts.__struct_fields__})
    _write_whole(folder.text_facts, msgspec.json.encode(facts))
    _write_whole(folder.opening, msgspec.json.encode(opened))
    return opened, prepared


def make_participants(folder: RunFolder, settings: LocalnetConfig) -> Participants:
    """Wallets, and the lists of who takes part; a resumed run may have more miners than before, never other ones."""
    late = late_miner_name(settings)
    names = miner_names(settings) + ([late] if late else [])
    participants = Participants(
        orchestrator=wallets.ensure(folder.wallets, "orchestrator", ["default"])["default"],
        validators=wallets.ensure(folder.wallets, "validator", validator_names(settings)),
        miners=wallets.ensure(folder.wallets, "miners", names),
    )
    _write_whole(folder.participants, msgspec.json.encode(participants))
    registered = set(participants.miners.values())
    if folder.registered.exists():
        registered.update(load(folder.registered, list[Hotkey]))
    _write_whole(folder.registered, msgspec.json.encode(sorted(registered)))
    return participants


def _check_device(device: str) -> None:
    """torch is loaded only when there is something to ask it."""
    if device == "cpu":
        return
    import torch

    kind = device.split(":")[0]
    available = torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
    if not available:
        raise ConfigError("--device", f"torch finds no {kind} device here", "use --device cpu")


def _write_whole(path: Path, data: bytes) -> None:
    beside = path.with_name(f"{path.name}.partial")
    beside.write_bytes(data)
    os.replace(beside, path)


def main(argv: Sequence[str]) -> int:
    with config.one_line_errors():
        asked = config.parse(PrepareConfig, argv, "python -m subnet.localnet.prepare")
        folder = RunFolder(Path(asked.run_dir).expanduser().absolute())
        prepare(folder, config.load(LocalnetConfig, folder.settings), SystemRuntime())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
