"""What the subnet's owner changed while a run goes on, in words: the run's rules, and on-chain hyperparameters.

Law: a pure function of what was seen so far. It is rare and concerns everybody, so a terminal gets it as lines above
the live page too. The first reading is no news; a reading that is missing changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from subnet.chain.base import Subnet
from subnet.localnet.public_status import Status

Value = float | int | bool


class OwnerNews:
    """Of one run."""

    def __init__(self) -> None:
        self._versions: dict[int, int] = {}
        """Of the RunSpec, by stage."""
        self._hyperparameters: Mapping[str, Value] = {}

    def lines(self, status: Status, subnet: Subnet | None) -> list[str]:
        """What is new."""
        return [*self._rules(status), *(self._chain(subnet.hyperparameters) if subnet is not None else ())]

    def _rules(self, status: Status) -> Iterator[str]:
        for stage in status.stages:
            # a run that is continued begins with what it had; the first version of a new one is no news
            if stage.spec_version != self._versions.get(stage.stage, stage.spec_version):
                yield f"RunSpec {stage.spec_version} holds in stage {stage.stage} from epoch {stage.epoch} on"
            self._versions[stage.stage] = stage.spec_version

    def _chain(self, now: Mapping[str, Value]) -> Iterator[str]:
        before, self._hyperparameters = self._hyperparameters, now
        for name in sorted(before.keys() & now.keys()):
            if before[name] != now[name]:
                yield f"on chain: {name} {before[name]} → {now[name]}"
