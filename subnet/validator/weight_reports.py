"""The weights that validators say they gave the chain, beside those that follow from the records they name.

Law: a validator names the record after which it computed its weights, so they must be equal to the recomputed ones bit
by bit. The first difference is kept, in words. What was refused when it was said does not count.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from subnet.coordination.machine import Decision
from subnet.coordination.settlement import sheet
from subnet.coordination.state import State
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.messages import Envelope, Noted, WeightsSet


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
        self._claims: defaultdict[int, list[Claim]] = defaultdict(list)

    def note(self, index: int, envelope: Envelope, decision: Decision | None) -> None:
        """First reading."""
        message = envelope.message
        if not isinstance(message, WeightsSet) or decision is None or not isinstance(decision.reply, Noted):
            return
        if message.index >= index:
            self._differ(f"record {index}: {envelope.sender} names record {message.index}, which did not exist yet")
            return
        self.count += 1
        self.validators.add(envelope.sender)
        self._claims[message.index].append(Claim(index, envelope.sender, message))

    def compare(self, index: int, head: Digest, state: State) -> None:
        """Second reading: the state after record `index`."""
        claims = self._claims.pop(index, None)
        if claims is None:
            return
        weights = sheet(state).emission.weights
        for claim in claims:
            if claim.said.head != head:
                said = f"names the head {claim.said.head} for record {index}, it is {head}"
            elif (uid := _first_difference(dict(claim.said.weights), weights)) is not None:
                found = dict(claim.said.weights).get(uid, 0.0)
                said = f"weighs uid {uid} with {found}, from record {index} follows {weights.get(uid, 0.0)}"
            else:
                continue
            self._differ(f"record {claim.record}: {claim.validator} {said}")

    def _differ(self, sentence: str) -> None:
        self.difference = self.difference or sentence


def _first_difference(found: dict[int, float], expected: dict[int, float]) -> int | None:
    """The lowest uid whose weights are not the same bits; None when all are."""
    return next((uid for uid in sorted({*found, *expected}) if found.get(uid) != expected.get(uid)), None)
