"""The report of a local run: figures folded from the record of what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from subnet import presets
from subnet.chain.base import Block, Pay, Subnet
from subnet.config import LocalnetConfig
from subnet.coordination.audit_state import Chain, Standing, WeightsReport
from subnet.coordination.merge_state import MergeRecord
from subnet.coordination.settlement import sheet
from subnet.coordination.state import Evaluation, Miner, StageState, State
from subnet.localnet import pay_report, report
from subnet.localnet.faults import ChainFaultRecord, Fault, FaultRecord
from subnet.localnet.folder import RunFolder, TextFacts
from subnet.localnet.plan import Plan
from subnet.localnet.record import written_bytes
from subnet.merging import compression
from subnet.miner.receipts import RECEIPTS_FILE, ReceiptBook
from subnet.presets import Size
from subnet.protocol.ids import Digest, Epoch, Hotkey, ItemId, Pass, Phase, RunId, Stage, Values
from subnet.protocol.keys import ObjectKey
from subnet.protocol.messages import Anchored, Envelope, Neuron, Receipt, RunOpened, Source, StageStart, Verdict
from subnet.protocol.reasons import REMEDY, Reason
from subnet.protocol.run_spec import DataFile, DataSpec
from subnet.protocol.tuning import parse, tuned
from subnet.scoring.emission import Void
from subnet.storage.sql import SqlJournal

FILE = DataFile(key=ObjectKey("run/0/0/file/data"), digest=Digest("0" * 64), size_bytes=1)
DATA = DataSpec(tokenizer=FILE, train=(FILE,), validation=(FILE,), micro_batch_size=8, seq_len=128)
SOURCE = Source(key=ObjectKey("run/0/0/start/parameters"), digest=Digest("0" * 64), size_bytes=1)
MINER = Hotkey("5Aaa")


def state_after(micro_batches: int) -> State:
    """Two stages, one merge, `micro_batches` through both, ten seconds apart in all."""
    spec = presets.run_spec(presets.laptop(Size(2, 2, 1)), run_id=RunId("run"), seed=7, num_stages=2, data=DATA)
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
        spec=spec, versions=[spec], digests=[spec.digest()], evaluators=(), target_epochs=1, opened_at=0.0,
        at=30.0, stages=stages, completed=micro_batches, first_completed_at=10.0, last_completed_at=20.0,
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
        "count": 1, "shards": 1, "lost": 0, "single": 1, "agreed": 0, "disputed": 0, "handed_on": 0, "each": [],
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
        ],
        chain_faults=[
            ChainFaultRecord(fault=Fault.CHAIN_KILLED, at_s=40.0, exit_code=-9, block=70, survived=True),
            ChainFaultRecord(fault=Fault.CHAIN_KILLED, at_s=60.0, exit_code=-9, block=120),
            ChainFaultRecord(fault=Fault.CHAIN_DIED, at_s=70.0, exit_code=1, block=130),
        ],
    )
    shown = report.faults(facts)
    assert (shown["injected"], shown["survived"], shown["credited_again"], len(shown["each"])) == (3, 2, 1, 5)
    assert shown["chain_killed"] == 2 and shown["each"][2]["block"] == 70


def test_what_the_owner_tuned_is_told() -> None:
    """6b. Two versions of the rules since the run began: each with what it changed."""
    state = state_after(10)
    second = tuned(state.spec, parse(b"[merge]\nquorum = 0.5\n[score]\nburn_fraction = 0.1\n"), 2)
    state.versions += [second, tuned(state.spec, parse(b""), 3)]
    assert report.tuned(state) == [
        {"version": 2, "changes": ["merge.quorum 0.75 → 0.5", "score.burn_fraction 0 → 0.1"]},
        {"version": 3, "changes": ["merge.quorum 0.5 → 0.75", "score.burn_fraction 0.1 → 0"]},
    ]


# ---- trust and pay ---------------------------------------------------------------------------------------------------

OTHER, CHEAT = Hotkey("5Bbb"), Hotkey("5Ccc")
NAMES = {MINER: "miner-0", OTHER: "miner-1", CHEAT: "miner-2"}
SUBNET = Subnet(
    block=Block(40, "0" * 64),
    tempo=10,
    block_s=1.0,
    owner_uid=0,
    owner_hotkey=Hotkey("5Owner"),
    neurons=tuple(
        Neuron(uid=uid, hotkey=hotkey, stake=0.0, permit=False)
        for uid, hotkey in enumerate((Hotkey("5Owner"), MINER, OTHER, CHEAT))
    ),
    pay={0: Pay(0, 0, 1.8), 1: Pay(0.25, 0, 1.0), 2: Pay(0.75, 0, 3.0), 3: Pay(0, 0, 0.0)},
    hyperparameters={"tempo": 10, "immunity_period": 5},
)


def paid_state() -> State:
    """Epoch 0 is settled, epoch 1 not yet. miner-1 did three times as much as miner-0; miner-2 failed its audit."""
    state = state_after(10)
    del state.ledger.epochs[0]
    for hotkey, units in ((MINER, 10.0), (OTHER, 30.0), (CHEAT, 40.0)):
        state.ledger.credit(0, hotkey, Pass.LOSS, units)
        state.ledger.credit(1, hotkey, Pass.LOSS, 7.0)
    state.miners[CHEAT] = msgspec.structs.replace(state.miners[MINER], hotkey=CHEAT)
    state.registered = {MINER, OTHER, CHEAT}
    pay = state.pay
    pay.closed_at, pay.drawn = {0: 20.0, 1: 29.0}, 0
    pay.standing = {
        MINER: Standing(passed=2, sentence="within the tolerances"),
        CHEAT: Standing(failed=1, failed_at=25.0, sentence="too far off", failure="too far off"),
    }
    pay.chain = Chain(block=30, owner_uid=0, uids={Hotkey("5Owner"): 0, MINER: 1, OTHER: 2, CHEAT: 3})
    pay.weights = {Hotkey("5Val"): WeightsReport(28.0, 90, ((1, 0.25), (2, 0.75)), 38, "they stand")}
    pay.replay_s, pay.replayed_passes, state.compute_s = 2.0, 12, 40.0
    state.incident(Reason.AUDIT_FAILED, "too far off", CHEAT)
    state.incident(Reason.UNREADABLE, "an input is gone")
    return state


def test_audits_and_what_they_cost() -> None:
    """7. An operator wants to know who was caught, and how much of the compute went into looking."""
    shown = pay_report.audits(paid_state(), NAMES)
    assert (shown["passed"], shown["failed"], shown["not_revealed"], shown["open"]) == (2, 1, 0, 0)
    assert shown["cost_share"] == 2.0 / 40.0
    caught = shown["by_hotkey"][CHEAT]
    assert (caught["name"], caught["failed"], caught["sentence"]) == ("miner-2", 1, "too far off")
    assert pay_report.audits(state_after(0), NAMES)["cost_share"] is None


def test_pay_follows_verified_work() -> None:
    """8. Honest ones are paid one to three as they worked, the failed one nothing; what is not settled does not count
    yet, and the failed one has no part in the correlation."""
    state = paid_state()
    shown = pay_report.pay(state, NAMES, SUBNET)
    assert shown["scores"] == {"miner-0": 10.0, "miner-1": 30.0, "miner-2": 0.0}
    assert shown["weights"] == {"1": 0.25, "2": 0.75}
    assert shown["emission_alpha"] == {"0": 1.8, "1": 1.0, "2": 3.0, "3": 0.0}
    assert shown["payout_correlation"] == shown["incentive_correlation"] == pytest.approx(1.0)
    honest = {name: (slip["honest"], slip["verified_work_units"]) for name, slip in shown["pay"].items()}
    assert honest == {"miner-0": (True, 10.0), "miner-1": (True, 30.0), "miner-2": (False, 40.0)}
    cheat = shown["pay"]["miner-2"]
    assert (cheat["weight"], cheat["reason"], cheat["emission_alpha"]) == (0.0, Reason.AUDIT_FAILED, 0.0)
    assert cheat["sentence"] and cheat["remedy"] == REMEDY[Reason.AUDIT_FAILED]
    assert shown["weights_set"]["5Val"]["block"] == 38
    assert shown["chain"]["emission_alpha_by_name"] == {"5Owner": 1.8, "miner-0": 1.0, "miner-1": 3.0}
    without = pay_report.pay(state, NAMES, None)
    assert without["emission_alpha"] == {} and without["chain"] is None and without["incentive_correlation"] is None


def test_the_chain_is_told_as_it_was_read() -> None:
    """8b. By uid what the chain holds, the hyperparameters it goes by, and where heads of the journal are anchored."""
    anchored = Anchored(epoch=1, index=90, head="a" * 64, block=33)
    shown = pay_report.pay(paid_state(), NAMES, SUBNET, [anchored])["chain"]
    assert (shown["block"], shown["tempo"], shown["owner_uid"]) == (40, 10, 0)
    assert shown["hyperparameters"] == {"immunity_period": 5, "tempo": 10}
    assert shown["anchors"] == [{"epoch": 1, "index": 90, "head": "a" * 64, "block": 33}]
    assert shown["by_uid"]["2"] == {
        "name": "miner-1", "hotkey": OTHER, "stake_alpha": 0.0, "permit": False, "incentive": 0.75, "dividends": 0,
        "emission_alpha": 3.0,
    }  # fmt: skip
    assert list(shown["by_uid"]) == ["0", "1", "2", "3"]


def test_incentive_that_went_elsewhere_shows_in_its_correlation() -> None:
    """8c. The weights follow the work, but the chain paid by older ones: only the second r says so; who holds no uid
    got nothing."""
    swapped = SUBNET._replace(pay={**SUBNET.pay, 1: Pay(0.75, 0, 3.0), 2: Pay(0.25, 0, 1.0)})
    shown = pay_report.pay(paid_state(), NAMES, swapped)
    assert shown["payout_correlation"] == pytest.approx(1.0) == -shown["incentive_correlation"]
    gone = SUBNET._replace(neurons=SUBNET.neurons[:2])
    assert pay_report.pay(paid_state(), NAMES, gone)["incentive_correlation"] == pytest.approx(-1.0)


def test_unpaid_work_shows_in_the_correlation() -> None:
    """9. A third honest miner worked and is not on the chain: its work is verified, it gets nothing, r says so."""
    state = paid_state()
    state.pay.standing.clear()
    assert pay_report.pay(state, NAMES, SUBNET)["payout_correlation"] == pytest.approx(1.0)
    del state.pay.chain.uids[CHEAT]
    assert pay_report.pay(state, NAMES, SUBNET)["payout_correlation"] < 0.5


def test_what_was_never_verified_is_no_verified_work() -> None:
    """10. A skipped merge, an epoch too old to pay, an epoch without its audits: none of them counts as verified."""
    state = paid_state()
    state.pay.void = {0: {OTHER: Void(Reason.SKIPPED_MERGE, "it did not upload")}}
    assert pay_report.verified_work(sheet(state)) == {MINER: 10.0, CHEAT: 40.0}
    state.at += state.spec.score.gamma_s + 1.0
    assert pay_report.verified_work(sheet(state)) == {}


def test_nobody_worked() -> None:
    """11. Stopped at once: everything would go to the owner, and no miner is shown with that weight."""
    state = state_after(0)
    state.pay.chain = Chain(uids={MINER: 0})
    shown = pay_report.pay(state, NAMES, None)
    assert shown["weights"] == {"0": 1.0} and shown["pay"]["miner-0"]["weight"] == 0.0
    assert shown["payout_correlation"] == 1.0


def test_incidents_are_counted_and_the_latest_kept() -> None:
    """12. Their number stays right however many there were."""
    state = paid_state()
    state.incident_count = 999
    shown = report.incidents(state, NAMES)
    assert shown["count"] == 999
    assert [(one["reason"], one["hotkey"], one["name"]) for one in shown["latest"]] == [
        (Reason.AUDIT_FAILED, CHEAT, "miner-2"),
        (Reason.UNREADABLE, None, None),
    ]


def test_the_summary_says_who_was_caught_and_what_was_paid() -> None:
    """13. Four lines at the end of a run."""
    state = paid_state()
    anchors = [Anchored(epoch=n, index=n, head="a" * 64, block=20 + n) for n in range(2)]
    folded = {"audits": pay_report.audits(state, NAMES), **pay_report.pay(state, NAMES, SUBNET, anchors)}
    assert pay_report.summary(folded) == [
        "audits    2 passed, 1 failed (miner-2), 0 not revealed; replays cost 5.0% of training compute",
        "pay       weights follow verified work with r = 1.0000, incentive with r = 1.0000, over 2 miners; unpaid "
        "(miner-2 audit-failed)",
        "emission  5Owner 1.800 α, miner-0 1.000 α, miner-1 3.000 α in the chain's last epoch (block 40)",
        "anchors   2 heads of the journal on chain, the last in blocks 20, 21",
    ]
    assert len(pay_report.summary({**folded, "chain": None, "incentive_correlation": None})) == 2
    nothing = pay_report.pay(state, NAMES, SUBNET._replace(pay={}))
    assert pay_report.summary({**folded, **nothing})[2] == "emission  none yet (block 40)"


DESIGN_9 = (
    "tokens tokens_per_s reference_tokens_per_s loss_first loss_last epochs merges audits clasp scores weights "
    "emission_alpha wire stalls_s faults incidents"
).split()


async def test_a_report_holds_every_field(tmp_path: Path) -> None:
    """14. The run was interrupted right after its opening: all the same the file has every field the design names."""
    folder, made = RunFolder(tmp_path), state_after(0)
    opened = RunOpened(
        spec=made.spec,
        starts=tuple(StageStart(parameters=SOURCE, momentum=SOURCE) for _ in range(2)),
        evaluators=(),
        target_epochs=1,
    )
    journal = await SqlJournal.open(f"sqlite:///{folder.journal}")
    await journal.append([msgspec.json.encode(Envelope(sender=Hotkey("5Host"), at=1.0, message=opened))])
    await journal.close()
    facts = TextFacts(name="text", vocab_size=9, num_train_tokens=9, num_validation_tokens=9, unigram_entropy=6.0)
    folder.text_facts.write_bytes(msgspec.json.encode(facts))
    plan = Plan(LocalnetConfig(), folder, resumed=False)
    said = await report.write(plan, NAMES, report.LaunchFacts(), tmp_path / "report.json", SUBNET)
    written: dict[str, Any] = msgspec.json.decode((tmp_path / "report.json").read_bytes())
    assert set(DESIGN_9) <= set(written)
    assert written["clasp"] is None and written["weights"] == {"0": 1.0} and written["scores"] == {}
    assert written["emission_alpha"]["2"] == 3.0 and written["incidents"] == {"count": 0, "latest": []}
    assert written["wire"]["bytes_per_token"] and set(written["stalls_s"]) == {"uploading", "merging"}
    assert said[-1] == f"report    {tmp_path / 'report.json'}" and all(len(line) < 200 for line in said)
