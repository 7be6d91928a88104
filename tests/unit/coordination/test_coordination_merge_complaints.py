"""Merges in which somebody calls an upload or a reduced object bad, rightly or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from subnet.coordination.effects import CheckObject
from subnet.protocol import keys
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey
from subnet.protocol.reasons import Reason

if TYPE_CHECKING:
    from conftest import World

Worlds = Callable[..., "World"]


def at_step(worlds: Worlds, replicas: int, step: str, **spec: object) -> World:
    world = worlds(num_stages=1, auto=False, **spec)
    world.do_errands()
    world.join(*"abcdefg"[:replicas])
    world.to_step(step)
    return world


def failed(work: m.Work, key: str | None, reason: Reason = Reason.BAD_DIGEST) -> m.Failed:
    return m.Failed(item=work.item, reason=reason, sentence="not the bytes I was told", object_key=key)


def lie(world: World, name: str, positions: list[int] | None = None) -> None:
    """Reduce, and report wrong digests for the shards at these positions (all)."""
    work = world.players[name].the(m.ReduceWork)
    done: Any = world.result(work)
    wrong = [
        "f" * 64 if positions is None or position in positions else digest
        for position, digest in enumerate(done.shard_digests)
    ]
    assert world.verdict(name, work, shard_digests=tuple(wrong)).outcome == "applied"


def finish(world: World) -> None:
    """The orchestrator looks at what it was asked to, everybody is honest from here on: the epoch turns."""
    world.auto = True
    world.do_errands()
    world.work_until(lambda: world.stage().epoch == 1, limit_s=60.0)


def test_a_bad_upload_is_left_out(worlds: Worlds) -> None:
    """1. A reducer cannot use an upload and is right: its maker is named, the rest is reduced again without it."""
    world = at_step(worlds, 3, "reduce")
    work = world.players["a"].the(m.ReduceWork)
    bad = next(entry.source for entry in work.manifest if entry.hotkey == "b")
    world.exchange("a", failed(work, bad.key))
    (check,) = world.errands
    assert check == CheckObject(bad, world.merge().uploads[Hotkey("b")].chunk_digests)
    for name in "bc":
        world.do(name, world.players[name].the(m.ReduceWork))
    assert world.merge().step == "reduce", "nothing ends while the upload is looked at"
    world.bad_objects[bad.key] = Reason.NOT_FINITE
    world.do_errands()
    assert [entry.hotkey for entry in world.merge().manifest] == ["a", "c"]
    assert (world.miner("b").faults, world.miner("a").faults, world.miner("a").false_complaints) == (1, 0, 0)
    finish(world)
    assert world.stage().merges[0].replicas == 2
    assert all(world.miner(name).synced_epoch == 1 for name in "abc"), "its maker may go on, too"


def test_all_reducers_complain_at_once(worlds: Worlds) -> None:
    """2. Everybody finds the same upload bad before the orchestrator has looked: one look, and nothing is lost."""
    world = at_step(worlds, 3, "reduce")
    bad = world.merge().uploads[Hotkey("b")].source
    for name in "abc":
        world.exchange(name, failed(world.players[name].the(m.ReduceWork), bad.key))
    assert len(world.errands) == 1 and world.merge().step == "reduce"
    world.bad_objects[bad.key] = Reason.BAD_OBJECT
    finish(world)
    (record,) = world.stage().merges
    assert (record.replicas, record.lost) == (2, 0)


def test_every_upload_is_bad(worlds: Worlds) -> None:
    """3. Nothing is left to merge: the epoch goes on."""
    world = at_step(worlds, 1, "reduce")
    bad = world.merge().uploads[Hotkey("a")].source
    world.bad_objects[bad.key] = Reason.NOT_FINITE
    world.exchange("a", failed(world.players["a"].the(m.ReduceWork), bad.key))
    world.do_errands()
    assert world.stage().merge is None and "every pseudo-gradient was bad: the epoch goes on" in world.said[-1]
    world.auto = True
    world.work_until(lambda: world.stage().epoch == 1, limit_s=120.0)


def test_a_false_complaint_about_an_upload(worlds: Worlds) -> None:
    """4. The upload is good: who complained is noted and has reduced nothing; others make the second copies."""
    world = at_step(worlds, 3, "reduce")
    good = world.merge().uploads[Hotkey("b")].source
    world.exchange("a", failed(world.players["a"].the(m.ReduceWork), good.key))
    finish(world)
    (record,) = world.stage().merges
    assert (record.replicas, record.single, record.agreed, record.handed_on) == (3, 0, 3, 0)
    assert world.miner("a").false_complaints == 1 and world.miner("b").faults == 0


def test_a_reduced_object_is_bad(worlds: Worlds) -> None:
    """5. Right digests over other bytes: all readers complain, its owner is named, others check the other copies."""
    world = at_step(worlds, 3, "apply")
    source = next(part.source for part in world.merge().shards if part.source is not None)
    owner = keys.parse(source.key).item.partition(".")[0]
    readers = [name for name in "abc" if name != owner]
    for name in readers:
        world.exchange(name, failed(world.players[name].the(m.ApplyWork), source.key))
    (check,) = world.errands
    assert check.source.key == source.key and source in check.ranges, "what its owner said of each shard"
    assert not any(world.players[name].works(m.ApplyWork) for name in readers), "not asked again before the look"
    world.bad_objects[source.key] = Reason.BAD_DIGEST
    finish(world)
    (record,) = world.stage().merges
    assert (record.lost, record.single, record.agreed) == (0, 0, 3)
    assert [world.miner(name).faults for name in "abc"] == [int(name == owner) for name in "abc"]
    assert all(world.miner(name).synced_epoch == 1 for name in readers), "nobody had to load anything"


def test_most_readers_cannot_use_an_object_that_looks_good(worlds: Worlds) -> None:
    """6. The orchestrator finds nothing, but two of three cannot read it: the merge does without that object."""
    world = at_step(worlds, 3, "apply")
    source = next(part.source for part in world.merge().shards if part.source is not None)
    owner = keys.parse(source.key).item.partition(".")[0]
    readers = [name for name in "abc" if name != owner]
    for name in readers:
        world.exchange(name, failed(world.players[name].the(m.ApplyWork), source.key))
    world.do_errands()
    assert [world.miner(name).false_complaints for name in readers] == [1, 1] and world.miner(owner).faults == 0
    assert all(part.source is None or part.source.key != source.key for part in world.merge().shards)
    finish(world)


def test_a_false_complaint_about_a_reduced_object(worlds: Worlds) -> None:
    """7. One of three calls a good object bad: the others go on, and it loads their result."""
    world = at_step(worlds, 3, "apply")
    source = next(part.source for part in world.merge().shards if part.source is not None)
    accuser = next(name for name in "abc" if not world.players[name].the(m.ApplyWork).publish_parameters)
    world.exchange(accuser, failed(world.players[accuser].the(m.ApplyWork), source.key))
    finish(world)
    assert world.miner(accuser).false_complaints == 1 and world.stage().merges[0].lost == 0
    world.exchange(accuser)
    assert world.players[accuser].works(m.SyncWork)


def test_the_sole_replica_cannot_read_what_it_wrote(worlds: Worlds) -> None:
    """8. N = 1 and its own object is called bad, wrongly: no deadlock, it reduces again or goes on without."""
    world = at_step(worlds, 1, "apply")
    world.auto = True
    while world.stage().epoch == 0:
        for work in world.players["a"].works(m.ApplyWork):
            read = [part.source.key for part in work.shards if part.source is not None]
            world.exchange("a", failed(work, read[0]) if read else world.result(work))
        world.do("a", *world.players["a"].works(m.ReduceWork))
        world.wait(1.0)
        assert world.at < 2_000.0
    assert world.stage().merges[0].lost == 1
