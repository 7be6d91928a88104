"""The opening of a run on tokens in memory: the RunSpec, the token file, the first record.

Law: a function of preset, tokens and seed alone, so equal arguments give the same RunSpec and the same bytes.
Letters: N tokens of the text.
"""

from __future__ import annotations

import numpy as np

from subnet import presets
from subnet.data import token_shards
from subnet.orchestrator.opening import SHARED_EPOCH, put_starts
from subnet.protocol import keys
from subnet.protocol.ids import Hotkey, RunId
from subnet.protocol.messages import RunOpened
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.storage.base import ObjectStore
from subnet.transport.transfer import digest_of

RUN = RunId("world")


def text_spec(
    preset: presets.Preset, tokens_N: np.ndarray, *, num_stages: int, micro_batch_size: int, seq_len: int, seed: int = 7
) -> tuple[RunSpec, bytes]:
    """The RunSpec of a run on these tokens, and the token file that belongs to it."""
    text = token_shards.encode(tokens_N, preset.model.vocab_size)
    key = keys.make(RUN, SHARED_EPOCH, 0, "text", keys.Kind.DATA)
    file = DataFile(key=key, digest=digest_of(text), size_bytes=len(text), num_tokens=len(tokens_N))
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
    starts = await put_starts(spec, store)
    return RunOpened(spec=spec, starts=starts, evaluators=evaluators, target_epochs=target_epochs)
