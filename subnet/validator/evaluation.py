"""Validation loss of the merged model, measured on held-out text once an epoch.

Law: stages are streamed one at a time from the store, so the model may be larger than the machine; every object's
digest is checked; the result is reported as a signed message and stands in the journal like everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np
from loguru import logger

from subnet.data.sampling import validation_batches
from subnet.data.token_shards import decode
from subnet.errors import Desync, PeerFault, Unavailable
from subnet.merging import compression
from subnet.model.evaluate import validation_loss
from subnet.protocol.ids import Digest, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import Evaluated
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import Runtime
from subnet.storage.base import ObjectStore
from subnet.transport.base import ControlClient

LOOK_EVERY_S = 0.5
CALL_TIMEOUT_S = 20.0
TOKENS_MAX = 16_384
"""Held-out tokens per evaluation: enough for a standard error below 0.02 nats on English text."""


class Merged(NamedTuple):
    """The model at the start of one epoch: where each stage's parameters lie."""

    epoch: int
    keys: tuple[ObjectKey, ...]
    digests: tuple[Digest, ...]


def merged_model(status: dict[str, Any]) -> Merged | None:
    """The model all stages agree on; None while some stage is an epoch ahead or nothing was merged yet."""
    epochs = {stage["epoch"] for stage in status["stages"]}
    if len(epochs) != 1 or 0 in epochs:
        return None
    parameters = [stage["parameters"] for stage in status["stages"]]
    return Merged(
        epochs.pop(),
        tuple(ObjectKey(one["key"]) for one in parameters),
        tuple(Digest(one["digest"]) for one in parameters),
    )


async def evaluate(spec: RunSpec, store: ObjectStore, merged: Merged, device: str, runtime: Runtime) -> Evaluated:
    """Raises Desync when an object is gone or is not what the journal says."""
    blobs = []
    for key, digest in zip(merged.keys, merged.digests, strict=True):
        blobs.append(await _get(store, key, digest))
    files = [await _get(store, file.key, file.digest) for file in spec.data.validation]
    tokens = np.concatenate([decode(data, spec.model.vocab_size) for data in files])
    batch, length = spec.data.micro_batch_size, spec.data.seq_len
    batches = validation_batches(tokens, batch, length, max(1, TOKENS_MAX // (batch * length)))

    def parameters() -> Iterator[np.ndarray]:
        for index, blob in enumerate(blobs):
            yield compression.decode(blob, Values.FP32, spec.stages[index].num_params)

    loss, num_tokens = await runtime.run_blocking(lambda: validation_loss(spec, parameters(), batches, device))
    return Evaluated(epoch=merged.epoch, loss=loss, num_tokens=num_tokens, parameters=merged.digests)


async def _get(store: ObjectStore, key: ObjectKey, digest: Digest) -> bytes:
    try:
        data = await store.get(key)
    except KeyError:
        raise Desync(f"{key} is gone") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise Desync(f"{key} is not what the journal says")
    return data


async def watch(
    spec: RunSpec,
    store: ObjectStore,
    control: ControlClient,
    read_status: Callable[[], Any],
    device: str,
    runtime: Runtime,
) -> NoReturn:
    """Evaluate each epoch once and report it, until cancelled. `read_status` awaits the public view."""
    done, digest = 0, spec.digest()
    while True:
        await runtime.sleep(LOOK_EVERY_S)
        try:
            merged = merged_model(await read_status())
            if merged is None or merged.epoch <= done:
                continue
            report = await evaluate(spec, store, merged, device, runtime)
            reply = await control.call(report, digest, CALL_TIMEOUT_S)
        except (Unavailable, Desync, PeerFault) as error:
            logger.debug("not this time: {}", error)
            continue
        notice = reply.notice
        if notice.reason is not Reason.OK:
            logger.warning("the report was not taken: {}; {}", notice.sentence, notice.remedy)
        done = merged.epoch
        logger.info("epoch {}: validation loss {:.4f} over {} tokens", done, report.loss, report.num_tokens)
