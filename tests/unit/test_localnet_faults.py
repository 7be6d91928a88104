"""The fault plan: who dies when, decided without a clock or a process."""

from __future__ import annotations

from hypothesis import given, strategies

from subnet.localnet.faults import CHAIN_STARTS_MAX, RESTARTS_MAX, Action, ChainFaultPlan, Fault, FaultPlan, Kill, Start

MINERS = ["miner-0", "miner-1", "miner-2"]


def run_plan(plan: FaultPlan, until_s: int) -> list[tuple[int, Action]]:
    """A launcher that does as it is told, looking every second; training begins at 10 s."""
    running, done = set(MINERS), []
    for now_s in range(until_s):
        if now_s == 10:
            plan.training_began(now_s)
        for action in plan.due(now_s, running):
            done.append((now_s, action))
            if isinstance(action, Kill):
                running.discard(action.miner)
                plan.ended(action.miner, now_s, -9, killed=True)
            else:
                running.add(action.miner)
                plan.started(action.miner, now_s)
    return done


def test_kills_come_at_their_interval_and_the_killed_come_back() -> None:
    """1. --kill-miner-every 20s --restart-after 5s: the first kill is 20 s after training began."""
    done = run_plan(FaultPlan(7, 20, 5, 0, None), 75)
    assert [(at, type(action)) for at, action in done] == [
        (30, Kill), (35, Start), (50, Kill), (55, Start), (70, Kill),
    ]  # fmt: skip
    assert done[0][1].miner == done[1][1].miner


@given(strategies.integers(0, 2**31))
def test_the_seed_decides_the_victims(seed: int) -> None:
    """2. A failing run is repeated with the same seed: the same miners die at the same times."""
    assert run_plan(FaultPlan(seed, 3, 2, 0, None), 60) == run_plan(FaultPlan(seed, 3, 2, 0, None), 60)


def test_the_late_joiner_comes_once() -> None:
    """3. --join-after 30s: a seventh miner appears 30 s into the training, exactly once."""
    plan = FaultPlan(7, 0, 5, 30, "miner-3")
    assert run_plan(plan, 100) == [(40, Start("miner-3"))]
    assert [(record.fault, record.miner) for record in plan.records] == [(Fault.JOINED_LATE, "miner-3")]


def test_nothing_is_killed_before_training_or_when_nobody_runs() -> None:
    """4. Six processes are still importing torch: there is nothing to disturb yet."""
    plan = FaultPlan(7, 1, 5, 0, None)
    assert plan.due(1000, MINERS) == []
    plan.training_began(1000)
    assert plan.due(2000, []) == []


def test_a_miner_that_keeps_dying_is_given_up() -> None:
    """5. A miner crashes at every start, for instance for want of memory: the launcher stops trying."""
    plan = FaultPlan(7, 0, 5, 0, None)
    again = [plan.ended("miner-0", now_s, 1, killed=False) for now_s in range(RESTARTS_MAX + 1)]
    assert again == [True] * RESTARTS_MAX + [False]
    assert plan.expects_starts
    assert plan.due(100, []) == [Start("miner-0")] and not plan.expects_starts


def test_survived_means_that_training_went_on() -> None:
    """6. The report says of each kill whether work was completed after it and when the killed one was paid again."""
    plan = FaultPlan(7, 20, 5, 0, None)
    plan.ended("miner-1", 30, -9, killed=True)
    (record,) = plan.records
    plan.observe(30.5, 100, {"miner-1": 8.0})
    assert not record.survived
    plan.observe(31, 101, {"miner-1": 8.0})
    assert record.survived and record.credited_again_at_s is None
    plan.started("miner-1", 35)
    plan.observe(36, 110, {"miner-1": 8.0})
    assert record.credited_again_at_s is None
    plan.observe(44, 140, {"miner-1": 8.4})
    assert (record.started_again_at_s, record.credited_again_at_s) == (35, 44)


# ---- the chain -------------------------------------------------------------------------------------------------------


def test_the_chain_is_killed_at_its_interval() -> None:
    """7. --kill-chain-every 30s: nothing before training began; one that was due while it was away is left out."""
    plan = ChainFaultPlan(30)
    assert not plan.kill_is_due(1000)
    plan.training_began(10)
    plan.training_began(900)
    assert [now_s for now_s in range(10, 101) if plan.kill_is_due(now_s)] == [40, 70, 100]
    assert plan.kill_is_due(170) and not plan.kill_is_due(189) and plan.kill_is_due(190)
    never = ChainFaultPlan(0)
    never.training_began(0)
    assert not never.kill_is_due(1e9)


def test_a_chain_survives_when_blocks_go_on_and_weights_follow() -> None:
    """8. Killed at block 70. What it made before its death proves nothing: later blocks and later weights do."""
    plan = ChainFaultPlan(30)
    plan.observe(1, 68, 60)
    assert plan.ended(10, -9, 70, killed=True)
    plan.observe(10.5, 69, 60)
    plan.started(11.5)
    plan.observe(12, 70, 70)
    (record,) = plan.records
    assert (record.fault, record.block, record.started_again_at_s) == (Fault.CHAIN_KILLED, 70, 11.5)
    assert record.blocks_again_at_s is None and record.weights_again_at_s is None
    plan.observe(13, 71, 70)
    assert not record.survived and record.blocks_again_at_s == 13
    plan.observe(20, 80, 78)
    assert record.survived and record.weights_again_at_s == 20


def test_a_chain_that_dies_behind_the_last_weights() -> None:
    """9. They were set in its last block, and nothing is to be set any more: it survived when its blocks go on."""
    plan = ChainFaultPlan(30)
    assert plan.ended(10, -9, 126, killed=True)
    plan.started(11)
    plan.last_weights_stand()
    plan.observe(12, 126, 126)
    assert not plan.records[0].survived
    plan.observe(13, 127, 126)
    assert plan.records[0].survived and plan.records[0].weights_again_at_s is None


def test_a_chain_that_makes_no_block_any_more_is_given_up() -> None:
    """10. The disk is full: it dies at every start. One that had made a block in between is tried again as often."""
    plan = ChainFaultPlan(0)
    assert plan.ended(1, 1, 50, killed=False)
    plan.observe(3, 51, 0)
    tries = [plan.ended(5 + number, 1, 51, killed=False) for number in range(CHAIN_STARTS_MAX + 1)]
    assert tries == [True] * CHAIN_STARTS_MAX + [False]
    assert {record.fault for record in plan.records} == {Fault.CHAIN_DIED}
