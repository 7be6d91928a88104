"""The swarm's part of `make bench`: a local net run through its command line, and what it left behind.

Law: the swarm is run as an operator runs it; figures come from its report, its journal and the objects in its store,
never from inside its processes. The references are made from the RunSpec that this very run agreed on.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from subnet.coordination.state import State
from subnet.localnet.folder import RunFolder
from subnet.localnet.processes import SOURCES
from subnet.localnet.record import Fold, fold
from subnet.model.spec import num_params, shapes_of
from subnet.protocol.run_spec import RunSpec
from subnet.simulation.bench_children import BenchFailed, run_child
from subnet.simulation.bench_figures import Efficiency, Launch, Trust, Wire
from subnet.storage.sql import SqlJournal


class SwarmRun(NamedTuple):
    """A finished run."""

    preset: str
    folder: RunFolder
    report: Mapping[str, Any]
    fold: Fold

    @property
    def state(self) -> State:
        return self.fold.state

    @property
    def spec(self) -> RunSpec:
        return self.fold.state.spec


async def run_swarm(preset: str, work: Path, options: Mapping[str, str], say: Callable[[str], None]) -> SwarmRun:
    """`python -m subnet.localnet` into `work`. Raises BenchFailed."""
    folder, report = RunFolder(work / "run"), work / "report.json"
    places = ["--run-dir", str(folder.root), "--report", str(report)]
    chosen = [part for name, value in options.items() for part in (f"--{name}", value)]
    await run_child(f"swarm {preset}", ["-m", "subnet.localnet", "--preset", preset, *places, *chosen], 1, say)
    journal = await SqlJournal.open(f"sqlite:///{folder.journal}")
    try:
        folded = await fold(journal)
    finally:
        await journal.close()
    return SwarmRun(preset, folder, msgspec.json.decode(report.read_bytes()), folded)


def efficiency(run: SwarmRun, baseline: RunSpec, speeds: Mapping[str, list[float]]) -> Efficiency:
    """The swarm's speed over everything it did between its first micro-batch and its last merge."""
    state, spec = run.state, run.spec
    merges = [record for stage in state.stages for record in stage.merges]
    assert state.first_completed_at is not None, "a finished run has trained"
    end = max([state.last_completed_at, *(record.done_at for record in merges)])
    return Efficiency(
        preset=run.preset,
        miners=len(state.miners),
        stages=spec.num_stages,
        num_params=total_params(spec),
        baseline_num_params=total_params(baseline),
        micro_batch=(spec.data.micro_batch_size, spec.data.seq_len),
        # the first micro-batch opens the span, so its own tokens are not counted in it
        swarm_tokens=(state.completed - 1) * spec.micro_batch_tokens,
        swarm_span_s=end - state.first_completed_at,
        merges=len(merges),
        journal_records=run.fold.records,
        baselines=dict(speeds),
    )


def total_params(spec: RunSpec) -> int:
    return sum(num_params(shapes_of(spec, stage)) for stage in range(spec.num_stages))


def launch_facts(run: SwarmRun) -> Launch:
    memory: Mapping[str, int] = run.report["rss_peak_mb"]
    return Launch(
        first_micro_batch_s=run.report["first_micro_batch_s"],
        wall_s=run.report["wall_s"],
        epochs=run.report["epochs"],
        largest_miner_mb=max(size for name, size in memory.items() if name.startswith("miner-")),
        orchestrator_mb=memory["orchestrator"],
        orchestrator_loads_torch=_orchestrator_loads_torch(),
    )


def trust_facts(run: SwarmRun, uneven: SwarmRun, speeds: str) -> Trust:
    """From the reports of the default run and of one whose miners differ in speed."""
    audits, slips = run.report["audits"], [slip for slip in uneven.report["pay"].values() if slip["honest"]]
    return Trust(
        audits_passed=audits["passed"],
        audits_failed=audits["failed"],
        audits_without_verdict=audits["not_revealed"] + audits["unreadable"],
        audit_cost_share=audits["cost_share"],
        speeds=speeds,
        speeds_miners=len(slips),
        weights_vs_work=uneven.report["payout_correlation"],
        incentive_vs_work=uneven.report["incentive_correlation"],
    )


def _orchestrator_loads_torch() -> bool:
    code = "import sys, subnet.orchestrator.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCES, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise BenchFailed(f"the orchestrator cannot be imported: {done.stderr.strip()}")
    return done.stdout.strip() == "True"


def wire_facts(run: SwarmRun) -> Wire:
    """What the report counts by kind, and the objects of one link as they lie in the store."""
    spec = run.spec
    sizes, counts = stored(run.folder.objects)
    return Wire(
        d_model=spec.model.d_model,
        width=spec.boundary.width,
        tokens=run.state.completed * spec.micro_batch_tokens,
        written_bytes=run.report["wire"]["bytes"],
        object_bytes_per_token={
            kind: sizes[kind] / (counts[kind] * spec.micro_batch_tokens) for kind in ("boundary", "gradient")
        },
        journal_bytes=run.folder.journal.stat().st_size,
    )


def stored(objects: Path) -> tuple[Counter[str], Counter[str]]:
    """(bytes, number) of the objects below a store's root by kind; those of old epochs are gone by then."""
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for path in objects.glob("*/*/*/*"):
        kind = path.name.rpartition(".")[2]
        sizes[kind] += path.stat().st_size
        counts[kind] += 1
    return sizes, counts
