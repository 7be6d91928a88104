"""The benchmark's arithmetic and its table: what is divided by what, and what a reader is told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subnet import config
from subnet.errors import ConfigError
from subnet.simulation.bench import BenchConfig, fill_readme
from subnet.simulation.bench_figures import (
    ONE_PROCESS,
    TWO_PROCESSES,
    Bench,
    Efficiency,
    Launch,
    Learning,
    Machine,
    Row,
    Trust,
    Wire,
    widest,
)
from subnet.simulation.bench_table import BEGIN, END, fill, markdown_table, rows, text_table


def efficiency(one: list[float], two: list[float]) -> Efficiency:
    return Efficiency(
        preset="bench", miners=6, stages=3, num_params=2_190_000, baseline_num_params=2_160_000, micro_batch=(8, 128),
        swarm_tokens=500_000, swarm_span_s=100.0, merges=6, journal_records=4_321,
        baselines={ONE_PROCESS: one, TWO_PROCESSES: two},
    )  # fmt: skip


def bench(*, quick: bool = False, swarm_loss: float = 4.9, failed: int = 0, cost: float = 0.04) -> Bench:
    learning = Learning(
        tokens=500_000, swarm=swarm_loss, swarm_by_epoch={"3": swarm_loss}, reference=4.8, reference_swarm_batch=4.85,
        uncompressed=4.7, control=5.0, unigram_entropy=6.0,
    )  # fmt: skip
    launch = Launch(
        first_micro_batch_s=20.0, wall_s=120.0, epochs=3, largest_miner_mb=560, orchestrator_mb=150,
        orchestrator_loads_torch=False,
    )  # fmt: skip
    trust = Trust(
        audits_passed=12, audits_failed=failed, audits_without_verdict=1, audit_cost_share=cost, speeds="1,1,2,4",
        speeds_miners=8, weights_vs_work=1.0, incentive_vs_work=0.995,
    )  # fmt: skip
    wire = Wire(
        d_model=128, width=16, tokens=1_000, written_bytes={"boundary": 32_000, "gradient": 32_000, "upload": 1_500},
        object_bytes_per_token={"boundary": 16.0, "gradient": 16.0}, journal_bytes=6_000,
    )  # fmt: skip
    return Bench(
        measured_at="2025-01-02 03:04 UTC", command="make bench", quick=quick, duration_s=600.0,
        machine=Machine(cores=2, processor="a processor", system="Linux x86_64", python="3.11.7", torch="2.13.0"),
        efficiency=[efficiency([8_000.0, 7_000.0], [6_000.0, 6_500.0])], learning=learning, launch=launch, trust=trust,
        wire=wire, wire_128x=widest(2048, 128, (1, 800), 64),
    )  # fmt: skip


def row(table: list[Row], name: str) -> Row:
    (found,) = [one for one in table if one.name.startswith(name)]
    return found


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def test_the_swarm_is_divided_by_the_faster_baseline() -> None:
    """1. The machine slows down while it measures; one lucky baseline value must not decide the ratio."""
    one = efficiency([8_000.0, 7_000.0], [9_000.0, 5_000.0])
    assert one.swarm_tokens_per_s == 5_000.0
    assert one.fastest_baseline == (ONE_PROCESS, 7_500.0)
    assert one.ratio == pytest.approx(5_000 / 7_500)
    assert one.drift == pytest.approx(8 / 7 - 1)
    assert efficiency([7_000.0], [7_200.0]).fastest_baseline == (TWO_PROCESSES, 7_200.0)


def test_losses_are_compared_as_the_targets_say() -> None:
    """2. Within 5 % of the reference is a quotient, below unigram entropy a difference in nats."""
    learning = bench().learning
    assert learning.swarm_vs_reference == pytest.approx(4.9 / 4.8)
    assert learning.below_unigram == pytest.approx(1.1)
    assert learning.control_vs_reference == pytest.approx(5.0 / 4.8)


def test_the_wire_is_stated_against_both_baselines() -> None:
    """3. 16 bytes a token where x itself takes 256 in bf16 and 512 in fp32; per token, over all links and merges."""
    wire = bench().wire
    assert (wire.ratio("boundary", 2), wire.ratio("gradient", 4)) == (16.0, 32.0)
    assert wire.bytes_per_token == {"boundary": 32.0, "gradient": 32.0, "upload": 1.5}


def test_a_large_model_keeps_the_promise_of_128x() -> None:
    """4. D/K alone would allow K = 32; the header and the scales cost the last value."""
    large = widest(2048, 128, (1, 800), 64)
    assert large.width == 31 and 2048 // 32 == 64
    assert 128 <= large.ratio_vs_bf16 < 132


@given(
    st.integers(64, 4096),
    st.sampled_from([8, 16, 64, 128]),
    st.tuples(st.integers(1, 8), st.integers(64, 1024)),
    st.sampled_from([1, 16, 64]),
)
def test_the_widest_boundary_is_the_widest(d_model: int, ratio: int, shape: tuple[int, int], group: int) -> None:
    """5. One value more would break the promise, whatever the model and the framing."""
    try:
        found = widest(d_model, ratio, shape, group)
    except ValueError:
        return
    assert found.ratio_vs_bf16 >= ratio
    one_more = found.bytes_per_token + 1
    assert found.width == d_model or 2 * d_model / one_more < ratio


# ---- the table -------------------------------------------------------------------------------------------------------


def test_targets_are_judged_in_a_whole_run_only() -> None:
    """6. A quick run trains too little to miss or meet a loss; its memory is judged all the same."""
    whole, quick = rows(bench()), rows(bench(quick=True))
    for name in ("swarm ÷ one process", "swarm below unigram", "epochs", "launch to report"):
        assert row(whole, name).met is True and row(quick, name).met is None
    for name in ("memory of the orchestrator", "orchestrator imports torch", "bytes a token at K = 31"):
        assert row(whole, name).met is row(quick, name).met is True


def test_a_missed_target_is_said_aloud() -> None:
    """7. 5.2 against 4.8 is not within 5 %: nobody has to do the sum."""
    table = rows(bench(swarm_loss=5.2))
    assert [one.met for one in table if one.name == "swarm ÷ reference"] == [False]
    line = next(line for line in text_table(table).splitlines() if line.startswith("  swarm ÷ reference  "))
    assert line.split() == ["swarm", "÷", "reference", "1.083", "≤", "1.05", "MISSED"]
    assert "| swarm ÷ reference | 1.083 | ≤ 1.05 | MISSED |" in markdown_table(bench(), table)


def test_a_false_accusation_and_dear_audits_are_missed_targets() -> None:
    """8. One honest miner failed an audit, or replays took 6 % of the training's time: both are said aloud."""
    assert row(rows(bench()), "audits of honest miners").met is row(rows(bench()), "audits: seconds").met is True
    assert row(rows(bench(failed=1)), "audits of honest miners").met is False
    assert row(rows(bench(cost=0.06)), "audits: seconds").met is False
    assert [one.met for one in rows(bench()) if "verified work" in one.name] == [True, True]


def test_columns_stand_below_each_other() -> None:
    """8. Values end in one column, sections are headed once."""
    table = rows(bench())
    lines = text_table(table).splitlines()
    edges = {line.index(one.shown) + len(one.shown) for one in table for line in lines
             if line.startswith(f"  {one.name}  ")}  # fmt: skip
    assert len(edges) == 1
    sections = list(dict.fromkeys(one.section for one in table))
    assert [line for line in lines if line and not line.startswith(" ")] == sections


def test_the_file_gives_the_table_again() -> None:
    """9. bench.json from another day is read, and says what its run said."""
    made = bench()
    made = msgspec.structs.replace(made, table=rows(made))
    again = msgspec.json.decode(msgspec.json.encode(made), type=Bench)
    assert again == made and rows(again) == made.table


# ---- the README ------------------------------------------------------------------------------------------------------


def test_the_readme_is_changed_between_its_marks_only() -> None:
    """10. Numbers are filled in again and again; the text around them is nobody's business."""
    readme = f"before\n{BEGIN}\nold numbers\n{END}\nafter\n"
    once = fill(readme, "new numbers")
    assert once == f"before\n{BEGIN}\nnew numbers\n{END}\nafter\n" == fill(once, "new numbers")


@pytest.mark.parametrize(
    "readme", ["", f"{BEGIN}", f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"], ids=["none", "one", "turned", "twice"]
)
def test_a_readme_without_its_marks_is_left_alone(readme: str) -> None:
    """11. Somebody deleted a mark: one line says which, and nothing is guessed."""
    with pytest.raises(ConfigError, match="--readme"):
        fill(readme, "numbers")


def test_numbers_come_from_a_file_that_fits(tmp_path: Path) -> None:
    """12. No bench.json, one of another version, a good one."""
    figures, readme = tmp_path / "bench.json", tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="run the bench first"):
        fill_readme(figures, readme)
    figures.write_text('{"measured_at": "2020"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="run the bench again"):
        fill_readme(figures, readme)
    figures.write_bytes(msgspec.json.encode(bench()))
    fill_readme(figures, readme)
    filled = readme.read_text(encoding="utf-8")
    assert "Measured 2025-01-02 with `make bench` in 10 minutes on 2 cores of a processor" in filled
    assert "| **Bytes a trained token" in filled


def test_the_command_line_of_the_bench() -> None:
    """13. Options as they are written in the README."""
    asked = config.parse(BenchConfig, ["--quick", "--out", "x.json"], "bench")
    assert (asked.quick, asked.out, asked.readme) == (True, "x.json", False)
