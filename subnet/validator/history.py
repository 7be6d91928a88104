"""What changed in the course of a run, as its journal tells it: who held which uid, permits, and the rules.

Law: pure, fed with every record in order; nothing is computed that the records do not say. Of rules that change often
only the latest changes are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from subnet.coordination.members import notice
from subnet.protocol import tuning
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import ChainSeen, Envelope, Notice, RunOpened, Tuned
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import RunSpec
from subnet.validator.holders import Change, Holders

CHANGES_KEPT = 8
PAY_RULES = frozenset(
    (
        "tempo",
        "immunity_period",
        "weights_rate_limit",
        "commit_reveal_weights_enabled",
        "commit_reveal_period",
        "max_allowed_uids",
        "max_validators",
        "max_weights_limit",
        "min_allowed_weights",
        "activity_cutoff",
        "activity_cutoff_factor",
        "kappa",
        "rho",
        "bonds_moving_avg",
        "bonds_penalty",
        "liquid_alpha_enabled",
        "alpha_high",
        "alpha_low",
        "yuma_version",
        "owner_cut_enabled",
        "subnet_emission_enabled",
    )
)
"""On-chain hyperparameters that say who is paid, how much and when, by btcli's names."""


class Permit(NamedTuple):
    """The latest news of a hotkey's validator permit."""

    block: int
    held: bool


class History:
    def __init__(self) -> None:
        self.holders = Holders()
        self.permits: dict[Hotkey, Permit] = {}
        """Of everybody who ever had one."""
        self.tuned: deque[str] = deque(maxlen=CHANGES_KEPT)
        """The owner's changes of the RunSpec, in words."""
        self.on_chain: deque[str] = deque(maxlen=CHANGES_KEPT)
        """The owner's changes of hyperparameters that pay depends on, in words."""
        self._spec: RunSpec | None = None
        self._rules: dict[str, float | int | bool] = {}

    def note(self, index: int, envelope: Envelope) -> None:
        match envelope.message:
            case RunOpened(spec=spec):
                self._spec = spec
            case Tuned(spec=spec):
                changes = "nothing" if self._spec is None else ", ".join(tuning.differences(self._spec, spec))
                self.tuned.append(f"RunSpec {spec.version} (record {index}): {changes or 'nothing'}")
                self._spec = spec
            case ChainSeen() as seen:
                self.holders.note(index, seen)
                self._note_permits(seen)
                self._note_rules(seen)
            case _:
                pass

    def _note_permits(self, seen: ChainSeen) -> None:
        now = {neuron.hotkey for neuron in seen.neurons if neuron.permit}
        for hotkey in {*now, *self.permits}:
            before = self.permits.get(hotkey)
            if before is None or before.held != (hotkey in now):
                self.permits[hotkey] = Permit(seen.block, hotkey in now)

    def _note_rules(self, seen: ChainSeen) -> None:
        now = {"tempo": seen.tempo, **seen.hyperparameters}
        rules = {name: value for name, value in now.items() if name in PAY_RULES}
        moved = [
            f"{name} {self._rules[name]:g} → {value:g}"
            for name, value in sorted(rules.items())
            if self._rules.get(name, value) != value
        ]
        if moved:
            self.on_chain.append(f"block {seen.block}: {', '.join(moved)}")
        self._rules |= rules

    # ---- one hotkey --------------------------------------------------------------------------------------------------

    def lost_uid(self, hotkey: Hotkey, uids: Mapping[Hotkey, int]) -> Notice | None:
        """Why a hotkey that had a uid has none now."""
        ended = [(uid, until) for uid, (_, until) in self.holders.uids_of(hotkey).items() if until is not None]
        if hotkey in uids or not ended:
            return None
        uid, until = max(ended, key=lambda end: end[1].record)
        return notice(Reason.DEREGISTERED, f"uid {uid} was its own until block {until.block}; {_went(until)}")

    def uid_words(self, hotkey: Hotkey, uids: Mapping[Hotkey, int], names: Mapping[str, str]) -> Iterator[str]:
        """Whose the hotkey's uid was before, and which ones it had itself."""
        uid = uids.get(hotkey)
        changes = () if uid is None else self.holders.changes(uid)
        for before, after in zip(changes, changes[1:], strict=False):
            if after.hotkey == hotkey and before.hotkey not in (None, hotkey):
                who = names.get(before.hotkey or "", before.hotkey)
                yield f"uid {uid} was {who}'s until block {after.block}, whose scores pay nothing here."
        for other, (_, until) in sorted(self.holders.uids_of(hotkey).items()):
            if other != uid and until is not None:
                yield f"It had uid {other} until block {until.block}; {_went(until)}."

    def lost_permit(self, hotkey: Hotkey) -> Notice | None:
        """Why a hotkey that validated may not any more."""
        permit = self.permits.get(hotkey)
        if permit is None or permit.held:
            return None
        said = f"it had a validator permit until block {permit.block}; others have more stake now"
        return notice(Reason.NO_PERMIT, said)


def _went(until: Change) -> str:
    return "nobody has it now" if until.hotkey is None else f"it is {until.hotkey}'s now, registered anew or swapped to"
