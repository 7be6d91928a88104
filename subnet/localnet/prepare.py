"""What a local run needs before it begins: identities, tokens, first parameters, and the opening record.

    python -m subnet.localnet.prepare --run-dir DIR

Its own process, so that the launcher stays small and Ctrl-C ends it at any point. Law: every step is skipped when its
result is there; the opening record is written last and moved into place whole, so it names only objects that exist.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from subnet import config, presets
from subnet.config import Config, LocalnetConfig
from subnet.data import prepare as text
from subnet.errors import ConfigError
from subnet.localnet import wallets
from subnet.localnet.folder import Participants, RunFolder, TextFacts, late_miner_name, miner_names, validator_names
from subnet.merging import compression
from subnet.model.initial import initial_parameters
from subnet.protocol import keys
from subnet.protocol.ids import Digest, RunId, Stage, Values
from subnet.protocol.messages import RunOpened, Source, StageStart
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.runtime import Runtime, SystemRuntime
from subnet.storage.base import ObjectStore
from subnet.storage.files import FileObjectStore

VALIDATION_FRACTION = 0.05
SHARED_EPOCH = 999_999_999
"""Where in the key grammar the token files lie: joiners of any epoch need them, so no epoch takes them along."""


class PrepareConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.localnet.prepare`: makes what a local run needs before it begins."""

    run_dir: Annotated[str, Meta(description="run folder with localnet.json", extra={"metavar": "DIR"})]


def prepare(folder: RunFolder, settings: LocalnetConfig, runtime: Runtime) -> None:
    """Everything that is still missing. Raises ConfigError."""
    participants = make_participants(folder, settings)
    if folder.opening.exists():
        return
    _check_device(settings.device)
    store = FileObjectStore(folder.objects, "http://unused", runtime.random_bytes(32), runtime.now)
    try:
        spec = asyncio.run(_put_data(folder, settings, store, runtime))
        starts = asyncio.run(put_starts(spec, store))
    finally:
        store.close()
    opened = RunOpened(
        spec=spec, starts=starts, evaluators=tuple(participants.validators.values()), target_epochs=settings.epochs
    )
    _write_whole(folder.opening, msgspec.json.encode(opened))


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
        registered.update(msgspec.json.decode(folder.registered.read_bytes()))
    _write_whole(folder.registered, msgspec.json.encode(sorted(registered)))
    return participants


async def _put_data(folder: RunFolder, settings: LocalnetConfig, store: ObjectStore, runtime: Runtime) -> RunSpec:
    size = presets.Size(settings.miners, settings.stages, settings.epochs, settings.num_microbatches_min)
    preset = presets.choose(settings.preset, size)
    source = Path(settings.text).expanduser() if settings.text else None
    prepared = text.prepare(source, Path(settings.cache_dir), preset.model.vocab_size, VALIDATION_FRACTION)
    facts = TextFacts(
        name=prepared.name,
        vocab_size=prepared.vocab_size,
        num_train_tokens=prepared.num_train_tokens,
        num_validation_tokens=prepared.num_validation_tokens,
        unigram_entropy=prepared.unigram_entropy,
    )
    run_id = RunId(f"localnet-{runtime.random_bytes(6).hex()}")
    data = DataSpec(
        tokenizer=await _put_file(store, run_id, prepared.tokenizer_path, 0),
        train=(await _put_file(store, run_id, prepared.train_path, prepared.num_train_tokens),),
        validation=(await _put_file(store, run_id, prepared.validation_path, prepared.num_validation_tokens),),
        micro_batch_size=settings.micro_batch_size,
        seq_len=settings.seq_len,
    )
    audit = preset.audit
    if settings.audit_rate >= 0:
        audit = msgspec.structs.replace(audit, rate=settings.audit_rate)
    # a short text gives a smaller vocabulary than the preset asks for
    model = msgspec.structs.replace(preset.model, vocab_size=prepared.vocab_size)
    _write_whole(folder.text_facts, msgspec.json.encode(facts))
    preset = preset._replace(model=model, audit=audit)
    return presets.run_spec(preset, run_id=run_id, seed=settings.seed, num_stages=settings.stages, data=data)


async def put_starts(spec: RunSpec, store: ObjectStore) -> tuple[StageStart, ...]:
    """Each stage's first parameters, and its momentum of zeros, as objects of epoch 0."""
    starts = []
    for stage in range(spec.num_stages):
        parameters_P = initial_parameters(spec, Stage(stage))
        starts.append(
            StageStart(
                parameters=await _put_vector(store, spec.run_id, stage, parameters_P, keys.Kind.PARAMETERS),
                momentum=await _put_vector(
                    store, spec.run_id, stage, np.zeros_like(parameters_P), keys.Kind.MOMENTUM
                ),
            )
        )
    return tuple(starts)


async def _put_vector(
    store: ObjectStore, run_id: RunId, stage: int, vector_P: np.ndarray, kind: keys.Kind
) -> Source:
    data = compression.encode(Values.FP32, vector_P)
    key = keys.make(run_id, 0, stage, "start", kind)
    await store.put(key, data)
    return Source(key=key, digest=Digest(hashlib.sha256(data).hexdigest()), size_bytes=len(data))


async def _put_file(store: ObjectStore, run_id: RunId, path: Path, num_tokens: int) -> DataFile:
    data = path.read_bytes()
    key = keys.make(run_id, SHARED_EPOCH, 0, path.name, keys.Kind.DATA)
    await store.put(key, data)
    digest = Digest(hashlib.sha256(data).hexdigest())
    return DataFile(key=key, digest=digest, size_bytes=len(data), num_tokens=num_tokens)


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
