"""Settings as operators meet them: flags, environment, and one line when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies

from subnet import config
from subnet.config import Config, LocalnetConfig, MinerConfig, OrchestratorConfig, ValidatorConfig
from subnet.errors import ConfigError

ALL = (LocalnetConfig, OrchestratorConfig, MinerConfig, config.ValidatorConfig)


def localnet(*flags: str) -> LocalnetConfig:
    return config.parse(LocalnetConfig, flags, "localnet")


def test_nothing_given_is_the_quickstart() -> None:
    """1. A newcomer types the command alone and gets six miners over three stages."""
    settings = localnet()
    assert (settings.miners, settings.stages, settings.epochs, settings.device) == (6, 3, 6, "cpu")


def test_durations_carry_their_unit() -> None:
    """2. An operator writes 20s, 1.5m or 500ms as people do; a bare number is seconds."""
    assert localnet("--kill-miner-every", "20s").kill_miner_every_s == 20.0
    assert localnet("--join-after", "1.5m").join_after_s == 90.0
    assert localnet("--restart-after", "500ms").restart_after_s == 0.5
    assert localnet("--restart-after", "7").restart_after_s == 7.0


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ("--miners", "2", "--stages", "3"),
            "--miners: 2 cannot fill 3 stages; give at least 3, or fewer --stages",
        ),
        (
            ("--miners", "many"),
            "--miners: 'many' does not fit; write a whole number from 1 to 256 (miner processes to start)",
        ),
        (("--device", "gpu"), "--device: 'gpu' does not fit; write the torch device: cpu, cuda, cuda:N or mps"),
        (
            ("--join-after", "soon"),
            "--join-after: 'soon' is no duration; write a number with a unit: 500ms, 20s, 5m or 1h",
        ),
        (
            ("--log-level", "LOUD"),
            "--log-level: 'LOUD' is not known; choose one of DEBUG, INFO, WARNING, ERROR",
        ),
        (
            ("--audit-rate", "5"),
            "--audit-rate: '5' does not fit; write a number from -1 to 1 "
            "(share of the settled miners' epochs to audit, 0 to 1; -1: the preset's)",
        ),
        (("--minors", "3"), "command line: unrecognized arguments: --minors 3; see --help"),
        (("--miners",), "--miners: expected one argument; see --help"),
    ],
    ids=["too-few", "no-number", "no-device", "no-duration", "no-choice", "no-share", "typo", "no-value"],
)
def test_a_mistake_is_one_line_with_field_and_remedy(flags: tuple[str, ...], line: str) -> None:
    """3. Whatever is mistyped, the operator reads which flag it was and what to write instead."""
    with pytest.raises(ConfigError) as caught:
        localnet(*flags)
    assert str(caught.value) == line


def test_a_missing_setting_names_its_variable() -> None:
    """4. A miner's operator forgot which subnet: the line says all ways to give it. With an orchestrator's address a
    miner needs none, a validator does; hosting needs a run, and is no way to find another orchestrator."""
    for kind in MinerConfig, ValidatorConfig:
        with pytest.raises(ConfigError, match=r"--netuid: is missing; give .*, or set BT_NETUID"):
            config.parse(kind, [], "neuron")
    address = ["--orchestrator", "http://127.0.0.1:8091"]
    assert config.parse(MinerConfig, address, "miner").netuid == -1
    with pytest.raises(ConfigError, match="--netuid"):
        config.parse(ValidatorConfig, address, "validator")
    with pytest.raises(ConfigError, match=r"--run-dir: is missing; prepare a run"):
        config.parse(ValidatorConfig, ["--netuid", "1", "--host-orchestrator"], "validator")
    with pytest.raises(ConfigError, match=r"--orchestrator: does not go together"):
        hosting = ["--netuid", "1", "--host-orchestrator", "--run-dir", "run"]
        config.parse(ValidatorConfig, [*hosting, *address], "validator")


def test_flag_beats_environment_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """5. The wallet is set for all of btcli by BT_WALLET; one run uses another one by flag."""
    address = ["--orchestrator", "http://127.0.0.1:8091"]
    assert config.parse(MinerConfig, address, "miner").wallet == "default"
    monkeypatch.setenv("BT_WALLET", "mine")
    assert config.parse(MinerConfig, address, "miner").wallet == "mine"
    assert config.parse(MinerConfig, [*address, "--wallet", "other"], "miner").wallet == "other"


def test_a_bad_variable_is_named_beside_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """6. A broken value in the environment is one line too, and says where to look for it. Beside the flag it is not
    even read."""
    monkeypatch.setenv("IOTA_LOG_LEVEL", "chatty")
    with pytest.raises(ConfigError, match=r"^--log-level \(IOTA_LOG_LEVEL\): 'chatty' is not known"):
        localnet()
    monkeypatch.setenv("BT_NETUID", "abc")
    with pytest.raises(ConfigError, match=r"^--netuid \(BT_NETUID\): 'abc' does not fit; write a whole number"):
        config.parse(MinerConfig, ["--log-level", "INFO"], "miner")
    assert config.parse(MinerConfig, ["--log-level", "INFO", "--netuid", "3"], "miner").netuid == 3


def test_secrets_stay_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """7. A log line prints the settings: the database's password is not among them."""
    monkeypatch.setenv("IOTA_JOURNAL_URL", "postgresql+asyncpg://iota:hunter2@db/iota")
    settings = config.parse(OrchestratorConfig, ["--run-dir", "r"], "orchestrator")
    assert settings.journal_url.endswith("@db/iota")
    assert "hunter2" not in repr(settings) and "journal_url=***" in repr(settings)
    assert "journal_url=''" in repr(OrchestratorConfig(run_dir="r"))


def test_a_saved_run_is_read_back(tmp_path: Path) -> None:
    """8. The launcher writes the settings, another process of the run reads the very same."""
    settings = localnet("--miners", "9", "--text", "ünïcode.txt", "--kill-miner-every", "20s")
    config.save(settings, tmp_path / "localnet.json")
    assert config.load(LocalnetConfig, tmp_path / "localnet.json") == settings
    (tmp_path / "localnet.json").write_text('{"miners": 9, "colour": "red"}')
    with pytest.raises(ConfigError, match=r"localnet\.json: .*colour.*; it was written by another version"):
        config.load(LocalnetConfig, tmp_path / "localnet.json")
    with pytest.raises(ConfigError, match="No such file"):
        config.load(LocalnetConfig, tmp_path / "elsewhere.json")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_field_explains_itself(kind: type[Config], capsys: pytest.CaptureFixture[str]) -> None:
    """9. --help says a sentence for every flag; a field without one cannot be added. What only a local net gives to
    its miners is not shown to operators."""
    with pytest.raises(SystemExit) as caught:
        config.parse(kind, ["--help"], "command")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, (_, meta, extra) in config.settings(kind).items():
        assert (config.flag(name) in shown) != extra.get("hidden", False)
        if extra.get("hidden"):
            continue
        assert meta.description and meta.description.split(";")[0].split("%")[0][:30] in shown


def test_an_operators_mistake_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """10. Scripts around the commands rely on the code, people on the line."""
    with pytest.raises(SystemExit) as caught, config.one_line_errors():
        localnet("--miners", "0")
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: --miners: ") and err.count("\n") == 1


@given(strategies.text(max_size=20), strategies.sampled_from(["--miners", "--device", "--join-after", "--log-level"]))
def test_no_value_makes_a_traceback(value: str, flag: str) -> None:
    """11. Fuzz: any text behind a flag gives settings or a ConfigError that names the flag."""
    try:
        localnet(f"{flag}={value}")
    except ConfigError as error:
        assert error.field in (flag, "--miners")


def test_a_repeated_flag_adds_up() -> None:
    """12. Two kinds of cheats, each behind its own flag or both behind one: none of them is dropped silently."""
    assert localnet("--adversary", "one=1", "--adversary", "other=2").adversary == "one=1,other=2"
    assert localnet("--adversary", "one=1,other=2").adversary == "one=1,other=2"


def test_cheats_stay_on_this_machine() -> None:
    """13. Somebody copies a miner's command line from a local net's log and points it at the real network."""

    def miner(url: str, *flags: str) -> MinerConfig:
        return config.parse(MinerConfig, ["--orchestrator", url, *flags], "miner")

    for url in ("http://127.0.0.1:8091", "http://localhost", "http://[::1]:1/"):
        assert miner(url, "--adversary", "one").adversary == "one"
    for url in ("https://iota.example:8091", "http://127.0.0.1.example", "http://127.0.0.1:80@iota.example"):
        assert miner(url).adversary == ""
        with pytest.raises(ConfigError, match="--adversary: is for local nets only, not for http"):
            miner(url, "--adversary", "one")


def test_hosting_on_a_chain_needs_the_subnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """14. The owner names the network alone: nobody guesses which subnet. Without a chain there is none to name."""
    monkeypatch.delenv("BT_NETUID", raising=False)
    monkeypatch.delenv("BT_NETWORK", raising=False)
    asked = ["--run-dir", "r"]
    assert config.parse(OrchestratorConfig, asked, "orchestrator").netuid == -1
    assert config.parse(OrchestratorConfig, [*asked, "--network", "test", "--netuid", "0"], "orchestrator").netuid == 0
    with pytest.raises(ConfigError, match="^--netuid: is missing; give the number of the subnet, or set BT_NETUID$"):
        config.parse(OrchestratorConfig, [*asked, "--network", "test"], "orchestrator")
