"""A validator keeps its weights on chain: when it sets them, when it must not, and what it says when it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import looptime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subnet.errors import Unavailable
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import WeightsSet
from subnet.protocol.reasons import Reason
from subnet.validator.follower import Follower
from subnet.validator.weight_setter import WeightSetter

pytestmark = pytest.mark.looptime(end=100_000)
MakeNet = Callable[..., Any]
VALIDATOR = Hotkey("validator")
TEMPO, LIMIT, BLOCK_S = 20, 5, 12.0


async def watch(net: Any, blocks: float, setter: WeightSetter | None = None, every_s: float = 1.0) -> list[WeightsSet]:
    """Look again and again for so many blocks; what was reported."""
    found = []
    ends_at = net.runtime.now() + blocks * BLOCK_S
    while net.runtime.now() < ends_at:
        report = await (setter or net.weights).look(net.follower, net.runtime.now())
        found += [report] if report is not None else []
        await asyncio.sleep(every_s)
    return found


async def permitted(make_net: MakeNet, **rules: int) -> Any:
    """Past the first chain epoch, where permits are given; a run with two miners at work."""
    net = make_net(**rules)
    await net.open()
    await asyncio.sleep((TEMPO + 1) * BLOCK_S)
    await net.score(alice=3.0, bob=1.0)
    return net


def told(report: WeightsSet) -> dict[int, float]:
    return dict(report.weights)


# ---- kept fresh ------------------------------------------------------------------------------------------------------


async def test_set_when_they_change_and_once_a_tempo(make_net: MakeNet) -> None:
    """1. Scores change: the chain has the new weights as soon as the rate limit allows. Then nothing changes for ten
    chain epochs: they are set again before each is over, for an idle validator loses its place."""
    net = await permitted(make_net)
    (first,) = await watch(net, 1)
    assert told(first) == {2: 0.75, 3: 0.25} and first.index == net.follower.index and first.dropped == ()
    assert net.ledger.weights()[1].block == first.block and net.weights.is_current(net.follower)
    await net.score(alice=1.0, bob=1.0)
    assert not net.weights.is_current(net.follower)
    (second,) = await watch(net, LIMIT + 1)
    assert second.block - first.block in (LIMIT, LIMIT + 1) and told(second) == {2: 0.5, 3: 0.5}
    still = await watch(net, 10 * TEMPO)
    blocks = [second.block, *(report.block for report in still)]
    gaps = [after - before for before, after in zip(blocks, blocks[1:], strict=False)]
    assert len(still) >= 10 and all(LIMIT <= gap <= TEMPO for gap in gaps), gaps
    assert not any(Reason.CHAIN_EPOCH_MISSED in report.sentence for report in still)


async def test_the_owner_tunes_the_chain(make_net: MakeNet) -> None:
    """2. While it runs the owner makes the chain epoch four times as short, then the rate limit longer than it: the
    validator follows both without a restart."""
    net = await permitted(make_net, tempo=80)
    await asyncio.sleep(80 * BLOCK_S)
    await watch(net, 2)
    net.ledger.set_hyperparameter("tempo", TEMPO)
    blocks = [report.block for report in await watch(net, 6 * TEMPO)]
    assert all(b - a <= TEMPO for a, b in zip(blocks, blocks[1:], strict=False)) and len(blocks) >= 5
    net.ledger.set_hyperparameter("weights_rate_limit", 30)
    for share in range(40):
        await net.score(alice=1.0, bob=1.0 + share)
        blocks += [report.block for report in await watch(net, 3)]
    late = [b - a for a, b in zip(blocks, blocks[1:], strict=False)][5:]
    assert len(late) >= 3 and all(gap in (30, 31) for gap in late[1:]), late


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tempo=st.integers(1, 40), limit=st.integers(0, 50), changes=st.lists(st.integers(1, 40), max_size=8))
def test_never_too_soon_never_too_late(make_net: MakeNet, tempo: int, limit: int, changes: list[int]) -> None:
    """3. Whatever tempo and rate limit are and however often scores change: two settings are never nearer than the
    limit, never farther apart than a tempo or the limit, and the chain never has to refuse."""

    async def live() -> list[WeightsSet]:
        net, found = make_net(tempo=tempo, weights_rate_limit=limit), []
        await net.open()
        await asyncio.sleep((max(tempo, limit) + 1) * BLOCK_S)
        for number, blocks in enumerate(changes):
            await net.score(alice=1.0, bob=1.0 + number)
            found += await watch(net, blocks, every_s=BLOCK_S / 3)
        return found + await watch(net, 3 * max(tempo, limit) + 3, every_s=BLOCK_S / 3)

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0, end=100_000)) as runner:
        found = runner.run(live())
    assert all(report.block > 0 for report in found), [report.sentence for report in found]
    gaps = [b.block - a.block for a, b in zip(found, found[1:], strict=False)]
    assert all(gap >= limit for gap in gaps), gaps
    assert all(gap <= max(tempo, limit) + 1 for gap in gaps) and len(found) >= 3, gaps


# ---- uids that changed hands -----------------------------------------------------------------------------------------


async def test_a_uid_was_taken_by_somebody_else(make_net: MakeNet) -> None:
    """4. Carol earned, then lost her uid to a newcomer, and the journal does not know yet: the newcomer is paid nothing
    for Carol's work, and the report names the uid. When the journal knows, nothing has to be left out."""
    net = await permitted(make_net, max_allowed_uids=5, immunity_period=0)
    await watch(net, TEMPO + 1)
    await net.score(alice=3.0, bob=1.0, carol=4.0)
    assert net.ledger.register(Hotkey("newcomer")).done, "in the place of who earns least on chain"
    assert [neuron.hotkey for neuron in net.ledger.subnet().neurons][4] == "newcomer"
    (report,) = await watch(net, LIMIT + 1)
    assert report.dropped == (4,) and told(report) == {2: 0.375, 3: 0.125}
    assert "left out, as another hotkey has it now: uid 4" in report.sentence
    assert net.ledger.weights()[1].shares == pytest.approx({2: 0.75, 3: 0.25}, abs=1e-4)
    await net.look()
    await net.score(alice=3.0, bob=1.0, carol=4.0)
    (after,) = await watch(net, LIMIT + 1)
    assert after.dropped == () and told(after) == {2: 0.75, 3: 0.25}


async def test_the_owner_swapped_its_hotkey(make_net: MakeNet) -> None:
    """5. What is burnt goes to the owner's uid, whichever hotkey the owner has now; somebody who swapped his own is
    left out until the journal has seen it."""
    net = make_net()
    await net.open()
    await asyncio.sleep((TEMPO + 1) * BLOCK_S)
    (burnt,) = await watch(net, 1)
    assert told(burnt) == {0: 1.0}
    net.ledger.swap_hotkey(Hotkey("owner"), Hotkey("owner2"))
    net.ledger.swap_hotkey(Hotkey("alice"), Hotkey("alice2"))
    (again,) = await watch(net, TEMPO - 1)
    assert told(again) == {0: 1.0} and again.dropped == ()
    await net.score(alice=1.0, bob=1.0)
    (report,) = await watch(net, LIMIT + 1)
    assert report.dropped == (2,) and told(report) == {3: 0.5}


async def test_nobody_to_pay(make_net: MakeNet) -> None:
    """6. The only one who earned lost her uid: the weights before stand, said once."""
    net = await permitted(make_net)
    await watch(net, 1)
    net.ledger.swap_hotkey(Hotkey("alice"), Hotkey("mallory"))
    await net.score(alice=1.0)
    (report,) = await watch(net, 2 * TEMPO)
    assert report.block == 0 and report.sentence.startswith("no-weights: every uid")
    assert set(net.ledger.weights()[1].shares) == {2, 3}


async def test_a_journal_that_has_not_seen_the_chain(make_net: MakeNet) -> None:
    """7. In the first epoch the looks at the chain are sealed still, and all weight is uid 0's, the owner's where
    nothing else is known. Where the owner has another uid, nothing is told until the journal says so."""
    net = make_net()
    net.ledger.swap_hotkey(Hotkey("owner"), Hotkey("other"))
    net.ledger.owner = Hotkey("carol")
    await net.open()
    net.shown = 1
    early = Follower(net)
    await asyncio.sleep((TEMPO + 1) * BLOCK_S)
    await early.catch_up()
    setter = WeightSetter(net.chain, VALIDATOR)
    assert await setter.look(early, net.runtime.now()) is None and 1 not in net.ledger.weights()
    net.shown = None
    await early.catch_up()
    await asyncio.sleep(BLOCK_S)
    report = await setter.look(early, net.runtime.now())
    assert report is not None and told(report) == {4: 1.0}


# ---- what the chain says no to ---------------------------------------------------------------------------------------


async def test_a_validator_that_was_down(make_net: MakeNet) -> None:
    """8. Its process was gone for three chain epochs. Started again it finds on chain what it had set, sets anew, and
    says by which weights the chain paid meanwhile."""
    net = await permitted(make_net)
    (before,) = await watch(net, 1)
    await asyncio.sleep(3 * TEMPO * BLOCK_S)
    again = WeightSetter(net.chain, VALIDATOR)
    report = await again.look(net.follower, net.runtime.now())
    assert report is not None and report.block > before.block
    said = f"chain-epoch-missed: 3 chain epochs were paid by the weights of block {before.block}"
    assert report.sentence.endswith(said)
    nameless = WeightSetter(net.chain)
    assert (await watch(net, LIMIT + 1, nameless))[-1].block > report.block, "it is told to wait, and waits"


async def test_started_again_within_the_rate_limit(make_net: MakeNet) -> None:
    """9. A quick restart: the chain is not even asked before it may be."""
    net = await permitted(make_net)
    (before,) = await watch(net, 1)
    (after,) = await watch(net, 2 * LIMIT, WeightSetter(net.chain, VALIDATOR))
    assert after.block - before.block >= LIMIT


async def test_no_permit(make_net: MakeNet) -> None:
    """10. A validator with too little stake: told once, tried each chain epoch, and its weights stand as soon as it has
    its permit, whether it learns of it by looking or by trying."""
    for setter_knows in (True, False):
        net = make_net(max_validators=1)
        net.ledger.add_stake(Hotkey("alice"), 5_000.0)
        await net.open()
        setter = WeightSetter(net.chain, VALIDATOR if setter_knows else None)
        tries = count_tries(net)
        (refused,) = await watch(net, 4 * TEMPO, setter)
        assert refused.block == 0 and refused.sentence.startswith("no-permit: uid 1 has no validator permit")
        assert 3 <= len(tries) <= 6
        net.ledger.add_stake(VALIDATOR, 5_000.0)
        stands = await watch(net, 2 * TEMPO + 2, setter)
        assert stands and all(report.block > 0 for report in stands)


async def test_deregistered_while_running(make_net: MakeNet) -> None:
    """11. The validator's uid is taken by somebody else. It goes on, says who has it, and sets weights again once it is
    registered and permitted anew."""
    net = await permitted(make_net, max_validators=64)
    await watch(net, 1)
    net.ledger.swap_hotkey(VALIDATOR, Hotkey("thief"))
    tries = count_tries(net)
    (report,) = await watch(net, 3 * TEMPO)
    assert report.block == 0 and "deregistered: hotkey validator has no uid" in report.sentence
    assert report.sentence.endswith("uid 1 is thief's now") and len(tries) <= 5
    net.ledger.register(VALIDATOR)
    net.ledger.add_stake(VALIDATOR, 100.0)
    again = await watch(net, 3 * TEMPO)
    assert any(report.block > 0 for report in again)
    assert not any(Reason.CHAIN_EPOCH_MISSED in report.sentence for report in again), "it had no weights meanwhile"


async def test_never_registered(make_net: MakeNet) -> None:
    """12. A hotkey that never had a uid is not told that it lost one; one that the journal knows is, after a restart
    too."""
    net = await permitted(make_net)
    stranger = WeightSetter(type(net.chain)(net.ledger, Hotkey("stranger")), Hotkey("stranger"))
    (report,) = await watch(net, TEMPO, stranger)
    assert report.sentence == "not-registered: hotkey stranger has no uid on this subnet"
    net.ledger.swap_hotkey(VALIDATOR, Hotkey("thief"))
    (lost,) = await watch(net, TEMPO, WeightSetter(net.chain, VALIDATOR))
    assert lost.sentence.startswith("deregistered: ")


async def test_a_chain_that_is_away(make_net: MakeNet) -> None:
    """13. The node is down: nothing is forgotten, the first answer is used."""
    net = await permitted(make_net)
    net.ledger.answers = False
    for _ in range(20):
        with pytest.raises(Unavailable):
            await net.weights.look(net.follower, net.runtime.now())
        await asyncio.sleep(1.0)
    net.ledger.answers = True
    report = await net.weights.look(net.follower, net.runtime.now())
    assert report is not None and report.block > 0


def count_tries(net: Any) -> list[float]:
    """Grows each time that the chain is told weights."""
    tries: list[float] = []
    true = net.ledger.set_weights

    def counted(hotkey: Hotkey, weights: Any) -> Any:
        tries.append(net.runtime.now())
        return true(hotkey, weights)

    net.ledger.set_weights = counted
    return tries
