"""The lazy one: honest forwards, backwards by invention."""

from __future__ import annotations

import math

import torch

from subnet.adversaries.pretending import BACKWARD, Idler
from subnet.data.sampling import Batches
from subnet.errors import PeerFault
from subnet.model.trainer import GRAPHS_MAX
from subnet.protocol.ids import MicroBatchId, Stage
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec


class LazyBackward(Idler):
    """Forwards are honest; a backward returns noise of the scale of the gradient that came, and accumulates nothing.

    Skips    two thirds of the work, all graphs and their memory.
    Gains    three times the passes for the same hardware, on which forwards look right to whoever samples only them.
    Caught   by the replay of any segment: the gradients it sent are not the computed ones, and its parameters did not
             move where the replay's do. At stage 0, which sends no gradient, the parameters alone give it away. Its
             pseudo-gradient of zeros does no harm to the merge.
    """

    def __init__(
        self, spec: RunSpec, stage: Stage, device: str, batches: Batches, *, graphs_max: int = GRAPHS_MAX
    ) -> None:
        super().__init__(spec, stage, device, batches, graphs_max=0)

    def loss(self, micro_batch: MicroBatchId, stage_input: bytes | None) -> tuple[float, bytes | None]:
        """The loss is computed, its gradient is not."""
        with torch.no_grad():
            loss = float(self._run(micro_batch, stage_input).output)
        if not math.isfinite(loss):
            raise PeerFault(Reason.NOT_FINITE, f"the loss of micro-batch {micro_batch} is {loss}", "own")
        made_up = self.invent_loss_gradient(micro_batch, BACKWARD)
        self.pretend(micro_batch)
        return loss, made_up
