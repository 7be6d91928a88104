"""A roll-back takes passes out of every log: they are paid as they are, and audits go on around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from subnet.coordination import dossiers
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, Pass
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import Court

Courts = Callable[..., "Court"]


def report(court: Court, loss: float) -> None:
    plain = court.world.honest

    def honest(work: m.Work) -> m.Result:
        done = plain(work)
        if isinstance(done, m.PassDone) and isinstance(work, m.PassWork) and work.kind is Pass.LOSS:
            return m.PassDone(item=work.item, digest=done.digest, loss=loss, param_version=0, compute_s=0.1)
        return done

    court.world.honest = honest


@pytest.mark.parametrize("offender", [True, False])
def test_pay_of_the_others_is_untouched(courts: Courts, offender: bool) -> None:
    """1. Four replicas, the first merge explodes and is taken back. What they trained on it is in no log, and is paid
    in full; their next logs begin anew and are accepted; audits of both epochs pass. Only the offender's epoch is
    void."""
    court = courts("a", "b", "c", "d")
    world = court.world
    court.to_epoch(1)
    if offender:
        world.seen = lambda hotkey, upload: m.UploadSeen(
            hotkey=hotkey, reason=Reason.OK, norm=99.0 if hotkey == "d" else upload.norm, cosine=0.5
        )
    report(court, 9.0)
    world.work_until(lambda: world.state.poison.rolling is not None)
    trained = {name: world.state.ledger.epochs[1][Hotkey(name)].work_units for name in "abcd"}
    assert all(trained.values()), "everybody worked on the poisoned parameters"
    report(court, 5.0)
    court.to_epoch(2)
    for epoch in (0, 1):
        court.draw(epoch)
        court.show_all()
        court.settle_all()
    assert not any(world.state.pay.unlogged.values())
    assert {h: by.reason for h, by in world.state.pay.void.get(0, {}).items()} == (
        {"d": Reason.POISONED} if offender else {}
    )
    assert not world.state.pay.void.get(1)
    for name in "abcd":
        paid = sum(
            by[Hotkey(name)].work_units
            for epoch, by in world.state.ledger.epochs.items()
            if epoch < 2 and not (offender and name == "d" and epoch == 0)
        )
        assert court.score(name) == pytest.approx(paid)
        assert world.state.ledger.epochs[1][Hotkey(name)].work_units > trained[name]
        assert world.miner(name).faults == int(offender and name == "d")
        assert court.standing(name).failed == 0
        assert dossiers.unlogged_units(world.state, court.dossier(1, name)) == 0
