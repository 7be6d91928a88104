"""One class for first, middle and last stage: entry -> blocks -> exit, with slots that differ by place only.

    first    tokens_BT -> embedding -> blocks -> encoder -> z_BTK
    middle   z_BTK     -> decoder   -> blocks -> encoder -> z_BTK
    last     z_BTK     -> decoder   -> blocks -> norm, head -> logits_BTV
    only     tokens_BT -> embedding -> blocks -> norm, head -> logits_BTV

Law: a stage holds no values of its own until `bind` gives it leaves (`model.flat`), in the order and shapes of
`model.spec.shapes_of`. Graphs that were built before keep the leaves they were built with.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from subnet.errors import InvariantViolation
from subnet.model.bottleneck import Decoder, Encoder
from subnet.model.loss import linear_cross_entropy
from subnet.model.modules import Embedding, Linear, RMSNorm
from subnet.model.spec import shapes_of
from subnet.model.transformer import Block, rotary_table
from subnet.protocol.ids import Stage
from subnet.protocol.run_spec import ModelSpec, RunSpec


class TokenEmbedding(nn.Module):
    """The first stage's entry; there is no stage input."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.embedding = Embedding(model)

    def forward(self, stage_input: None, tokens_BT: Tensor) -> Tensor:
        return self.embedding(tokens_BT)


class Head(nn.Module):
    """The last stage's exit: final norm and untied head."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.norm = RMSNorm(model)
        self.head = Linear(model.d_model, model.vocab_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.head(self.norm(x_BTD))

    def loss(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        return linear_cross_entropy(self.norm(x_BTD).flatten(0, 1), self.head.weight, targets_BT.flatten())


class PipelineStage(nn.Module):
    """One stage of a run's model on one device."""

    def __init__(self, spec: RunSpec, stage: Stage, device: str) -> None:
        super().__init__()
        this, model = spec.stages[stage], spec.model
        turns_T1h = rotary_table(model, spec.data.seq_len, device)
        is_last = stage == spec.num_stages - 1
        self.entry = TokenEmbedding(model) if stage == 0 else Decoder(model, spec.boundary)
        layers = range(this.first_layer, this.end_layer)
        self.layers = nn.ModuleDict({str(layer): Block(model, turns_T1h) for layer in layers})
        self.exit = Head(model) if is_last else Encoder(model, spec.boundary)
        self._slots = self._find_slots(spec, stage)

    def bind(self, leaves: Sequence[nn.Parameter]) -> None:
        """Use these leaves from now on: one per named shape, in the flat vector's order."""
        for (module, name), leaf in zip(self._slots, leaves, strict=True):
            module._parameters[name] = leaf

    def forward(self, stage_input: Tensor | None, tokens_BT: Tensor) -> Tensor:
        """z_BTK for the next stage, or logits_BTV from the last. `stage_input` is None at stage 0."""
        return self.exit(self._trunk(stage_input, tokens_BT))

    def loss(self, stage_input: Tensor | None, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats; the last stage only."""
        assert isinstance(self.exit, Head), "only the last stage has a loss"
        return self.exit.loss(self._trunk(stage_input, tokens_BT), targets_BT)

    def _trunk(self, stage_input: Tensor | None, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.entry(stage_input, tokens_BT)
        for block in self.layers.values():
            x_BTD = block(x_BTD)
        return x_BTD

    def _find_slots(self, spec: RunSpec, stage: Stage) -> list[tuple[nn.Module, str]]:
        built = tuple((name, tuple(value.shape)) for name, value in self.named_parameters())
        if built != shapes_of(spec, stage):
            raise InvariantViolation(f"stage {stage} was built as {built}, the layout says {shapes_of(spec, stage)}")
        paths = [name.rpartition(".") for name, _ in built]
        return [(self.get_submodule(path), name) for path, _, name in paths]
