"""The opening of a run whose objects lie in any store: the text, the first parameters, the first record.

Law: a function of preset, tokens and seed alone, so equal arguments give the same RunSpec and the same bytes.
Letters: N tokens of the text, P flat parameters of a stage.
"""

from __future__ import annotations

import hashlib

import numpy as np

from subnet import presets
from subnet.data import token_shards
from subnet.merging import compression
from subnet.model.initial import initial_parameters
from subnet.protocol import keys
from subnet.protocol.ids import Digest, Hotkey, RunId, Stage, Values
from subnet.protocol.messages import RunOpened, Source, StageStart
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.storage.base import ObjectStore

RUN = RunId("world")
SHARED_EPOCH = 999_999_999
"""Where the text lies: joiners of any epoch need it, so no epoch takes it along."""


def text_spec(
    preset: presets.Preset, tokens_N: np.ndarray, *, num_stages: int, micro_batch_size: int, seq_len: int, seed: int = 7
) -> tuple[RunSpec, bytes]:
    """The RunSpec of a run on these tokens, and the token file that belongs to it."""
    text = token_shards.encode(tokens_N, preset.model.vocab_size)
    key = keys.make(RUN, SHARED_EPOCH, 0, "text", keys.Kind.DATA)
    file = DataFile(key=key, digest=_digest(text), size_bytes=len(text), num_tokens=len(tokens_N))
    data = DataSpec(
        tokenizer=file, train=(file,), validation=(file,), micro_batch_size=micro_batch_size, seq_len=seq_len
    )
    return presets.run_spec(preset, run_id=RUN, seed=seed, num_stages=num_stages, data=data), text


async def open_run(
    spec: RunSpec, text: bytes, store: ObjectStore, *, target_epochs: int, evaluators: tuple[Hotkey, ...] = ()
) -> RunOpened:
    """Put the text and every stage's first parameters and momentum into the store; the record that names them."""
    for file in spec.data.train:
        await store.put(file.key, text)
    starts = []
    for stage in range(spec.num_stages):
        theta_P = initial_parameters(spec, Stage(stage))
        parameters = await _put(spec, store, stage, keys.Kind.PARAMETERS, theta_P)
        momentum = await _put(spec, store, stage, keys.Kind.MOMENTUM, np.zeros_like(theta_P))
        starts.append(StageStart(parameters=parameters, momentum=momentum))
    return RunOpened(spec=spec, starts=tuple(starts), evaluators=evaluators, target_epochs=target_epochs)


async def _put(spec: RunSpec, store: ObjectStore, stage: int, kind: keys.Kind, vector_P: np.ndarray) -> Source:
    data = compression.encode(Values.FP32, vector_P)
    key = keys.make(spec.run_id, 0, stage, "start", kind)
    await store.put(key, data)
    return Source(key=key, digest=_digest(data), size_bytes=len(data))


def _digest(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())
