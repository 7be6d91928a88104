"""The curve of lost shards: what the plain scheme loses, and that new owners lose nothing."""

from __future__ import annotations

import pytest

from subnet.merging.butterfly import loss_counts
from subnet.simulation import mid_merge
from subnet.simulation.mid_merge_stage import ModelledStage


def test_seven_of_twenty_die() -> None:
    """1. 35 % of the replicas die with their shards in hand: the assignment alone would lose what the formula says; in
    the machine's merge nothing is lost and nothing stays unchecked, within one more deadline."""
    stage = ModelledStage(20, seed=3)
    stage.begin()
    calm, one = stage.merged(frozenset()), stage.merged(stage.drawn(7))
    assert (calm.lost, calm.single, calm.handed_on) == (0, 0, 0)
    assert (one.plain_lost, one.plain_single, 190 - one.plain_lost - one.plain_single) == loss_counts(20, 7)
    assert (one.shards, one.lost, one.single, one.handed_on) == (190, 0, 0, 21)
    assert 0 < one.took_s - calm.took_s < stage.spec.merge.reduce_deadline_s
    assert stage.merged(stage.drawn(7)) == one, "equal seeds, equal merges"


def test_all_but_one_of_six_die() -> None:
    """2. The one that is left reduces everything."""
    stage = ModelledStage(6, seed=3)
    stage.begin()
    one = stage.merged(stage.drawn(5))
    assert (one.plain_lost, one.lost, one.handed_on) == (10, 0, 10)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """3. Table and curve in the terminal; the exit code says that nothing was lost."""
    assert mid_merge.main(["--owners", "6", "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "| 50 % | 3 | 25.00% | 20.00% | 20.00% |" in shown and "▒" in shown
    assert shown.count("█") == 1, "in the legend: no bar of lost shards"


def test_a_bad_number_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """4. An operator asks for one owner: a line that names the flag, exit code 2, no traceback."""
    with pytest.raises(SystemExit) as stop:
        mid_merge.main(["--owners", "1"])
    assert stop.value.code == 2
    assert "--owners" in capsys.readouterr().err
