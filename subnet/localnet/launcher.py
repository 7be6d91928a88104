"""The life of a local run: prepare → orchestrator → miners and evaluator → watch, with faults → stop → report.

Law: the launcher owns processes, nothing else: it decides nothing about training and knows the run only by its files
and its public status. However it ends (finished, failed, interrupted), every process has ended before it returns, and
what the run folder holds can be continued.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from subnet import config
from subnet.errors import ConfigError, SubnetError
from subnet.localnet import progress, report
from subnet.localnet.faults import FaultPlan, Kill
from subnet.localnet.folder import Participants, Plan, TextFacts, free_port, late_miner_name, miner_names
from subnet.localnet.processes import SOURCES, Child, Processes, ended
from subnet.runtime import Runtime

POLL_S = 0.5
START_TIMEOUT_S = 60.0
"""For the orchestrator to listen."""
LAST_EVALUATION_TIMEOUT_S = 60.0
FINISHED_GRACE_S = 5.0
"""For miners to leave by themselves once the run is finished."""


class LaunchFailed(SubnetError):
    """A process that the run cannot do without ended by itself."""


class LocalNet:
    """One run from launch to report. `say` prints a line for the operator."""

    def __init__(self, plan: Plan, runtime: Runtime, say: Callable[[str], None]) -> None:
        self._plan, self._settings, self._folder = plan, plan.config, plan.folder
        self._runtime, self._say = runtime, say
        self._launched_at = runtime.now()
        environment = config.child_environment(
            OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"
        )
        self._processes = Processes(plan.folder.logs, environment)
        self._faults = FaultPlan(
            self._settings.seed,
            self._settings.kill_miner_every_s,
            self._settings.restart_after_s,
            self._settings.join_after_s,
            late_miner_name(self._settings),
        )
        self._orchestrator: Child | None = None
        self._evaluator: Child | None = None
        self._names: dict[str, str] = {}
        """Miners' names by hotkey."""
        self._miners: dict[str, Child] = {}
        """The process of each miner that should be running."""
        self._victims: set[int] = set()
        """Process ids that were killed on purpose."""
        self._facts = report.LaunchFacts()
        self._url = ""

    async def run(self) -> int:
        """The exit code. Raises ConfigError and LaunchFailed after everything was stopped."""
        self._catch_signals()
        try:
            await self._prepare()
            await self._start_everybody()
            await self._watch()
            await self._stop(FINISHED_GRACE_S)
            return await self._report()
        except asyncio.CancelledError:
            await self._stop(0.0)
            self._say(f"stopped; continue with: python -m subnet.localnet --resume {self._folder.root}")
            return 130
        except BaseException:
            await self._stop(0.0)
            raise

    # ---- starting ----------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        self._line(f"run folder {self._folder.root}" + (", resumed" if self._plan.resumed else ""))
        child = await self._processes.start("prepare", ["-m", "subnet.localnet.prepare", *self._in_folder()])
        await ended([child], None)
        if child.exit_code != 0:
            raise _failure(child)
        participants = msgspec.json.decode(self._folder.participants.read_bytes(), type=Participants)
        self._names = {hotkey: name for name, hotkey in participants.miners.items()}
        facts = msgspec.json.decode(self._folder.text_facts.read_bytes(), type=TextFacts)
        self._line(
            f"{facts.name}: {facts.num_train_tokens:,} tokens to train on, {facts.num_validation_tokens:,} held out, "
            f"unigram entropy {facts.unigram_entropy:.3f} nats/token"
        )

    async def _start_everybody(self) -> None:
        self._orchestrator = await self._start_orchestrator()
        self._line(f"orchestrator at {self._url}; {self._settings.miners} miners start on {self._settings.device}")
        for name in miner_names(self._settings):
            await self._start_miner(name)
        self._evaluator = await self._processes.start(
            "evaluator",
            ["-m", "subnet.validator.evaluator", *self._as_wallet("evaluator", "default"), *self._in_folder()],
        )

    async def _start_orchestrator(self) -> Child:
        port = self._settings.port or free_port()
        self._folder.address.unlink(missing_ok=True)
        options = ["--host", "127.0.0.1", "--port", str(port), "--epochs", str(self._settings.epochs)]
        resume = ["--resume"] if self._plan.resumed and self._folder.journal.exists() else []
        child = await self._processes.start(
            "orchestrator", ["-m", "subnet.orchestrator", *self._in_folder(), *options, *resume, *self._log_level()]
        )
        deadline = self._runtime.now() + START_TIMEOUT_S
        while not self._folder.address.exists():
            if child.exit_code is not None:
                raise _failure(child)
            if self._runtime.now() > deadline:
                raise LaunchFailed(f"the orchestrator does not listen after {START_TIMEOUT_S:g}s; see {child.log}")
            await self._runtime.sleep(POLL_S / 5)
        self._url = str(msgspec.json.decode(self._folder.address.read_bytes())["url"])
        return child

    async def _start_miner(self, name: str) -> None:
        program = str(SOURCES / "neurons" / "miner.py")
        options = ["--device", self._settings.device, "--work-dir", str(self._folder.miner(name)), "--threads", "1"]
        self._miners[name] = await self._processes.start(
            name, [program, *self._as_wallet("miners", name), *options, *self._log_level()]
        )

    def _in_folder(self) -> list[str]:
        return ["--run-dir", str(self._folder.root)]

    def _as_wallet(self, wallet: str, hotkey: str) -> list[str]:
        path = str(self._folder.wallets)
        return ["--orchestrator", self._url, "--wallet", wallet, "--wallet-hotkey", hotkey, "--wallet-path", path]

    def _log_level(self) -> list[str]:
        return ["--log-level", self._settings.log_level]

    # ---- watching ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Until the run is finished and its last evaluation is in."""
        shown = progress.Progress(self._names)
        finished_at: float | None = None
        while True:
            status = await progress.fetch(self._url)
            if status is not None:
                self._note(status)
                for line in shown.lines(status, self._elapsed_s()):
                    self._line(line)
            self._processes.measure()
            finished = status is not None and status.finished
            await self._check_children(finished or finished_at is not None)
            if status is not None and finished:
                finished_at = self._runtime.now() if finished_at is None else finished_at
                waited_s = self._runtime.now() - finished_at
                last = any(evaluation.epoch >= self._settings.epochs for evaluation in status.evaluations)
                self._faults.run_finished()
                if last or waited_s > LAST_EVALUATION_TIMEOUT_S or not self._evaluates():
                    return
            else:
                await self._inject()
            await self._runtime.sleep(POLL_S)

    def _note(self, status: progress.Status) -> None:
        if status.micro_batches and self._facts.first_micro_batch_s is None:
            self._facts.first_micro_batch_s = round(self._elapsed_s(), 1)
            self._line(f"training: the first micro-batch came back {self._elapsed_s():.0f}s after the launch")
        if status.micro_batches:
            self._faults.training_began(self._elapsed_s())
        credit = {self._names.get(hotkey, hotkey): value for hotkey, value in status.credit().items()}
        self._faults.observe(self._elapsed_s(), status.micro_batches, credit)

    async def _check_children(self, finished: bool) -> None:
        """Children that ended: on purpose, by themselves, or because the run is over."""
        assert self._orchestrator is not None
        if self._orchestrator.exit_code is not None:
            raise _failure(self._orchestrator)
        for name, child in list(self._miners.items()):
            if child.exit_code is None:
                continue
            del self._miners[name]
            killed = child.pid in self._victims
            if not killed and (finished or child.exit_code == 0):
                continue
            if child.exit_code == 2 and not killed:
                raise _failure(child)
            again = self._faults.ended(name, self._elapsed_s(), child.exit_code, killed=killed)
            if not killed:
                then = f"starts again in {self._settings.restart_after_s:g}s" if again else "stays away"
                self._line(f"{name} ended by itself with code {child.exit_code} and {then}; see {child.log}")
        if not self._miners and not self._faults.expects_starts and not finished:
            raise LaunchFailed(f"no miner is left; see {self._folder.logs}")

    async def _inject(self) -> None:
        for action in self._faults.due(self._elapsed_s(), self._miners):
            if isinstance(action, Kill):
                child = self._miners[action.miner]
                self._victims.add(child.pid)
                child.signal(signal.SIGKILL)
                self._line(f"killed {action.miner} (process {child.pid}), on purpose")
            else:
                await self._start_miner(action.miner)
                self._faults.started(action.miner, self._elapsed_s())
                self._line(f"{action.miner} starts")

    def _evaluates(self) -> bool:
        return self._evaluator is not None and self._evaluator.exit_code is None

    # ---- ending ------------------------------------------------------------------------------------------------------

    async def _stop(self, leave_s: float) -> None:
        """Miners first, so that their last words are heard; then the orchestrator, which closes the journal."""
        others = [child for child in self._processes.running() if child is not self._orchestrator]
        if leave_s:
            await ended([child for child in others if child is not self._evaluator], leave_s)
        await self._processes.stop(others)
        if self._orchestrator is not None:
            await self._processes.stop([self._orchestrator])

    async def _report(self) -> int:
        self._facts.wall_s = round(self._elapsed_s(), 1)
        self._facts.rss_peak_bytes = self._processes.rss_peak_bytes
        self._facts.faults = self._faults.records
        path = Path(self._settings.report).expanduser().absolute()
        if self._settings.sample:
            self._facts.sample = await self._sample()
        summary = await report.write(self._plan, self._names, self._facts, path)
        for line in summary:
            self._say(line)
        return 0

    async def _sample(self) -> str:
        options = ["--prompt", self._settings.sample, "--device", self._settings.device]
        child = await self._processes.start("sample", ["-m", "subnet.localnet.sample", *self._in_folder(), *options])
        await ended([child], None)
        if child.exit_code != 0:
            raise _failure(child)
        return self._folder.sample.read_text(encoding="utf-8")

    def _catch_signals(self) -> None:
        """The first Ctrl-C stops in order; a second one kills at once."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        caught = 0

        def stop() -> None:
            nonlocal caught
            caught += 1
            if caught == 1:
                self._line("stopping")
                task.cancel()
            else:
                self._processes.kill_all()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)

    def _elapsed_s(self) -> float:
        return self._runtime.now() - self._launched_at

    def _line(self, text: str) -> None:
        minutes, seconds = divmod(int(self._elapsed_s()), 60)
        self._say(f"{minutes:3d}:{seconds:02d}  {text}")


def _failure(child: Child) -> SubnetError:
    """What a child that ended says to the operator: its own line when it was the operator's mistake."""
    said = child.last_line()
    if child.exit_code == 2 and said.startswith("error: ") and said.count(": ") >= 2 and "; " in said:
        field, _, rest = said.removeprefix("error: ").partition(": ")
        problem, _, remedy = rest.partition("; ")
        return ConfigError(field, problem, remedy)
    return LaunchFailed(f"{child.name} ended by itself with code {child.exit_code} ({said}); see {child.log}")


def launch(plan: Plan, runtime: Runtime) -> int:
    """Runs it; the exit code."""

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        return asyncio.run(LocalNet(plan, runtime, say).run())
    except LaunchFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
