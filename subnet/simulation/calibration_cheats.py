"""What a cheat on one item of a segment would show: the same segment, tampered with by a known amount.

What was sent: one output noised, or some of its tokens zeroed. What was trained: one micro-batch's gradient scaled or
left out, one inner step shortened or left out, all products made of rounded factors, a loss lowered. The rest is
computed on as the miner's trainer would, so log, outputs and end state fit each other.

Law: an honest audit of a forged segment shows what the tolerances catch, given that they drew the cheated item. Equal
arguments forge equally. Letters: B sequences, T tokens, N tokens of a micro-batch, K boundary width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from subnet.data.sampling import Batches
from subnet.model import wire
from subnet.model.replay import Replay, ReplayPass, Segment
from subnet.model.training_state import Kept
from subnet.protocol.ids import Pass, Stage
from subnet.protocol.run_spec import RunSpec
from subnet.simulation.calibration_arithmetic import CHEAPER, Setting
from subnet.simulation.calibration_runs import Recorded

Forge = Callable[[Recorded, np.random.Generator], Segment | None]
Tamper = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Of one decoded output z_NK."""


class Cheat(NamedTuple):
    """One way to cheat, by one amount."""

    name: str
    amount: str
    forge: Forge
    """None where the segment holds no such item."""


def catalogue() -> tuple[Cheat, ...]:
    """From small to large, way by way."""
    cheats = [Cheat("one output noised", f"{x:.1%} of its size", _sent(_noised(x))) for x in (0.001, 0.01, 0.1, 0.5)]
    for share in (0.01, 0.05, 0.19, 0.5):
        cheats.append(Cheat("drawn tokens of one output zeroed", f"{share:.0%}", _sent(_zeroed(share, smallest=False))))
    for share in (0.05, 0.19, 0.5):
        cheats.append(
            Cheat("smallest tokens of one output zeroed", f"{share:.0%}", _sent(_zeroed(share, smallest=True)))
        )
    for factor in (0.99, 0.9, 0.5, 0.0):
        about = f"x {factor:g}" if factor else "left out"
        cheats.append(Cheat("one micro-batch's gradient scaled", about, trained(scale=factor)))
    for share in (0.01, 0.1, 0.5, 1.0):
        about = f"by {share:.0%}" if share < 1 else "left out"
        cheats.append(Cheat("one inner step shortened", about, trained(shorten=share)))
    cheats += [Cheat("products of rounded factors", setting.name, trained(setting=setting)) for setting in CHEAPER]
    cheats += [Cheat("one loss lowered", f"by {x:g} nats", _lowered(x)) for x in (1e-4, 1e-3, 1e-2, 1e-1)]
    return tuple(cheats)


# ---- what was sent ---------------------------------------------------------------------------------------------------


def _noised(share: float) -> Tamper:
    def tamper(z_NK: np.ndarray, drawn: np.random.Generator) -> np.ndarray:
        size = np.float32(np.sqrt(np.square(z_NK).mean()) * share)
        noised_NK: np.ndarray = z_NK + drawn.standard_normal(z_NK.shape, np.float32) * size
        return noised_NK

    return tamper


def _zeroed(share: float, *, smallest: bool) -> Tamper:
    def tamper(z_NK: np.ndarray, drawn: np.random.Generator) -> np.ndarray:
        order_N = np.abs(z_NK).max(axis=1) if smallest else drawn.random(len(z_NK))
        chosen = np.argsort(order_N)[: max(1, round(share * len(z_NK)))]
        tampered_NK = z_NK.copy()
        tampered_NK[chosen] = 0
        return tampered_NK

    return tamper


def _sent(tamper: Tamper) -> Forge:
    def forge(recorded: Recorded, drawn: np.random.Generator) -> Segment | None:
        spec, segment = recorded.spec, recorded.segment
        places = [i for i, one in enumerate(segment.passes) if one.output is not None]
        if not places:
            return None
        place = int(drawn.choice(places))
        one = segment.passes[place]
        assert one.output is not None
        z_BTK = wire.decode(spec, one.output)
        z_NK = tamper(z_BTK.reshape(-1, z_BTK.shape[-1]), drawn)
        seed = None if one.kind is Pass.FORWARD else wire.rounding_seed(spec, one.micro_batch, recorded.stage)
        return _with(segment, place, one._replace(output=wire.encode(spec, z_NK.reshape(z_BTK.shape), seed)))

    return forge


def _lowered(nats: float) -> Forge:
    def forge(recorded: Recorded, drawn: np.random.Generator) -> Segment | None:
        segment = recorded.segment
        places = [i for i, one in enumerate(segment.passes) if one.loss is not None]
        if not places:
            return None
        place = int(drawn.choice(places))
        one = segment.passes[place]
        assert one.loss is not None
        return _with(segment, place, one._replace(loss=one.loss - nats))

    return forge


def _with(segment: Segment, place: int, one: ReplayPass) -> Segment:
    return segment._replace(passes=[*segment.passes[:place], one, *segment.passes[place + 1 :]])


# ---- what was trained ------------------------------------------------------------------------------------------------


class _Forger(Replay):
    """Goes through a segment as its miner did, but for one item, and keeps what it has to show."""

    def __init__(self, spec: RunSpec, stage: Stage, device: str, batches: Batches) -> None:
        super().__init__(spec, stage, device, batches)
        self.scaled, self.scale = -1, 1.0
        """Which of the gradients, and by what."""
        self.shortened, self.shorten = -1, 0.0
        """Which of the inner steps, and by what share."""
        self._gradients = self._steps = 0
        self._before_P: Tensor | None = None
        """What was accumulated before the scaled gradient, until that is scaled."""

    def forge(self, segment: Segment) -> Segment:
        self._begin(segment)
        passes: list[ReplayPass] = []
        for position, one in enumerate(segment.passes):
            if position == segment.applies_after:
                self._apply(segment.epoch)
            output, loss = self._repeat(one)
            passes.append(one._replace(output=output, loss=loss))
        if segment.applies_after == len(segment.passes):
            self._apply(segment.epoch)
        if self.step + 1 == segment.end_step:
            self.step_now()
        upload_P = None if segment.upload_P is None else self._anchor.sent(self.local_parameters())
        return segment._replace(passes=passes, end=self.training_state(), upload_P=upload_P)

    def _finish(self, micro_batch: int, kept: Kept, gradient_BTK: Tensor | None) -> bytes | None:
        if self._gradients == self.scaled:
            self._before_P = self._gradient_P * bool(self.accumulated)
        self._gradients += 1
        data = super()._finish(micro_batch, kept, gradient_BTK)
        self._rescale()
        return data

    def _rescale(self) -> None:
        if self._before_P is not None:
            added_P = self._gradient_P - self._before_P
            self._gradient_P.copy_(self._before_P + self.scale * added_P)
            self._before_P = None

    def _inner_step(self) -> None:
        self._rescale()
        super()._inner_step()
        if self._steps == self.shortened:
            with torch.no_grad():
                self._parameters_P.lerp_(self._older_P, self.shorten)
        self._steps += 1


def trained(*, scale: float = 1.0, shorten: float = 0.0, setting: Setting | None = None) -> Forge:
    def forge(recorded: Recorded, drawn: np.random.Generator) -> Segment | None:
        gradients, steps = _counted(recorded)
        if not gradients or not steps:
            return None
        forger = _Forger(recorded.spec, recorded.stage, "cpu", recorded.batches)
        if scale != 1.0:
            forger.scaled, forger.scale = int(drawn.integers(gradients)), scale
        if shorten:
            forger.shortened, forger.shorten = int(drawn.integers(steps)), shorten
        with (setting or Setting("plain")).applied():
            return forger.forge(recorded.segment)

    return forge


def _counted(recorded: Recorded) -> tuple[int, int]:
    """Gradients in a segment, and inner steps."""
    gradients = sum(one.kind is not Pass.FORWARD for one in recorded.segment.passes)
    k = recorded.spec.inner.micro_batches_per_step
    return gradients, -(-gradients // k)


def pick(records: Sequence[Recorded], count: int) -> list[Recorded]:
    """So many records, spread evenly."""
    if len(records) <= count:
        return list(records)
    return [records[i * len(records) // count] for i in range(count)]
