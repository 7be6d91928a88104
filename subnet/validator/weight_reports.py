"""The weights that validators say they gave the chain, beside those that follow from the records they name.

Law: a validator names the record after which it computed its weights, so they must be equal to the recomputed ones bit
by bit, but for the uids it left out; and a uid may be left out only if it changed hands, which a later look of the
orchestrator at the chain must show. The first difference is kept, in words. What was refused when it was said does not
count.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import NamedTuple

from subnet.coordination.machine import Decision
from subnet.coordination.settlement import sheet
from subnet.coordination.state import State
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.messages import ChainSeen, Envelope, Noted, WeightsSet
from subnet.validator.holders import Holders
from subnet.validator.weight_setter import payable

NEWEST_KEPT = 32
"""Settings kept of each validator, to compare with what the chain holds."""


class Claim(NamedTuple):
    """One report of a validator."""

    record: int
    """Index of the record that holds it."""
    validator: Hotkey
    said: WeightsSet


class WeightReports:
    """First fed with every record for the claims, then, in a second reading, with the states they follow from."""

    def __init__(self) -> None:
        self.count = 0
        self.validators: set[Hotkey] = set()
        self.difference: str | None = None
        self.holders = Holders()
        self.newest: defaultdict[Hotkey, deque[Claim]] = defaultdict(lambda: deque(maxlen=NEWEST_KEPT))
        """What each validator has set on the chain, the newest last; refused tries left aside."""
        self._claims: defaultdict[int, list[Claim]] = defaultdict(list)
        self._left_out = self._undecided = 0

    def note(self, index: int, envelope: Envelope, decision: Decision | None) -> None:
        """First reading."""
        message = envelope.message
        if isinstance(message, ChainSeen):
            self.holders.note(index, message)
        if not isinstance(message, WeightsSet) or decision is None or not isinstance(decision.reply, Noted):
            return
        if message.index >= index:
            self._differ(f"record {index}: {envelope.sender} names record {message.index}, which did not exist yet")
            return
        self.count += 1
        self.validators.add(envelope.sender)
        claim = Claim(index, envelope.sender, message)
        self._claims[message.index].append(claim)
        if message.block > 0:
            self.newest[envelope.sender].append(claim)

    def compare(self, index: int, head: Digest, state: State) -> None:
        """Second reading: the state after record `index`."""
        claims = self._claims.pop(index, None)
        if claims is None:
            return
        now = sheet(state)
        holders = {uid: hotkey for hotkey, uid in now.basis.uids.items()}
        for claim in claims:
            expected = payable(now.emission.weights, claim.said.dropped)
            if claim.said.head != head:
                said: str | None = f"names the head {claim.said.head} for record {index}, it is {head}"
            elif (uid := _first_difference(dict(claim.said.weights), expected)) is not None:
                found = dict(claim.said.weights).get(uid, 0.0)
                said = f"weighs uid {uid} with {found}, from record {index} follows {expected.get(uid, 0.0)}"
            else:
                said = self._wrongly_left_out(claim, holders)
            if said is not None:
                self._differ(f"record {claim.record}: {claim.validator} {said}")

    def sentence(self) -> str:
        """What was compared, in words, when all of it was; `difference` says whether it is good."""
        said = f"{self.count} settings of {len(self.validators)} validators, all equal to the recomputed ones"
        if self._left_out:
            said += f"; {self._left_out} uids were left out, which had changed hands"
        if self._undecided:
            said += f"; {self._undecided} more were left out, and no later look at the chain says yet whether rightly"
        return said

    def _wrongly_left_out(self, claim: Claim, holders: Mapping[int, Hotkey]) -> str | None:
        """In words; what the chain did not take left nobody out."""
        for uid in sorted(set(claim.said.dropped)) if claim.said.block > 0 else ():
            hotkey = holders.get(uid)
            if hotkey is None:
                return f"leaves out uid {uid}, which belonged to nobody at record {claim.said.index}"
            went_on = self.holders.went_on(uid, hotkey, claim.said.index, claim.said.block)
            if went_on is False:
                return f"leaves out uid {uid}, which was {hotkey}'s at block {claim.said.block} still"
            self._left_out += went_on is True
            self._undecided += went_on is None
        return None

    def _differ(self, sentence: str) -> None:
        self.difference = self.difference or sentence


def _first_difference(found: dict[int, float], expected: dict[int, float]) -> int | None:
    """The lowest uid whose weights are not the same bits; None when all are."""
    return next((uid for uid in sorted({*found, *expected}) if found.get(uid) != expected.get(uid)), None)
