"""The two sides of a boundary: the residual bottleneck of ALGORITHMS 1 (https://arxiv.org/abs/2604.11947).

    encode  z = E(x) + x[:K]
    decode  y = D(z) + pad(z) [+ P[token]]

E and D are small MLPs that end in zeros at the start, so a boundary begins as exactly truncate-then-pad, and an
identity path through the same K coordinates survives every boundary. P, the token table, costs nothing on the wire:
every party derives the tokens from the micro-batch id.

Law: width == D: x itself crosses and there is nothing to learn; width == 0: nothing crosses, the control. The
quantiser is not here: what a decoder is given is the value that was sent (`model.wire`).

Letters: B batch, T tokens, D model width, K boundary width, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from subnet.model.modules import Embedding, Linear, RMSNorm
from subnet.model.spec import has_bottleneck
from subnet.protocol.run_spec import BoundarySpec, ModelSpec


class Encoder(nn.Module):
    """The sending side: x_BTD -> z_BTK, the exit of every stage but the last."""

    def __init__(self, model: ModelSpec, boundary: BoundarySpec) -> None:
        super().__init__()
        self.width = boundary.width
        self.learned = has_bottleneck(model, boundary)
        if self.learned:
            self.norm = RMSNorm(model)
            self.up = Linear(model.d_model, boundary.hidden)
            self.down = Linear(boundary.hidden, boundary.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        kept_BTK = x_BTD[..., : self.width]
        if not self.learned:
            return kept_BTK
        return kept_BTK + self.down(F.silu(self.up(self.norm(x_BTD))))


class Decoder(nn.Module):
    """The receiving side: (z_BTK, tokens_BT) -> y_BTD, the entry of every stage but the first."""

    def __init__(self, model: ModelSpec, boundary: BoundarySpec) -> None:
        super().__init__()
        self.padding = model.d_model - boundary.width
        self.learned = has_bottleneck(model, boundary)
        if self.learned:
            self.up = Linear(boundary.width, boundary.hidden)
            self.down = Linear(boundary.hidden, model.d_model)
        self.table = Embedding(model) if boundary.token_table else None

    def forward(self, z_BTK: Tensor, tokens_BT: Tensor) -> Tensor:
        y_BTD = F.pad(z_BTK, (0, self.padding)) if self.padding else z_BTK
        if self.learned:
            y_BTD = y_BTD + self.down(F.silu(self.up(z_BTK)))
        if self.table is not None:
            y_BTD = y_BTD + self.table(tokens_BT)
        return y_BTD
