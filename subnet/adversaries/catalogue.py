"""Every adversary by its name: which parts of an honest miner it puts its own in the place of.

Law: an adversary is an ordinary miner with one or two parts exchanged; everything else about it (joining, transfers,
receipts, reveals) is the production code. So what catches it is a check of its work, never a difference of form.
"""

from __future__ import annotations

from typing import NamedTuple

from subnet.adversaries.freeloader import Freeloader
from subnet.adversaries.lazy_backward import LazyBackward
from subnet.adversaries.names import Name
from subnet.adversaries.poisoner import Poisoner
from subnet.adversaries.update_skipper import UpdateSkipper
from subnet.adversaries.wrong_merger import WrongMerger
from subnet.errors import ConfigError
from subnet.merging.shards import ShardReduction
from subnet.model.trainer import Trainer


class Adversary(NamedTuple):
    """What a miner is built with; the defaults are the honest parts."""

    trainer: type[Trainer] = Trainer
    reduction: type[ShardReduction] = ShardReduction


CATALOGUE: dict[str, Adversary] = {
    Name.FREELOADER: Adversary(trainer=Freeloader),
    Name.LAZY_BACKWARD: Adversary(trainer=LazyBackward),
    Name.WRONG_MERGER: Adversary(reduction=WrongMerger),
    Name.UPDATE_SKIPPER: Adversary(trainer=UpdateSkipper),
    Name.POISONER: Adversary(trainer=Poisoner),
}


def find(name: str) -> Adversary:
    """The adversary of that name; an empty one is an honest miner. Raises ConfigError."""
    if not name:
        return Adversary()
    if name not in CATALOGUE:
        raise ConfigError("--adversary", f"{name!r} is not known", f"choose one of {', '.join(Name)}")
    return CATALOGUE[name]
