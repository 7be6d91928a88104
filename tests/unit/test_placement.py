"""Whom to move and where: pure arithmetic, tried on random fleets of miners that join, leave, and then stay."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subnet.coordination.placement import Candidate, Load, Move, best_move, place, supplies
from subnet.protocol.ids import Hotkey, Stage

FACTOR = 2.0


class Fleet(NamedTuple):
    flops: list[int]
    miners: dict[Hotkey, Candidate]

    def loads(self) -> list[Load]:
        of = [[m for m in self.miners.values() if m.stage == stage] for stage in range(len(self.flops))]
        return [Load(Stage(i), len(m), sum(one.speed for one in m), self.flops[i]) for i, m in enumerate(of)]

    def move(self) -> Move | None:
        return best_move(self.loads(), self.miners.values(), FACTOR)

    def carry_out(self, move: Move) -> None:
        self.miners[move.hotkey] = self.miners[move.hotkey]._replace(stage=move.receiver)

    def supply(self) -> list[float]:
        return [supplies(self.loads())[stage] for stage in range(len(self.flops))]


def fleet(*stages: str, flops: list[int] | None = None, **more: dict[str, float]) -> Fleet:
    """One string of one-letter names for each stage; the later in the alphabet, the later it joined."""
    miners = {
        Hotkey(name): Candidate(Hotkey(name), Stage(index), 1.0, float(ord(name)))._replace(**more.get(name, {}))
        for index, names in enumerate(stages)
        for name in names
    }
    return Fleet(flops or [1] * len(stages), miners)


@pytest.mark.parametrize(
    ("stages", "mover"),
    [
        (("abc", "x"), "c"),  # 3 : 1 becomes 2 : 2, the newest goes
        (("ab", "x"), None),  # 2 : 1 would become 1 : 2
        (("abc", "xy"), None),
        (("a", ""), None),  # never the last
        (("ab", ""), "b"),
        (("abcde", "vw", "xy"), "e"),
        (("abcd", "xyz", ""), "d"),
        (("abc", "xyz", "mn"), None),
    ],
)
def test_who_moves(stages: tuple[str, ...], mover: str | None) -> None:
    """1. Equal miners: one moves only where that leaves the weaker of the two stages better off."""
    move = fleet(*stages).move()
    assert (move and move.hotkey) == mover
    if move is not None:
        assert f"stage {move.receiver} has" in move.sentence and "\n" not in move.sentence


def test_who_loses_least_goes_and_nobody_twice_in_a_row() -> None:
    """2. The newest has work in hand, the next one moved a minute ago: an older one goes."""
    more = {"d": {"cost": 3}, "c": {"moved_lately": True}}
    assert fleet("abcd", "x", **more).move().hotkey == "b"
    assert fleet("abcd", "x", a={"cost": 1}, b={"cost": 1}, **more).move().hotkey == "b"


def test_the_slower_one_goes_when_both_came_together() -> None:
    """3. Two replicas joined in the same moment, one a little slower: it is the one that is missed less."""
    more = {name: {"joined_at": 0.0, "speed": speed} for name, speed in zip("abc", (1.0, 1.1, 1.05), strict=True)}
    assert fleet("abc", "x", **more).move().hotkey == "a"


def test_speed_counts_and_not_heads() -> None:
    """4. One fast replica does the work of four: its stage with two is rich, and gives the slow one only."""
    assert fleet("ab", "x", a={"speed": 4.0}).move().hotkey == "b"
    assert fleet("ab", "xyz", a={"speed": 0.4}, b={"speed": 0.5}).move().hotkey == "z"


def test_a_large_stage_needs_more() -> None:
    """5. Twice the FLOPs, the same number of replicas: it is weaker, a newcomer goes there, and so does a replica."""
    wide = fleet("abcd", "wxyz", flops=[1, 3])
    assert place(wide.loads())[0] == 1
    assert wide.move() == Move(
        Hotkey("d"), Stage(0), Stage(1), "stage 1 has 2.67 replicas' strength for its size, stage 0 8.00"
    )


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Stages of unlike size, miners of unlike speed; some joined where `place` put them, many then left."""
    flops = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    made = Fleet(flops, {})
    for number in range(draw(st.integers(1, 24))):
        speed = draw(st.floats(0.2, 5.0))
        where = draw(st.one_of(st.none(), st.integers(0, len(flops) - 1)))
        stage = Stage(place(made.loads())[0] if where is None else where)
        name = Hotkey(f"m{number}")
        made.miners[name] = Candidate(name, stage, speed, float(number), cost=draw(st.integers(0, 2)))
    for name in draw(st.lists(st.sampled_from(sorted(made.miners)), unique=True)):
        if len(made.miners) > 1:
            del made.miners[name]
    return made


@given(fleets())
def test_moves_come_to_an_end_and_never_make_it_worse(made: Fleet) -> None:
    """6. After any joins and leaves, then calm: the least supply never falls, no stage is emptied, nobody goes back to
    where he came from in the next move, and after a bounded number of moves all is quiet."""
    before: Move | None = None
    bound = len(made.miners) * len(made.flops)
    for count in range(bound + 1):
        move = made.move()
        if move is None:
            return
        assert count < bound, "moves without an end"
        old = made.supply()
        made.carry_out(move)
        new = made.supply()
        assert min(new) >= min(old) and min(new[move.giver], new[move.receiver]) > old[move.receiver] == min(old)
        assert all(load.replicas for load in made.loads() if load.stage == move.giver)
        if before is not None:
            assert (before.giver, before.receiver) != (move.receiver, move.giver), "undone by the next move"
        before = move


@given(fleets(), st.lists(st.floats(0.93, 1.07), min_size=24, max_size=24))
def test_what_is_measured_again_undoes_nothing(made: Fleet, errors: list[float]) -> None:
    """7. A move was made; then every speed is measured a few percent differently: the reverse is not asked for."""
    move = made.move()
    if move is None:
        return
    made.carry_out(move)
    for error, (name, one) in zip(errors, sorted(made.miners.items()), strict=False):
        made.miners[name] = one._replace(speed=one.speed * error)
    again = made.move()
    assert again is None or (again.giver, again.receiver) != (move.receiver, move.giver)
