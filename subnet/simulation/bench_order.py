"""The order of `make bench`: which baselines, swarms and references run, and when.

Law: everything a ratio compares runs in this one order, on the same cores, in processes of its own; baselines before
and after each swarm. What a reference is compared with is the RunSpec that the swarm itself agreed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from subnet import presets
from subnet.config import LocalnetConfig
from subnet.data import prepare as text
from subnet.orchestrator.opening import VALIDATION_FRACTION
from subnet.protocol.ids import Digest, RunId
from subnet.protocol.keys import ObjectKey
from subnet.protocol.run_spec import DataFile, DataSpec, RunSpec
from subnet.runtime import Runtime
from subnet.simulation.bench_children import BenchFailed, run_child
from subnet.simulation.bench_figures import (
    ONE_PROCESS,
    TWO_PROCESSES,
    Bench,
    Learning,
    Machine,
    in_one_go,
    joint_batch,
    uncut,
    widest,
    zeroed,
)
from subnet.simulation.bench_jobs import Answer, Job, Kind
from subnet.simulation.bench_swarm import SwarmRun, efficiency, launch_facts, run_swarm, trust_facts, wire_facts

CORES = 2
LARGE = (2048, 128, (1, 800), 64)
"""D, ratio, (B, T), tokens per scale: the 128x configuration of ALGORITHMS 1."""


class Plan(NamedTuple):
    """How much is measured."""

    timed: int
    """Micro-batches of one baseline."""
    laptop: dict[str, str]
    """Options of the laptop preset's run; none: the default run."""
    bench: dict[str, str]
    uneven: dict[str, str]
    """Of the run whose miners differ in speed."""


SPEEDS = "1,1,2,4"
UNEVEN = {"miners": "8", "stages": "2", "speeds": SPEEDS}
FULL = Plan(96, {}, {"epochs": "2"}, {**UNEVEN, "epochs": "3", "num-microbatches-min": "16"})
QUICK = Plan(
    16,
    {"epochs": "2", "num-microbatches-min": "16"},
    {"epochs": "1", "num-microbatches-min": "16"},
    {**UNEVEN, "epochs": "1", "num-microbatches-min": "8"},
)
WARM_UP = 8


class Measuring:
    """One run of the benchmark in a scratch folder."""

    def __init__(self, plan: Plan, scratch: Path, runtime: Runtime) -> None:
        self._plan, self._scratch, self._runtime = plan, scratch, runtime
        self._began_at = runtime.now()
        self._jobs = 0

    async def all(self, quick: bool, machine: Machine) -> Bench:
        self.say("preparing the text for the baselines")
        prepared = text.prepare(None, self._scratch / "text", validation_fraction=VALIDATION_FRACTION)
        baseline = _baseline(prepared)
        speeds = [await self._baselines(baseline, prepared)]
        laptop = await self._swarm("laptop", self._plan.laptop)
        speeds.append(await self._baselines(baseline, prepared))
        small = await self._swarm("bench", self._plan.bench)
        speeds.append(await self._baselines(baseline, prepared))
        uneven = await self._swarm("laptop", self._plan.uneven, "uneven")
        learning = await self._learning(laptop, prepared)
        return Bench(
            measured_at=f"{datetime.fromtimestamp(self._runtime.now(), UTC):%Y-%m-%d %H:%M} UTC",
            command="make bench" + (' ARGS="--quick"' if quick else ""),
            quick=quick,
            duration_s=round(self._elapsed_s(), 1),
            machine=machine,
            efficiency=[
                efficiency(small, baseline, _side_by_side(speeds[1:])),
                efficiency(laptop, baseline, _side_by_side(speeds[:2])),
            ],
            learning=learning,
            launch=launch_facts(laptop),
            trust=trust_facts(laptop, uneven, SPEEDS),
            wire=wire_facts(laptop),
            wire_128x=widest(*LARGE),
        )

    async def _baselines(self, spec: RunSpec, prepared: text.Prepared) -> dict[str, float]:
        found = {}
        for name, kind in ((ONE_PROCESS, Kind.ONE_PROCESS), (TWO_PROCESSES, Kind.DATA_PARALLEL)):
            job = self._job(kind, spec, prepared, self._plan.timed, warm_up=WARM_UP, threads=CORES)
            found[name] = (await self._measure(f"baseline: {name}", kind.value, job)).tokens_per_s
            self.say(f"baseline: {name}: {found[name]:,.0f} tokens/s")
        return found

    async def _swarm(self, preset: str, options: dict[str, str], name: str = "") -> SwarmRun:
        self.say(f"swarm: python -m subnet.localnet --preset {preset}, options {options or 'as they are'}")
        work = self._scratch / (name or preset)
        work.mkdir()
        # the first run finds no prepared text, like an operator's first
        return await run_swarm(preset, work, {"cache-dir": str(self._scratch / "cache"), **options}, self.say)

    async def _learning(self, run: SwarmRun, prepared: text.Prepared) -> Learning:
        """Two references at a time, one thread each: their speed does not matter here."""
        spec, count = run.spec, run.state.completed
        per_step = spec.inner.micro_batches_per_step
        joint = joint_batch(spec, len(run.state.miners))
        references = {
            "reference": in_one_go(spec, count, per_step),
            "joint batch": in_one_go(spec, count, joint),
            "uncompressed": in_one_go(uncut(spec), count, per_step),
            "control": in_one_go(zeroed(spec), count, per_step),
        }
        losses: dict[str, float] = {}
        names = list(references)
        for pair in names[:2], names[2:]:
            self.say(f"held-out loss of {' and '.join(pair)}: {count} micro-batches each, one process and thread each")
            losses |= await self._losses({name: references[name] for name in pair}, prepared, count)
        by_epoch = run.report["validation_losses"]
        if str(run.report["epochs"]) not in by_epoch:
            raise BenchFailed("the swarm's last merged model was not evaluated")
        return Learning(
            tokens=count * spec.micro_batch_tokens,
            swarm=by_epoch[str(run.report["epochs"])],
            swarm_by_epoch=by_epoch,
            reference=losses["reference"],
            reference_swarm_batch=losses["joint batch"],
            uncompressed=losses["uncompressed"],
            control=losses["control"],
            unigram_entropy=run.report["unigram_entropy"],
        )

    async def _losses(self, references: Mapping[str, RunSpec], prepared: text.Prepared, count: int) -> dict[str, float]:
        """Held-out losses, all measured at once. Raises BenchFailed."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    name: group.create_task(self._measure("", name, self._job(Kind.LOSS, spec, prepared, count)))
                    for name, spec in references.items()
                }
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        losses = {name: task.result().validation_loss for name, task in tasks.items()}
        return {name: loss for name, loss in losses.items() if loss is not None}

    def _job(
        self, kind: Kind, spec: RunSpec, prepared: text.Prepared, micro_batches: int, warm_up: int = 0, threads: int = 1
    ) -> Job:
        return Job(
            kind=kind,
            spec=spec,
            train=str(prepared.train_path),
            validation=str(prepared.validation_path),
            micro_batches=micro_batches,
            warm_up=warm_up,
            threads=threads,
        )

    async def _measure(self, announced: str, name: str, job: Job) -> Answer:
        if announced:
            self.say(announced)
        self._jobs += 1
        folder = self._scratch / f"job-{self._jobs}"
        folder.mkdir()
        (folder / "job.json").write_bytes(msgspec.json.encode(job))
        # a data-parallel job's processes have one thread each
        threads = 1 if job.kind is Kind.DATA_PARALLEL else job.threads
        arguments = ["-m", "subnet.simulation.bench_jobs", "--job", str(folder / "job.json")]
        await run_child(name, arguments, threads, self.say)
        return msgspec.json.decode((folder / "answer.json").read_bytes(), type=Answer)

    def _elapsed_s(self) -> float:
        return self._runtime.now() - self._began_at

    def say(self, line: str) -> None:
        minutes, seconds = divmod(int(self._elapsed_s()), 60)
        print(f"{minutes:3d}:{seconds:02d}  {line}", flush=True)


def _baseline(prepared: text.Prepared) -> RunSpec:
    """The default local net's model uncut, with a step for every joint batch of the swarm's replicas.

    Both baselines take the same steps, and as few as the swarm's average amounts to: fewer steps are quicker.
    """
    default = LocalnetConfig()
    nowhere = DataFile(key=ObjectKey("bench/0/0/text/data"), digest=Digest("0" * 64), size_bytes=1)
    data = DataSpec(
        tokenizer=nowhere,
        train=(nowhere,),
        validation=(nowhere,),
        micro_batch_size=default.micro_batch_size,
        seq_len=default.seq_len,
    )
    preset = presets.bench(presets.Size(default.miners, default.stages, default.epochs))
    preset = preset._replace(model=msgspec.structs.replace(preset.model, vocab_size=prepared.vocab_size))
    spec = presets.run_spec(preset, run_id=RunId("bench"), seed=default.seed, num_stages=default.stages, data=data)
    joint = joint_batch(spec, default.miners)
    inner = msgspec.structs.replace(spec.inner, micro_batches_per_step=-(-joint // CORES) * CORES)
    return uncut(msgspec.structs.replace(spec, inner=inner))


def _side_by_side(points: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [point[name] for point in points] for name in points[0]}
