"""The weights on chain beside those that validators reported to the journal.

Law: each row that stands on chain must be the newest that its validator reported, as the chain holds weights: whole
multiples of the largest one's 1/65535. Who sets weights and does not report them pays somebody in the dark. Raises
Unavailable when the chain does not answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from subnet.chain.base import Chain, Row, Subnet
from subnet.protocol.ids import Hotkey
from subnet.validator.checks import Check
from subnet.validator.weight_reports import Claim, WeightReports

NAME = "chain weights"
UNIT_MAX = 65_535
REPORT_WITHIN_S = 60.0
"""A validator has set its weights on chain before it tells the journal."""

EQUAL, SEALED, EARLIER, LATER, FRESH, MOVED = (
    "equal to those reported",
    "not as reported, as commit-reveal holds the newest back",
    "set before this journal began",
    "set after this journal's end",
    "reported for a block that this node does not know yet",
    "not as reported, as uids changed hands since",
)


class _Seen(NamedTuple):
    """Everything that a row is judged by."""

    subnet: Subnet
    reports: WeightReports
    newest_block: int
    """That the journal names."""

    @property
    def is_sealing(self) -> bool:
        rules = self.subnet.hyperparameters
        return any(rules[name] for name in rules if name.startswith("commit_reveal") and name.endswith("enabled"))

    @property
    def clips(self) -> bool:
        """Whether the chain bends what is told."""
        return int(self.subnet.hyperparameters.get("max_weights_limit", UNIT_MAX)) < UNIT_MAX

    @property
    def lag_blocks(self) -> int:
        return math.ceil(REPORT_WITHIN_S / self.subnet.block_s)

    def fresh(self, reported: int) -> tuple[bool, str]:
        """A report of a block that is to come: this node may be a little behind, and no more."""
        newest = self.subnet.block.number
        if reported <= newest + self.lag_blocks:
            return True, FRESH
        return False, f"reported weights for block {reported}, which the chain has not reached: it is at {newest}"

    def moved(self, claim: Claim) -> bool:
        """Whether a uid that was paid is somebody else's since: the chain may have renumbered or cleared it."""
        holders, now = self.reports.holders, self.subnet.block.number
        then = ((uid, holders.holder_at(uid, claim.said.block)) for uid, _ in claim.said.weights)
        return any(held is not None and holders.went_on(uid, held, claim.record, now) for uid, held in then)

    def newest(self, uid: int, hotkey: Hotkey, block: int) -> Claim | None:
        """The newest setting that was reported for a uid: by who holds it, or held it in that block."""
        hotkeys = {hotkey, self.reports.holders.holder_at(uid, block)}
        found = [claims[-1] for one in hotkeys if one is not None and (claims := self.reports.newest.get(one))]
        return max(found, key=lambda claim: claim.said.block, default=None)


async def check_weights(reports: WeightReports, newest_block: int, chain: Chain) -> Check:
    """Every row on chain, and every validator whose row is gone."""
    rows = await chain.weights()
    seen = _Seen(await chain.subnet(), reports, newest_block)
    found: Counter[str] = Counter()
    for neuron in seen.subnet.neurons:
        row = rows.get(neuron.uid)
        if row is not None:
            held, said = _judge(neuron.uid, neuron.hotkey, row, seen)
        else:
            held, said = _judge_missing(neuron.uid, neuron.hotkey, seen)
        if not held:
            return Check(NAME, False, f"uid {neuron.uid} ({neuron.hotkey}) {said}")
        found[said] += bool(said)
    words = "; ".join(f"{count} {said}" for said, count in sorted(found.items()) if count)
    return Check(NAME, True if found[EQUAL] else None, words or "no validator has weights on chain")


def _judge(uid: int, hotkey: Hotkey, row: Row, seen: _Seen) -> tuple[bool, str]:
    """Whether a row may be as it is, and in which way; or what is wrong with it."""
    claim = seen.newest(uid, hotkey, row.block)
    reported = 0 if claim is None else claim.said.block
    if claim is None or row.block > reported:
        began = seen.reports.holders.first_block
        if began is None or row.block < began:
            return True, EARLIER
        if seen.newest_block < row.block + seen.lag_blocks:
            return True, LATER
        before = f"its newest report is of block {reported}" if reported else "it reported none"
        return False, f"set weights at block {row.block} that it did not report: {before}"
    if row.block < reported:
        if seen.subnet.block.number < reported:
            return seen.fresh(reported)
        if seen.is_sealing:
            return True, SEALED
        return (
            False,
            f"reported weights for block {reported} (record {claim.record}), the chain has some of {row.block}",
        )
    different = first_difference(dict(claim.said.weights), row.shares)
    if different is None:
        return True, EQUAL
    if seen.moved(claim):
        return True, MOVED
    if seen.is_sealing or seen.clips:
        return True, SEALED if seen.is_sealing else "bent by the chain's max_weights_limit"
    told, held = different.reported, different.on_chain
    said = f"reported {told:.4%} for uid {different.uid} (record {claim.record}), the chain has {held:.4%}"
    return False, f"{said} at block {row.block}"


def _judge_missing(uid: int, hotkey: Hotkey, seen: _Seen) -> tuple[bool, str]:
    """A validator without row: it never set any, or the uid is not what it was when it did."""
    claims = seen.reports.newest.get(hotkey)
    if not claims:
        return True, ""
    claim, holders = claims[-1], seen.reports.holders
    kept = holders.holder_at(uid, claim.said.block) == hotkey
    if not kept or holders.went_on(uid, hotkey, claim.record, seen.subnet.block.number):
        return True, ""
    if seen.is_sealing:
        return True, SEALED
    if seen.subnet.block.number < claim.said.block:
        return seen.fresh(claim.said.block)
    return False, f"reported weights for block {claim.said.block} (record {claim.record}), the chain has none"


class Difference(NamedTuple):
    uid: int
    reported: float
    """Share of all."""
    on_chain: float


def first_difference(reported: Mapping[int, float], shares: Mapping[int, float]) -> Difference | None:
    """The first uid whose weight on chain is not the reported one, rounded as the chain holds weights."""
    told, held = _units(reported), _units(shares)
    for uid in sorted({*told, *held}):
        if abs(told.get(uid, 0.0) - held.get(uid, 0.0)) > 1.0:
            total = math.fsum(reported.values()) or 1.0
            return Difference(uid, reported.get(uid, 0.0) / total, shares.get(uid, 0.0))
    return None


def _units(weights: Mapping[int, float]) -> dict[int, float]:
    """In units of which the largest weight has 65,535, not rounded: two that came from one vector are within 1."""
    top = max(weights.values(), default=0.0)
    return {uid: weight / top * UNIT_MAX for uid, weight in weights.items()} if top > 0 else {}
