"""The life of a local run: prepare → chain → orchestrator → miners and validators → watch → stop → report.

Law: the launcher owns processes, nothing else: it decides nothing about training and knows the run only by its files
and its public status. However it ends (finished, failed, interrupted), every process has ended before it returns, and
what the run folder holds can be continued.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import NoReturn

from subnet import config
from subnet.chain.base import Subnet
from subnet.chain.subtensor import SubtensorChain
from subnet.localnet import progress, report
from subnet.localnet.cast import introductions
from subnet.localnet.chain_watch import ChainWatch
from subnet.localnet.crew import Crew, LaunchFailed, failure
from subnet.localnet.faults import FaultPlan, Kill
from subnet.localnet.folder import Plan, late_miner_name, miner_names, parts, validator_names
from subnet.localnet.processes import Child, Processes, ended
from subnet.localnet.screen import Screen
from subnet.runtime import Runtime

POLL_S = 0.5
VALIDATORS_GRACE_S = 30.0
"""For validators to set the last weights once the run is finished."""
LAST_EVALUATION_TIMEOUT_S = 60.0
FINISHED_GRACE_S = 5.0
"""For miners to leave by themselves once the run is finished."""


class LocalNet:
    """One run from launch to report. `screen` shows the operator lines and statuses."""

    def __init__(self, plan: Plan, runtime: Runtime, screen: Screen) -> None:
        self._plan, self._settings, self._folder = plan, plan.config, plan.folder
        self._runtime, self._screen, self._say = runtime, screen, screen.say
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
        self._parts = parts(self._settings)
        self._crew = Crew(plan, self._processes, runtime)
        self._vital: list[Child] = []
        """Chain and orchestrator: without them there is no run. In the order they are started."""
        self._validators: list[Child] = []
        self._chain: ChainWatch | None = None
        self._chain_task: asyncio.Task[NoReturn] | None = None
        self._names: dict[str, str] = {}
        """Everybody's names by hotkey."""
        self._miners: dict[str, Child] = {}
        """The process of each miner that should be running."""
        self._victims: set[int] = set()
        """Process ids that were killed on purpose."""
        self._facts = report.LaunchFacts()

    async def run(self) -> int:
        """The exit code. Raises ConfigError and LaunchFailed after everything was stopped."""
        self._catch_signals()
        try:
            await self._start_everybody()
            await self._watch()
            await self._settle()
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

    async def _start_everybody(self) -> None:
        self._line(f"run folder {self._folder.root}" + (", resumed" if self._plan.resumed else ""))
        participants, facts = await self._crew.prepare()
        named = {"owner": participants.orchestrator, **participants.validators, **participants.miners}
        self._names = {hotkey: name for name, hotkey in named.items()}
        self._line(
            f"{facts.name}: {facts.num_train_tokens:,} tokens to train on, {facts.num_validation_tokens:,} held out, "
            f"unigram entropy {facts.unigram_entropy:.3f} nats/token"
        )
        self._vital.append(await self._crew.start_chain())
        on_chain = self._crew.on_chain
        self._line(f"subnet {on_chain.netuid} on the local chain at {on_chain.network}")
        self._chain = ChainWatch(SubtensorChain(on_chain.network, on_chain.netuid, None, self._runtime), self._runtime)
        self._chain_task = asyncio.create_task(self._chain.run())
        self._vital.append(await self._crew.start_orchestrator())
        self._line(f"orchestrator at {self._crew.url}; {self._settings.miners} miners start on {self._settings.device}")
        for introduction in introductions(self._parts):
            self._line(introduction)
        for name in miner_names(self._settings):
            await self._start_miner(name)
        self._validators = [await self._crew.start_validator(name) for name in validator_names(self._settings)]

    async def _start_miner(self, name: str) -> None:
        self._miners[name] = await self._crew.start_miner(name, self._parts[name])

    # ---- watching ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Until the run is finished and its last evaluation is in."""
        finished_at: float | None = None
        while True:
            status = await self._look()
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

    async def _look(self) -> progress.Status | None:
        """Read the public status and show it; None when the orchestrator does not answer."""
        status = await progress.fetch(self._crew.url)
        if status is not None:
            self._note(status)
            for line in self._screen.show(status, self._names, self._elapsed_s(), self._subnet()):
                self._line(line)
        return status

    def _subnet(self) -> Subnet | None:
        return self._chain.subnet if self._chain is not None else None

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
        for child in self._vital:
            if child.exit_code is not None:
                raise failure(child)
        for name, child in list(self._miners.items()):
            if child.exit_code is None:
                continue
            del self._miners[name]
            killed = child.pid in self._victims
            if not killed and (finished or child.exit_code == 0):
                continue
            if child.exit_code == 2 and not killed:
                if not self._parts[name].adversary:
                    raise failure(child)
                self._line(f"{name} is out: {child.last_line()}")
                continue
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
        return any(child.exit_code is None for child in self._validators)

    # ---- ending ------------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Let the validators set the last weights and leave, and the chain pay by them once."""
        await ended(self._validators, VALIDATORS_GRACE_S)
        if self._chain is not None:
            await self._chain.settle()
        await self._look()

    async def _stop(self, leave_s: float) -> None:
        """Miners and validators first, so that their last words are heard; then the orchestrator, then the chain."""
        self._screen.close()
        others = [child for child in self._processes.running() if child not in self._vital]
        if leave_s:
            await ended([child for child in others if child not in self._validators], leave_s)
        await self._processes.stop(others)
        if self._chain_task is not None and self._chain is not None:
            self._chain_task.cancel()
            await asyncio.wait([self._chain_task])
            await self._chain.close()
        await self._processes.stop(self._vital)

    async def _report(self) -> int:
        self._facts.wall_s = round(self._elapsed_s(), 1)
        self._facts.rss_peak_bytes = self._processes.rss_peak_bytes
        self._facts.faults = self._faults.records
        path = Path(self._settings.report).expanduser().absolute()
        if self._settings.sample:
            self._facts.sample = await self._crew.sample()
        summary = await report.write(self._plan, self._names, self._facts, path, self._subnet())
        for line in summary:
            self._say(line)
        return 0

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


def launch(plan: Plan, runtime: Runtime) -> int:
    """Runs it; the exit code."""
    screen = Screen()
    try:
        return asyncio.run(LocalNet(plan, runtime, screen).run())
    except LaunchFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        screen.close()
