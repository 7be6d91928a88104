"""Refusals: the same words for the same no, whoever said it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subnet.chain import refusals
from subnet.protocol.reasons import Reason


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("HotKeyNotRegisteredInSubNet", "not_registered", Reason.NOT_REGISTERED),
        ("AccountNotAllowedCommit", "not_authorized", Reason.NOT_REGISTERED),
        ("NeuronNoValidatorPermit", "not_authorized", Reason.NO_PERMIT),
        ("NotEnoughStakeToSetWeights", "insufficient_balance", Reason.NO_PERMIT),
        ("Payment", "insufficient_balance", Reason.NO_FUNDS),
        ("NotEnoughBalanceToStake", "insufficient_balance", Reason.NO_FUNDS),
        ("SettingWeightsTooFast", "rate_limited", Reason.RATE_LIMITED),
        ("SpaceLimitExceeded", "limit_exceeded", Reason.RATE_LIMITED),
        ("MaxWeightExceeded", "limit_exceeded", Reason.OVERSIZED),
        ("IncorrectWeightVersionKey", "invalid_argument", Reason.MALFORMED),
        ("MaxAllowedUIdsLessThanCurrentUIds", "invalid_argument", Reason.CHAIN_REFUSED),
        ("", "policy_violation", Reason.CHAIN_REFUSED),
        ("SomethingNew", "unknown", Reason.CHAIN_REFUSED),
    ],
)
def test_the_chain_s_own_words(name: str, code: str, reason: Reason) -> None:
    """1. What the chain refuses after all: a reason for the machine, the chain's own name for whoever looks it up."""
    outcome = refusals.by_chain(name, code, "the chain says no")
    assert not outcome.done and outcome.reason is reason and outcome.block == 0
    assert name in outcome.sentence and outcome.sentence.startswith("the chain says no")


@given(st.dictionaries(st.integers(0, 255), st.floats(0, 1e12), max_size=64))
def test_quantised_weights_keep_their_proportions(weights: dict[int, float]) -> None:
    """2. As the chain holds them: the largest is 65,535, the others within half a step, dust is left out."""
    held = refusals.quantised(weights)
    top = max(weights.values(), default=0.0)
    assert max(held.values(), default=0) == (refusals.WEIGHT_MAX if top > 0 else 0)
    for uid, weight in weights.items():
        exact = weight / top * refusals.WEIGHT_MAX if top > 0 else 0.0
        assert abs(held.get(uid, 0) - exact) <= 0.5
