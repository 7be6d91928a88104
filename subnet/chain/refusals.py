"""What the chain says no to, in one sentence each: shared by every implementation of the seam.

Law: the same refusal carries the same reason and names the same figures, whichever chain said it. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from subnet.chain.base import Outcome
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason

COMMITMENT_MAX_BYTES = 128
WEIGHT_MAX = 65_535
"""The largest weight as the chain holds it; the others are in proportion."""


def check_weights(weights: Mapping[int, float]) -> None:
    """Raises ValueError for what is no vector of weights at all: the caller's mistake, not a refusal."""
    for uid, weight in weights.items():
        if uid < 0 or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weight {weight!r} for uid {uid}: uids and weights are non-negative and finite")


def quantised(weights: Mapping[int, float]) -> dict[int, int]:
    """As the chain holds them: the largest is 65,535; what rounds to nothing is left out."""
    top = max(weights.values(), default=0.0)
    if top <= 0:
        return {}
    held = {uid: round(weight / top * WEIGHT_MAX) for uid, weight in sorted(weights.items())}
    return {uid: weight for uid, weight in held.items() if weight}


class Standing(NamedTuple):
    """What decides whether a hotkey may set weights now."""

    hotkey: Hotkey
    uid: int | None
    permit: bool
    owner: bool
    """Whether it is the owner's hotkey, which needs no permit."""
    block: int
    """Now."""
    last_update: int
    """Block of its last weights, or of its registration; 0 at genesis."""
    rate_limit_blocks: int
    num_uids: int


def of_weights(standing: Standing, weights: Mapping[int, float]) -> Outcome | None:
    """Why these weights cannot be set now; None when they can. Raises ValueError as `check_weights` does."""
    check_weights(weights)
    if standing.uid is None:
        return not_registered(standing.hotkey)
    if not (standing.permit or standing.owner):
        sentence = f"uid {standing.uid} has no validator permit: the largest stakes get one at each chain epoch"
        return Outcome(False, Reason.NO_PERMIT, sentence)
    since = standing.block - standing.last_update
    if standing.last_update and since < (limit := standing.rate_limit_blocks):
        sentence = f"weights_rate_limit is {limit} blocks: the next weights may be set at block "
        return Outcome(False, Reason.RATE_LIMITED, f"{sentence}{standing.last_update + limit}")
    if unknown := [uid for uid in sorted(weights) if uid >= standing.num_uids]:
        named = ", ".join(map(str, unknown[:5])) + (" ..." if len(unknown) > 5 else "")
        return Outcome(False, Reason.NO_UID, f"weights name uid {named}, but the subnet has {standing.num_uids} uids")
    if not quantised(weights):
        return Outcome(False, Reason.NO_WEIGHTS, "every weight is zero: the chain keeps the ones before")
    return None


def not_registered(hotkey: Hotkey) -> Outcome:
    return Outcome(False, Reason.NOT_REGISTERED, f"hotkey {hotkey} has no uid on this subnet")


def too_long(size_bytes: int) -> Outcome:
    sentence = f"a commitment has at most {COMMITMENT_MAX_BYTES} bytes, not {size_bytes}"
    return Outcome(False, Reason.OVERSIZED, sentence)


_BY_NAME = {
    "AccountNotAllowedCommit": Reason.NOT_REGISTERED,
    "SpaceLimitExceeded": Reason.RATE_LIMITED,
    "NeuronNoValidatorPermit": Reason.NO_PERMIT,
    "NotEnoughStakeToSetWeights": Reason.NO_PERMIT,
    "IncorrectWeightVersionKey": Reason.MALFORMED,
}
_BY_CODE = {
    "not_registered": Reason.NOT_REGISTERED,
    "insufficient_balance": Reason.NO_FUNDS,
    "rate_limited": Reason.RATE_LIMITED,
    "too_early": Reason.RATE_LIMITED,
    "limit_exceeded": Reason.OVERSIZED,
}


def by_chain(name: str, code: str, sentence: str) -> Outcome:
    """What the chain itself refused. `name`: its error, such as NeuronNoValidatorPermit; `code`: the SDK's class."""
    reason = _BY_NAME.get(name) or _BY_CODE.get(code, Reason.CHAIN_REFUSED)
    return Outcome(False, reason, f"{sentence} ({name})" if name and name not in sentence else sentence)
