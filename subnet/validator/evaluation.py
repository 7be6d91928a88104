"""Validation loss of the merged model, measured on held-out text once an epoch.

Law: stages are decoded and run one at a time, so no more than one is in memory as tensors; the result is reported as a
signed message and stands in the journal like everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from subnet.data.sampling import validation_batches
from subnet.data.token_shards import decode
from subnet.merging import compression
from subnet.model.evaluate import validation_loss
from subnet.protocol.ids import Digest, Epoch, Values
from subnet.protocol.messages import Evaluated
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import Runtime

TOKENS_MAX = 16_384
"""Held-out tokens per evaluation: enough for a standard error below 0.02 nats on English text."""


async def evaluate(
    spec: RunSpec,
    epoch: Epoch,
    blobs: Sequence[bytes],
    digests: tuple[Digest, ...],
    validation: Sequence[bytes],
    tokens_max: int,
    device: str,
    runtime: Runtime,
) -> Evaluated:
    """`blobs` are the stages' encoded parameters, `validation` the held-out token files, all checked by the caller."""
    tokens = np.concatenate([decode(data, spec.model.vocab_size) for data in validation])
    batch, length = spec.data.micro_batch_size, spec.data.seq_len
    batches = validation_batches(tokens, batch, length, max(1, tokens_max // (batch * length)))

    def parameters() -> Iterator[np.ndarray]:
        for index, blob in enumerate(blobs):
            yield compression.decode(blob, Values.FP32, spec.stages[index].num_params)

    loss, num_tokens = await runtime.run_blocking(lambda: validation_loss(spec, parameters(), batches, device))
    return Evaluated(epoch=epoch, loss=loss, num_tokens=num_tokens, parameters=digests)
