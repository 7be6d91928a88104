"""The opening of a run whose objects lie in any store: the text's files, the first parameters, the first record.

Law: a function of what the owner orders, the run's id and the text alone, so equal arguments give the same RunSpec and
the same bytes. The store holds every object before the record that names it exists. Torch-free.
Letters: P flat parameters of a stage.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from subnet import presets
from subnet.data import prepare as text
from subnet.data.prepare import Prepared
from subnet.merging import compression
from subnet.model.initial import initial_parameters
from subnet.model.split import split
from subnet.protocol import keys
from subnet.protocol.ids import Hotkey, RunId, Stage, Values
from subnet.protocol.messages import RunOpened, Source, StageStart
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.storage.base import ObjectStore
from subnet.transport.transfer import digest_of

VALIDATION_FRACTION = 0.05
SHARED_EPOCH = 999_999_999
"""Where in the key grammar the token files lie: joiners of any epoch need them, so no epoch takes them along."""


class Order(Struct, frozen=True, kw_only=True):
    """What an owner chooses about a run."""

    preset: str
    miners: int
    """How many are expected: the preset's epoch is shared by them."""
    stages: int
    epochs: int
    seed: int
    text: str
    """File or folder; empty: the built-in one."""
    cache_dir: str
    micro_batch_size: int
    seq_len: int
    num_microbatches_min: int = 0
    """0: the preset's."""
    audit_rate: float = -1.0
    """-1: the preset's."""


def order_of(settings: Struct) -> Order:
    """From a command's settings, which have fields of the same names."""
    return Order(**{name: getattr(settings, name) for name in Order.__struct_fields__})


def choose(order: Order) -> presets.Preset:
    """The preset as ordered. Raises ConfigError, also for a model that cannot be cut so."""
    size = presets.Size(order.miners, order.stages, order.epochs, order.num_microbatches_min)
    preset = presets.choose(order.preset, size)
    split(preset.model, preset.boundary, order.stages, order.seq_len)
    if order.audit_rate < 0:
        return preset
    return preset._replace(audit=msgspec.structs.replace(preset.audit, rate=order.audit_rate))


def prepare_text(order: Order) -> Prepared:
    """The order's text as tokens, from the cache where it has them. Raises ConfigError."""
    source = Path(order.text).expanduser() if order.text else None
    return text.prepare(source, Path(order.cache_dir), choose(order).model.vocab_size, VALIDATION_FRACTION)


async def put(
    order: Order, run_id: RunId, prepared: Prepared, store: ObjectStore, evaluators: tuple[Hotkey, ...] = ()
) -> RunOpened:
    """Put everything into the store; the record that names it."""
    data = DataSpec(
        tokenizer=await put_file(store, run_id, prepared.tokenizer_path, 0),
        train=(await put_file(store, run_id, prepared.train_path, prepared.num_train_tokens),),
        validation=(await put_file(store, run_id, prepared.validation_path, prepared.num_validation_tokens),),
        micro_batch_size=order.micro_batch_size,
        seq_len=order.seq_len,
    )
    preset = choose(order)
    # a short text gives a smaller vocabulary than the preset asks for
    preset = preset._replace(model=msgspec.structs.replace(preset.model, vocab_size=prepared.vocab_size))
    spec = presets.run_spec(preset, run_id=run_id, seed=order.seed, num_stages=order.stages, data=data)
    starts = await put_starts(spec, store)
    return RunOpened(spec=spec, starts=starts, evaluators=evaluators, target_epochs=order.epochs)


async def put_file(store: ObjectStore, run_id: RunId, path: Path, num_tokens: int) -> DataFile:
    """One file that every party loads."""
    data = path.read_bytes()
    key = keys.make(run_id, SHARED_EPOCH, 0, path.name, keys.Kind.DATA)
    await store.put(key, data)
    return DataFile(key=key, digest=digest_of(data), size_bytes=len(data), num_tokens=num_tokens)


async def put_starts(spec: RunSpec, store: ObjectStore) -> tuple[StageStart, ...]:
    """Each stage's first parameters, and its momentum of zeros, as objects of epoch 0."""
    starts = []
    for stage in range(spec.num_stages):
        parameters_P = initial_parameters(spec, Stage(stage))
        parameters = await _put_vector(spec, store, stage, keys.Kind.PARAMETERS, parameters_P)
        momentum = await _put_vector(spec, store, stage, keys.Kind.MOMENTUM, np.zeros_like(parameters_P))
        starts.append(StageStart(parameters=parameters, momentum=momentum))
    return tuple(starts)


async def _put_vector(spec: RunSpec, store: ObjectStore, stage: int, kind: keys.Kind, vector_P: np.ndarray) -> Source:
    data = compression.encode(Values.FP32, vector_P)
    key = keys.make(spec.run_id, 0, stage, "start", kind)
    await store.put(key, data)
    return Source(key=key, digest=digest_of(data), size_bytes=len(data))
