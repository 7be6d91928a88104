"""What validators report of their weights, beside what follows from the records, from looks at the chain, and from the
chain itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subnet.chain.base import Row
from subnet.coordination.machine import Decision
from subnet.coordination.members import notice
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Hotkey
from subnet.protocol.reasons import Reason
from subnet.validator.chain_weights import check_weights, first_difference
from subnet.validator.checks import Check
from subnet.validator.weight_reports import WeightReports

MakeNet = Callable[..., Any]
pytestmark = pytest.mark.looptime(end=100_000)
OWNER, VALIDATOR = Hotkey("owner"), Hotkey("validator")
HEAD = Digest("a" * 64)
NOTED = Decision(m.Noted(notice=notice(Reason.OK, "noted")), [])


def report(
    block: int, weights: Mapping[int, float], dropped: tuple[int, ...] = (), sender: Hotkey = VALIDATOR
) -> m.Envelope:
    said = m.WeightsSet(index=2, head=HEAD, weights=tuple(weights.items()), block=block, sentence="", dropped=dropped)
    return m.Envelope(sender=sender, at=0.0, message=said)


def look(block: int, *hotkeys: str, owner_uid: int = 0) -> m.Envelope:
    """A look at the chain: who holds uid 0, 1, ..."""
    neurons = tuple(m.Neuron(uid=u, hotkey=Hotkey(h), stake=1.0, permit=False) for u, h in enumerate(hotkeys))
    seen = m.ChainSeen(block=block, block_hash="0" * 64, owner_uid=owner_uid, neurons=neurons)
    return m.Envelope(sender=OWNER, at=0.0, message=seen)


def noted(*envelopes: m.Envelope, start: int = 3) -> WeightReports:
    """A first reading; the report names record 2."""
    reports = WeightReports()
    for index, envelope in enumerate(envelopes, start):
        reports.note(index, envelope, NOTED)
    return reports


# ---- uids that were left out -----------------------------------------------------------------------------------------

BEFORE = look(10, "owner", "validator", "alice", "bob", "carol")
TAKEN = ("owner", "validator", "alice", "newcomer", "carol")
SAME = ("owner", "validator", "alice", "bob", "carol")


@pytest.mark.parametrize(
    ("later", "difference", "sentence"),
    [
        ([look(90, *TAKEN)], None, "1 uids were left out, which had changed hands"),
        ([look(60, *TAKEN), look(90, *SAME)], None, "1 uids were left out"),
        ([look(100, *TAKEN[:3])], None, "1 uids were left out"),
        ([], None, "1 more were left out, and no later look at the chain says yet whether rightly"),
        ([look(79, *SAME)], None, "1 more were left out"),
        ([look(80, *SAME)], "validator leaves out uid 3, which was bob's at block 80 still", ""),
        ([look(90, *SAME), look(120, *TAKEN)], "validator leaves out uid 3, which was bob's at block 80 still", ""),
    ],
)
async def test_a_uid_that_was_left_out(
    make_net: MakeNet, later: list[m.Envelope], difference: str | None, sentence: str
) -> None:
    """1. A validator left Bob's uid out of what it set at block 80. A look at the chain from then or later tells
    whether it was somebody else's: an honest one is believed, one who only wants to harm Bob is named, and before there
    is such a look nothing is said against it."""
    net = make_net()
    await net.open()
    await net.score(alice=3.0, bob=1.0)
    reports = noted(BEFORE, report(80, {2: 0.75}, (3,)), *later)
    reports.compare(2, HEAD, net.follower.run)
    assert (reports.difference or "").endswith(difference or "") and (reports.difference is None) == (
        difference is None
    )
    assert sentence in reports.sentence()


async def test_nothing_but_the_left_out_may_be_missing(make_net: MakeNet) -> None:
    """2. The share of a uid that is left out goes to nobody: not to another uid, and no other is left out silently. A
    uid that belonged to nobody cannot be left out; what the chain refused harms nobody."""
    net = make_net()
    await net.open()
    await net.score(alice=3.0, bob=1.0)
    for said, difference in [
        (report(80, {2: 1.0}, (3,)), "weighs uid 2 with 1.0, from record 2 follows 0.75"),
        (report(80, {2: 0.75}), "weighs uid 3 with 0.0, from record 2 follows 0.25"),
        (report(80, {2: 0.75, 3: 0.25}, (9,)), "leaves out uid 9, which belonged to nobody at record 2"),
        (report(0, {2: 0.75}, (3,)), None),
    ]:
        reports = noted(BEFORE, said, look(90, *SAME))
        reports.compare(2, HEAD, net.follower.run)
        assert (difference or "") in (reports.difference or "") and (reports.difference is None) == (difference is None)


async def test_an_owner_without_uid(make_net: MakeNet) -> None:
    """3. The owner let its uid go: what is burnt is told to nobody, and the report is right without it."""
    net = make_net()
    await net.open()
    await net.score()
    net.follower.run.pay.chain.owner_uid = -1
    reports = noted(BEFORE, report(80, {}))
    reports.compare(2, HEAD, net.follower.run)
    assert reports.difference is None


# ---- the chain's own rows --------------------------------------------------------------------------------------------


async def permitted(make_net: MakeNet, **rules: int | bool) -> Any:
    net = make_net(with_clock=False, **rules)
    net.ledger.advance(21)
    return net


async def judged(net: Any, reports: WeightReports, newest_block: int = 0) -> Check:
    return await check_weights(reports, newest_block, net.chain)


async def test_a_row_as_it_was_reported(make_net: MakeNet) -> None:
    """4. The chain holds weights rounded to 1/65535 of the largest: that is what was reported."""
    net = await permitted(make_net)
    weights = {2: 0.7, 3: 0.2, 4: 0.1}
    block = net.ledger.set_weights(VALIDATOR, weights).block
    check = await judged(net, noted(BEFORE, report(block, weights)))
    assert check == Check("chain weights", True, "1 equal to those reported")
    left_out = noted(BEFORE, report(block, weights, (1,)))
    assert (await judged(net, left_out)).holds, "a row holds what was told, without those left out"


async def test_a_row_that_was_not_reported(make_net: MakeNet) -> None:
    """5. A validator reports what follows from the journal, and tells the chain that its friend did all the work."""
    net = await permitted(make_net)
    block = net.ledger.set_weights(VALIDATOR, {2: 0.7, 3: 0.2, 4: 0.1}).block
    check = await judged(net, noted(BEFORE, report(block, {2: 0.2, 3: 0.2, 4: 0.6})))
    said = "uid 1 (validator) reported 20.0000% for uid 2 (record 4), the chain has 70.0004% at block 21"
    assert check.holds is False and check.sentence[:60] == said[:60]


async def test_set_again_in_the_dark(make_net: MakeNet) -> None:
    """6. It reports one setting and makes another. A journal that ends before proves nothing; one that goes on long
    enough without the report does. The same for a validator that never reports at all, but not for weights of a time
    before this run."""
    net = await permitted(make_net)
    first = net.ledger.set_weights(VALIDATOR, {2: 1.0}).block
    net.ledger.advance(10)
    block = net.ledger.set_weights(VALIDATOR, {3: 1.0}).block
    reports = noted(BEFORE, report(first, {2: 1.0}))
    assert (await judged(net, reports, block - 1)).sentence == "1 set after this journal's end"
    assert (await judged(net, reports, block + 4)).holds is None, "the report may be on its way"
    check = await judged(net, reports, block + 5)
    assert check.holds is False and f"did not report: its newest report is of block {first}" in check.sentence
    assert "it reported none" in (await judged(net, noted(BEFORE), block + 5)).sentence
    began_later = noted(look(block + 1, *SAME))
    assert (await judged(net, began_later, block + 50)).sentence == "1 set before this journal began"


async def test_reported_and_not_there(make_net: MakeNet) -> None:
    """7. A report of weights that the chain does not have: none at all, or older ones. A node that lags proves
    nothing, nor does a validator whose uid is new."""
    net = await permitted(make_net)
    check = await judged(net, noted(BEFORE, report(15, {2: 1.0})))
    assert check.holds is False and "the chain has none" in check.sentence
    assert "does not know yet" in (await judged(net, noted(BEFORE, report(25, {2: 1.0})))).sentence
    ahead = await judged(net, noted(BEFORE, report(10**15, {2: 1.0})))
    assert ahead.holds is False and "has not reached" in ahead.sentence, "nobody hides behind a block to come"
    anew = noted(BEFORE, report(15, {2: 1.0}), look(18, "owner", "other"), look(20, *SAME))
    assert (await judged(net, anew)).holds is None
    block = net.ledger.set_weights(VALIDATOR, {2: 1.0}).block
    net.ledger.advance(20)
    check = await judged(net, noted(BEFORE, report(block, {2: 1.0}), report(block + 9, {2: 1.0})))
    assert check.holds is False and f"reported weights for block {block + 9}" in check.sentence
    assert "does not know yet" in (await judged(net, noted(BEFORE, report(block + 24, {2: 1.0})))).sentence


async def test_sealed_weights(make_net: MakeNet) -> None:
    """8. With commit-reveal on, the row is older than what was set: said, and nobody is blamed."""
    net = await permitted(make_net, commit_reveal_weights_enabled=True)
    net.ledger.set_weights(VALIDATOR, {2: 1.0})
    net.ledger.advance(41)
    block = net.ledger.set_weights(VALIDATOR, {3: 1.0}).block
    check = await judged(net, noted(BEFORE, report(block, {3: 1.0})), block + 50)
    assert check.holds is None and "commit-reveal" in check.sentence


async def test_a_swapped_validator(make_net: MakeNet) -> None:
    """9. The validator swapped its hotkey: its row is there under the new one, reported by the old one."""
    net = await permitted(make_net)
    block = net.ledger.set_weights(VALIDATOR, {2: 1.0}).block
    net.ledger.swap_hotkey(VALIDATOR, Hotkey("validator2"))
    reports = noted(BEFORE, report(block, {2: 1.0}), look(30, "owner", "validator2", *SAME[2:]))
    assert (await judged(net, reports, 99)).holds is True


async def test_nobody_has_weights(make_net: MakeNet) -> None:
    """10. A young subnet."""
    check = await judged(await permitted(make_net), noted(BEFORE))
    assert (check.holds, check.sentence) == (None, "no validator has weights on chain")


@given(
    weights=st.dictionaries(st.integers(0, 255), st.floats(1e-12, 1.0), min_size=1, max_size=40),
    uid=st.integers(0, 255),
    more=st.floats(4e-5, 1.0),
)
def test_rounding_is_no_difference(weights: dict[int, float], uid: int, more: float) -> None:
    """11. Whatever the weights: as the chain rounds them they are the same; one share that is larger by more than the
    rounding is not."""
    top = max(weights.values())
    units = {to: round(weight / top * 65_535) for to, weight in weights.items()}
    shares = {to: unit / sum(units.values()) for to, unit in units.items() if unit}
    row = Row(shares, 1)
    assert first_difference(weights, row.shares) is None
    bent = weights | {uid: weights.get(uid, 0.0) + more * top}
    if bent[uid] <= top:
        assert first_difference(bent, row.shares) is not None
