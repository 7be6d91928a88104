"""Who plays what in a local run, and what a slower machine is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies

from subnet.adversaries.names import Name
from subnet.config import LocalnetConfig
from subnet.errors import ConfigError, PeerFault
from subnet.localnet.cast import Part, cast, introductions
from subnet.localnet.plan import open_plan, parts
from subnet.runtime import SlowedRuntime

FREELOADER, SKIPPER = Name.FREELOADER.value, Name.UPDATE_SKIPPER.value


def test_nobody_is_special_by_default() -> None:
    """1. The quickstart: six honest miners, all alike, with no flags beside everybody's."""
    played = parts(LocalnetConfig())
    assert list(played) == [f"miner-{number}" for number in range(6)]
    assert set(played.values()) == {Part()} and introductions(played) == [] and Part().flags == []


def test_the_last_miners_cheat() -> None:
    """2. Two cheats of one kind and one of another among six: the last three, in the order given; each is named."""
    played = parts(LocalnetConfig(adversary=f"{FREELOADER}=2,{SKIPPER}=1"))
    assert [part.adversary for part in played.values()] == ["", "", "", FREELOADER, FREELOADER, SKIPPER]
    assert introductions(played)[0] == f"miner-3 cheats: {FREELOADER}" and len(introductions(played)) == 3
    assert played["miner-5"].flags == ["--adversary", SKIPPER]


def test_speeds_come_in_turn() -> None:
    """3. --speeds 1,1,2,4 over six miners, a late seventh among them: the fastest runs at full speed, the slowest
    computes four times slower. Whoever joins late is honest, whatever the last miners do."""
    settings = LocalnetConfig(speeds="1,1,2,4", adversary=f"{FREELOADER}=1", join_after_s=30)
    played = parts(settings)
    assert [part.slow_factor for part in played.values()] == [4, 4, 2, 1, 4, 4, 2]
    assert played["miner-5"] == Part(4, FREELOADER) and played["miner-6"] == Part(2)
    assert played["miner-5"].flags == ["--slow-factor", "4", "--adversary", FREELOADER]
    assert introductions(played)[-2] == f"miner-5 computes 4 times slower than the fastest and cheats: {FREELOADER}"


@pytest.mark.parametrize(
    ("given_settings", "line"),
    [
        ({"speeds": "1,fast"}, "--speeds: '1,fast' is no list of speeds; write positive numbers such as 1,1,2,4"),
        ({"speeds": "1,0"}, "--speeds: '1,0' is no list of speeds; write positive numbers such as 1,1,2,4"),
        ({"speeds": "1,nan"}, "--speeds: '1,nan' is no list of speeds; write positive numbers such as 1,1,2,4"),
        ({"speeds": "1,5000"}, "--speeds: '1,5000' spans more than 1000 to 1; bring the speeds closer together"),
        ({"adversary": "liar=1"}, f"--adversary: 'liar' is not known; choose one of {', '.join(Name)}"),
        (
            {"adversary": FREELOADER},
            f"--adversary: '{FREELOADER}' has no count; write {FREELOADER}=1, or more than one",
        ),
        (
            {"adversary": f"{FREELOADER}=0"},
            f"--adversary: '{FREELOADER}=0' has no count; write {FREELOADER}=1, or more than one",
        ),
        (
            {"adversary": f"{FREELOADER}=7"},
            "--adversary: 7 adversaries among 6 miners; give at least 7 --miners, or lower a COUNT",
        ),
    ],
    ids=["no-number", "zero", "nan", "too-far", "nobody", "no-count", "none", "too-many"],
)
def test_a_mistake_is_found_before_anything_starts(given_settings: dict[str, str], line: str, tmp_path: Path) -> None:
    """4. Mistyped: one line with flag and remedy, and no run folder is left behind."""
    folder = tmp_path / "run"
    with pytest.raises(ConfigError) as caught:
        with open_plan({**given_settings, "run_dir": str(folder), "report": str(tmp_path / "r.json")}, 0.0):
            pass
    assert str(caught.value) == line and not folder.exists()


@given(speeds=strategies.text(max_size=12), adversary=strategies.text(max_size=12))
def test_no_text_makes_a_traceback(speeds: str, adversary: str) -> None:
    """5. Fuzz: any text gives a cast of the right size or a ConfigError."""
    try:
        assert len(cast(LocalnetConfig(speeds=speeds, adversary=adversary))) == 6
    except ConfigError as error:
        assert error.field in ("--speeds", "--adversary")


class Clocked(SlowedRuntime):
    """Work takes three seconds on a clock of the test's own."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor)
        self.seconds, self.slept = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        self.seconds += duration_s


@pytest.mark.parametrize(("factor", "waited_s"), [(1.0, 0.0), (2.0, 3.0), (4.0, 9.0)])
async def test_slow_hardware_takes_its_time(factor: float, waited_s: float) -> None:
    """6. A miner four times slower is busy for twelve seconds with what takes three, and idle on the CPU for nine."""
    runtime = Clocked(factor)

    def work() -> str:
        runtime.seconds += 3.0
        return "done"

    assert await runtime.run_blocking(work) == "done"
    assert runtime.slept == [waited_s] and runtime.seconds == 3.0 * factor


async def test_a_failure_on_slow_hardware_comes_through() -> None:
    """7. A computation that finds a bad input says so, as on any machine, and the next one runs."""
    runtime = Clocked(4.0)

    def broken() -> None:
        raise PeerFault("not-finite", "a loss of NaN")

    with pytest.raises(PeerFault):
        await runtime.run_blocking(broken)
    assert await runtime.run_blocking(lambda: 1) == 1
