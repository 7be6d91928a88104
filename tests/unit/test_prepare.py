"""A run that an owner prepares: what lies in its folder, what is printed, and what an operator can get wrong."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from subnet import prepare
from subnet.localnet.folder import TextFacts
from subnet.protocol import keys
from subnet.protocol.messages import RunOpened

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["--stages", "2", "--miners", "4", "--epochs", "5", "--micro-batch-size", "2", "--seq-len", "16", "--seed", "3"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(
        "".join(f"{number} In the beginning God created the heaven and the earth.\n" for number in range(400))
    )
    return path


def flags(tmp_path: Path, text: Path, *more: str, run: str = "run") -> list[str]:
    folders = ["--run-dir", str(tmp_path / run), "--text", str(text), "--cache-dir", str(tmp_path / "cache")]
    return [*folders, *SIZES, *more]


def opened(tmp_path: Path, run: str = "run") -> RunOpened:
    return msgspec.json.decode((tmp_path / run / "opening.json").read_bytes(), type=RunOpened)


def test_a_run_ready_to_be_hosted(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1. The owner prepares a run: every object that the opening names lies in the folder with its digest, nobody is
    named as evaluator (the chain's permits decide), no wallet is made, and the next command is printed."""
    assert prepare.main(flags(tmp_path, text, "--audit-rate", "0.5")) == 0
    opening, folder = opened(tmp_path), tmp_path / "run"
    spec = opening.spec
    assert (opening.target_epochs, opening.evaluators, spec.num_stages, spec.seed) == (5, (), 2, 3)
    assert (spec.audit.rate, spec.data.micro_batch_size, spec.data.seq_len) == (0.5, 2, 16)
    files = [spec.data.tokenizer, *spec.data.train, *spec.data.validation]
    sources = [source for start in opening.starts for source in (start.parameters, start.momentum)]
    for named in (*files, *sources):
        run, epoch, stage, item, kind = keys.parse(named.key)
        data = (folder / "objects" / run / str(epoch) / str(stage) / f"{item}.{kind.value}").read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (named.digest, named.size_bytes)
    facts = msgspec.json.decode((folder / "prepared.json").read_bytes(), type=TextFacts)
    assert (facts.name, facts.vocab_size) == ("text.txt", spec.model.vocab_size)
    assert sorted(path.name for path in folder.iterdir()) == ["objects", "opening.json", "prepared.json"]
    said = capsys.readouterr().out
    assert spec.run_id in said and spec.digest() in said
    assert f"--host-orchestrator --run-dir {folder} " in said


def test_two_runs_of_one_order_differ_in_their_name_alone(tmp_path: Path, text: Path) -> None:
    """2. The same order twice: equal parameters, equal rules, another run id: nothing replays from one to the other."""
    for run in ("one", "two"):
        prepare.main(flags(tmp_path, text, run=run))
    one, two = opened(tmp_path, "one"), opened(tmp_path, "two")
    assert one.spec.run_id != two.spec.run_id
    assert [s.parameters.digest for s in one.starts] == [s.parameters.digest for s in two.starts]
    assert msgspec.structs.replace(one.spec, run_id=two.spec.run_id, data=two.spec.data) == two.spec


@pytest.mark.parametrize(
    ("flag", "more"),
    [
        ("--miners", ["--miners", "1"]),
        ("--preset", ["--preset", "gigantic"]),
        ("--stages", ["--stages", "9", "--miners", "9"]),
        ("--text", ["--text", "nowhere.txt"]),
        ("--epochs", ["--epochs", "0"]),
        ("--run-dir", ["--run-dir", "{file}/below"]),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], flag: str, more: list[str]
) -> None:
    """3. What cannot be is told in one line, and no run lies there afterwards."""
    with pytest.raises(SystemExit) as exit_:
        prepare.main([*flags(tmp_path, text), *(part.replace("{file}", str(text)) for part in more)])
    (line,) = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2 and line.startswith(f"error: {flag}: ")
    assert not (tmp_path / "run" / "opening.json").exists()


def test_a_folder_holds_one_run(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4. A prepared run is never written over."""
    prepare.main(flags(tmp_path, text))
    before = opened(tmp_path)
    with pytest.raises(SystemExit):
        prepare.main(flags(tmp_path, text))
    assert "already holds a run" in capsys.readouterr().err and opened(tmp_path) == before


def test_preparing_needs_no_torch() -> None:
    """5. An owner's small server prepares and hosts: neither process loads torch."""
    code = "import sys, subnet.prepare; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr or "torch was loaded"
