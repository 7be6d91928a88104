"""Calibration measures what it says: honest swarms are honest, other arithmetic is other arithmetic, cheats are cheats.

Small swarms of an eight-token micro-batch; the real measurement is `python -m subnet.calibrate`.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subnet import calibrate, config
from subnet.errors import ConfigError
from subnet.protocol.ids import Pass, Values
from subnet.protocol.messages import AuditFigures
from subnet.protocol.run_spec import ModelSpec, Tolerances
from subnet.scoring.audit import judge
from subnet.simulation import calibration, calibration_cheats, calibration_figures, calibration_table
from subnet.simulation import calibration_arithmetic as arithmetic
from subnet.simulation.calibration_figures import Audit
from subnet.simulation.calibration_runs import HonestSwarm, Recorded
from subnet.simulation.calibration_specs import SIZES, Size, Wire, make_spec, tokens_of

MODEL = ModelSpec(vocab_size=300, d_model=16, num_layers=3, num_heads=2, num_kv_heads=1, d_ff=32)
SMALL = Size(20_000, (1, 8), MODEL, 4, 2, 9, 2, 2)
THREADS, OTHERS = arithmetic.honest()
PLAIN = THREADS[0]


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return tokens_of(SMALL)


def swarm_of(tokens: np.ndarray, boundary: Values, upload: Values, seed: int = 7) -> HonestSwarm:
    wire = Wire(boundary, upload)
    return HonestSwarm(make_spec(SMALL, wire, seed, reset_each_epoch=seed % 2 == 0), tokens, SMALL, wire)


def recorded_of(tokens: np.ndarray, boundary: Values, upload: Values, seed: int = 7) -> list[Recorded]:
    swarm = swarm_of(tokens, boundary, upload, seed)
    with PLAIN.applied():
        found = [one for batch in swarm.records() for one in batch]
    assert swarm.problems == []
    return found


def is_perfect(figures: AuditFigures | None) -> bool:
    return figures is not None and not any(
        calibration_figures.off(figures, name) for name in calibration_figures.FIGURES
    )


# ---- honest swarms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("boundary", "upload"), list(product(Values, (Values.INT8, Values.FP32))))
def test_the_same_machine_finds_no_difference(tokens: np.ndarray, boundary: Values, upload: Values) -> None:
    """1. A miner audits itself: every figure of every segment is perfect, whatever happened to it in its epoch."""
    found = recorded_of(tokens, boundary, upload)
    figures = [calibration.measured(one, one.segment, PLAIN)[0] for one in found]
    assert len(found) > 30 and all(is_perfect(one) for one in figures)
    assert sum(one.outputs for one in figures if one) > 50


def test_everything_that_happens_to_honest_miners_happens(tokens: np.ndarray) -> None:
    """2. A calibration on easy segments would calibrate nothing: there are fresh loads, merges in the middle of a
    segment, uploads made twice, work taken over, gradients that meet newer parameters."""
    found = [one for seed in (7, 8) for one in recorded_of(tokens, Values.INT8, Values.INT8, seed)]
    starts = {one.span.split(" to ")[0] for one in found}
    assert starts == {"loaded", "merge", "commitment"} and {one.place for one in found} == {"first", "middle", "last"}
    assert any(one.segment.applies_after for one in found), "passes between upload and merge"
    taken_over = older = 0
    for one in found:
        forwards = {each.micro_batch for each in one.segment.passes if each.kind is Pass.FORWARD}
        backwards = [each for each in one.segment.passes if each.kind is Pass.BACKWARD]
        present = one.segment.start_version
        older += any(each.version < present for each in backwards)
        taken_over += any(each.micro_batch not in forwards for each in backwards)
    assert taken_over and older
    swarm = swarm_of(tokens, Values.INT8, Values.INT8)
    list(swarm.records())
    half = len(swarm.losses) // 2
    assert np.mean(swarm.losses[half:]) < np.mean(swarm.losses[:half]), "it learns"


def test_the_same_seed_gives_the_same_swarm(tokens: np.ndarray) -> None:
    """3. Somebody reports a false accusation with its seed; it can be looked at."""
    one, other = (recorded_of(tokens, Values.BF16, Values.INT8) for _ in range(2))
    assert [r.segment.passes for r in one] == [r.segment.passes for r in other]


# ---- other machines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", OTHERS, ids=lambda setting: setting.name)
def test_other_arithmetic_differs_and_is_not_accused(tokens: np.ndarray, setting: arithmetic.Setting) -> None:
    """4. An audit on other hardware: something differs in the last bits, and nobody is accused for it."""
    found = calibration_cheats.pick(recorded_of(tokens, Values.FP32, Values.FP32), 6)
    figures = [calibration.measured(one, one.segment, setting)[0] for one in found]
    assert not all(is_perfect(one) for one in figures), "it is the same arithmetic"
    assert all(one is not None and one.relative_l2 < 1e-4 and one.state < 1e-2 for one in figures)
    assert all(judge(one, Tolerances(), Values.FP32)[0] for one in figures if one)


@pytest.mark.parametrize("setting", [*THREADS, *OTHERS, *arithmetic.CHEAPER], ids=lambda setting: setting.name)
def test_a_setting_ends_with_its_block(setting: arithmetic.Setting) -> None:
    """5. An audit raises in the middle; the next one does not inherit its arithmetic."""
    a_22, before = torch.full((2, 2), 1.0 + 2.0**-20), (torch.get_num_threads(), torch.get_default_dtype())
    product_22 = a_22 @ a_22
    with pytest.raises(ZeroDivisionError), setting.applied():
        assert torch.get_num_threads() == setting.threads
        raise ZeroDivisionError
    assert (torch.get_num_threads(), torch.get_default_dtype()) == before and torch.equal(a_22 @ a_22, product_22)


def test_rounded_factors_are_rounded() -> None:
    """6. What stands for TF32 keeps ten bits after the leading one, what stands for bf16 seven."""
    for setting, kept, lost in zip(arithmetic.CHEAPER, (2.0**-10, 2.0**-7), (2.0**-12, 2.0**-9), strict=True):
        with setting.applied():
            found = [float(torch.tensor([[1.0 + x]]) @ torch.ones(1, 1)) for x in (kept, lost)]
        assert found == [1.0 + kept, 1.0]


# ---- cheats ----------------------------------------------------------------------------------------------------------


def test_a_forger_that_changes_nothing_forges_nothing(tokens: np.ndarray) -> None:
    """7. What the forger computes besides its cheat is what the miner computed: the cheat alone is detected."""
    forge = calibration_cheats.Cheat("none", "", calibration_cheats.trained()).forge
    for one in recorded_of(tokens, Values.INT8, Values.INT8)[::5]:
        forged = forge(one, np.random.default_rng(0))
        if forged is not None:
            assert is_perfect(calibration.measured(one, forged, PLAIN)[0])


def test_each_large_cheat_is_caught_and_no_small_one_is_perfect(tokens: np.ndarray) -> None:
    """8. The largest amount of every cheat is caught on every segment that holds it; the smallest changes something."""
    found = calibration_cheats.pick(recorded_of(tokens, Values.FP32, Values.FP32), 6)
    ways: dict[str, list[calibration_cheats.Cheat]] = {}
    for cheat in calibration_cheats.catalogue():
        ways.setdefault(cheat.name, []).append(cheat)
    for name, cheats in ways.items():
        forged = [
            (one, cheat.forge(one, np.random.default_rng(1))) for cheat in (cheats[0], cheats[-1]) for one in found
        ]
        figures = [calibration.measured(one, segment, PLAIN)[0] for one, segment in forged if segment is not None]
        assert figures and not any(is_perfect(one) for one in figures), name
        if name != "products of rounded factors":
            large = figures[len(figures) // 2 :]
            assert not any(judge(one, Tolerances(), Values.FP32)[0] for one in large if one), name


# ---- figures ---------------------------------------------------------------------------------------------------------

off_by = st.floats(0, 1e-2)
made_figures = st.builds(
    AuditFigures,
    outputs=st.just(3),
    quantiser_steps=st.floats(0, 3),
    cosine_min=off_by.map(lambda x: 1 - x),
    cosine_p01=off_by.map(lambda x: 1 - x),
    relative_l2=off_by,
    loss=off_by,
    state=off_by,
)
made_audits = st.builds(
    Audit,
    values=st.sampled_from(Values),
    miner=st.sampled_from(["threads 1", "threads 2"]),
    auditor=st.sampled_from(["threads 1", "float64"]),
    place=st.sampled_from(["first", "last"]),
    span=st.just("loaded to commitment"),
    figures=made_figures | st.just(AuditFigures(outputs=3)),
    accusation=st.sampled_from(["", "outside"]),
)


@given(st.lists(made_audits, min_size=1), st.floats(1, 100))
def test_recommended_tolerances_pass_what_was_honest(audits: list[Audit], safety: float) -> None:
    """9. An operator takes the recommended tolerances over; what was measured honest passes them."""
    tolerances = calibration_figures.recommended(audits, safety)
    for audit in audits:
        assert audit.figures is not None
        passed, said = judge(audit.figures, tolerances, audit.values)
        assert passed, said


def test_recommended_tolerances_by_hand() -> None:
    """10. A state distance of 1.9e-3 with a factor of ten gives 0.02; a step and a bit gives a step and a quarter."""
    figures = AuditFigures(outputs=1, quantiser_steps=1.0079, state=1.9e-3)
    audit = Audit(Values.INT8, "a", "b", "last", "x to y", figures, "")
    found = calibration_figures.recommended([audit], 10)
    assert (found.state, found.quantiser_steps, found.cosine_min) == (0.02, 1.25, 0.9999)


@given(st.lists(made_audits, min_size=1))
def test_no_audit_is_lost_on_the_way_to_the_table(audits: list[Audit]) -> None:
    """11. Rows and joined rows hold every audit and every accusation once, and the worst of all figures."""
    rows = calibration_figures.rows(audits, Tolerances(), "values", "miner", "auditor", "place")
    worst = max(row.worst.get("state", 0.0) for row in rows)
    for found in (rows, calibration_figures.joined(rows, lambda row: row.group[:1])):
        assert sum(row.segments for row in found) == len(audits)
        assert sum(row.accused for row in found) == sum(bool(audit.accusation) for audit in audits)
        assert max(row.worst.get("state", 0.0) for row in found) == worst


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """12. An owner calibrates: the last line counts segments and false accusations, both files can be read again."""
    monkeypatch.setitem(SIZES, "tiny", SMALL)
    monkeypatch.setattr(calibrate, "AUDITS_PER_CHEAT", 1)
    monkeypatch.setattr(arithmetic, "THREADS", (1,))  # more are slow where others compute
    report_file, tolerances_file = tmp_path / "r.json", tmp_path / "t.json"
    done = calibrate.main(["--segments", "1", "--report", str(report_file), "--write", str(tolerances_file)])
    last_line = capsys.readouterr().out.splitlines()[-1]
    report = msgspec.json.decode(report_file.read_bytes(), type=calibration.Report)
    assert done == 0 and last_line.startswith(f"{report.segments} honest segments, 0 false accusations")
    assert report.segments >= 1 and report.audits == sum(row.segments for row in report.rows)
    assert msgspec.json.decode(tolerances_file.read_bytes(), type=Tolerances) == report.recommended


def test_a_false_accusation_is_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """13. Tolerances without any room accuse honest miners on other hardware; scripts see it without reading."""
    monkeypatch.setattr(arithmetic, "THREADS", (1,))
    found = calibration.honest(SMALL, 1, 7, Tolerances(state=0.0), lambda _: None)
    assert found.accusations and all("state distance" in said for said in found.accusations)
    report = calibration.Report(
        preset="tiny",
        seed=7,
        segments=found.segments,
        audits=len(found.audits),
        accusations=found.accusations,
        losses=found.losses,
        threads_change_sums=True,
        threads_change_products=False,
        rows=calibration_figures.rows(found.audits, Tolerances(), "values", "miner", "auditor", "place"),
        spreads=[],
        tolerances=Tolerances(),
        safety=10.0,
        recommended=Tolerances(),
        cheats=[],
        took_s=1.0,
    )
    monkeypatch.setattr(calibration, "measure", lambda *_, **__: report)
    assert calibrate.main([]) == 1
    shown = capsys.readouterr().out
    assert shown == calibration_table.text(report) and f"accused: {found.accusations[0]}" in shown


@pytest.mark.parametrize("flag", ["--report", "--write"])
def test_a_file_that_cannot_be_written_is_said_first(flag: str, tmp_path: Path) -> None:
    """14. A typo in a path costs a line, not the minutes of a measurement."""
    with pytest.raises(SystemExit) as ended:
        calibrate.main([flag, str(tmp_path / "missing" / "file.json")])
    assert ended.value.code == 2


def test_an_unknown_preset_is_an_operators_mistake() -> None:
    """15. The remedy names what there is."""
    with pytest.raises(ConfigError, match="choose one of tiny, laptop"):
        config.parse(calibrate.CalibrateConfig, ["--preset", "huge"], calibrate.PROGRAM)
