"""localnet-report.json: what a run did, folded from its journal.

Law: figures about training, audits and pay come from the journal alone, so anybody who holds it gets the same ones;
emissions come from the chain's last reading; what only the launcher can know (wall time, memory, the faults it
injected) is added under its own names. Written when every process has ended. Keys are DESIGN 9's; `clasp` is null: no
attribution is computed yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from subnet.chain.base import Subnet
from subnet.coordination.merge_state import MergeRecord
from subnet.coordination.state import State
from subnet.coordination.status import roll_back_rows
from subnet.localnet import closing, pay_report
from subnet.localnet.faults import ChainFaultRecord, Fault, FaultRecord
from subnet.localnet.folder import RunFolder, TextFacts
from subnet.localnet.orchestrator_faults import OrchestratorFaultRecord
from subnet.localnet.plan import Plan
from subnet.localnet.record import fold, written_bytes
from subnet.miner.receipts import RECEIPTS_FILE, credited, load_receipts
from subnet.model.wire import bytes_per_token, ratio_vs_bf16
from subnet.protocol.ids import Hotkey
from subnet.protocol.tuning import differences
from subnet.storage.sql import SqlJournal


class LaunchFacts(Struct):
    """What only the launcher knows. Seconds since the launch."""

    first_micro_batch_s: float | None = None
    wall_s: float = 0.0
    rss_peak_bytes: dict[str, int] = field(default_factory=dict)
    """By process name."""
    faults: list[FaultRecord] = field(default_factory=list)
    chain_faults: list[ChainFaultRecord] = field(default_factory=list)
    orchestrator_faults: list[OrchestratorFaultRecord] = field(default_factory=list)
    sample: str = ""
    resources: dict[str, Any] = field(default_factory=lambda: {"resources": {}, "disk": {}, "leaks": None})
    """As `resources.Resources.report` makes it."""


async def write(
    plan: Plan, names: Mapping[str, str], facts: LaunchFacts, path: Path, subnet: Subnet | None = None
) -> list[str]:
    """Writes the report to `path`; returns the summary for the terminal.

    `names` are the miners' names by hotkey, `subnet` is the chain's last reading where there was a chain.
    """
    journal = await SqlJournal.open(f"sqlite:///{plan.folder.journal}")
    try:
        folded = await fold(journal)
    finally:
        await journal.close()
    text = msgspec.json.decode(plan.folder.text_facts.read_bytes(), type=TextFacts)
    state = folded.state
    report = {
        **training(state),
        "goodput": state.passes_merged / state.passes_started if state.passes_started else None,
        "passes": {"started": state.passes_started, **folded.passes},
        "tuned": tuned(state),
        "unigram_entropy": text.unigram_entropy,
        "wire": wire(state),
        "merges": merges(state),
        "rollbacks": roll_back_rows(state),
        "audits": pay_report.audits(state, names),
        "clasp": None,
        **pay_report.pay(state, names, subnet, folded.anchors),
        "miners": miners(state, plan.folder, names),
        "stalls_s": stalls(state),
        "incidents": incidents(state, names),
        "outcomes": state.outcomes,
        "refusals": state.refusals,
        "journal": {"records": folded.records, "head": folded.head},
        "faults": faults(facts),
        "first_micro_batch_s": facts.first_micro_batch_s,
        "wall_s": facts.wall_s,
        **facts.resources,
        "rss_peak_mb": {name: round(size / 1e6) for name, size in sorted(facts.rss_peak_bytes.items())},
        "sample": facts.sample,
        "settings": msgspec.to_builtins(plan.config),
        "run_dir": str(plan.folder.root),
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return summary(report, path)


# ---- the parts -------------------------------------------------------------------------------------------------------


def training(state: State) -> dict[str, Any]:
    """Tokens, speed and losses. Validation losses where there are any: they are of the merged model."""
    tokens = state.completed * state.spec.micro_batch_tokens
    first_at = state.first_completed_at
    span_s = 0.0 if first_at is None else state.last_completed_at - first_at
    # the first micro-batch opens the span, so its own tokens are not counted in it
    speed = (tokens - state.spec.micro_batch_tokens) / span_s if span_s > 0 else None
    losses = {str(evaluation.epoch): evaluation.loss for evaluation in state.evaluations}
    means = {str(epoch): total / count for epoch, (total, count) in sorted(state.epoch_losses.items()) if count}
    course = list((losses if len(losses) > 1 else means).values())
    return {
        "run_id": state.spec.run_id,
        "spec_digest": state.spec_digest,
        "tokens": tokens,
        "micro_batches": state.completed,
        "abandoned_micro_batches": state.abandoned,
        "tokens_per_s": speed,
        "reference_tokens_per_s": None,  # measured side by side by `make bench` only
        "loss_first": course[0] if course else None,
        "loss_last": course[-1] if course else None,
        "validation_losses": losses,
        "training_losses": means,
        "epochs": min(stage.epoch for stage in state.stages),
    }


def tuned(state: State) -> list[dict[str, Any]]:
    """What the owner changed of the run's rules while it went on, by version of the RunSpec."""
    return [
        {"version": after.version, "changes": differences(before, after)}
        for before, after in zip(state.versions, state.versions[1:], strict=False)
    ]


def wire(state: State) -> dict[str, Any]:
    """Bytes of the objects behind accepted work, and what a boundary costs against x_BTD itself, framing included."""
    spec = state.spec
    tokens = max(1, state.completed * spec.micro_batch_tokens)
    written = written_bytes(state)
    boundaries = spec.num_stages - 1
    ratio = ratio_vs_bf16(spec) if boundaries and spec.boundary.width else None
    return {
        "bytes": written,
        "bytes_per_token": {kind: size / tokens for kind, size in written.items()},
        "boundary_bytes_per_token": bytes_per_token(spec) if boundaries else None,
        "ratio_vs_bf16": {"forward": ratio, "backward": ratio},
        "ratio_vs_fp32": {"forward": 2 * ratio, "backward": 2 * ratio} if ratio else None,
    }


def merges(state: State) -> dict[str, Any]:
    """Totals, and every merge by stage."""
    records = [(stage.stage, record) for stage in state.stages for record in stage.merges]
    totals = {
        name: sum(getattr(record, name) for _, record in records)
        for name in ("shards", "lost", "single", "agreed", "disputed", "handed_on")
    }
    return {"count": len(records), **totals, "each": [_merge(stage, record) for stage, record in records]}


def _merge(stage: int, record: MergeRecord) -> dict[str, Any]:
    shown = msgspec.to_builtins(record)
    assert isinstance(shown, dict)
    return {"stage": stage, **shown}


def miners(state: State, folder: RunFolder, names: Mapping[str, str]) -> dict[str, Any]:
    """Each miner's ledger beside its own receipts. A receipt that the ledger does not cover would be lost credit.

    The ledger may hold more: a reply that was on its way when the miner was killed left no receipt behind.
    """
    shown = {}
    for hotkey, miner in sorted(state.miners.items(), key=lambda item: names.get(item[0], item[0])):
        name = names.get(hotkey, hotkey)
        credit = state.ledger.total(Hotkey(hotkey))
        receipts = _receipts(folder, name, state)
        shown[name] = {
            "hotkey": hotkey,
            "stage": miner.stage,
            "work_units": credit,
            "receipts_work_units": receipts,
            "lost_work_units": max(0.0, round(receipts - credit, 6)),
            "faults": miner.faults,
        }
    return shown


def _receipts(folder: RunFolder, name: str, state: State) -> float:
    lines = load_receipts(folder.miner(name) / RECEIPTS_FILE)
    return sum(credited(line for line in lines if line.run_id == state.spec.run_id).values())


def stalls(state: State) -> dict[str, float]:
    """Seconds that stages did not open new work, by what they waited for, all stages together."""
    records = [record for stage in state.stages for record in stage.merges]
    return {
        "uploading": sum(max(0.0, record.uploaded_at - record.closed_at) for record in records),
        "merging": sum(max(0.0, record.done_at - record.uploaded_at) for record in records),
    }


def incidents(state: State, names: Mapping[str, str]) -> dict[str, Any]:
    """How many there were, and the latest, oldest first."""
    latest = [
        {**msgspec.to_builtins(one), "name": names.get(one.hotkey, one.hotkey) if one.hotkey else None}
        for one in state.incidents
    ]
    return {"count": state.incident_count, "latest": latest}


def faults(facts: LaunchFacts) -> dict[str, Any]:
    """Kills on purpose are counted, of miners, chain and orchestrator; other deaths and late joiners are listed only.

    A miner's or the orchestrator's death is survived when training went on, the chain's when blocks went on and weights
    were set after it.
    """
    kills = [record for record in facts.faults if record.fault is Fault.KILLED]
    chain_kills = [record for record in facts.chain_faults if record.fault is Fault.CHAIN_KILLED]
    host_kills = [one for one in facts.orchestrator_faults if one.fault is Fault.ORCHESTRATOR_KILLED]
    each = (*facts.faults, *facts.chain_faults, *facts.orchestrator_faults)
    return {
        "injected": len(kills) + len(chain_kills) + len(host_kills),
        "survived": sum(one.survived for one in (*kills, *chain_kills, *host_kills)),
        "credited_again": sum(record.credited_again_at_s is not None for record in kills),
        "chain_killed": len(chain_kills),
        "orchestrator_killed": len(host_kills),
        "each": [msgspec.to_builtins(record) for record in each],
    }


# ---- the terminal ----------------------------------------------------------------------------------------------------


def summary(report: Mapping[str, Any], path: Path) -> list[str]:
    """What the operator wants to know first, a line each."""
    speed, merged, losses = report["tokens_per_s"], report["merges"], report["validation_losses"]
    ratio = report["wire"]["ratio_vs_bf16"]["forward"]
    lost = sum(miner["lost_work_units"] for miner in report["miners"].values())
    memory = report["rss_peak_mb"]
    largest = max((size for name, size in memory.items() if name.startswith("miner-")), default=0)
    lines = [
        "",
        f"finished  {report['epochs']} epochs, {report['micro_batches']} micro-batches, {report['tokens']:,} tokens"
        f" in {report['wall_s']:.0f}s" + (f", {speed:,.0f} tokens/s while training" if speed else ""),
        f"merges    {merged['count']} merges, {merged['shards']} shards: {merged['agreed']} agreed, "
        f"{merged['single']} single, {merged['lost']} lost, {merged['disputed']} disputed"
        + (f", {merged['handed_on']} handed on to survivors" if merged["handed_on"] else ""),
        f"credit    every receipt of {len(report['miners'])} miners is in the ledger"
        if lost == 0
        else f"credit    {lost:.3f} work units of receipts are not in the ledger",
        *pay_report.summary(report),
        f"memory    largest miner {largest} MB, orchestrator {memory.get('orchestrator', 0)} MB",
    ]
    if losses:
        course = " → ".join(f"{loss:.3f}" for loss in losses.values())
        lines.insert(2, f"loss      {course} on held-out text (unigram entropy {report['unigram_entropy']:.3f})")
    if ratio:
        lines.append(f"wire      boundaries {ratio:.1f}x below bf16, {2 * ratio:.1f}x below fp32, framing included")
    for one in report["rollbacks"]:
        lines.append(f"rollback  epoch {one['epoch']}: {one['sentence']}; {one['outcome']}")
    if report["faults"]["injected"]:
        lines.append(f"faults    {report['faults']['injected']} injected, {report['faults']['survived']} survived")
    lines += closing.lines(report)
    if report["sample"]:
        lines.append(f"sample    {report['sample']}")
    return [*lines, f"report    {path}"]
