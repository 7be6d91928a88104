"""The phases of a stage as a transition table.

Law: the table is data; an illegal transition changes nothing and says why.

TRAINING ──► UPLOADING ──► MERGING ──► TRAINING (next epoch)
   ▲            │ nothing uploaded        │
   ├────────────┘                         ▼
   └───────────────────────────────── PAUSED (target reached, or the operator)

A merge that poisoned the run is taken up again: TRAINING, UPLOADING and MERGING ──► MERGING.
"""

from __future__ import annotations

from subnet.coordination.state import StageState
from subnet.protocol.ids import Phase
from subnet.protocol.reasons import Reason

TABLE: dict[Phase, frozenset[Phase]] = {
    Phase.TRAINING: frozenset({Phase.UPLOADING, Phase.PAUSED, Phase.MERGING}),
    Phase.UPLOADING: frozenset({Phase.MERGING, Phase.TRAINING}),
    Phase.MERGING: frozenset({Phase.TRAINING, Phase.PAUSED, Phase.MERGING}),
    Phase.PAUSED: frozenset({Phase.TRAINING}),
}


def move(stage: StageState, to: Phase, at: float, reason: Reason, sentence: str) -> str:
    """Enter a phase and return the line for the operator.

    An illegal transition leaves `stage` as it is; the returned sentence says so, and the caller records it.
    """
    if to not in TABLE[stage.phase]:
        return f"stage {stage.stage} stays in {stage.phase.value}: no way leads from there to {to.value} ({sentence})"
    line = f"stage {stage.stage} epoch {stage.epoch}: {stage.phase.value} → {to.value}: {sentence}"
    stage.phase, stage.phase_since = to, at
    stage.reason, stage.sentence = reason, sentence
    return line
