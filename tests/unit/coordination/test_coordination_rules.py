"""The small pure rules, by table: quorum, placement, phases, what a micro-batch waits for, pay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.coordination import phases, quorum
from subnet.coordination.placement import Load, place
from subnet.coordination.routing import due
from subnet.coordination.state import Hop, MicroBatch, StageState
from subnet.protocol.ids import Digest, Epoch, MicroBatchId, Pass, Phase, Stage
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import Source
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import MergeSpec
from subnet.scoring.ledger import work_units

RELAX_S = 120.0


MERGE = MergeSpec(
    num_microbatches_min=8, quorum=0.75, relax_after_s=RELAX_S, grace_s=5.0,
    upload_deadline_s=20.0, reduce_deadline_s=20.0, apply_deadline_s=20.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("live", "age_s", "neighbour_closed", "num_microbatches", "replicas"),
    [
        (4, 0.0, False, 8, 3),
        (4, RELAX_S, False, 8, 3),  # young enough: nothing is relaxed
        (4, 1.5 * RELAX_S, False, 4, 2),  # half way
        (4, 2.0 * RELAX_S, False, 1, 1),  # the floor
        (4, 9.0 * RELAX_S, False, 1, 1),
        (4, 0.0, True, 6, 3),  # three quarters of B_min once a neighbour has closed
        (1, 0.0, False, 8, 1),
        (5, 0.0, False, 8, 4),
    ],
)
def test_what_a_quorum_asks(
    live: int, age_s: float, neighbour_closed: bool, num_microbatches: int, replicas: int
) -> None:
    """1. B_min and q hold while an epoch is young, fall with its age to one of each, and follow a neighbour."""
    assert quorum.thresholds(MERGE, live, age_s, neighbour_closed) == (num_microbatches, replicas)


@pytest.mark.parametrize(
    ("counts", "expected", "age_s", "neighbour", "slowest", "epoch", "closes", "said"),
    [
        ([8, 8, 8, 0], 4, 0.0, False, 0, 0, True, "3 of 4 replicas did 8"),
        ([8, 8, 7, 0], 4, 0.0, False, 0, 0, False, "2 of 4 replicas did 8 micro-batches, 3 needed"),
        ([6, 6, 6, 0], 4, 0.0, True, 0, 0, True, "a neighbour closed"),
        ([8, 8, 8, 8], 4, 0.0, False, 0, 1, False, "still in epoch 0"),  # never two epochs ahead
        ([], 0, 999.0, True, 0, 0, False, "no live replica"),
        ([1, 0, 0, 0], 4, 2 * RELAX_S, False, 0, 0, True, "relaxed with age"),
        ([0, 0, 0, 0], 4, 9 * RELAX_S, True, 0, 0, False, "0 of 4"),  # nothing to merge, however old
        ([0, 8], 1, 0.0, False, 0, 0, True, "1 of 2"),  # a newcomer reaches the quorum for one that hangs
    ],
)
def test_when_training_closes(
    counts: list[int],
    expected: int,
    age_s: float,
    neighbour: bool,
    slowest: int,
    epoch: int,
    closes: bool,
    said: str,
) -> None:
    """2. Each decision comes with the figures that led to it."""
    decided, sentence = quorum.may_close(MERGE, counts, expected, age_s, neighbour, slowest, epoch)
    assert (decided, said in sentence) == (closes, True), sentence


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.floats(0, 1000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_waiting_never_makes_a_quorum_harder(counts: list[int], age_s: float, neighbour: bool) -> None:
    """3. What closes now also closes later, and with one more micro-batch, and with a neighbour that closed."""

    def closes(counts: list[int], age_s: float, neighbour: bool) -> bool:
        return quorum.may_close(MERGE, counts, len(counts), age_s, neighbour, 0, 0)[0]

    if closes(counts, age_s, neighbour):
        assert closes(counts, age_s + 7.0, neighbour)
        assert closes([count + 1 for count in counts], age_s, neighbour)
        assert closes(counts, age_s, True)


@pytest.mark.parametrize(
    ("loads", "stage", "said"),
    [
        ([(2, 2.0, 100), (0, 0.0, 100), (1, 1.0, 100)], 1, "no replica"),
        ([(2, 2.0, 100), (1, 1.0, 100), (1, 1.0, 100)], 1, "the least for its size"),  # lowest index among equals
        ([(1, 1.0, 100), (1, 1.0, 300)], 1, "the least"),  # the bigger stage needs more
        ([(2, 0.5, 100), (1, 1.0, 100)], 0, "the least"),  # two slow ones are weaker than one fast
        ([(0, 0.0, 1), (0, 0.0, 900)], 0, "no replica"),
    ],
)
def test_where_a_newcomer_goes(loads: list[tuple[int, float, int]], stage: int, said: str) -> None:
    """4. An empty stage first, then the one with the least strength for its size."""
    chosen, sentence = place([Load(index, *load) for index, load in enumerate(loads)])
    assert chosen == stage and said in sentence


def make_stage(phase: Phase) -> StageState:
    source = Source(key=ObjectKey("run/0/0/start/parameters"), digest=Digest("0" * 64), size_bytes=1)
    return StageState(
        stage=Stage(0), epoch=Epoch(3), phase=phase, phase_since=1.0, opened_at=1.0, parameters=source,
        momentum=source, sentence="as it was", reason=Reason.OK,
    )  # fmt: skip


@pytest.mark.parametrize("before", Phase)
@pytest.mark.parametrize("to", Phase)
def test_a_phase_changes_by_the_table_only(before: Phase, to: Phase) -> None:
    """5. A legal step says what happened; an illegal one leaves every field as it was and says that."""
    stage = make_stage(before)
    line = phases.move(stage, to, 9.0, Reason.PAUSED, "because")
    assert "because" in line and f"stage {stage.stage}" in line
    if to in phases.TABLE[before]:
        assert (stage.phase, stage.phase_since, stage.reason, stage.sentence) == (to, 9.0, Reason.PAUSED, "because")
    else:
        assert stage == make_stage(before) and "stays in" in line


def test_the_table_of_phases() -> None:
    """6. No phase is a dead end, a merge is never skipped on the way to the next epoch, and none leads to itself but
    MERGING, into which every phase of an epoch leads that has to be taken back."""
    assert set(phases.TABLE) == set(Phase)
    assert all(ways and (before not in ways or before is Phase.MERGING) for before, ways in phases.TABLE.items())
    assert all((Phase.MERGING in ways) == (before is not Phase.PAUSED) for before, ways in phases.TABLE.items())


def test_what_a_micro_batch_waits_for() -> None:
    """7. Forward through all stages, the loss at the last, and back again; a pass that is undone is due once more."""
    batch = MicroBatch(id=MicroBatchId(0), epoch=Epoch(0), opened_at=0.0, hops=[Hop(), Hop(), Hop()])
    way = []
    while (piece := due(batch)) is not None:
        way.append(piece)
        kind, stage = piece
        if kind is not Pass.BACKWARD:
            batch.hops[stage].forward_epoch = 0
        if kind is not Pass.FORWARD:
            batch.hops[stage].backward_epoch = 0
    F, L, B = Pass.FORWARD, Pass.LOSS, Pass.BACKWARD
    assert way == [(F, 0), (F, 1), (L, 2), (B, 1), (B, 0)]
    batch.hops[1].forward_epoch = -1
    assert due(batch) == (F, 1)


def test_a_run_of_one_stage_has_losses_only() -> None:
    """8. With one stage the loss pass is all there is."""
    batch = MicroBatch(id=MicroBatchId(0), epoch=Epoch(0), opened_at=0.0, hops=[Hop()])
    assert due(batch) == (Pass.LOSS, 0)


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_stage_pays_better_than_another(flops: list[int]) -> None:
    """9. A micro-batch pays as many units as there are stages, and each stage's part is its share of the FLOPs."""
    last = len(flops) - 1
    parts = [
        work_units(Pass.LOSS, stage, flops)
        if stage == last
        else work_units(Pass.FORWARD, stage, flops) + work_units(Pass.BACKWARD, stage, flops)
        for stage in range(len(flops))
    ]
    assert sum(parts) == pytest.approx(len(flops))
    for part, cost in zip(parts, flops, strict=True):
        assert part / cost == pytest.approx(len(flops) / sum(flops))
    assert work_units(Pass.BACKWARD, 0, flops) == pytest.approx(2 * work_units(Pass.FORWARD, 0, flops))
