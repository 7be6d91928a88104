"""The freeloader: gets paid for noise."""

from __future__ import annotations

import math

import numpy as np

from subnet.adversaries.pretending import FIRST_RMS, FORWARD, LOSS, Idler, InventedSteps, root_mean_square
from subnet.data.sampling import Batches
from subnet.model.trainer import GRAPHS_MAX
from subnet.protocol.ids import MicroBatchId, Stage
from subnet.protocol.run_spec import RunSpec


class Freeloader(Idler):
    """Computes nothing: boundaries, gradients, losses and the pseudo-gradient are noise of the scale of honest ones.

    Skips    all of it; it needs no accelerator and not even the model.
    Gains    passes in a few milliseconds, so it is given more of them than anybody else, and is paid by the pass.
    Caught   by the replay of any segment: the first output that is compared has nothing in common with the computed
             one. CLASP would see the worse losses of its pathways; the merge's clip bounds what its upload does.
    """

    def __init__(
        self, spec: RunSpec, stage: Stage, device: str, batches: Batches, *, graphs_max: int = GRAPHS_MAX
    ) -> None:
        super().__init__(spec, stage, device, batches, graphs_max=graphs_max)
        self._optimizer = InventedSteps(self.num_params, spec.inner, device)

    def forward(self, micro_batch: MicroBatchId, stage_input: bytes | None) -> bytes:
        rms = root_mean_square(self._decode(stage_input, "stage_input")) if self._stage_index else FIRST_RMS
        self.pass_version = self.param_version
        return self.invent(micro_batch, FORWARD, rms)

    def loss(self, micro_batch: MicroBatchId, stage_input: bytes | None) -> tuple[float, bytes | None]:
        """A loss that falls from ln V as everybody's does."""
        gradient = self.invent_loss_gradient(micro_batch, LOSS)
        self.pretend(micro_batch)
        drawn = np.random.default_rng((self._spec.seed, micro_batch, LOSS))
        fallen = 0.6 + 0.4 * math.exp(-micro_batch / 50)
        return math.log(self._spec.model.vocab_size) * fallen + 0.05 * float(drawn.standard_normal()), gradient
