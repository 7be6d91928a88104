"""What a crowd's run was, in words and figures.

Law: a pure reading of the crowd; wall seconds and memory are handed in.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from subnet.coordination import settlement
from subnet.coordination.state import State
from subnet.simulation.crowd import Crowd

GOODPUT_TARGET = 0.9


def goodput(state: State) -> tuple[int, int]:
    """Passes that are in a merge, and those of which it is settled whether they ever will be.

    Not settled are passes that somebody has in hand, forwards whose backward is still to come, and what waits for the
    merge of its epoch.
    """
    open_passes = sum(len(batch.offers) for batch in state.micro_batches.values())
    forwards = sum(
        hop.forward_epoch >= 0 and hop.backward_epoch < 0
        for batch in state.micro_batches.values()
        for hop in batch.hops
    )
    unmerged = 0
    for stage in state.stages:
        waiting = sum(stage.contributions.values()) + (sum(stage.merge.weights.values()) if stage.merge else 0)
        unmerged += waiting * (1 if stage.stage == len(state.stages) - 1 else 2)
    return state.passes_merged, state.passes_started - open_passes - forwards - unmerged


def progress(crowd: Crowd, wall_s: float, peak_mb: float) -> str:
    """One line while it runs."""
    state, live = crowd.state, sum(miner.live for miner in crowd.state.miners.values())
    epochs = [stage.epoch for stage in state.stages]
    return (
        f"  hour {crowd.hours:6.2f}  {crowd.events.happened:>10,} events ({crowd.events.happened / wall_s:,.0f}/s)"
        f"  {live:,} live  epoch {min(epochs)}  {crowd.checks.passes_credited:,} passes"
        f"  goodput {_share(*goodput(state))}  {sum(crowd.faults.injected.values()):,} faults"
        f"  {peak_mb:,.0f} MB"
    )


def _share(merged: int, started: int) -> str:
    return f"{merged / started:.1%}" if merged else "-"


def figures(crowd: Crowd, wall_s: float, peak_mb: float) -> dict[str, Any]:
    """The JSON report's body."""
    state, checks = crowd.state, crowd.checks
    merges = [merge for stage in state.stages for merge in stage.merges]
    merged, settled = goodput(state)
    standings = state.pay.standing.values()
    sheet = settlement.sheet(state)
    return {
        "virtual_hours": crowd.hours,
        "wall_s": wall_s,
        "rss_peak_mb": peak_mb,
        "events": crowd.events.happened,
        "envelopes": crowd.host.envelopes,
        "digest": checks.digest,
        "passes": {
            "started": state.passes_started,
            "credited": checks.passes_credited,
            "merged": state.passes_merged,
            "by_minute_and_miner": checks.passes_credited / (crowd.hours * 60 * crowd.order.miners),
            "wall_us_each": wall_s / max(1, checks.passes_credited) * 1e6,
        },
        "goodput": merged / settled if settled > 0 else None,
        "goodput_of_started": merged / max(1, state.passes_started),
        "micro_batches": {"completed": state.completed, "abandoned": state.abandoned},
        "epochs": [stage.epoch for stage in state.stages],
        "merges": {
            "count": len(merges),
            "shards": sum(merge.shards for merge in merges),
            "agreed": sum(merge.agreed for merge in merges),
            "single": sum(merge.single for merge in merges),
            "lost": sum(merge.lost for merge in merges),
            "disputed": sum(merge.disputed for merge in merges),
        },
        "audits": {
            "passed": sum(standing.passed for standing in standings),
            "failed": sum(standing.failed for standing in standings),
            "not_revealed": sum(standing.not_revealed for standing in standings),
            "unreadable": sum(standing.unreadable for standing in standings),
            "open": len(state.pay.audits),
        },
        "pay": {"weights": len(sheet.emission.weights), "sum": sum(sheet.emission.weights.values())},
        "faults": {"injected": dict(sorted(crowd.faults.injected.items())), "killed": crowd.faults.processes_killed},
        "endings": crowd.endings(),
        "outcomes": dict(sorted(state.outcomes.items())),
        "incidents": {
            "count": state.incident_count,
            "latest": dict(Counter(incident.reason.value for incident in state.incidents)),
        },
    }


def text(figures: dict[str, Any]) -> str:
    """The table at the end."""
    passes, merges, audits, faults = (figures[name] for name in ("passes", "merges", "audits", "faults"))
    injected = sum(faults["injected"].values())
    kinds = ", ".join(f"{count} {name}" for name, count in faults["injected"].items())
    share = figures["goodput"]
    shown = "nothing is settled" if share is None else f"{share:.1%} of the passes whose fate is settled are in a merge"
    rows = [
        ("time", f"{figures['virtual_hours']:g} virtual hours in {figures['wall_s']:.0f} s"),
        (
            "events",
            f"{figures['events']:,} ({figures['events'] / figures['wall_s']:,.0f}/s), "
            f"{figures['envelopes']:,} envelopes through the machine",
        ),
        (
            "passes",
            f"{passes['started']:,} started, {passes['credited']:,} credited once each, {passes['merged']:,} merged; "
            f"{passes['by_minute_and_miner']:.2f} a minute and miner, {passes['wall_us_each']:.0f} us each",
        ),
        (
            "goodput",
            f"{shown} (target {GOODPUT_TARGET:.0%}); {figures['goodput_of_started']:.1%} of all that were started, "
            "those under way included",
        ),
        (
            "epochs",
            f"{min(figures['epochs'])} by all stages; {merges['count']} merges, {merges['shards']:,} shards: "
            f"{merges['agreed']:,} agreed, {merges['single']:,} single, {merges['lost']:,} lost, "
            f"{merges['disputed']:,} disputed",
        ),
        (
            "audits",
            f"{audits['passed']:,} passed, {audits['failed']:,} failed, {audits['not_revealed']:,} not revealed, "
            f"{audits['unreadable']:,} unreadable, {audits['open']:,} open",
        ),
        ("pay", f"{figures['pay']['weights']:,} uids with weight, together {figures['pay']['sum']!r}"),
        ("faults", f"{injected:,} injected, {faults['killed']:,} processes killed" + (f" ({kinds})" if kinds else "")),
        ("memory", f"{figures['rss_peak_mb']:,.0f} MB at most"),
        ("digest", f"{figures['digest']}, the same for every run of the same command"),
        ("promises", "all held"),
    ]
    return "\n".join(f"{name:<20}{said}" for name, said in rows)
