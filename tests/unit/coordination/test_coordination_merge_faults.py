"""Merges with liars and bunglers: wrong shards, other anchors, answers that are broken in themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from subnet.coordination.effects import RecomputeShard
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


def test_a_wrong_shard_names_the_liar(worlds: Worlds) -> None:
    """1. Five replicas, one liar: its four shards are disputed, the orchestrator reduces them, and only it is named."""
    world = at_step(worlds, 5, "reduce")
    lie(world, "c")
    for name in "abde":
        world.do(name, world.players[name].the(m.ReduceWork))
    disputed = [errand for errand in world.errands if isinstance(errand, RecomputeShard)]
    assert len(disputed) == 4 and all("c" in errand.assignment.owners for errand in disputed)
    assert world.merge().step == "reduce" and "disputed" in world.stage().sentence
    length = len(world.journal)
    world.idle(60.0)
    ticks = sum(b'"tick"' in entry for entry in world.journal[length:])
    assert ticks <= 2, "waiting for the orchestrator's own reduction needs none; late passes do"
    finish(world)
    (record,) = world.stage().merges
    assert (record.disputed, record.agreed, record.lost) == (4, 6, 0)
    assert list(record.faulty) == ["c"] and len(record.faulty["c"]) == 4
    assert record.disagreements == {"a": 1, "b": 1, "c": 4, "d": 1, "e": 1}
    assert [world.miner(name).faults for name in "abcde"] == [0, 0, 1, 0, 0]
    assert world.state.incidents[-1].reason is Reason.WRONG_SHARD


def test_colluders_that_agree_with_each_other(worlds: Worlds) -> None:
    """2. Three copies, two colluders: a majority settles nothing, the recomputation does, and both are named."""
    world = at_step(worlds, 3, "reduce", copies=3)
    for name in "ab":
        lie(world, name)
    world.do("c", world.players["c"].the(m.ReduceWork))
    finish(world)
    assert set(world.stage().merges[0].faulty) == {"a", "b"} and world.miner("c").faults == 0


def test_the_recomputed_shard_stands_where_no_owner_was_right(worlds: Worlds) -> None:
    """3. Both owners are wrong, differently: the orchestrator's own range is what all replicas read."""
    world = at_step(worlds, 2, "reduce")
    lie(world, "a")
    world.do("b", world.players["b"].the(m.ReduceWork), shard_digests=("e" * 64,))
    world.do_errands()
    (part,) = world.merge().shards
    assert part.source is not None and keys.parse(part.source.key).item.startswith("orchestrator.0.")
    finish(world)
    assert set(world.stage().merges[0].faulty) == {"a", "b"}


def test_the_recomputation_fails(worlds: Worlds) -> None:
    """4. The inputs cannot be read any more: the disputed shard is lost, nobody is accused."""
    world = at_step(worlds, 2, "reduce")
    lie(world, "a")
    world.do("b", world.players["b"].the(m.ReduceWork))
    (errand,) = world.errands
    world.errands.clear()
    shard = errand.assignment.shard.index
    world.own(m.ShardRecomputed(stage=errand.stage, epoch=errand.epoch, shard=shard, source=None))
    assert [part.source for part in world.merge().shards] == [None]
    finish(world)
    assert world.stage().merges[0].lost == 1 and not world.stage().merges[0].faulty
    world.own(m.ShardRecomputed(stage=errand.stage, epoch=errand.epoch, shard=shard, source=None))


def test_another_anchor(worlds: Worlds) -> None:
    """5. A replica arrives at other parameters: named WRONG_ANCHOR when the epoch turns, and it must load them."""
    world = at_step(worlds, 3, "apply")
    odd = next(name for name in "abc" if not world.players[name].the(m.ApplyWork).publish_parameters)
    world.do(odd, world.players[odd].the(m.ApplyWork), parameters_digest="f" * 64)
    finish(world)
    assert world.miner(odd).faults == 1 and world.state.incidents[-1].reason is Reason.WRONG_ANCHOR
    world.exchange(odd)
    assert world.players[odd].the(m.SyncWork).epoch == 1 and not world.players[odd].works(m.PassWork)
    world.work_until(lambda: world.miner(odd).synced_epoch == 1, limit_s=5.0)


@pytest.mark.parametrize("field", ["parameters_digest", "momentum_digest"])
def test_the_publisher_is_the_odd_one(worlds: Worlds, field: str) -> None:
    """6. It publishes what nobody else arrived at, parameters or momentum: another one publishes what most have."""
    world = at_step(worlds, 3, "apply")
    odd = next(name for name in "abc" if world.players[name].the(m.ApplyWork).publish_parameters)
    world.do(odd, world.players[odd].the(m.ApplyWork), **{field: "f" * 64})
    finish(world)
    assert "f" * 64 not in (world.stage().parameters.digest, world.stage().momentum.digest)
    assert [world.miner(name).faults for name in "abc"] == [int(name == odd) for name in "abc"]


def test_everybody_fails_the_outer_step(worlds: Worlds) -> None:
    """7. No replica can apply (each lost its anchor): they load the epoch's parameters again and then apply."""
    world = at_step(worlds, 2, "apply")
    for name in "ab":
        world.exchange(name, failed(world.players[name].the(m.ApplyWork), None, Reason.WRONG_ANCHOR))
    for name in "ab":
        world.exchange(name)
    assert [work.epoch for name in "ab" for work in world.players[name].works(m.SyncWork)] == [0, 0]
    finish(world)
    assert world.stage().merges[0].lost == 0


def test_who_cannot_load_the_parameters_must_join_again(worlds: Worlds) -> None:
    """8. A failed synchronisation is not repeated in a circle: the session ends with the reason, then it may join."""
    world = at_step(worlds, 3, "apply")
    late = next(name for name in "abc" if not world.players[name].the(m.ApplyWork).publish_parameters)
    world.auto = True
    for name in "abc":
        if name != late:
            world.do(name)
    world.idle(20.0)
    assert world.stage().epoch == 1
    world.exchange(late, failed(world.players[late].the(m.SyncWork), world.stage().parameters.key))
    assert not world.miner(late).live and world.miner(late).removed.reason is Reason.BAD_DIGEST
    reply = world.exchange(late)
    assert isinstance(reply, m.Refusal) and reply.notice.reason is Reason.NOT_JOINED
    assert "the parameters of epoch 1 could not be loaded" in reply.notice.sentence
    world.join(late)
    assert world.miner(late).synced_epoch == 1


def test_a_sync_that_is_no_sync(worlds: Worlds) -> None:
    """9. It says it loaded the parameters and names another digest: rejected, and out."""
    world = at_step(worlds, 3, "apply")
    odd = next(name for name in "abc" if not world.players[name].the(m.ApplyWork).publish_parameters)
    world.do(odd, world.players[odd].the(m.ApplyWork), parameters_digest="f" * 64)
    finish(world)
    world.exchange(odd)
    verdict = world.verdict(odd, world.players[odd].the(m.SyncWork), parameters_digest="f" * 64)
    assert (verdict.outcome, verdict.reason) == ("rejected", Reason.WRONG_ANCHOR) and not world.miner(odd).live


@pytest.mark.parametrize(
    ("step", "kind", "change", "reason"),
    [
        ("upload", m.UploadWork, {"chunk_digests": ()}, Reason.MALFORMED),
        ("reduce", m.ReduceWork, {"shard_digests": ()}, Reason.MALFORMED),
        ("reduce", m.ReduceWork, {"shard_digests": ("0" * 64,) * 9}, Reason.MALFORMED),
    ],
)
def test_merge_results_broken_in_themselves(
    worlds: Worlds, step: str, kind: type, change: dict[str, Any], reason: Reason
) -> None:
    """10. Digests missing or too many: rejected and named; the merge goes on without that piece."""
    world = at_step(worlds, 3, step)
    verdict = world.verdict("b", world.players["b"].the(kind), **change)
    assert (verdict.outcome, verdict.reason, world.miner("b").faults) == ("rejected", reason, 1)
    finish(world)


@pytest.mark.parametrize("step", ["upload", "reduce", "apply"])
def test_an_answer_of_another_kind(worlds: Worlds, step: str) -> None:
    """11. A SyncDone or PassDone for merge work: MALFORMED, not taken for late, and not asked for again."""
    world = at_step(worlds, 3, step)
    for name, done in (
        ("a", m.SyncDone(item=next(iter(world.players["a"].held)), parameters_digest="0" * 64)),
        ("b", m.PassDone(item=next(iter(world.players["b"].held)), digest=None, param_version=0, compute_s=0.0)),
    ):
        verdict = world.exchange(name, done).verdicts[0]
        assert (verdict.outcome, verdict.reason, world.miner(name).faults) == ("rejected", Reason.MALFORMED, 1)
        assert done.item not in world.state.offers
    finish(world)


def test_a_late_recomputation_is_not_taken_for_another(worlds: Worlds) -> None:
    """12. A shard is disputed, an upload turns out bad, the shard is disputed again: the first answer is of no use."""
    world = at_step(worlds, 3, "reduce", copies=3)
    lie(world, "a")
    for name in "bc":
        world.do(name, world.players[name].the(m.ReduceWork))
    (old,) = world.errands
    stale = world.answer_to(old)
    world.own(m.ObjectChecked(key=world.merge().uploads[Hotkey("b")].source.key, reason=Reason.NOT_FINITE))
    world.errands.clear()
    for name in "abc":
        world.exchange(name)
    lie(world, "a")
    world.do("c", world.players["c"].the(m.ReduceWork))
    (fresh,) = world.errands
    assert isinstance(fresh, RecomputeShard) and fresh.attempt != old.attempt
    world.own(stale)
    assert not world.merge().recomputed, "it was reduced over another manifest"
    finish(world)
    assert set(world.stage().merges[0].faulty) == {"a"}


def test_bad_published_parameters_are_published_again(worlds: Worlds) -> None:
    """The bytes that a publisher stored are not the ones it spoke of: nobody could load the next epoch's start. The
    orchestrator looks before the epoch turns, and another replica publishes."""
    world = worlds(num_stages=1, num_microbatches_min=2)
    world.join("a", "b", "c")
    world.auto = False
    world.own(m.Tick())
    world.do_errands()
    world.work_until(lambda: world.stage().merge is not None and bool(world.merge().published))
    (publisher,) = world.merge().published
    bad = world.merge().published[publisher][0].key
    world.bad_objects[bad] = Reason.BAD_DIGEST
    world.auto = True
    world.do_errands()
    assert publisher not in world.merge().published and world.merge().misprinted == {publisher: 1}
    world.work_until(lambda: world.stage().epoch == 1)
    assert world.stage().parameters.key != bad and world.miner(publisher).faults == 1


def test_a_liar_of_two_cannot_hold_up_the_epoch(worlds: Worlds) -> None:
    """The publisher of two replicas says that it reached something else and stores garbage; one against one, its word
    would win for ever. Its word counts no more: the other one publishes, and the epoch turns without the liar."""
    world = worlds(num_stages=1, num_microbatches_min=2)
    world.join("a", "b")
    world.to_step("apply")
    liar = next(n for n in "ab" if any(w.publish_parameters for w in world.players[n].works(m.ApplyWork)))
    work = world.players[liar].the(m.ApplyWork)
    world.bad_objects[work.publish_parameters.key] = Reason.BAD_DIGEST
    world.do(liar, work, parameters_digest="f" * 64, momentum_digest="f" * 64)
    assert world.merge().misprinted == {liar: 1} and not world.merge().published
    other = "ab".replace(liar, "")
    world.work_until(lambda: world.stage().epoch == 1, names=[other])
    assert world.stage().parameters.digest != "f" * 64 and world.miner(other).faults == 0
