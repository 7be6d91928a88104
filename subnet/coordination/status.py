"""The public view of the run. Law: a pure reading; plain dicts ready for JSON, names as in DESIGN 2, units last."""

from __future__ import annotations

from typing import Any

from subnet.coordination.merge_state import MergeRecord
from subnet.coordination.notices import finished, notice_for
from subnet.coordination.settlement import sheet
from subnet.coordination.state import StageState, State

MERGES_SHOWN = 20
INCIDENTS_SHOWN = 20
VERDICTS = ("passed", "failed", "not_revealed", "unreadable")


def status(state: State) -> dict[str, Any]:
    """What anyone may see while the run goes on; no shard owners, no audit targets."""
    losses = state.recent_losses
    return {
        "run_id": state.spec.run_id,
        "spec_version": state.spec.version,
        "spec_digest": state.spec_digest,
        "at": state.at,
        "opened_at": state.opened_at,
        "finished": finished(state),
        "target_epochs": state.target_epochs,
        "micro_batches": state.completed,
        "abandoned": state.abandoned,
        "passes_started": state.passes_started,
        "passes_merged": state.passes_merged,
        "goodput": state.passes_merged / state.passes_started if state.passes_started else None,
        "tokens": state.completed * state.spec.micro_batch_tokens,
        "first_completed_at": state.first_completed_at,
        "last_completed_at": state.last_completed_at,
        "in_flight": len(state.micro_batches),
        "loss": sum(losses) / len(losses) if losses else None,
        "evaluations": [{"epoch": e.epoch, "loss": e.loss} for e in state.evaluations],
        "stages": [_stage(state, stage) for stage in state.stages],
        "incident_count": state.incident_count,
        "incidents": [
            {"at": i.at, "reason": i.reason, "sentence": i.sentence, "hotkey": i.hotkey}
            for i in state.incidents[-INCIDENTS_SHOWN:]
        ],
        "rollbacks": roll_back_rows(state),
        "audits": _audits(state),
        "pay": _pay(state),
        "chain": _chain(state),
        "outcomes": dict(state.outcomes),
        "refusals": dict(state.refusals),
    }


def _stage(state: State, stage: StageState) -> dict[str, Any]:
    replicas = []
    for miner in state.miners.values():
        if miner.stage != stage.stage:
            continue
        why = notice_for(state, miner.hotkey)
        replicas.append(
            {
                "hotkey": miner.hotkey,
                "live": miner.live,
                "free_slots": miner.free_slots,
                "holding": len(miner.offers),
                "epoch_micro_batches": stage.contributions.get(miner.hotkey, 0),
                "credit": round(state.ledger.total(miner.hotkey), 6),
                "faults": miner.faults,
                "reason": why.reason,
                "sentence": why.sentence,
                "remedy": why.remedy,
            }
        )
    return {
        "stage": stage.stage,
        "epoch": stage.epoch,
        "phase": stage.phase,
        "spec_version": stage.rules + 1,
        "reason": stage.reason,
        "sentence": stage.sentence,
        "parameters": {"key": stage.parameters.key, "digest": stage.parameters.digest},
        "forward_waiting": len(stage.forward_ready),
        "backward_waiting": len(stage.backward_ready),
        "replicas": replicas,
        "merges": [merge_row(record) for record in stage.merges[-MERGES_SHOWN:]],
    }


def _chain(state: State) -> dict[str, Any]:
    """What the orchestrator saw of the chain last, and where the journal's head was anchored last."""
    chain = state.pay.chain
    return {
        "block": chain.block,
        "owner_uid": chain.owner_uid,
        "tempo": chain.tempo,
        "hyperparameters": chain.hyperparameters,
        "anchor": chain.anchor,
    }


def roll_back_rows(state: State) -> list[dict[str, Any]]:
    """Merges that were taken back: when, why, who spoilt them, and what came of it."""
    rolling = state.poison.rolling
    return [
        {
            "at": one.at,
            "epoch": one.epoch,
            "sentence": one.sentence,
            "stages": one.stages,
            "offenders": one.offenders,
            "outcome": one.outcome or "the orchestrator looks at the uploads",
        }
        for one in (*state.poison.roll_backs, *([rolling] if rolling else []))
    ]


def _audits(state: State) -> dict[str, Any]:
    """Verdicts so far; who is being audited stays untold."""
    by_hotkey: dict[str, dict[str, Any]] = {
        hotkey: {
            "passed": one.passed,
            "failed": one.failed,
            "not_revealed": one.not_revealed,
            "unreadable": one.unreadable,
            "sentence": one.sentence,
        }
        for hotkey, one in sorted(state.pay.standing.items())
    }
    totals = {name: sum(int(one[name]) for one in by_hotkey.values()) for name in VERDICTS}
    return {
        **totals,
        "open": len(state.pay.audits),
        "drawn_epoch": state.pay.drawn,
        "replayed_passes": state.pay.replayed_passes,
        "replay_s": round(state.pay.replay_s, 3),
        "compute_s": round(state.compute_s, 3),
        "by_hotkey": by_hotkey,
    }


def _pay(state: State) -> dict[str, Any]:
    """Scores and weights as they follow from the journal now, with the reason of each."""
    now = sheet(state)
    slips = {hotkey: now.payslip(hotkey) for hotkey in sorted(set(now.emission.scores) | set(state.miners))}
    return {
        "scores": {
            hotkey: {
                "uid": slip.uid,
                "score": slip.score,
                "weight": slip.weight if slip.score > 0 else 0.0,
                "gate": slip.gate.product,
                "reason": slip.reason,
                "sentence": slip.sentence,
                "remedy": slip.remedy,
            }
            for hotkey, slip in slips.items()
        },
        "weights": {str(uid): weight for uid, weight in now.emission.weights.items()},
        "validators": {
            hotkey: {"at": report.at, "index": report.index, "block": report.block, "sentence": report.sentence}
            for hotkey, report in sorted(state.pay.weights.items())
        },
    }


def merge_row(record: MergeRecord) -> dict[str, Any]:
    """One finished merge as the report and the dashboard show it."""
    return {
        "epoch": record.epoch,
        "replicas": record.replicas,
        "batch": record.batch,
        "shards": record.shards,
        "agreed": record.agreed,
        "single": record.single,
        "lost": record.lost,
        "disputed": record.disputed,
        "handed_on": record.handed_on,
        "faulty": record.faulty,
        "disagreements": record.disagreements,
        "undone": record.undone,
        "drain_s": record.uploaded_at - record.closed_at,
        "merge_s": record.done_at - record.uploaded_at,
    }
