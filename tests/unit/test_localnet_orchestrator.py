"""When the orchestrator of a local net is killed on purpose, and what is said about each of its deaths."""

from __future__ import annotations

from subnet.localnet import report
from subnet.localnet.faults import Fault
from subnet.localnet.orchestrator_faults import STARTS_MAX, OrchestratorFaultPlan
from subnet.localnet.report import LaunchFacts


def test_killed_so_long_after_it_listened() -> None:
    """1. Every ten seconds of service it is killed: never before training, and however long a start takes, it has its
    ten seconds before the next one."""
    plan = OrchestratorFaultPlan(10.0)
    assert not plan.kill_is_due(100.0)
    plan.training_began(100.0)
    plan.training_began(105.0)
    assert not plan.kill_is_due(109.9) and plan.kill_is_due(110.0)
    assert plan.ended(110.5, -9, killed=True)
    assert not plan.kill_is_due(150.0), "it is away"
    plan.started(150.0)
    assert not plan.kill_is_due(159.0) and plan.kill_is_due(160.0)
    never = OrchestratorFaultPlan(0.0)
    never.training_began(0.0)
    never.started(5.0)
    assert not never.kill_is_due(10**6)


def test_what_a_death_came_to() -> None:
    """2. Survived is a death after which more micro-batches came back, or the run was finished."""
    plan = OrchestratorFaultPlan(10.0)
    plan.observe(1.0, 40)
    plan.ended(11.0, -9, killed=True)
    plan.observe(11.5, 41)  # the last answer before it died
    plan.started(14.0)
    plan.observe(15.0, 41)
    (record,) = plan.records
    assert not record.survived and record.started_again_at_s == 14.0
    plan.observe(16.0, 42)
    assert record.survived and record.trained_again_at_s == 16.0
    plan.ended(26.0, -9, killed=True)
    plan.run_finished()
    shown = report.faults(LaunchFacts(orchestrator_faults=plan.records))
    assert (shown["injected"], shown["survived"], shown["orchestrator_killed"]) == (2, 2, 2)
    assert shown["each"][0]["fault"] == Fault.ORCHESTRATOR_KILLED and shown["each"][1]["started_again_at_s"] is None


def test_given_up_when_it_dies_by_itself_again_and_again() -> None:
    """3. A defect ends it at each start: after a few in vain the run is given up. One micro-batch between them, or a
    kill on purpose, and it is not in vain."""
    plan = OrchestratorFaultPlan(0.0)
    assert all(plan.ended(float(n), 1, killed=False) for n in range(STARTS_MAX))
    plan.observe(10.0, 5)
    assert all(plan.ended(20.0 + n, 1, killed=False) for n in range(STARTS_MAX))
    assert plan.ended(30.0, -9, killed=True) and not plan.ended(31.0, 1, killed=False)
