"""From the run state to scores and weights: gathers what `scoring.emission` decides from.

Law: a pure reading of the state after one journal record, so every validator that has folded the same records gets the
same weights, bit by bit. Credit of an epoch counts once every audit of it is settled (DESIGN 7).
"""

from __future__ import annotations

from typing import NamedTuple

from subnet.coordination.audit_state import Standing
from subnet.coordination.state import State
from subnet.protocol.ids import Epoch, Hotkey
from subnet.protocol.reasons import Reason
from subnet.scoring import emission
from subnet.scoring.emission import Basis, Emission, EpochCredit, Forfeit, Payslip, Void


class Sheet(NamedTuple):
    """Everything pay depends on, and what comes of it."""

    basis: Basis
    emission: Emission

    def payslip(self, hotkey: Hotkey) -> Payslip:
        return emission.explain(self.basis, self.emission, hotkey)


def sheet(state: State) -> Sheet:
    """Scores and weights as of the last record."""
    basis = Basis(
        at=state.at,
        rules=state.spec.score,
        epochs=tuple(_credit(state, epoch, at) for epoch, at in sorted(state.pay.closed_at.items())),
        forfeits=tuple(_forfeits(state)),
        uids=state.pay.chain.uids or {h: i for i, h in enumerate(sorted(state.registered))},
        owner_uid=state.pay.chain.owner_uid,
    )
    return Sheet(basis, emission.emission(basis))


def counts(state: State, epoch: int) -> bool:
    """Whether an epoch is closed, drawn, and every audit of it settled."""
    return epoch <= state.pay.drawn and not any(audit.epoch == epoch for audit in state.pay.audits.values())


def _credit(state: State, epoch: int, closed_at: float) -> EpochCredit:
    credits, unlogged = state.ledger.epochs.get(epoch, {}), state.pay.unlogged.get(epoch, {})
    void = dict(state.pay.void.get(epoch, {}))
    if not counts(state, epoch):
        pending = Void(Reason.AUDIT_PENDING, "the audits of this epoch are not settled yet")
        void |= {hotkey: pending for hotkey in credits if hotkey not in void}
    return EpochCredit(
        epoch=Epoch(epoch),
        closed_at=closed_at,
        work_units={h: max(0.0, credit.work_units - unlogged.get(h, 0.0)) for h, credit in sorted(credits.items())},
        completion={hotkey: credit.completion for hotkey, credit in credits.items() if credit.completion < 1.0},
        void=void,
    )


def _forfeits(state: State) -> list[Forfeit]:
    found = []
    for hotkey, standing in sorted(state.pay.standing.items()):
        found += [
            Forfeit(hotkey=hotkey, at=at, reason=reason, sentence=sentence)
            for at, reason, sentence in _failures(standing)
            if at is not None
        ]
    return found


def _failures(standing: Standing) -> tuple[tuple[float | None, Reason, str], ...]:
    return (
        (standing.failed_at, Reason.AUDIT_FAILED, f"an audit failed ({standing.failure})"),
        (standing.withheld_again_at, Reason.NOT_REVEALED, "drawn states were not shown, for the second time"),
        (standing.wrong_shard_at, Reason.WRONG_SHARD, "shards were reduced wrongly, as their recomputation showed"),
    )
