"""What may be asked of `python -m subnet.simulation`. Law: checked here, before anything runs."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from subnet.config import Config
from subnet.errors import ConfigError


def _about(sentence: str, **limits: Any) -> Meta:
    extra: dict[str, Any] = {name: limits.pop(name) for name in ("metavar", "repeatable") if name in limits}
    return Meta(description=sentence, extra=extra, **limits)


CROWD_SEED = 7


class SimulationConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.simulation`: a crowd of miners in virtual time, or many small worlds (--seeds)."""

    miners: Annotated[int, _about("miners of the crowd", ge=1, le=100_000)] = 200
    stages: Annotated[int, _about("stages the model is cut into", ge=1, le=64)] = 4
    hours: Annotated[float, _about("virtual hours to simulate", gt=0, le=10_000)] = 2.0
    seed: Annotated[int, _about("seed of everything that is drawn in the crowd", ge=0, le=2**31)] = CROWD_SEED
    faults: Annotated[
        str,
        _about(
            "faults to inject: kill=500,pause=200 by name and count, or mixed=2000; with --seeds names alone, "
            "default: all",
            metavar="LIST",
            repeatable=True,
        ),
    ] = ""
    adversary: Annotated[
        str,
        _about("COUNT miners cheat in the way of that name; may be repeated", metavar="NAME=COUNT", repeatable=True),
    ] = ""
    audit_rate: Annotated[
        float, _about("share of the settled miners' epochs to audit, 0 to 1", ge=0, le=1, metavar="SHARE")
    ] = 0.01
    check_every_s: Annotated[float, _about("virtual time between two looks at every promise", gt=0)] = 1800.0
    report: Annotated[str, _about("where the JSON report goes; default: nowhere", metavar="PATH")] = ""
    seeds: Annotated[int, _about("run so many small worlds instead of a crowd; 0: a crowd", ge=0)] = 0
    first_seed: Annotated[int, _about("seed of the first small world", ge=0)] = 0
    processes: Annotated[int, _about("processes that share the small worlds", ge=1, le=256)] = 1
    table: Annotated[bool, _about("measure the table of faults, --seeds worlds a line (default: 20)")] = False
    readme: Annotated[bool, _about("with --table: put it into README.md")] = False

    def __post_init__(self) -> None:
        if self.seeds and self.seed != CROWD_SEED:
            raise ConfigError(
                "--seed", "it is of a crowd, and --seeds runs small worlds", "name the first one with --first-seed"
            )
        if not self.seeds and self.miners < self.stages:
            raise ConfigError(
                "--miners",
                f"{self.miners} cannot fill {self.stages} stages",
                f"give at least {self.stages}, or fewer --stages",
            )
