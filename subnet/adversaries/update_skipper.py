"""The update skipper: passes without learning."""

from __future__ import annotations

from subnet.adversaries.pretending import InventedSteps
from subnet.data.sampling import Batches
from subnet.model.trainer import GRAPHS_MAX, Trainer
from subnet.protocol.ids import Stage
from subnet.protocol.run_spec import RunSpec


class UpdateSkipper(Trainer):
    """Every pass is computed; the inner optimizer never steps. Parameters drift in a direction that it made up, so the
    states it commits move from step to step and its pseudo-gradient has a plausible norm.

    Skips    the optimizer step and its two moments, half of a small machine's memory.
    Gains    little on its own; a miner that wants pay for throughput alone has no reason to learn.
    Caught   by the end state of a replayed segment, or the upload for the last one: an honest step from the same start
             leads elsewhere. With a step in each segment the outputs agree, so comparing them alone would not do.
    """

    def __init__(
        self, spec: RunSpec, stage: Stage, device: str, batches: Batches, *, graphs_max: int = GRAPHS_MAX
    ) -> None:
        super().__init__(spec, stage, device, batches, graphs_max=graphs_max)
        self._optimizer = InventedSteps(self.num_params, spec.inner, device)
