"""Every fault by name, mixed and alone, in small worlds of real roles; and that the promises notice what is broken.

A seed is its own reproduction: `python -m subnet.simulation --seeds 1 --first-seed N`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from subnet.coordination import overdue, passes, quorum
from subnet.coordination.state import State
from subnet.errors import ConfigError
from subnet.protocol.ids import Pass
from subnet.scoring.ledger import Ledger
from subnet.simulation import storm_end, table
from subnet.simulation.faults import FaultName
from subnet.simulation.faults_host import CATALOGUE
from subnet.simulation.storm_host import HostService
from subnet.simulation.storm_machine import MachineRuntime
from subnet.simulation.storms import NO_FAULT, Outcome, Storm, names_of, run, run_seed
from subnet.storage.base import JournalRecord
from subnet.storage.memory import MemoryJournal, MemoryObjectStore

SEEDS, CHUNK = 120, 10
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_mixed_faults(first: int) -> None:
    """1. Whatever the seed draws happens to six machines, their lines, the store, the chain and the orchestrator; every
    promise holds after every record, and the run goes on and ends by itself."""
    outcomes = [run_seed(seed) for seed in range(first, first + CHUNK)]
    assert {outcome.seed: outcome.broken for outcome in outcomes if outcome.broken} == {}
    assert all(outcome.passes_merged for outcome in outcomes)
    assert sum(len(outcome.injected) for outcome in outcomes) > 2 * CHUNK


@pytest.mark.parametrize("seed", [15, 20, 699, 2221])
def test_seeds_that_failed_once(seed: int) -> None:
    """17. Clocks set back in the middle of a wait (15, 20). All who might have reduced a merge died in it, so a miner
    that had loaded uploads a second time in one epoch, with a log that still begins at what it loaded (2221). A disk is
    full until after the run has ended: those receipts are in the journal only, and the miner says so (699)."""
    assert run_seed(seed).broken == ""


@pytest.mark.parametrize("name", FaultName)
def test_one_fault_alone(name: FaultName) -> None:
    """2. Each fault by its name, several times in one world: it did strike, and nothing was lost for good."""
    outcome = run_seed(7, name, count=6)
    assert outcome.broken == "" and set(outcome.injected) == {name}


def test_the_same_seed_is_the_same_storm() -> None:
    """3. A seed failed on a colleague's machine: here, in a process with other hash seeds, it ends at the same head."""
    code = "from subnet.simulation.storms import run_seed; print(run_seed(11).head)"
    heads = set()
    for number in ("1", "2"):
        environment = {"PYTHONHASHSEED": number, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        heads.add(done.stdout.strip())
    assert heads == {run_seed(11).head}


def test_calm_weather_loses_next_to_nothing() -> None:
    """4. Without faults all passes enter a merge but those that were under way when the run ended."""
    outcomes = [run_seed(seed, NO_FAULT) for seed in range(4)]
    assert not any(outcome.broken or outcome.injected for outcome in outcomes)
    assert sum(outcome.passes_merged for outcome in outcomes) > 0.9 * sum(
        outcome.passes_started for outcome in outcomes
    )


def test_a_name_that_is_no_fault() -> None:
    """5. A typing error is one line that names the choices."""
    with pytest.raises(ConfigError, match="kil.*choose of crash"):
        names_of("kil")
    assert set(CATALOGUE) == set(FaultName) == set(names_of(None))


# ---- planted defects: a promise that cannot be broken promises nothing -----------------------------------------------

SEED, FAULTS = 3, "kill,drop,orchestrator-crash"


def broken_with(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, defect: Any, faults: str = FAULTS) -> str:
    """What the promises say of worlds with a defect in the program."""
    monkeypatch.setattr(owner, name, defect)
    said = [run_seed(seed, faults, count=6).broken for seed in range(SEED, SEED + 3)]
    return " | ".join(filter(None, said))


def test_a_pass_credited_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """6. The ledger books backwards twice."""
    credit = Ledger.credit

    def twice(self: Ledger, epoch: int, hotkey: Any, kind: Pass, units: float) -> None:
        for _ in range(2 if kind is Pass.BACKWARD else 1):
            credit(self, epoch, hotkey, kind, units)

    assert "every accepted pass is credited exactly once" in broken_with(monkeypatch, Ledger, "credit", twice)


def test_a_duplicate_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """7. A result that comes again, because its answer was lost, is told as applied anew."""
    unknown = passes.unknown_item

    def again(state: State, sender: Any, item: Any) -> Any:
        found = unknown(state, sender, item)
        return passes.verdict(item, "applied", found.reason, "again", found.work_units)

    said = broken_with(monkeypatch, passes, "unknown_item", again, "drop,duplicate")
    assert "each pass is credited at most once" in said


def test_a_journal_record_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """8. The journal says that it has a record and has not: the next process knows less than the one before told."""
    append = MemoryJournal.append

    async def forgetful(self: MemoryJournal, bodies: Any) -> Any:
        kept = bodies if len(self._records) < 40 else bodies[:-1]
        await append(self, kept)
        return [JournalRecord(len(self._records) + at, self._head, body) for at, body in enumerate(bodies)]

    said = broken_with(monkeypatch, MemoryJournal, "append", forgetful, "orchestrator-crash")
    assert "replay == live" in said


def test_work_that_is_not_offered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """9. What a dead miner held is forgotten."""
    said = broken_with(monkeypatch, overdue, "requeue", lambda state, batch: None, "kill,pause")
    assert "the state contradicts itself" in said


def test_state_that_the_journal_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """10. The live process counts something that no record says: a restart shows it."""
    perform = HostService._perform

    def meddling(self: HostService, effect: Any) -> None:
        self.state.compute_s += 1.0
        perform(self, effect)

    assert "replay == live: they differ in compute_s" in broken_with(monkeypatch, HostService, "_perform", meddling)


def test_an_object_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """11. The store forgets boundaries that somebody still has to read."""
    put = MemoryObjectStore.put

    async def lossy(self: MemoryObjectStore, key: Any, data: bytes) -> None:
        if not key.endswith("boundary"):
            await put(self, key, data)

    assert "every object referenced exists" in broken_with(monkeypatch, MemoryObjectStore, "put", lossy, NO_FAULT)


def test_a_run_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """12. No stage ever closes its epoch."""
    monkeypatch.setattr(quorum, "may_close", lambda *asked: (False, "never"))
    assert "an epoch ends in time" in run_seed(SEED, NO_FAULT).broken


def test_a_cheat_beside_an_honest_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """13. A cheat in the storm earns less than the honest machine beside it; the other way round would be noticed."""
    cheated = [seed for seed in range(80) if Storm(seed, tuple(FaultName)).outcome.cheated][:3]
    assert len(cheated) == 3 and not any(run_seed(seed).broken for seed in cheated)
    judge = storm_end.judge_end
    monkeypatch.setattr("subnet.simulation.storms.judge_end", lambda world, pair: judge(world, pair[::-1]))
    assert all("equally fast cheat" in run_seed(seed).broken for seed in cheated)


def test_waits_by_a_clock_that_somebody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """14. NTP sets a miner's clock back by minutes: what it waits for is far in the future now, and it sits silent."""
    said = broken_with(monkeypatch, MachineRuntime, "monotonic", MachineRuntime.now, "clock-skew")
    assert "in time" in said or "miners leave" in said


# ---- many seeds ------------------------------------------------------------------------------------------------------


def test_a_failing_seed_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    """15. Seed 4711 breaks a promise: the command that shows it again is printed, and the others are counted."""

    def seed(number: int, faults: str | None = None, count: int = 0) -> Outcome:
        return Outcome(seed=number, broken="a promise: it broke" if number == 4711 else "", passes_started=1)

    monkeypatch.setattr("subnet.simulation.storms.run_seed", seed)
    assert run(4710, 3, 1, None, tmp_path / "report.json") == 1
    said = capsys.readouterr().out
    assert "python -m subnet.simulation --seeds 1 --first-seed 4711" in said and "3 of 3 seeds, 1 failed" in said
    assert run(0, 1, 1, "kill", None) == 0


def test_the_fault_table(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """16. The README's table has a line for each fault, with what the worlds of that line counted."""
    monkeypatch.setattr(table, "FaultName", (FaultName.KILL, FaultName.DROP))
    assert table.main(1, 1, "2026-01-01") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| none", "| kill", "| drop"]
    assert "unavailable" in lines[-1]
