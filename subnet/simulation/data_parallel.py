"""The other baseline of `make bench`: the reference as data-parallel processes of one thread each.

Every process holds the whole model and takes its share of each inner step's micro-batches; their gradients are summed
by one all-reduce of one flat vector (torch.distributed, gloo, on loopback), and all take the same step. No merge: this
is what one machine without a swarm would do.

Law: the parameters equal those of `reference.train_reference` on the same micro-batches up to the order of sums.
Letters: P flat parameters of the whole model.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event

import numpy as np
import torch
from torch import distributed, multiprocessing

from subnet.data.sampling import Batches
from subnet.errors import ConfigError
from subnet.model import flat
from subnet.model.optimizer import learning_rate
from subnet.protocol.ids import Stage
from subnet.protocol.run_spec import RunSpec
from subnet.runtime import SystemRuntime
from subnet.simulation.reference import ReferenceRun, ReferenceStage, forward


def train_data_parallel(
    spec: RunSpec, batches: Batches, micro_batches: Sequence[int], *, num_processes: int = 2, warm_up: int = 1
) -> ReferenceRun:
    """Train in `num_processes` processes; their number divides the micro-batches of an inner step.

    The first `warm_up` inner steps are not timed. Losses come in the order of `micro_batches`, whole steps only.
    """
    per_step = spec.inner.micro_batches_per_step
    if per_step % num_processes:
        raise ConfigError(
            "inner.micro_batches_per_step",
            f"{per_step} are not divisible among {num_processes}",
            "choose a multiple of the number of processes",
        )
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        answers, never = context.SimpleQueue(), context.Event()
        arguments = (num_processes, folder, spec, batches, tuple(micro_batches), warm_up, answers, never)
        running = multiprocessing.spawn(_process, arguments, nprocs=num_processes, join=False)
        try:
            while not running.join(timeout=1):  # raises when a process died
                if not answers.empty():
                    break
            losses, parameters, duration_s = answers.get()
        finally:
            for process in running.processes:
                process.kill()
                process.join()
    timed = len(losses) - warm_up * per_step
    return ReferenceRun(losses, parameters, timed * spec.micro_batch_tokens, duration_s)


def _process(
    rank: int,
    num_processes: int,
    folder: str,
    spec: RunSpec,
    batches: Batches,
    micro_batches: tuple[int, ...],
    warm_up: int,
    answers: SimpleQueue[tuple[list[float], list[np.ndarray], float]],
    never: Event,
) -> None:
    """Ends by being killed: gloo aborts the process whose neighbour takes the connection down first."""
    torch.set_num_threads(1)
    address = "file://" + os.path.join(folder, "rendezvous")
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=num_processes)
    per_step = spec.inner.micro_batches_per_step
    stages = [ReferenceStage(spec, Stage(index)) for index in range(spec.num_stages)]
    gradient_P = _flat_gradients(stages)
    num_steps = len(micro_batches) // per_step
    losses = torch.zeros(num_steps * per_step, dtype=torch.float64)
    now = SystemRuntime().now
    began = now()
    for step in range(num_steps):
        if step == warm_up:
            distributed.barrier()
            began = now()
        for place in range(step * per_step + rank, (step + 1) * per_step, num_processes):
            loss = forward(spec, stages, batches, micro_batches[place])
            loss.backward()
            losses[place] = loss.item()
        distributed.all_reduce(gradient_P)
        for stage in stages:
            stage.inner_step(per_step, learning_rate(spec.inner, 0, step))
    distributed.barrier()
    duration_s = now() - began
    distributed.all_reduce(losses)
    if rank == 0:
        parameters: list[np.ndarray] = [flat.to_numpy(stage.parameters_P) for stage in stages]
        answers.put((losses.tolist(), parameters, duration_s))
    never.wait()


def _flat_gradients(stages: Sequence[ReferenceStage]) -> torch.Tensor:
    """One vector that all leaves accumulate into, so that one all-reduce sums everything."""
    leaves = [leaf for stage in stages for leaf in stage.leaves]
    gradient_P = torch.zeros(sum(leaf.numel() for leaf in leaves))
    at = 0
    for leaf in leaves:
        leaf.grad = gradient_P[at : at + leaf.numel()].view_as(leaf)
        at += leaf.numel()
    return gradient_P
