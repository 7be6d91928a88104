"""Objects that are not what the grant allows or the result says: through the real door, found by the production reader,
checked by the orchestrator itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from subnet.errors import PeerFault
from subnet.model import wire
from subnet.protocol import keys
from subnet.protocol import messages as m
from subnet.protocol.reasons import Reason
from subnet.transport.transfer import Transfer, digest_of

if TYPE_CHECKING:
    from conftest import Door


def boundary(door: Door, seed: int = 1) -> bytes:
    z_BTK = np.random.default_rng(seed).standard_normal((2, 16, door.spec.boundary.width)).astype(np.float32)
    return wire.encode(door.spec, z_BTK, None)


async def test_writes_that_the_grant_does_not_allow(door: Door) -> None:
    """1. Too short, too long, another key, no signature, an expired one, and reading with a grant to write: refused,
    recorded, and the slot stays empty."""
    _, _, work = await door.first_work()
    assert work.output is not None
    good, url = boundary(door), work.output.url
    other = url.replace(work.output.key, keys.make(door.spec.run_id, 0, 0, "mine", keys.Kind.BOUNDARY))
    before = door.frozen()
    tries = [
        (url, good[:-1], Reason.BAD_SIZE),
        (url, good + b"x", Reason.BAD_SIZE),
        (other, good, Reason.NOT_ALLOWED),
        (url.partition("?")[0], good, Reason.NOT_ALLOWED),
        (url.replace(work.output.key, "world/0/0/.hidden/boundary"), good, Reason.MALFORMED),
    ]
    for where, data, reason in tries:
        with pytest.raises(PeerFault) as refused:
            await door.objects.put(where, data, 5.0)
        assert refused.value.code == reason
    with pytest.raises(PeerFault):
        await door.objects.get(url, 0, 4, 5.0)
    await door.clock.advance(2.0)
    assert door.state.refusals == {Reason.BAD_SIZE: 2, Reason.NOT_ALLOWED: 3, Reason.MALFORMED: 1}
    assert door.frozen() == before
    door.clock.at += 1_000.0
    with pytest.raises(PeerFault) as late:
        await door.objects.put(url, good, 5.0)
    assert late.value.code == Reason.STALE
    assert await door.store.size_bytes(work.output.key) is None


def another_shape(door: Door) -> bytes:
    z_BTK = np.zeros((4, 8, door.spec.boundary.width), np.float32)
    data = msgspec.structs.replace(door.spec.data, micro_batch_size=4, seq_len=8)
    return wire.encode(msgspec.structs.replace(door.spec, data=data), z_BTK, None)


def with_value(door: Door, value: float) -> bytes:
    return boundary(door)[:-4] + np.float32(value).tobytes()


BAD_OBJECTS: dict[str, tuple[Callable[[Door], bytes], Reason]] = {
    "digest": (lambda door: boundary(door, seed=2), Reason.BAD_DIGEST),
    "shape": (another_shape, Reason.BAD_OBJECT),
    "dtype": (lambda door: boundary(door)[:8] + b"\2" + boundary(door)[9:], Reason.BAD_OBJECT),
    "no header": (lambda door: b"\0" * door.spec.boundary_size_bytes, Reason.BAD_OBJECT),
    "NaN": (lambda door: with_value(door, np.nan), Reason.NOT_FINITE),
    "infinity": (lambda door: with_value(door, -np.inf), Reason.NOT_FINITE),
    "nothing there": (lambda door: b"", Reason.BAD_OBJECT),
    "false complaint": (boundary, Reason.OK),
}


async def read(door: Door, work: m.PassWork) -> Reason:
    """What a miner finds when it fetches its stage input, by its own production code."""
    assert work.stage_input is not None
    try:
        data = await Transfer(door.objects, door.clock).fetch(work.stage_input, door.clock.at + 60.0)
        wire.decode(door.spec, data)
    except PeerFault as fault:
        return Reason(fault.code)
    return Reason.OK


@pytest.mark.parametrize("case", BAD_OBJECTS)
async def test_an_object_that_is_not_what_was_said(door: Door, case: str) -> None:
    """2. A forward's maker stores a tensor with a wrong digest, shape, type, a NaN, an infinity, or nothing at all. The
    reader finds out and names it; the orchestrator looks itself: the maker loses the credit of that pass and is named,
    the piece is due again, and nobody else's credit or record is touched. Who calls a good object bad is named too."""
    make, reason = BAD_OBJECTS[case]
    name, _, work = await door.first_work()
    assert work.output is not None
    stored, said = make(door), boundary(door) if case == "digest" else make(door)
    if stored:
        await door.objects.put(work.output.url, stored, 5.0)
    before = door.frozen()
    await door.exchange(name, door.done(work.item, digest=digest_of(said)))
    reader = door.replicas(1)[0]
    (next_work,) = (await door.exchange(reader, free_slots=1)).work
    assert isinstance(next_work, m.PassWork) and await read(door, next_work) is reason
    failed = m.Failed(
        item=next_work.item,
        reason=reason if reason is not Reason.OK else Reason.BAD_DIGEST,
        sentence="I cannot use it",
        object_key=work.output.key,
    )
    await door.exchange(reader, failed)
    await door.clock.advance(1.0)
    checked = [x for x in door.run.messages() if isinstance(x, m.ObjectChecked)]
    assert checked == [m.ObjectChecked(key=work.output.key, reason=reason)]
    hop = next(iter(door.state.micro_batches.values())).hops[0]
    credit = door.state.ledger.total(door.hotkey(name))
    if reason is Reason.OK:
        assert (door.miner(name).faults, door.miner(reader).false_complaints) == (0, 1)
        assert credit > 0 and hop.forward_by == door.hotkey(name)
    else:
        assert (door.miner(name).faults, door.miner(reader).false_complaints) == (1, 0)
        assert credit == 0.0 and (hop.boundary, hop.forward_epoch) == (None, -1)
        assert any(i.reason is reason and i.hotkey == door.hotkey(name) for i in door.state.incidents)
    assert door.miner(reader).faults == 0 and door.state.ledger.total(door.hotkey(reader)) == 0.0
    untouched = set(door.names) - {name, reader}
    assert all(door.frozen()["miners"][door.hotkey(n)] == before["miners"][door.hotkey(n)] for n in untouched)
    assert door.run.folded() == door.run.state_bytes()
