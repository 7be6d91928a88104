"""Who gets shards that lack owners (`butterfly.heirs`)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.merging.butterfly import Orphan, assign, heirs
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Shard

SECRET = b"s" * 32


def hotkeys(count: int) -> list[Hotkey]:
    return [Hotkey(f"hk{i:03d}") for i in range(count)]


def orphan(index: int, *barred: Hotkey, wanted: int = 2, length: int = 256) -> Orphan:
    return Orphan(Shard(index=index, start=256 * index, length=length), barred, wanted)


def test_the_idle_come_first_and_ranks_before_that() -> None:
    """1. Of the first rank whoever has least to do; the second rank only where the first is not enough."""
    a, b, c, d = hotkeys(4)
    loads = {a: (0, 512), b: (0, 0), c: (1, 0), d: (0, 100)}
    assert heirs(SECRET, 0, 0, 0, [orphan(7)], loads) == {7: (b, d)}
    assert heirs(SECRET, 0, 0, 0, [orphan(7, b, d)], loads) == {7: (a, c)}
    assert heirs(SECRET, 0, 0, 0, [orphan(7, a, b, d)], loads) == {7: (c,)}
    assert heirs(SECRET, 0, 0, 0, [orphan(7, *loads)], loads) == {7: ()}


def test_a_third_of_twenty_falls_away() -> None:
    """2. Seven of twenty are gone: their 21 common shards, twice each, make 42 pieces for thirteen survivors: three or
    four each. Another secret or another hand-out draws others."""
    owners = hotkeys(20)
    dead = set(owners[:7])
    orphans = [
        Orphan(a.shard, a.owners, 2) for a in assign(SECRET, 0, 0, owners, 190 * 256, 2) if dead >= set(a.owners)
    ]
    loads = dict.fromkeys(owners[7:], (0, 0))
    found = heirs(SECRET, 0, 0, 1, orphans, loads)
    counts = [sum(hotkey in group for group in found.values()) for hotkey in loads]
    assert len(found) == 21 and set(counts) == {3, 4} and sum(counts) == 42
    assert heirs(SECRET, 0, 0, 1, orphans, dict(reversed(loads.items()))) == found, "whatever order they are listed in"
    assert heirs(SECRET, 0, 0, 2, orphans, loads) != found != heirs(b"t" * 32, 0, 0, 1, orphans, loads)


@given(st.integers(1, 9), st.integers(0, 30), st.integers(1, 4), st.data())
@settings(max_examples=50, deadline=None)
def test_nobody_twice_and_never_who_is_barred(candidates: int, count: int, wanted: int, data: st.DataObject) -> None:
    """3. Whatever the loads: as many as are wanted or can be had, all different, none of them barred."""
    names = hotkeys(candidates)
    loads = {name: (data.draw(st.integers(0, 1)), data.draw(st.integers(0, 2_000))) for name in names}
    barred = [data.draw(st.sets(st.sampled_from(names))) for _ in range(count)]
    found = heirs(SECRET, 0, 0, 0, [orphan(i, *out, wanted=wanted) for i, out in enumerate(barred)], loads)
    assert set(found) == set(range(count))
    for index, group in found.items():
        assert len(group) == len(set(group)) == min(wanted, candidates - len(barred[index]))
        assert not barred[index].intersection(group)
