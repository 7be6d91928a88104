"""Progress lines: what the operator reads, made from statuses alone."""

from __future__ import annotations

import msgspec

from subnet.localnet.progress import Evaluation, Merge, Progress, Replica, StageStatus, Status

NAMES = {"5Aaa": "miner-0", "5Bbb": "miner-1"}


def status(micro_batches: int, **changes: object) -> Status:
    stage = StageStatus(stage=0, epoch=0, phase="training", replicas=[Replica("5Aaa", True), Replica("5Bbb", True)])
    made = Status(
        finished=False,
        tokens=micro_batches * 1024,
        micro_batches=micro_batches,
        in_flight=4,
        loss=8.25,
        stages=[stage],
    )
    return msgspec.structs.replace(made, **changes)


def test_a_quiet_run_says_one_line_in_ten_seconds() -> None:
    """1. The status is read twice a second; the terminal is not flooded."""
    shown = Progress(NAMES)
    first = shown.lines(status(1), 20.0)
    assert first[:2] == ["miner-0 trains stage 0", "miner-1 trains stage 0"]
    assert first[2].startswith("epochs 0: 1 micro-batches, 1,024 tokens, training loss 8.250")
    assert [shown.lines(status(2 + tick), 20.5 + tick / 2) for tick in range(18)] == [[]] * 18
    (line,) = shown.lines(status(41), 30.0)
    assert line == "epochs 0: 41 micro-batches, 41,984 tokens, 4,096 tokens/s, training loss 8.250, 4 in flight"


def test_merges_and_losses_are_told_once() -> None:
    """2. A merge record stays in the status for good; its line appears once."""
    shown = Progress(NAMES)
    shown.lines(status(10), 10.0)
    stage = StageStatus(
        stage=0, epoch=1, phase="training", replicas=[Replica("5Aaa", True)], merges=[Merge(0, 1, 0, 0, 1, 0)]
    )
    changed = status(11, stages=[stage], evaluations=[Evaluation(1, 6.5)])
    assert shown.lines(changed, 11.0) == [
        "miner-1 left stage 0",
        "stage 0 merged epoch 0: 1 shards, 1 agreed, 0 single, 0 lost, 0 disputed",
        "validation loss 6.500 nats/token after 1 epochs",
    ]
    assert shown.lines(changed, 11.5) == []


def test_waiting_says_why() -> None:
    """3. Uploading begins: the sentence the orchestrator decided by is the one that is shown."""
    shown = Progress(NAMES)
    shown.lines(status(10), 10.0)
    stage = StageStatus(stage=0, epoch=0, phase="uploading", sentence="2 of 2 replicas did 80", replicas=[])
    assert "stage 0 uploading, epoch 0: 2 of 2 replicas did 80" in shown.lines(status(12, stages=[stage]), 12.0)


def test_a_status_may_say_more_than_we_read() -> None:
    """4. A newer orchestrator adds fields; the launcher goes on."""
    text = b'{"finished":false,"tokens":0,"micro_batches":0,"in_flight":0,"stages":[],"new":{"a":1}}'
    assert msgspec.json.decode(text, type=Status).credit() == {}
