"""The ledger: the record of accepted work, by epoch and hotkey.

Law: credit comes from results the orchestrator accepted, never from what a miner claims. One pass is worth

    work units = (stage FLOPs / mean stage FLOPs) x share,   forward 1/3, backward 2/3, loss pass 1

so no stage pays better than another (DESIGN 5.8, ALGORITHMS 6). Who takes a forward owes its backward: `completion` is
the share of the owed ones that a miner did itself, of those that anybody did.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from subnet.protocol.ids import Hotkey, Pass

SHARE: dict[Pass, float] = {Pass.FORWARD: 1 / 3, Pass.BACKWARD: 2 / 3, Pass.LOSS: 1.0}


def work_units(kind: Pass, stage: int, stage_flops: Sequence[int]) -> float:
    """Credit for one pass; `stage_flops` are forward FLOPs per token of all stages."""
    return stage_flops[stage] * len(stage_flops) / sum(stage_flops) * SHARE[kind]


class Credit(Struct):
    """What one miner did in one epoch, as accepted."""

    work_units: float = 0.0
    forwards: int = 0
    backwards: int = 0
    losses: int = 0
    due: int = 0
    """Forwards of this miner whose micro-batch's backward was done in the stage, by anyone."""
    returned: int = 0
    """Those whose backward it did itself."""

    @property
    def completion(self) -> float:
        """Backwards returned / backwards due; 1 when none was due."""
        return min(1.0, max(0, self.returned) / self.due) if self.due > 0 else 1.0

    def count(self, kind: Pass, times: int, units: float) -> None:
        match kind:
            case Pass.FORWARD:
                self.forwards += times
            case Pass.BACKWARD:
                self.backwards += times
            case Pass.LOSS:
                self.losses += times
        self.work_units += units


class Ledger(Struct):
    """Credit by epoch, then by hotkey. Epochs are the stage's own at the moment of acceptance."""

    epochs: dict[int, dict[Hotkey, Credit]] = field(default_factory=dict)

    def credit(self, epoch: int, hotkey: Hotkey, kind: Pass, units: float) -> None:
        """Book one accepted pass."""
        self.epochs.setdefault(epoch, {}).setdefault(hotkey, Credit()).count(kind, 1, units)

    def withdraw(self, epoch: int, hotkey: Hotkey, kind: Pass, units: float) -> None:
        """Take one pass back: its output turned out to be bad."""
        self.epochs[epoch][hotkey].count(kind, -1, -units)

    def settle(self, epoch: int, forward_by: Hotkey, backward_by: Hotkey, times: int = 1) -> None:
        """Book an accepted backward with the miner that owed it; `times` -1 takes it back (same epoch, same two)."""
        owed = self.epochs.setdefault(epoch, {}).setdefault(forward_by, Credit())
        owed.due += times
        owed.returned += times * (forward_by == backward_by)

    def total(self, hotkey: Hotkey) -> float:
        """All work units of one miner."""
        return sum(credits[hotkey].work_units for credits in self.epochs.values() if hotkey in credits)
