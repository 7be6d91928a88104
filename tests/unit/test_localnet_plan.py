"""Opening and continuing a local run: what the owner's rules file must be, and what a run folder keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from subnet import config
from subnet.config import LocalnetConfig
from subnet.errors import ConfigError
from subnet.localnet.folder import RunFolder
from subnet.localnet.launcher import environment
from subnet.localnet.plan import Plan, bind, open_plan


def opened(folder: Path, **given: object) -> Plan:
    """As it was left when the launcher ended."""
    if "resume" not in given:
        given["run_dir"] = str(folder / "run")
    with open_plan({"report": str(folder / "r.json"), **given}, 0.0) as plan:
        return plan


def rules(folder: Path, text: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(text)
    return path


def test_the_owners_rules_go_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. --config rules.toml, named from the folder it lies in: the run keeps the whole path, for a --resume from
    anywhere; a --resume that names another file goes by that one."""
    path = rules(tmp_path, "[merge]\nquorum = 0.5\n")
    monkeypatch.chdir(tmp_path)
    plan = opened(tmp_path, config="rules.toml")
    assert plan.config.config == str(path)
    assert config.load(LocalnetConfig, plan.folder.settings).config == str(path)
    again = opened(tmp_path, resume=str(plan.folder.root))
    assert again.resumed and again.config.config == str(path)
    other = tmp_path / "other.toml"
    other.write_text("")
    assert opened(tmp_path, resume=str(plan.folder.root), config=str(other)).config.config == str(other)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[merge]\nquorum = 2\n", "merge.quorum"),
        ("[merge]\ncopies = 3\n", "merge.copies"),
        ("[audit]\nrate = 0\n", "audit.rate"),
        ("merge = [", "--config"),
    ],
    ids=["too-large", "fixed", "does-not-go-together", "no-toml"],
)
def test_a_mistake_in_the_rules_is_found_before_anything_starts(tmp_path: Path, text: str, field: str) -> None:
    """2. The line names the rule, and no run folder is left behind."""
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, config=str(rules(tmp_path, text)))
    assert caught.value.field == field and not (tmp_path / "run").exists()


def test_rules_are_held_against_the_runs_own_choices(tmp_path: Path) -> None:
    """3. --audit-rate 0 switches audits off for this run: a file that gives them a rate does not fit any more."""
    path = str(rules(tmp_path, "[audit]\nrate = 0.1\n"))
    assert opened(tmp_path, config=path).config.config == path
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path / "b", config=path, audit_rate=0.0)
    assert caught.value.field == "audit.rate"


def test_rules_that_are_not_there(tmp_path: Path) -> None:
    """4. The file name is mistyped."""
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, config=str(tmp_path / "rulez.toml"))
    assert caught.value.field == "--config" and "rulez.toml" in str(caught.value)


def test_a_port_is_taken_for_a_moment_only() -> None:
    """5. A free port is looked for twice in a row; one that somebody listens on is not given."""
    port = bind()
    assert bind(port) == port


def test_a_run_that_runs_is_left_alone(tmp_path: Path) -> None:
    """6. --resume of a local net in another terminal, while it trains: a line, and nothing of it is touched. Once the
    first one has ended, it may be continued."""
    with open_plan({"run_dir": str(tmp_path / "run"), "report": str(tmp_path / "r.json")}, 0.0) as plan:
        before = plan.folder.settings.read_bytes()
        with pytest.raises(ConfigError) as caught:
            opened(tmp_path, resume=str(plan.folder.root), epochs=99)
        assert str(caught.value) == f"--resume: {plan.folder.root} runs already; stop it first"
        assert plan.folder.settings.read_bytes() == before
    assert opened(tmp_path, resume=str(plan.folder.root), epochs=99).config.epochs == 99


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b'{"network": 1}'])
@pytest.mark.parametrize("name", ["opening", "participants", "registered", "subnet", "prepared"])
def test_a_broken_file_is_found_before_anything_starts(tmp_path: Path, name: str, content: bytes) -> None:
    """7. The disk was full, or somebody edited a file of the run folder: a line that names it."""
    root = opened(tmp_path).folder.root
    (root / f"{name}.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, resume=str(root))
    assert caught.value.field == "--resume" and f"{name}.json cannot be read" in caught.value.problem
    assert "\n" not in str(caught.value)


def test_where_the_local_net_is_no_proxy_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8. The operator's machine reaches the world by a proxy only, and has exceptions from it already."""
    monkeypatch.setenv("no_proxy", "intranet.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    given = environment(RunFolder(tmp_path))
    assert given["no_proxy"] == "intranet.example,127.0.0.1,localhost" and given["NO_PROXY"] == "127.0.0.1,localhost"
