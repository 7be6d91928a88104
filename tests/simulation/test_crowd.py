"""A crowd in virtual time: forty miners stand for thousands, an hour for days, and every promise is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from subnet.coordination import machine
from subnet.errors import ConfigError
from subnet.protocol.ids import Hotkey, ItemId
from subnet.protocol.messages import Exchange, ExchangeReply
from subnet.simulation import crowd_report, crowd_run
from subnet.simulation.__main__ import main
from subnet.simulation.crowd import Crowd, Order
from subnet.simulation.crowd_events import START, Events, Stream
from subnet.simulation.crowd_faults import SHARED, Fault, parse, plan
from subnet.simulation.crowd_machine import Machine
from subnet.simulation.crowd_spec import crowd_spec
from subnet.simulation.settings import SimulationConfig

CHECK_S = 300.0


def crowd(miners: int = 40, stages: int = 2, hours: float = 1.0, **more: Any) -> Crowd:
    """A run that has come to its end; its epochs take about a quarter of an hour."""
    spec = crowd_spec(stages, 7, more.pop("audit_rate", 0.04))
    spec = replace(spec, merge=replace(spec.merge, num_microbatches_min=4, relax_after_s=1350.0))
    run = Crowd(Order(spec, miners, hours, check_every_s=CHECK_S, **more))
    run.run()
    return run


@pytest.fixture(scope="module")
def calm() -> Crowd:
    """An hour without a fault."""
    return crowd(24, 2, 1.0)


# ---- a run without faults --------------------------------------------------------------------------------------------


def test_a_calm_run_merges_nearly_everything(calm: Crowd) -> None:
    """1. Nobody fails: epochs end, nobody is blamed, every audit passes, and what is lost is what waits at the end."""
    figures = crowd_report.figures(calm, 1.0, 1.0)
    assert min(figures["epochs"]) >= 2 and figures["goodput"] > 0.8
    assert figures["audits"]["passed"] > 0 and figures["audits"]["failed"] == 0
    assert figures["pay"]["sum"] == 1.0 and figures["merges"]["lost"] == 0
    assert {one.faults for one in calm.state.miners.values()} == {0}


def test_a_miner_does_about_a_pass_a_minute(calm: Crowd) -> None:
    """2. The numbers that are asked of the simulation are for one work item a minute and miner."""
    passes = crowd_report.figures(calm, 1.0, 1.0)["passes"]
    assert 0.5 < passes["by_minute_and_miner"] < 1.4
    assert passes["credited"] == sum(
        credit.forwards + credit.backwards + credit.losses
        for epoch in calm.state.ledger.epochs.values()
        for credit in epoch.values()
    )


def test_goodput_is_what_was_merged_of_what_was_started(calm: Crowd) -> None:
    """3. Merged passes are those of the manifests: a micro-batch's two, but at the last stage, which has one."""
    merged = sum(
        merge.batch * (1 if stage.stage == len(calm.state.stages) - 1 else 2)
        for stage in calm.state.stages
        for merge in stage.merges
    )
    assert calm.state.passes_merged == merged
    counted, settled = crowd_report.goodput(calm.state)
    assert counted == merged <= settled < calm.state.passes_started


def test_the_words_at_the_end_name_the_figures(calm: Crowd) -> None:
    """4. Who only reads the table knows how much was done, how much of it counts, and that every promise held."""
    figures = crowd_report.figures(calm, 2.0, 50.0)
    said = crowd_report.text(figures)
    assert f"{figures['goodput']:.1%} of the passes" in said
    assert calm.checks.digest in said and "all held" in said


# ---- the same again --------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_runs() -> None:
    """5. A failing seed is a reproduction only if it fails again: every envelope and every answer is the same."""
    orders: dict[str, Any] = dict(hours=0.4, faults="mixed=20,orchestrator-crash=1,mass-departure=1")
    first, second, other = crowd(**orders), crowd(**orders), crowd(**orders, seed=8)
    assert first.checks.digest == second.checks.digest != other.checks.digest
    assert first.state == second.state


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", list(Fault))
def test_a_run_survives_every_kind_of_fault(fault: Fault) -> None:
    """6. Each kind alone, three times: promises hold, work goes on, nobody honest is blamed."""
    struck = crowd(18, 3, 0.6, faults=f"{fault}=3")
    assert struck.faults.injected == {fault: 3}
    assert struck.state.completed > 0 and struck.checks.passes_credited > 100
    assert struck.host.is_up


def test_mixed_faults_are_survived_and_goodput_is_still_counted() -> None:
    """7. Fifty-five faults among forty miners in an hour: epochs go on ending."""
    struck = crowd(40, 2, 1.0, faults="mixed=50,orchestrator-crash=2,chain-outage=1,mass-departure=1,wipe-out=1")
    figures = crowd_report.figures(struck, 1.0, 1.0)
    assert sum(struck.faults.injected.values()) == 55 and struck.faults.processes_killed > 20
    assert min(figures["epochs"]) >= 1 and 0.2 < figures["goodput"] < 1.0


def test_mixed_is_drawn_evenly_among_what_strikes_one() -> None:
    """8. Two thousand mixed faults: all kinds, the great ones seldom, in order, none at the very ends."""
    strikes = plan(parse("mixed=2000,kill=5"), Stream(7, "plan"), START, START + 86_400.0)
    counts = {fault: sum(strike.fault is fault for strike in strikes) for fault in Fault}
    assert sum(counts.values()) == 2005 and {counts[fault] for fault in SHARED} == {5}
    assert all(180 < counts[fault] < 320 for fault in Fault if fault not in SHARED)
    assert strikes == sorted(strikes) and START + 2000 < strikes[0].at < strikes[-1].at < START + 84_400


@pytest.mark.parametrize("text", ["kil=5", "kill", "kill=", "kill=-1", "kill=x"])
def test_a_mistyped_fault_is_one_line(text: str) -> None:
    """9. The operator reads which flag, and what to write."""
    with pytest.raises(ConfigError, match="--faults"):
        parse(text)


# ---- cheats ----------------------------------------------------------------------------------------------------------


def test_who_computes_nothing_is_caught_and_nobody_else() -> None:
    """10. Three miners invent their work: audits fail them, their processes end, the honest ones go on."""
    run = crowd(24, 2, 1.0, training_cheats=3, audit_rate=0.2)
    failed = {hotkey for hotkey, standing in run.state.pay.standing.items() if standing.failed}
    assert failed == {Hotkey(f"miner-{i:05d}") for i in (21, 22, 23)}
    assert run.endings() == {"audit-failed": 3}


def test_who_reduces_wrongly_is_named_by_the_recomputation() -> None:
    """11. One miner's copies of its shards differ: the orchestrator reduces those itself, nothing is lost."""
    run = crowd(24, 2, 0.5, reducing_cheats=1, audit_rate=0.0)
    merges = [merge for stage in run.state.stages for merge in stage.merges]
    assert sum(merge.disputed for merge in merges) > 0 and sum(merge.lost for merge in merges) == 0
    assert {hotkey for merge in merges for hotkey in merge.faulty} == {Hotkey("miner-00023")}


# ---- what is broken is found -----------------------------------------------------------------------------------------


def test_a_bug_in_the_machine_is_one_line_that_shows_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """12. Somebody breaks the rule that a piece is credited once: the run ends there, with the command to see it."""
    sound, credited = machine.handle, list[ItemId]()

    def planted(state: Any, envelope: Any) -> Any:
        decision = sound(state, envelope)
        reply = decision.reply
        if isinstance(envelope.message, Exchange) and isinstance(reply, ExchangeReply) and reply.verdicts:
            credited.append(reply.verdicts[0].item)
            if len(credited) == 50:
                twice = (*reply.verdicts, reply.verdicts[0])
                return msgspec.structs.replace(decision, reply=msgspec.structs.replace(reply, verdicts=twice))
        return decision

    monkeypatch.setattr(machine, "handle", planted)
    order = ["--miners", "12", "--stages", "2", "--hours", "1", "--seed", "9", "--faults", "kill=1"]
    assert main(order) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "had been credited before" in error and "virtual hour 0." in error
    assert error.rstrip().endswith(f"again: python -m subnet.simulation {' '.join(order)}")


def test_a_state_that_breaks_a_promise_is_found(calm: Crowd) -> None:
    """13. A pass that is in the ledger twice, a second anchor: the look at the whole finds it."""
    credit = next(iter(calm.state.ledger.epochs[0].values()))
    credit.forwards += 1
    with pytest.raises(Exception, match="verdicts credited"):
        calm.checks.whole(calm.state)
    credit.forwards -= 1
    calm.checks.whole(calm.state)
    calm.state.at += 1e6
    with pytest.raises(Exception, match="no epoch ended"):
        calm.checks.whole(calm.state)
    calm.state.at -= 1e6


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """14. The report holds the figures, the settings and the command."""
    report = tmp_path / "crowd.json"
    order = ["--miners", "12", "--stages", "2", "--hours", "0.3", "--faults", "pause=2", "--faults", "drop=1"]
    assert main([*order, "--report", str(report)]) == 0
    written = msgspec.json.decode(report.read_bytes())
    assert written["faults"]["injected"] == {"drop": 1, "pause": 2}
    assert written["digest"] in capsys.readouterr().out
    assert written["command"].endswith("--seed 7 --faults pause=2,drop=1")


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """15. Too few miners, an unknown cheat: exit code 2 and what to write instead."""
    for wrong in (["--miners", "3", "--stages", "4"], ["--adversary", "nobody=1"], ["--faults", "storm=1"]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_an_order_names_everything_that_matters_for_another_try() -> None:
    """16. Settings that differ from the defaults are in the command."""
    asked = SimulationConfig(miners=50, stages=5, hours=1.5, seed=3, audit_rate=0.0, check_every_s=60.0)
    said = crowd_run.command(asked)
    assert said == (
        "python -m subnet.simulation --miners 50 --stages 5 --hours 1.5 --seed 3 --audit-rate 0 --check-every 60s"
    )


# ---- time and machines -----------------------------------------------------------------------------------------------


def test_what_was_planned_for_a_dead_process_never_happens() -> None:
    """17. A process dies with a computation under way; the next one hears nothing of it, a paused one later."""
    events, happened = Events(), list[str]()
    one = Machine(Hotkey("m"), 0, events, Stream(7, "a"), Stream(7, "b"))
    life = one.begins()
    one.later(life, 5.0, happened.append, "of the first")
    one.ends()
    life = one.begins()
    one.later(life, 1.0, happened.append, "of the second")
    one.paused_until = START + 30.0
    assert not events.run(START + 20.0, 1) and events.run(START + 20.0, 100)
    assert happened == []
    assert events.run(START + 40.0, 100) and happened == ["of the second"] and events.now == START + 40.0
