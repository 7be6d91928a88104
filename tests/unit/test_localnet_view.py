"""The live view: what an operator reads from one page, whatever the status holds and however large the terminal is."""

from __future__ import annotations

import copy
import math
from io import StringIO
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from subnet.chain.base import Block, Pay, Subnet
from subnet.localnet.course import LOSSES_KEPT, SPARKS_MAX, Course, sparks
from subnet.localnet.public_status import Pay as PayStatus
from subnet.localnet.public_status import Replica, Slip, StageStatus, Status
from subnet.localnet.screen import Screen
from subnet.localnet.view import page
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Neuron
from subnet.protocol.reasons import REMEDY, Reason

NAMES = {"5Aaa": "miner-0", "5Bbb": "miner-1", "5Ccc": "miner-2", "5Val": "validator-0"}
FULL: dict[str, Any] = {
    "run_id": "run",
    "at": 1060.0,
    "finished": False,
    "target_epochs": 6,
    "micro_batches": 412,
    "abandoned": 1,
    "passes_started": 2000,
    "passes_merged": 1600,
    "tokens": 421888,
    "first_completed_at": 1000.0,
    "last_completed_at": 1059.0,
    "in_flight": 6,
    "loss": 5.558,
    "evaluations": [{"epoch": 0, "loss": 8.31}, {"epoch": 1, "loss": 6.12}, {"epoch": 2, "loss": 5.42}],
    "stages": [
        {
            "stage": 0,
            "epoch": 2,
            "phase": "training",
            "reason": "ok",
            "sentence": "1 of 2 replicas did 40 micro-batches",
            "replicas": [
                {
                    "hotkey": "5Aaa",
                    "live": True,
                    "epoch_micro_batches": 12,
                    "credit": 80.5,
                    "reason": "busy",
                    "sentence": "2 items in hand",
                    "remedy": "nothing to do: you have work",
                },
                {
                    "hotkey": "5Bbb",
                    "live": False,
                    "reason": "audit-failed",
                    "sentence": "an audit failed: state distance 1.2, allowed 0.05",
                    "remedy": "run the published code",
                },
            ],
            "merges": [{"epoch": 1, "shards": 12, "lost": 1, "single": 2, "agreed": 8, "disputed": 1}],
        },
        {
            "stage": 1,
            "epoch": 2,
            "phase": "uploading",
            "reason": "merge-running",
            "sentence": "waiting for 1 upload",
            "replicas": [
                {
                    "hotkey": "5Ccc",
                    "live": True,
                    "reason": "no-work",
                    "sentence": "no item waits",
                    "remedy": "wait a bit",
                }
            ],
        },
    ],
    "incident_count": 7,
    "incidents": [
        {"at": 1050.0, "reason": "silent", "sentence": "nothing was heard", "hotkey": "5Bbb"},
        {"at": 1058.0, "reason": "wrong-shard", "sentence": "shard 3 was wrong", "hotkey": None},
    ],
    "audits": {
        "passed": 9,
        "failed": 1,
        "not_revealed": 2,
        "unreadable": 1,
        "open": 3,
        "replay_s": 3.0,
        "compute_s": 100.0,
        "by_hotkey": {"5Bbb": {"failed": 1, "sentence": "too far off"}},
    },
    "pay": {
        "scores": {
            "5Aaa": {"uid": 1, "score": 80.5, "weight": 1.0, "reason": "paid", "sentence": "100% of the weight"},
            "5Bbb": {"uid": 2, "score": 0.0, "reason": "audit-failed", "sentence": "forfeited", "remedy": "be honest"},
            "5Ccc": {"score": 0.0, "reason": "audit-pending", "sentence": "not settled", "remedy": "wait a while"},
        },
        "weights": {"1": 1.0},
        "validators": {"5Val": {"index": 400, "block": 17, "sentence": "weights for 1 uids stand at block 17"}},
    },
    "chain": {"block": 16, "anchor": {"epoch": 2, "index": 390, "head": "0" * 64, "block": 15}},
    "outcomes": {"applied/ok": 800, "ignored/late": 4, "rejected/bad-size": 1},
    "refusals": {"stale": 2},
}
SUBNET = Subnet(
    Block(20, "0" * 64),
    10,
    1.0,
    0,
    Hotkey("5Own"),
    tuple(
        Neuron(uid=uid, hotkey=Hotkey(h), stake=1000.0 * uid, permit=False) for uid, h in enumerate(["5Own", *NAMES])
    ),
    {0: Pay(0.0, 0.0, 1.8), 1: Pay(1.0, 0.0, 4.1), 2: Pay(0.0, 0.0, 0.0), 4: Pay(0.0, 1.0, 4.1)},
    {},
)


def read(status: dict[str, Any]) -> Status:
    return msgspec.convert(status, Status)


def text(status: Status, subnet: Subnet | None = None, width: int = 140, height: int = 40) -> str:
    """The page as it stands on the terminal."""
    course = Course()
    course.note(msgspec.structs.replace(status, tokens=0, micro_batches=0), 100.0)
    course.note(status, 110.0)
    console = Console(record=True, file=StringIO(), width=width, height=height, force_terminal=True)
    console.print(page(status, course, NAMES, subnet, height))
    return console.export_text()


# ---- what stands on the page -----------------------------------------------------------------------------------------


def test_everything_is_on_one_page() -> None:
    """1. An operator looks up from something else: how far, how fast, how well, who, why, and what was paid."""
    said = text(read(FULL), SUBNET)
    for part in (
        "1:50 · epoch 2 of 6 · 412 micro-batches · 421,888 tokens · 42,189 tokens/s · 6 in flight · 1 abandoned"
        " · goodput 80%",
        "training 5.558 ▁   validation 5.420 after 2 epochs █▃▁",
        "1 newest, 12 shards: 8 agreed, 2 single, 1 lost, 1 disputed",
        "9 passed, 1 failed, 2 not revealed, 3 open, 1 unreadable; replays cost 3.0% of training compute",
        "block 20, a chain epoch every 10 blocks; the journal's head at record 390 is anchored in block 15;",
        "record 400: weights for 1 uids stand at block 17",
        "stage 0 training, epoch 2  1 of 2 replicas did 40 micro-batches",
        "stage 1 uploading, epoch 2  waiting for 1 upload",
        "7 incidents; 2 s ago, wrong-shard: shard 3 was wrong",
        "10 s ago, miner-1: silent: nothing was heard",
    ):
        assert part in said, said
    miners, uids = said.split("on chain ")
    rows = {line.split()[0]: line.split() for line in miners.splitlines() if line.startswith("miner-")}
    assert rows["miner-0"][1:7] == ["1", "busy", "12", "80.50", "100.0%", "paid"]
    assert rows["miner-1"][1:7] == ["2", "audit-failed", "0", "0.00", "0.0%", "audit-failed"]
    assert rows["miner-2"][1:7] == ["3", "no-work", "0", "0.00", "0.0%", "audit-pending"]
    assert " ".join(rows["miner-0"][7:]) == "2 items in hand"
    assert [line.split() for line in uids.splitlines()[:6]] == [
        ["uid", "stake", "α", "incentive", "dividends", "α"],
        ["5Own", "0", "0.0", "0.0%", "0.0%", "1.800"],
        ["miner-0", "1", "1,000.0", "100.0%", "0.0%", "4.100"],
        ["miner-1", "2", "2,000.0", "0.0%", "0.0%", "0.000"],
        ["miner-2", "3", "3,000.0", "0.0%", "0.0%", "0.000"],
        ["validator-0", "4", "4,000.0", "0.0%", "100.0%", "4.100"],
    ]


def test_the_owner_has_tuned_the_run() -> None:
    """1b. While not all stages go by the same RunSpec, each says which; otherwise there is nothing to tell apart."""
    stages = [StageStatus(stage=0, epoch=4, phase="training", spec_version=2), StageStatus(stage=1, epoch=3)]
    said = text(Status(stages=stages))
    assert "stage 0 training, epoch 4, RunSpec 2" in said and "stage 1 -, epoch 3, RunSpec 1" in said
    assert "RunSpec" not in text(Status(stages=stages[:1]))


def test_more_uids_than_lines() -> None:
    """1c. 256 uids: those that are paid are on the page, then those with most stake; the rest are counted."""
    neurons = tuple(Neuron(uid=uid, hotkey=Hotkey(f"5{uid:03}"), stake=float(uid), permit=False) for uid in range(256))
    said = text(Status(), SUBNET._replace(neurons=neurons, pay={7: Pay(1.0, 0.0, 4.1)}), height=40)
    shown = [line.split()[0] for line in said.split("on chain ")[1].splitlines()[1:]]
    assert shown[0] == "5007" and shown[-2:] == ["5255", "+"] and f"+ {256 - len(shown) + 1}" in said


def test_every_state_says_why_and_what_to_do() -> None:
    """2. Removed, unpaid, refused, waiting, ignored: each with code, sentence and remedy, the worst first."""
    whys = [line.removeprefix("why     ") for line in text(read(FULL), width=200).splitlines() if "why  " in line]
    assert whys == [
        "miner-1 removed: audit-failed: an audit failed: state distance 1.2, allowed 0.05 → run the published code",
        "miner-1 unpaid: audit-failed: forfeited → be honest",
        f"2 requests refused at the door: stale → {REMEDY[Reason.STALE]}",
        "miner-2 unpaid: audit-pending: not settled → wait a while",
        f"stage 1 waiting: merge-running: waiting for 1 upload → {REMEDY[Reason.MERGE_RUNNING]}",
        "miner-2 waiting: no-work: no item waits → wait a bit",
        f"4 results ignored: late → {REMEDY[Reason.LATE]}",
        f"1 result rejected: bad-size → {REMEDY[Reason.BAD_SIZE]}",
    ]


@pytest.mark.parametrize("reason", set(Reason) - {Reason.OK, Reason.BUSY, Reason.PAID})
def test_the_whole_catalogue_is_shown(reason: Reason) -> None:
    """3. Whatever code a miner's state or pay has: the catalogue's remedy stands there, even if the status lacks it."""
    idle = StageStatus(replicas=[Replica("5Aaa", True, reason=reason, sentence="the figures")])
    unpaid = PayStatus(scores={"5Bbb": Slip(reason=reason, sentence="the sums")})
    said = " ".join(text(Status(stages=[idle], pay=unpaid), width=250).split())
    assert f"miner-0 waiting: {reason}: the figures → {REMEDY[reason]}" in said
    assert f"miner-1 unpaid: {reason}: the sums → {REMEDY[reason]}" in said


def test_equal_states_share_a_line() -> None:
    """4. All six miners wait for the same merge: one reason, not six."""
    replicas = [Replica(f"5{n}", True, reason="merge-running", sentence="it merges") for n in range(6)]
    said = text(Status(stages=[StageStatus(replicas=replicas)]))
    assert said.count("why ") == 1 and "50, 51, 52, 53 and 2 more waiting: merge-running: it merges →" in said


def test_before_anything_happened() -> None:
    """5. The orchestrator has just begun: no loss, no stage, no chain."""
    said = text(Status())
    assert "epoch 0 · 0 micro-batches" in said and "training -    validation -" in said and "none yet" in said


# ---- whatever comes --------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every field of a status, at any depth."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(*path, key), *places(value[key], (*path, key))]]


PLACES = places(FULL)


@settings(deadline=None, max_examples=60)
@given(
    gone=st.lists(st.sampled_from(PLACES), max_size=30),
    width=st.integers(20, 220),
    height=st.integers(1, 80),
    with_chain=st.booleans(),
)
def test_missing_fields_leave_their_places_empty(
    gone: list[tuple[Any, ...]], width: int, height: int, with_chain: bool
) -> None:
    """6. Another version's orchestrator leaves out any of the fields, the terminal has any size: a page, always."""
    status = copy.deepcopy(FULL)
    for *path, last in sorted(gone, key=repr, reverse=True):
        inside: Any = status
        try:
            for key in path:
                inside = inside[key]
            del inside[last]
        except (KeyError, IndexError):
            continue  # it went with what it was in
    said = text(read(status), SUBNET if with_chain else None, width, height)
    assert "run " in said and all(len(line) <= width for line in said.splitlines())


def test_more_miners_than_lines() -> None:
    """7. 200 miners on 30 lines: removed and unpaid ones are on the page, the rest are counted."""
    replicas = [Replica(f"5{n:03}", True, reason="busy", sentence="1 items in hand") for n in range(200)]
    replicas[150] = Replica("5150", False, reason="silent", sentence="nothing was heard")
    unpaid = PayStatus(scores={"5170": Slip(reason="audit-failed", sentence="too far off")})
    said = text(Status(stages=[StageStatus(replicas=replicas)], pay=unpaid), height=30)
    assert len(said.splitlines()) < 30
    assert "\n5150 " in said and "\n5170 " in said
    shown = sum(line.startswith("5") for line in said.splitlines())
    assert f"+ {200 - shown}" in said and f"more: {200 - shown} busy" in said


def test_what_a_stranger_sent_stays_text() -> None:
    """8. Escape codes and markup in sentences, hotkeys and reasons are shown as letters."""
    bad = "\x1b[2J[red]x\r\n"
    status = Status(
        stages=[
            StageStatus(sentence=bad, reason=bad, phase=bad, replicas=[Replica(bad, True, reason=bad, sentence=bad)])
        ],
        pay=PayStatus(scores={bad: Slip(reason=bad, sentence=bad, remedy=bad)}),
        outcomes={bad: 1},
        refusals={bad: 1},
    )
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system=None)
    console.print(page(status, Course(), {}, None, 40))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in said and "\r" not in said and "[red]x" in said


# ---- the course ------------------------------------------------------------------------------------------------------


@example([1.7e308, -1e292], 2)
@given(st.lists(st.floats(allow_nan=True), max_size=300), st.integers(1, 60))
def test_sparks_are_as_wide_as_asked(values: list[float], width: int) -> None:
    """9. Any course, infinities and all, as so many blocks."""
    said = sparks(values, width)
    assert len(said) == min(width, sum(math.isfinite(value) for value in values))
    assert set(said) <= set("▁▂▃▄▅▆▇█")


def test_a_falling_loss_falls() -> None:
    """10. The first is the highest block, the last the lowest; equal ones are flat."""
    said = sparks([8.0 - 0.1 * step for step in range(48)])
    assert len(said) == SPARKS_MAX and list(said) == sorted(said, reverse=True) and said[0] == "█" and said[-1] == "▁"
    assert sparks([3.0, 3.0]) == "▁▁" and sparks([]) == ""


def test_the_course_of_a_long_run_stays_small() -> None:
    """11. A night of statuses, two a second: losses are thinned out evenly, speed is of the last twenty seconds."""
    course = Course()
    assert course.tokens_per_s is None
    for tick in range(20_000):
        tokens = 1000 * min(tick, 19_900)
        course.note(Status(tokens=tokens, micro_batches=tick + 1, loss=20_000.0 - tick), tick / 2)
    assert SPARKS_MAX <= len(course.losses) <= LOSSES_KEPT
    steps = [before - after for before, after in zip(course.losses[1:], course.losses[2:], strict=False)]
    assert max(steps) <= 2 * min(steps)
    assert course.tokens_per_s == 0.0
    course.note(Status(tokens=19_900_000 + 50_000), 10_010.0)
    assert course.tokens_per_s == pytest.approx(50_000 / 20, rel=0.5)


# ---- the screen ------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_lines() -> None:
    """12. Output goes to a file: no page, no colours, the lines as they were."""
    file = StringIO()
    screen = Screen(Console(file=file, width=80))
    screen.say("x" * 200)
    lines = screen.show(read(FULL), NAMES, 1.0)
    assert "miner-0 trains stage 0" in lines and screen.show(read(FULL), NAMES, 2.0) == []
    screen.close()
    assert file.getvalue() == "x" * 200 + "\n"


def test_a_terminal_gets_the_page_and_has_its_cursor_back() -> None:
    """13. On a terminal the page is drawn in place and what happens is said above it; at the end it stands, the cursor
    is back, and the summary comes below."""
    file = StringIO()
    screen = Screen(Console(file=file, width=100, height=50, force_terminal=True, color_system=None))
    screen.say("run folder")
    assert screen.show(read(FULL), NAMES, 1.0, SUBNET) == [] == screen.show(read(FULL), NAMES, 2.0, SUBNET)
    screen.say("killed miner-1\x1b[2J")
    screen.close()
    screen.close()
    screen.say("summary")
    said = file.getvalue()
    assert said.startswith("run folder") and said.endswith("\x1b[?25hsummary\n") and "\x1b[?25l" in said
    assert "killed miner-1 [2J" in said and said.count("412 micro-batches") >= 3
