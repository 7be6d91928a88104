"""The life of a local run: prepare → chain → orchestrator → miners and validators → watch → stop → report.

Law: the launcher owns processes, nothing else: it decides nothing about training and knows the run only by its files
and its public status. However it ends (finished, failed, interrupted), every process has ended before it returns, and
what the run folder holds can be continued.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from subnet import config
from subnet.localnet import public_status, report
from subnet.localnet.cast import introductions
from subnet.localnet.chain_keeper import ChainKeeper
from subnet.localnet.crew import Crew, LaunchFailed
from subnet.localnet.faults import ChainFaultPlan, FaultPlan
from subnet.localnet.folder import RunFolder, late_miner_name, validator_names
from subnet.localnet.miner_keeper import MinerKeeper
from subnet.localnet.orchestrator_faults import OrchestratorFaultPlan
from subnet.localnet.orchestrator_keeper import OrchestratorKeeper
from subnet.localnet.plan import Plan
from subnet.localnet.processes import Child, Processes, ended
from subnet.localnet.resources import Resources
from subnet.localnet.screen import Screen
from subnet.runtime import Runtime

POLL_S = 0.5
VALIDATORS_GRACE_S = 30.0
"""For validators to set the last weights once the run is finished."""
LAST_EVALUATION_TIMEOUT_S = 60.0
LAST_READING_TIMEOUT_S = 30.0
FINISHED_GRACE_S = 5.0
"""For miners to leave by themselves once the run is finished."""
THIS_MACHINE = "127.0.0.1,localhost"
"""Where everything of a local run is: no proxy of the operator's stands before it."""
JOIN_HINT = "join from another terminal: see README, 'Join from a second terminal'"


class LocalNet:
    """One run from launch to report. `screen` shows the operator lines and statuses."""

    def __init__(self, plan: Plan, runtime: Runtime, screen: Screen) -> None:
        self._plan, self._settings, self._folder = plan, plan.config, plan.folder
        self._runtime, self._screen, self._say = runtime, screen, screen.say
        self._launched_at = runtime.now()
        self._processes = Processes(plan.folder.logs, environment(plan.folder))
        self._crew = Crew(plan, self._processes, runtime)
        faults = FaultPlan(
            self._settings.seed,
            self._settings.kill_miner_every_s,
            self._settings.restart_after_s,
            self._settings.join_after_s,
            late_miner_name(self._settings),
        )
        self._miners = MinerKeeper(self._settings, self._crew, faults)
        self._chain = ChainKeeper(plan.folder, self._crew, ChainFaultPlan(self._settings.kill_chain_every_s))
        self._orchestrator = OrchestratorKeeper(
            plan.folder, self._crew, OrchestratorFaultPlan(self._settings.kill_orchestrator_every_s)
        )
        self._resources = Resources(plan.folder)
        self._validators: list[Child] = []
        self._names: dict[str, str] = {}
        """Everybody's names by hotkey."""
        self._facts = report.LaunchFacts()
        self._trained_before: int | None = None
        """Micro-batches of a continued run, as the first status says."""

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
        on_chain, said = await self._chain.start()
        self._lines(said)
        self._line(f"subnet {on_chain.netuid} on the local chain at {on_chain.network}")
        await self._orchestrator.start()
        self._line(f"orchestrator at {self._crew.url}; {self._settings.miners} miners start on {self._settings.device}")
        self._lines(introductions(self._miners.parts))
        await self._miners.start()
        self._validators = [await self._crew.start_validator(name) for name in validator_names(self._settings)]
        self._line(f"{JOIN_HINT} (--netuid {on_chain.netuid} --network {on_chain.network})")

    # ---- watching ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Until the run is finished and its last evaluation is in, or it has trained for as long as it was to."""
        finished_at: float | None = None
        while True:
            status = await self._look()
            self._processes.measure()
            await self._resources.look(self._elapsed_s(), self._processes.running())
            if self._is_time_up():
                self._line(f"{self._settings.end_after_s:g}s of training are over")
                return
            finished = status is not None and status.finished
            self._lines(self._miners.look(self._elapsed_s(), finished or finished_at is not None))
            if status is not None and finished:
                finished_at = self._runtime.now() if finished_at is None else finished_at
                waited_s = self._runtime.now() - finished_at
                last = any(evaluation.epoch >= self._settings.epochs for evaluation in status.evaluations)
                self._miners.plan.run_finished()
                self._orchestrator.plan.run_finished()
                if last or waited_s > LAST_EVALUATION_TIMEOUT_S or not self._evaluates():
                    return
            elif finished_at is None:
                self._lines(self._chain.inject(self._elapsed_s()))
                self._lines(self._orchestrator.inject(self._elapsed_s()))
                self._lines(await self._miners.inject(self._elapsed_s()))
            await self._runtime.sleep(POLL_S)

    async def _look(self) -> public_status.Status | None:
        """Read the public status and show it, with the chain's reading; None when the orchestrator does not answer.

        Raises LaunchFailed when there is no orchestrator or no chain to be had any more.
        """
        status = await public_status.fetch(self._crew.url)
        now_s = self._elapsed_s()
        self._lines(await self._chain.look(now_s, status.weights_block if status is not None else 0))
        if status is not None:
            self._note(status)
            self._lines(self._screen.show(status, self._names, now_s, self._chain.subnet))
        self._lines(await self._orchestrator.look(now_s, status.micro_batches if status is not None else None))
        return status

    def _note(self, status: public_status.Status) -> None:
        now_s = self._elapsed_s()
        if self._trained_before is None:
            self._trained_before = status.micro_batches if self._plan.resumed else 0
        if status.micro_batches > self._trained_before:
            self._chain.plan.training_began(now_s)
            self._orchestrator.plan.training_began(now_s)
            self._miners.plan.training_began(now_s)
            self._resources.training_began(now_s)
            if self._facts.first_micro_batch_s is None:
                self._facts.first_micro_batch_s = round(now_s, 1)
                self._line(f"training: the first micro-batch came back {now_s:.0f}s after the launch")
        credit = {self._names.get(hotkey, hotkey): value for hotkey, value in status.credit().items()}
        self._miners.plan.observe(now_s, status.micro_batches, credit)

    def _is_time_up(self) -> bool:
        began_s, after_s = self._facts.first_micro_batch_s, self._settings.end_after_s
        return bool(after_s) and began_s is not None and self._elapsed_s() - began_s >= after_s

    def _evaluates(self) -> bool:
        return any(child.exit_code is None for child in self._validators)

    # ---- ending ------------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Let the validators set the last weights and leave, and the chain pay by them once."""
        deadline = self._runtime.now() + VALIDATORS_GRACE_S
        while self._evaluates() and self._runtime.now() < deadline:
            await self._look()
            await self._runtime.sleep(POLL_S)
        if any(child.exit_code == 0 for child in self._validators):
            self._chain.plan.last_weights_stand()
        paid = self._chain.next_chain_epoch
        deadline = self._runtime.now() + LAST_READING_TIMEOUT_S
        while self._chain.block < paid and self._runtime.now() < deadline:
            await self._look()
            await self._runtime.sleep(POLL_S)

    async def _stop(self, leave_s: float) -> None:
        """Miners and validators first, so that their last words are heard; then the orchestrator, then the chain."""
        self._screen.close()
        vital = [*self._orchestrator.children, *self._chain.children]
        others = [child for child in self._processes.running() if child not in vital]
        if leave_s:
            await ended([child for child in others if child not in self._validators], leave_s)
        await self._processes.stop(others)
        await self._processes.stop(vital)

    async def _report(self) -> int:
        self._facts.wall_s = round(self._elapsed_s(), 1)
        self._facts.rss_peak_bytes = self._processes.rss_peak_bytes
        self._facts.faults, self._facts.chain_faults = self._miners.plan.records, self._chain.plan.records
        self._facts.orchestrator_faults = self._orchestrator.plan.records
        path = Path(self._settings.report).expanduser().absolute()
        if self._settings.sample:
            self._facts.sample = await self._crew.sample()
        self._facts.resources = self._resources.report()
        summary = await report.write(self._plan, self._names, self._facts, path, self._chain.subnet)
        for line in summary:
            self._say(line)
        return 1 if self._facts.resources["leaks"] else 0

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

    def _lines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self._line(text)

    def _line(self, text: str) -> None:
        minutes, seconds = divmod(int(self._elapsed_s()), 60)
        self._say(f"{minutes:3d}:{seconds:02d}  {text}")


def environment(folder: RunFolder) -> dict[str, str]:
    """Of every child: one thread, no proxy, and the SDK's caches in the run folder instead of the operator's home."""
    before = config.child_environment()
    direct = {name: ",".join(filter(None, [before.get(name), THIS_MACHINE])) for name in ("NO_PROXY", "no_proxy")}
    return config.child_environment(
        **direct,
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
        BITTENSOR_RUNTIME_CACHE_DIR=str(folder.sdk / "runtime"),
        BTCLI_TOKEN_SYMBOLS_CACHE=str(folder.sdk / "token_symbols.json"),
        BTCLI_SUBNET_NAMES_CACHE=str(folder.sdk / "subnet_names.json"),
    )


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
