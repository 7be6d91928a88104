"""What the miner says next, as a pure table of cases: no loop, no orchestrator, time is a number."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from subnet.miner.desk import EMPTY_PAUSE_S, UNANSWERED_CALLS_MAX, Call, Desk
from subnet.protocol.ids import Epoch, ItemId, MicroBatchId, Pass, RunId, Stage
from subnet.protocol.keys import Kind, make
from subnet.protocol.messages import ExchangeReply, Notice, PassDone, PassWork, Target, UploadWork, Verdict, Work
from subnet.protocol.reasons import Reason
from subnet.transport.backoff import CAP_S, FIRST_S, backoff_s

HEARTBEAT_S = 10.0
NOTICE = Notice(reason=Reason.OK, sentence="", remedy="")
RUN = RunId("run")


def a_pass(item: str) -> PassWork:
    return PassWork(
        item=ItemId(item),
        kind=Pass.FORWARD,
        micro_batch=MicroBatchId(1),
        stage=Stage(0),
        epoch=Epoch(0),
        stage_input=None,
        gradient=None,
        output=Target(key=make(RUN, 0, 0, item, Kind.BOUNDARY), size_bytes=1),
        deadline_s=60.0,
    )


def an_upload(item: str) -> UploadWork:
    target = Target(key=make(RUN, 0, 0, item, Kind.UPLOAD), size_bytes=1)
    return UploadWork(item=ItemId(item), stage=Stage(0), epoch=Epoch(0), output=target, deadline_s=60.0)


def done(item: str) -> PassDone:
    return PassDone(item=ItemId(item), digest="0" * 64, param_version=0, compute_s=0.0)


def reply(*work: Work, drop: tuple[str, ...] = (), verdicts: tuple[str, ...] = ()) -> ExchangeReply:
    said = tuple(
        Verdict(item=ItemId(item), outcome="applied", reason=Reason.OK, sentence="", work_units=1.0)
        for item in verdicts
    )
    return ExchangeReply(verdicts=said, work=work, drop=tuple(ItemId(item) for item in drop), notice=NOTICE)


def open_call(desk: Desk, now: float) -> Call:
    call = desk.next_call(now, HEARTBEAT_S)
    assert isinstance(call, Call)
    return call


def desk_with(*items: str, slots: int = 2) -> Desk:
    """A desk that has received these items."""
    desk = Desk(session="s", slots=slots)
    desk.replied(open_call(desk, 0.0), reply(*(a_pass(item) for item in items)), 1.0)
    return desk


def test_one_long_poll_at_a_time() -> None:
    """1. With free slots and nothing to say, one call is open; while it is held there is no other."""
    desk = Desk(session="s", slots=2)
    call = open_call(desk, 0.0)
    assert call.exchange.free_slots == 2 and call.exchange.results == () and call.exchange.holding == ()
    assert desk.next_call(5.0, HEARTBEAT_S) == 3.0, "after 8 s of 10 the call may be lost"


def test_results_overtake_a_held_poll_and_go_out_together() -> None:
    """2. Two results are ready while a poll is held: one second call carries both; a third result waits for a line."""
    desk = desk_with("a", "b", "c", slots=4)
    open_call(desk, 2.0)
    desk.finish(done("a"))
    desk.finish(done("b"))
    second = open_call(desk, 3.0)
    assert [result.item for result in second.exchange.results] == ["a", "b"]
    assert second.exchange.holding == ("c",) and second.exchange.free_slots == 3
    desk.finish(done("c"))
    assert desk.next_call(3.0, HEARTBEAT_S) == 7.0, "two calls are open: the older one is answered at once"


def test_results_under_way_are_still_held() -> None:
    """3. A result in another open call is not answered yet: `holding` says so, or the item would be given again."""
    desk = desk_with("a", "b")
    desk.finish(done("a"))
    open_call(desk, 2.0)
    desk.finish(done("b"))
    assert open_call(desk, 2.0).exchange.holding == ("a",)


def test_a_busy_miner_beats_every_half_interval() -> None:
    """4. All slots are taken and nothing is finished: a call with no free slots goes out every 5 s of 10."""
    desk = desk_with("a", "b")
    assert desk.next_call(1.0, HEARTBEAT_S) == 4.0
    beat = open_call(desk, 5.0)
    assert beat.exchange.free_slots == 0 and set(beat.exchange.holding) == {"a", "b"}
    desk.replied(beat, reply(), 5.1)
    assert desk.next_call(5.1, HEARTBEAT_S) == 10.0 - 5.1


def test_merge_work_takes_no_slot() -> None:
    """5. A miner that uploads its pseudo-gradient still asks for passes."""
    desk = Desk(session="s", slots=2)
    desk.replied(open_call(desk, 0.0), reply(an_upload("u")), 1.0)
    assert desk.free_slots == 2 and open_call(desk, 1.0).exchange.holding == ("u",)


def test_a_lost_reply_loses_no_result() -> None:
    """6. The line breaks after the request: the same result goes out again, after the back-off and not before."""
    desk = desk_with("a")
    desk.finish(done("a"))
    desk.unanswered(open_call(desk, 2.0), retry_at=4.0)
    assert desk.next_call(3.0, HEARTBEAT_S) == 1.0
    again = open_call(desk, 4.0)
    assert again.exchange.results == (done("a"),)
    desk.replied(again, reply(verdicts=("a",)), 4.5)
    assert open_call(desk, 5.0).exchange.results == ()


def test_an_item_delivered_again_is_ignored_by_id() -> None:
    """7. Held, finished, or on its way back: the same offer is not begun twice."""
    desk = desk_with("a", slots=4)
    poll = open_call(desk, 2.0)
    assert desk.replied(poll, reply(a_pass("a")), 2.5).work == []
    late_poll = open_call(desk, 3.0)
    desk.finish(done("a"))
    hand_in = open_call(desk, 3.0)
    desk.replied(hand_in, reply(verdicts=("a",)), 3.5)
    assert desk.replied(late_poll, reply(a_pass("a")), 4.0).work == [], "the poll is older than the answer"


def test_an_id_given_afresh_is_taken_up_again() -> None:
    """8. A sync that failed is offered once more under its old id, in reply to a later call: that is new work."""
    desk = desk_with("a")
    desk.finish(done("a"))
    desk.replied(open_call(desk, 2.0), reply(verdicts=("a",)), 2.5)
    assert desk.replied(open_call(desk, 3.0), reply(a_pass("a")), 3.5).work == [a_pass("a")]


def test_drop_forgets_what_is_not_done() -> None:
    """9. Another replica was faster: a held item goes, a finished one is still handed in."""
    desk = desk_with("a", "b")
    desk.finish(done("a"))
    poll = open_call(desk, 2.0)
    desk.unanswered(poll, 2.0)
    desk.held[ItemId("c")] = a_pass("c")
    other = Call(poll.exchange, 2.0, 99, 0)
    desk.calls.append(other)
    assert desk.replied(other, reply(drop=("a", "b", "c")), 3.0).dropped == ["b", "c"]
    desk.finish(done("b"))  # it was computing when it was dropped
    assert open_call(desk, 3.0).exchange.results == (done("a"),)


def test_an_orchestrator_that_answers_at_once_is_not_hammered() -> None:
    """10. Polls come back empty, or with old items only, in no time: the next one waits a little."""
    desk = desk_with("a")
    desk.replied(open_call(desk, 2.0), reply(a_pass("a")), 2.01)
    wait_s = desk.next_call(2.01, HEARTBEAT_S)
    assert isinstance(wait_s, float) and 0 < wait_s <= EMPTY_PAUSE_S


def test_a_poll_lost_with_the_old_membership_does_not_block_the_new_one() -> None:
    """11. The orchestrator restarted; a poll of before still hangs: after joining again the miner polls at once."""
    desk = Desk(session="s", slots=2)
    open_call(desk, 0.0)
    desk.joined(first_heartbeat_at=3.0)
    assert isinstance(desk.next_call(1.0, HEARTBEAT_S), Call)


@given(tries=st.integers(1, 10_000), jitter=st.binary(min_size=2, max_size=2))
def test_back_off_is_bounded_and_spread(tries: int, jitter: bytes) -> None:
    """12. However long the outside is away, the next try comes within the cap and never at once."""
    assert FIRST_S / 2 <= backoff_s(tries, jitter) <= CAP_S
    assert backoff_s(tries, b"\x00\x00") * 2 == backoff_s(tries, b"\xff\xff")


class AnyOrder(RuleBasedStateMachine):
    """13. Replies lost, late and repeated in any order: every offer is begun once, every result is answered."""

    @initialize()
    def begin(self) -> None:
        self.desk = Desk(session="s", slots=3)
        self.now, self.offered = 0.0, 0
        self.begun: list[ItemId] = []
        self.open_offers: dict[ItemId, Work] = {}
        self.answered: set[ItemId] = set()
        self.under_way: list[tuple[Call, ExchangeReply]] = []

    @rule(seconds=st.floats(0.0, 6.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(offer=st.booleans())
    def call(self, offer: bool) -> None:
        """The miner calls if a call is due; the orchestrator handles it, the reply is under way."""
        call = self.desk.next_call(self.now, HEARTBEAT_S)
        if not isinstance(call, Call):
            return
        for result in call.exchange.results:
            self.open_offers.pop(result.item, None)
            self.answered.add(result.item)
        again = [work for item, work in self.open_offers.items() if item not in call.exchange.holding]
        if offer and call.exchange.free_slots:
            self.offered += 1
            work = a_pass(f"i{self.offered}")
            self.open_offers[work.item] = work
            again.append(work)
        self.under_way.append((call, reply(*again)))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), lost=st.booleans())
    def answer(self, data: st.DataObject, lost: bool) -> None:
        call, answer = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        if lost:
            self.desk.unanswered(call, self.now + 0.5)
        else:
            self.begun += [work.item for work in self.desk.replied(call, answer, self.now).work]

    @precondition(lambda self: self.desk.held)
    @rule()
    def finish(self) -> None:
        self.desk.finish(done(next(iter(self.desk.held))))

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "desk"):
            return
        assert len(self.begun) == len(set(self.begun)), "an offer was begun twice"
        current = {*self.desk.held, *self.desk.ready}
        carried = {result.item for call in self.desk.calls for result in call.exchange.results}
        assert set(self.begun) <= current | carried | self.answered, "a result was lost"
        assert len(self.desk.calls) <= UNANSWERED_CALLS_MAX

    def teardown(self) -> None:
        """The line holds from now on: all that was offered gets done and answered."""
        if not hasattr(self, "desk"):
            return
        for _ in range(200):
            self.now += 1.0
            while self.under_way:
                call, answer = self.under_way.pop(0)
                self.begun += [work.item for work in self.desk.replied(call, answer, self.now).work]
            for item in list(self.desk.held):
                self.desk.finish(done(item))
            if not self.open_offers:
                break
            self.call(offer=False)
        assert not self.open_offers, f"never answered: {sorted(self.open_offers)}"


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
