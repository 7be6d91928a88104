"""What calibration's swarms train: sizes, the text, and the RunSpec of one swarm.

Law: the rules are the `laptop` preset's, so that what is measured holds for what is run; only model, wire values and
the lengths of epoch and segment are chosen here.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np

from subnet import presets
from subnet.data import prepare
from subnet.protocol import keys
from subnet.protocol.ids import Digest, RunId, Values
from subnet.protocol.run_spec import DataFile, DataSpec, ModelSpec, RunSpec

NUM_STAGES = 3
RUN = RunId("calibration")
FILE = DataFile(key=keys.make(RUN, 0, 0, "any", keys.Kind.BOUNDARY), digest=Digest("0" * 64), size_bytes=1)
"""Stands for every object: nothing is stored."""


class Size(NamedTuple):
    """How large the swarms are."""

    text_chars: int
    micro_batch: tuple[int, int]
    """B, T."""
    model: ModelSpec | None
    """None: the `laptop` preset's."""
    width: int
    replicas: int
    micro_batches: int
    """Of an epoch, per replica; an odd number, so that an upload's last step has only one."""
    segment_steps: int
    epochs: int


SIZES = {
    "tiny": Size(
        200_000, (2, 32),
        ModelSpec(vocab_size=512, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, d_ff=96),
        8, 2, 25, 2, 3,
    ),
    "laptop": Size(1_500_000, (8, 128), None, 16, 1, 13, 2, 2),
}  # fmt: skip


class Wire(NamedTuple):
    """How numbers are held on the way."""

    boundary: Values
    upload: Values


def tokens_of(size: Size) -> np.ndarray:
    """The text of the `localnet` command, or its beginning, as tokens."""
    text = prepare.read_kjv()[: size.text_chars]
    blocks, _ = prepare.split_text(text, 0.05)
    vocab_size = (size.model or presets.laptop(presets.Size(3, 3, 1)).model).vocab_size
    return prepare.tokenize(prepare.train_tokenizer(blocks, vocab_size), blocks)


def make_spec(size: Size, wire: Wire, seed: int, reset_each_epoch: bool) -> RunSpec:
    """The `laptop` preset's rules, on a model of this size."""
    preset = presets.laptop(presets.Size(NUM_STAGES * size.replicas, NUM_STAGES, size.epochs, size.micro_batches))
    width = size.width
    preset = preset._replace(
        model=size.model or preset.model,
        boundary=msgspec.structs.replace(preset.boundary, width=width, hidden=4 * width, values=wire.boundary),
        inner=msgspec.structs.replace(
            preset.inner, reset_each_epoch=reset_each_epoch, rewarm_steps=3 if reset_each_epoch else 0
        ),
        merge=msgspec.structs.replace(preset.merge, upload_values=wire.upload),
        audit=msgspec.structs.replace(preset.audit, rate=1.0, segment_steps=size.segment_steps),
    )
    batch, seq_len = size.micro_batch
    data = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=batch, seq_len=seq_len)
    return presets.run_spec(preset, run_id=RUN, seed=seed, num_stages=NUM_STAGES, data=data)
