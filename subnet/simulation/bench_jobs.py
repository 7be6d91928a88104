"""One measurement of `make bench` in a process of its own: a baseline's speed, or a reference's held-out loss.

    python -m subnet.simulation.bench_jobs --job job.json

Its own process, so that nothing but the job uses its threads and nothing of an earlier one is left. Law: the job file
says everything; the answer goes beside it; what is printed is progress for the operator.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, overload

import msgspec
import torch
from msgspec import Meta, Struct

from subnet import config
from subnet.config import Config
from subnet.data.sampling import Batches, validation_batches
from subnet.data.token_shards import open_file
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import SystemRuntime
from subnet.simulation.data_parallel import train_data_parallel
from subnet.simulation.reference import train_reference
from subnet.validator.evaluation import TOKENS_MAX

SAY_EVERY_S = 10.0


class Kind(StrEnum):
    ONE_PROCESS = "one-process"
    """Speed of `simulation.reference` with the job's threads."""
    DATA_PARALLEL = "data-parallel"
    """Speed of `simulation.data_parallel`, as many processes of one thread as the job has threads."""
    LOSS = "loss"
    """Train `simulation.reference` and measure it on the held-out text as the swarm's validator does."""


class Job(Struct, frozen=True, kw_only=True):
    kind: Kind
    spec: RunSpec
    train: str
    """File of training tokens."""
    validation: str
    micro_batches: int
    """Trained on; of a speed, timed."""
    warm_up: int = 0
    """Micro-batches before the clock starts."""
    threads: int = 1


class Answer(Struct, frozen=True, kw_only=True):
    tokens_per_s: float
    validation_loss: float | None = None


class JobConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.simulation.bench_jobs`: one measurement of the benchmark."""

    job: Annotated[str, Meta(description="job.json; answer.json is written beside it", extra={"metavar": "PATH"})]


class Shown(Sequence[int]):
    """Micro-batches 0 to count - 1 that say how far a loop over them has come."""

    def __init__(self, count: int, say_every_s: float) -> None:
        self._numbers, self._say_every_s = range(count), say_every_s

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        return self._numbers[index]

    def __iter__(self) -> Iterator[int]:
        now = SystemRuntime().now
        said_at = now()
        for number in self._numbers:
            if now() - said_at >= self._say_every_s:
                said_at = now()
                print(f"{number} of {len(self)} micro-batches", flush=True)
            yield number


def measure(job: Job) -> Answer:
    """Do the job in this process."""
    torch.set_num_threads(job.threads)
    spec, data = job.spec, job.spec.data
    tokens = open_file(Path(job.train), spec.model.vocab_size)
    batches = Batches(tokens, spec.seed, data.micro_batch_size, data.seq_len)
    now = SystemRuntime().now
    match job.kind:
        case Kind.DATA_PARALLEL:
            steps = job.warm_up // spec.inner.micro_batches_per_step
            micro_batches = range(job.warm_up + job.micro_batches)
            run = train_data_parallel(spec, batches, micro_batches, num_processes=job.threads, warm_up=steps)
            return Answer(tokens_per_s=run.tokens_per_s)
        case Kind.ONE_PROCESS:
            train_reference(spec, batches, range(job.warm_up), now=now)
            run = train_reference(spec, batches, range(job.micro_batches), now=now)
            return Answer(tokens_per_s=run.tokens_per_s)
        case Kind.LOSS:
            run = train_reference(spec, batches, Shown(job.micro_batches, SAY_EVERY_S), now=now)
            held_out = open_file(Path(job.validation), spec.model.vocab_size)
            count = max(1, TOKENS_MAX // spec.micro_batch_tokens)
            loss = run.validation_loss(spec, validation_batches(held_out, data.micro_batch_size, data.seq_len, count))
            return Answer(tokens_per_s=run.tokens_per_s, validation_loss=loss)


def main(argv: Sequence[str]) -> int:
    with config.one_line_errors():
        path = Path(config.parse(JobConfig, argv, "python -m subnet.simulation.bench_jobs").job)
        answer = measure(msgspec.json.decode(path.read_bytes(), type=Job))
        path.with_name("answer.json").write_bytes(msgspec.json.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
