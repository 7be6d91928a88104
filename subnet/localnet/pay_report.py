"""The report's part about trust and pay: audits, scores, weights, emissions, and whether pay followed work.

Law: scores and weights are `coordination.settlement.sheet` of the journal's fold, as every validator has them, and
emissions are the chain's own reading: nothing is computed a second way. Hotkeys come with the names of the local run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from subnet.chain.base import Pay, Subnet
from subnet.coordination.audit_state import Standing
from subnet.coordination.settlement import Sheet, sheet
from subnet.coordination.state import State
from subnet.localnet.words import alphas, emissions
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Anchored, Neuron
from subnet.protocol.reasons import Reason
from subnet.scoring.emission import payout_correlation

NAMES_MAX = 8
"""In a line of the summary."""


def audits(state: State, names: Mapping[str, str]) -> dict[str, Any]:
    """Verdicts, and seconds of replay for one second of training (None where nothing was trained)."""
    standings = sorted(state.pay.standing.items())
    return {
        **_verdicts(standing for _, standing in standings),
        "open": len(state.pay.audits),
        "replayed_passes": state.pay.replayed_passes,
        "replay_s": state.pay.replay_s,
        "compute_s": state.compute_s,
        "cost_share": state.pay.replay_s / state.compute_s if state.compute_s > 0 else None,
        "by_hotkey": {
            hotkey: {"name": names.get(hotkey, hotkey), **_verdicts([one]), "sentence": one.failure or one.sentence}
            for hotkey, one in standings
        },
    }


def _verdicts(standings: Iterable[Standing]) -> dict[str, int]:
    all_of = list(standings)
    kinds = ("passed", "failed", "not_revealed", "unreadable")
    return {kind: sum(getattr(standing, kind) for standing in all_of) for kind in kinds}


def pay(
    state: State, names: Mapping[str, str], subnet: Subnet | None, anchors: Sequence[Anchored] = ()
) -> dict[str, Any]:
    """What follows from the journal for every hotkey that worked or joined, and what the chain paid last.

    `payout_correlation` is Pearson's r of weights and verified work over the miners that failed nothing,
    `incentive_correlation` that of the chain's incentive instead of weights; None where there is no chain.
    """
    now = sheet(state)
    work, slips = verified_work(now), []
    for hotkey in sorted({*now.emission.scores, *state.miners}, key=lambda hotkey: names.get(hotkey, hotkey)):
        slip = now.payslip(hotkey)
        slips.append(slip if slip.score > 0 else slip._replace(weight=0.0))  # the owner's uid holds what is burnt
    failed = {forfeit.hotkey for forfeit in now.basis.forfeits}
    honest = {slip.hotkey: work.get(slip.hotkey, 0.0) for slip in slips if slip.hotkey not in failed}
    alpha = {uid: one.emission_alpha for uid, one in sorted(subnet.pay.items())} if subnet is not None else {}
    return {
        "scores": {names.get(slip.hotkey, slip.hotkey): slip.score for slip in slips},
        "weights": {str(uid): weight for uid, weight in now.emission.weights.items()},
        "emission_alpha": {str(uid): amount for uid, amount in alpha.items()},
        "payout_correlation": payout_correlation({slip.hotkey: slip.weight for slip in slips}, honest),
        "incentive_correlation": payout_correlation(incentives(subnet), honest) if subnet is not None else None,
        "pay": {
            names.get(slip.hotkey, slip.hotkey): {
                "hotkey": slip.hotkey,
                "uid": slip.uid,
                "verified_work_units": work.get(slip.hotkey, 0.0),
                "gate": slip.gate.product,
                "score": slip.score,
                "share": slip.share,
                "weight": slip.weight,
                "emission_alpha": alpha.get(slip.uid) if slip.uid is not None else None,
                "honest": slip.hotkey in honest,
                "reason": slip.reason,
                "sentence": slip.sentence,
                "remedy": slip.remedy,
            }
            for slip in slips
        },
        "weights_set": {
            names.get(hotkey, hotkey): msgspec.to_builtins(report)
            for hotkey, report in sorted(state.pay.weights.items())
        },
        "chain": _chain(subnet, names, anchors) if subnet is not None else None,
    }


def verified_work(now: Sheet) -> dict[Hotkey, float]:
    """Accepted work units of the epochs that pay now, whose audits are settled and where the work was merged."""
    rules, at = now.basis.rules, now.basis.at
    work: dict[Hotkey, float] = {}
    for epoch in now.basis.epochs:
        if at - epoch.closed_at <= rules.gamma_s:
            for hotkey in epoch.work_units.keys() - epoch.void.keys():
                work[hotkey] = work.get(hotkey, 0.0) + epoch.work_units[hotkey]
    return work


def incentives(subnet: Subnet) -> dict[Hotkey, float]:
    """The chain's shares of the miners' part, by the hotkeys that hold the uids."""
    return {neuron.hotkey: subnet.pay[neuron.uid].incentive for neuron in subnet.neurons if neuron.uid in subnet.pay}


def _chain(subnet: Subnet, names: Mapping[str, str], anchors: Sequence[Anchored]) -> dict[str, Any]:
    """The chain's last reading; every anchor that the journal holds; emissions are of the last chain epoch."""
    return {
        "block": subnet.block.number,
        "tempo": subnet.tempo,
        "owner_uid": subnet.owner_uid,
        "hyperparameters": dict(sorted(subnet.hyperparameters.items())),
        "anchors": [{"epoch": one.epoch, "index": one.index, "head": one.head, "block": one.block} for one in anchors],
        "emission_alpha_by_name": emissions(subnet, names),
        "by_uid": {str(neuron.uid): _row(neuron, subnet, names) for neuron in subnet.neurons},
    }


def _row(neuron: Neuron, subnet: Subnet, names: Mapping[str, str]) -> dict[str, Any]:
    pay = subnet.pay.get(neuron.uid, Pay(0.0, 0.0, 0.0))
    return {
        "name": names.get(neuron.hotkey, neuron.hotkey),
        "hotkey": neuron.hotkey,
        "stake_alpha": neuron.stake,
        "permit": neuron.permit,
        **pay._asdict(),
    }


# ---- the terminal ----------------------------------------------------------------------------------------------------


def summary(report: Mapping[str, Any]) -> list[str]:
    """A line each: audits, pay, emission, anchors."""
    audited, slips, chain = report["audits"], report["pay"], report["chain"]
    failed = [one["name"] for one in audited["by_hotkey"].values() if one["failed"]]
    cost = audited["cost_share"]
    audit_line = (
        f"audits    {audited['passed']} passed, {audited['failed']} failed{_who(failed)}, "
        f"{audited['not_revealed']} not revealed"
        + (f"; replays cost {cost:.1%} of training compute" if cost is not None else "")
    )
    honest = sum(slip["honest"] for slip in slips.values())
    unpaid = [f"{name} {slip['reason']}" for name, slip in slips.items() if slip["reason"] != Reason.PAID]
    follows = f"weights follow verified work with r = {report['payout_correlation']:.4f}"
    if report["incentive_correlation"] is not None:
        follows += f", incentive with r = {report['incentive_correlation']:.4f},"
    pay_line = f"pay       {follows} over {honest} miners" + (f"; unpaid{_who(unpaid)}" if unpaid else "")
    if chain is None:
        return [audit_line, pay_line]
    paid = list(chain["emission_alpha_by_name"].items())
    more = f" and {len(paid) - NAMES_MAX} more" if len(paid) > NAMES_MAX else ""
    said = f"{alphas(paid[:NAMES_MAX])}{more} in the chain's last epoch" if paid else "none yet"
    lines = [audit_line, pay_line, f"emission  {said} (block {chain['block']})"]
    if anchors := chain["anchors"]:
        blocks = ", ".join(str(one["block"]) for one in anchors[-NAMES_MAX:])
        lines.append(f"anchors   {len(anchors)} heads of the journal on chain, the last in blocks {blocks}")
    return lines


def _who(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_MAX} more" if len(names) > NAMES_MAX else ""
    return f" ({', '.join(names[:NAMES_MAX])}{more})" if names else ""
