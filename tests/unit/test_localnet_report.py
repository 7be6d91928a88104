"""The report of a local run: figures folded from the record of what happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from subnet import presets
from subnet.coordination.state import Evaluation, MergeRecord, Miner, StageState, State
from subnet.localnet import report
from subnet.localnet.faults import Fault, FaultRecord
from subnet.localnet.folder import RunFolder
from subnet.localnet.record import written_bytes
from subnet.merging import compression
from subnet.miner.receipts import RECEIPTS_FILE, ReceiptBook
from subnet.presets import Size
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, Pass, Phase, RunId, Stage, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import Receipt, Source, Verdict
from subnet.protocol.reasons import Reason
from subnet.protocol.run_spec import DataFile, DataSpec

FILE = DataFile(key=ObjectKey("run/0/0/file/data"), digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=8, seq_len=128)
SOURCE = Source(key=ObjectKey("run/0/0/start/parameters"), digest=Digest("0" * 64), size_bytes=1)
MINER = Hotkey("5Aaa")


def state_after(micro_batches: int) -> State:
    """Two stages, one merge, `micro_batches` through both, ten seconds apart in all."""
    spec = presets.run_spec(
        presets.laptop(Size(2, 2, 1)), run_id=RunId("run"), seed=7, num_stages=2, data=DATA
    )
    merge = MergeRecord(
        epoch=Epoch(0), replicas=1, batch=micro_batches, shards=1, agreed=0, single=1, lost=0, disputed=0, faulty={},
        disagreements={}, closed_at=20.0, uploaded_at=21.0, reduced_at=22.0, done_at=23.5,
    )  # fmt: skip
    stages = [
        StageState(
            stage=Stage(stage), epoch=Epoch(1), phase=Phase.PAUSED, phase_since=30.0, opened_at=23.5,
            parameters=SOURCE, momentum=SOURCE, sentence="", merges=[merge] if stage == 0 else [],
        )
        for stage in range(2)
    ]  # fmt: skip
    state = State(
        spec=spec, spec_digest=spec.digest(), evaluators=(), target_epochs=1, opened_at=0.0, at=30.0, stages=stages,
        completed=micro_batches, first_completed_at=10.0, last_completed_at=20.0,
        evaluations=[Evaluation(Epoch(0), 8.3, 1000, 5.0), Evaluation(Epoch(1), 6.1, 1000, 30.0)],
    )  # fmt: skip
    for _ in range(micro_batches):
        state.ledger.credit(0, MINER, Pass.FORWARD, 1 / 3)
        state.ledger.credit(0, MINER, Pass.BACKWARD, 2 / 3)
        state.ledger.credit(0, Hotkey("5Bbb"), Pass.LOSS, 1.0)
    for stage, hotkey in enumerate((MINER, Hotkey("5Bbb"))):
        state.miners[hotkey] = Miner(
            hotkey=hotkey, stage=Stage(stage), session="s", device="cpu", joined_at=0.0, last_seen=30.0, live=True,
            synced_epoch=1,
        )  # fmt: skip
    return state


def test_speed_is_measured_while_training() -> None:
    """1. 101 micro-batches, the first at 10 s and the last at 20 s: ten a second, however long the start took."""
    shown = report.training(state_after(101))
    assert shown["tokens"] == 101 * 1024
    assert shown["tokens_per_s"] == pytest.approx(10 * 1024)
    assert (shown["loss_first"], shown["loss_last"], shown["epochs"]) == (8.3, 6.1, 1)


def test_a_run_without_work_has_a_report_too() -> None:
    """2. Stopped before anything came back: no division by zero, no invented figures."""
    state = state_after(0)
    state.first_completed_at, state.evaluations = None, []
    shown = report.training(state)
    assert (shown["tokens"], shown["tokens_per_s"], shown["loss_first"]) == (0, None, None)
    assert report.wire(state)["bytes_per_token"]["boundary"] == 0


def test_bytes_follow_from_accepted_work() -> None:
    """3. Two stages: each micro-batch crosses the one boundary once each way, and nothing else."""
    state = state_after(50)
    written = written_bytes(state)
    size = state.spec.boundary_size_bytes
    assert (written["boundary"], written["gradient"]) == (50 * size, 50 * size)
    count = state.spec.stages[0].num_params
    assert written["upload"] == compression.encoded_size(Values.INT8, count)
    assert written["reduced"] == compression.encoded_size(Values.FP32, count)
    shown = report.wire(state)
    assert shown["bytes_per_token"]["boundary"] == pytest.approx(shown["boundary_bytes_per_token"])
    assert 15 < shown["ratio_vs_bf16"]["forward"] < 16


def test_merges_and_stalls_add_up() -> None:
    """4. What the stages waited for is told by its phase."""
    state = state_after(10)
    assert report.merges(state) | {"each": []} == {
        "count": 1, "shards": 1, "lost": 0, "single": 1, "agreed": 0, "disputed": 0, "each": [],
    }  # fmt: skip
    assert report.stalls(state) == {"uploading": 1.0, "merging": 2.5}


@pytest.mark.parametrize(("received", "lost"), [(3, 0.0), (12, 2.0)], ids=["killed-in-between", "ledger-short"])
def test_receipts_are_held_against_the_ledger(tmp_path: Path, received: int, lost: float) -> None:
    """5. A killed miner may miss receipts for credit it has; a receipt without credit is credit lost."""
    state, folder = state_after(10), RunFolder(tmp_path)
    book = ReceiptBook(folder.miner("miner-0") / RECEIPTS_FILE)
    verdicts = [
        Verdict(item=ItemId(f"i{number}"), outcome="applied", reason=Reason.OK, sentence="", work_units=1.0)
        for number in range(received)
    ]
    book.append(RunId("run"), Stage(0), Epoch(0), verdicts, Receipt(journal_index=1, head=Digest("0" * 64)))
    book.append(RunId("another-run"), Stage(0), Epoch(0), verdicts, None)
    book.close()
    shown = report.miners(state, folder, {MINER: "miner-0"})
    assert shown["miner-0"]["work_units"] == pytest.approx(10.0)
    assert shown["miner-0"]["receipts_work_units"] == received
    assert shown["miner-0"]["lost_work_units"] == pytest.approx(lost)


def test_only_kills_on_purpose_count_as_injected() -> None:
    """6. A late joiner is no fault to survive; it is listed all the same."""
    facts = report.LaunchFacts(
        faults=[
            FaultRecord(fault=Fault.KILLED, miner="miner-1", at_s=30.0, survived=True, credited_again_at_s=44.0),
            FaultRecord(fault=Fault.JOINED_LATE, miner="miner-6", at_s=31.0),
        ]
    )
    shown = report.faults(facts)
    assert (shown["injected"], shown["survived"], shown["credited_again"], len(shown["each"])) == (1, 1, 1, 2)
