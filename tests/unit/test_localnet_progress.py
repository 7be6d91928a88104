"""Progress lines: what the operator reads, made from statuses alone."""

from __future__ import annotations

import msgspec

from subnet.chain.base import Block, Pay, Subnet
from subnet.localnet import public_status
from subnet.localnet.owner_news import OwnerNews
from subnet.localnet.progress import Progress
from subnet.localnet.public_status import (
    Anchor,
    Audits,
    Chain,
    Evaluation,
    Merge,
    Replica,
    RollBack,
    Slip,
    StageStatus,
    Status,
    Verdicts,
)
from subnet.localnet.words import LETTERS_MAX, why
from subnet.protocol.ids import Hotkey
from subnet.protocol.messages import Neuron
from subnet.protocol.reasons import REMEDY, Reason

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


def test_goodput_is_told_as_of_the_last_merge() -> None:
    """1b. What was given out since cannot be merged yet: between two merges the figure would only fall."""
    shown = Progress(NAMES)
    assert "goodput" not in shown.lines(status(10, passes_started=30), 10.0)[-1]
    shown.lines(status(20, passes_started=50, passes_merged=40), 15.0)
    (line,) = shown.lines(status(30, passes_started=80, passes_merged=40), 25.0)
    assert line.endswith("4 in flight, goodput 80% at the last merge")


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
    """4. A newer orchestrator adds fields and drops others; the launcher goes on."""
    text = b'{"tokens":0,"micro_batches":0,"in_flight":0,"stages":[{"replicas":[{}],"merges":[{}]}],"new":{"a":1}}'
    read = msgspec.json.decode(text, type=Status)
    assert read.credit() == {"": 0.0} and not read.finished
    assert Progress(NAMES).lines(read, 1.0) == ["stage 0 merged epoch 0: 0 shards, " + ZEROS]


ZEROS = "0 agreed, 0 single, 0 lost, 0 disputed"


# ---- trust and pay ---------------------------------------------------------------------------------------------------


def audited(**by_hotkey: Verdicts) -> Audits:
    made = {f"5{name}": verdicts for name, verdicts in by_hotkey.items()}
    return Audits(passed=sum(v.passed for v in made.values()), replay_s=1.0, compute_s=25.0, by_hotkey=made)


def test_verdicts_are_told_once() -> None:
    """5. One passes, one fails, one shows nothing, one cannot be replayed: each verdict is told when it comes, what is
    bad with reason, sentence and remedy."""
    shown = Progress(NAMES)
    shown.lines(status(0, audits=audited(Aaa=Verdicts())), 1.0)
    now = audited(
        Aaa=Verdicts(passed=2),
        Bbb=Verdicts(passed=1, failed=1, sentence="stage 1 epoch 0 segment 2: too far off"),
        Cccccccccc=Verdicts(not_revealed=1, sentence="stage 0 epoch 0: not shown"),
        Ddd=Verdicts(unreadable=1, sentence="stage 0 epoch 0: an input is gone"),
    )
    lines = shown.lines(status(0, audits=now), 2.0)
    assert lines == [
        f"audit of miner-1 FAILED: audit-failed: stage 1 epoch 0 segment 2: too far off; {REMEDY[Reason.AUDIT_FAILED]}",
        f"audit of 5Ccccccc: not-revealed: stage 0 epoch 0: not shown; {REMEDY[Reason.NOT_REVEALED]}",
        f"audit of 5Ddd: unreadable: stage 0 epoch 0: an input is gone; {REMEDY[Reason.UNREADABLE]}",
        "audits passed: miner-0, miner-1 (3 so far; replays cost 4.0% of training compute)",
    ]
    assert shown.lines(status(0, audits=now), 3.0) == []


def test_a_removed_miner_is_told_why() -> None:
    """6. Its session ends after a failed audit: the line says the reason, and what to do."""
    shown = Progress(NAMES)
    shown.lines(status(0), 1.0)
    gone = Replica("5Bbb", False, reason="silent", sentence="nothing was heard for 16 s", remedy="join again")
    stage = StageStatus(phase="training", replicas=[Replica("5Aaa", True), gone])
    assert shown.lines(status(0, stages=[stage]), 2.0) == [
        "miner-1 left stage 0: silent: nothing was heard for 16 s; join again"
    ]


def pay_of(reason: str, weight: float = 0.0, **reports: public_status.WeightsReport) -> public_status.Pay:
    slip = Slip(uid=1, score=weight, weight=weight, reason=reason, sentence="said")
    other = Slip(uid=2, reason=reason, sentence="said")
    return public_status.Pay(scores={"5Aaa": slip, "5Bbb": other}, validators={f"5{n}": r for n, r in reports.items()})


def test_pay_is_told_when_it_changes() -> None:
    """7. Nobody has anything counted at first, which is no news; then audits are pending, then weight comes."""
    shown = Progress(NAMES)
    assert shown.lines(status(0, pay=pay_of("no-counted-work")), 1.0)[2:] == []
    pending = f"unpaid: miner-0, miner-1: audit-pending: said; {REMEDY[Reason.AUDIT_PENDING]}"
    assert shown.lines(status(0, pay=pay_of("audit-pending")), 2.0) == [pending]
    assert shown.lines(status(0, pay=pay_of("paid", 0.5)), 3.0) == [
        "earns from now on: miner-0 50.0%, miner-1 0.0% of the weight"
    ]
    assert shown.lines(status(0, pay=pay_of("paid", 0.6)), 4.0) == []


def test_weights_on_the_chain() -> None:
    """8. A validator without a permit is refused, then it sets weights: a line each, once."""
    shown = Progress({**NAMES, "5V": "validator-0"})
    refused = public_status.WeightsReport(index=7, block=0, sentence="no permit")
    done = public_status.WeightsReport(index=90, block=12, sentence="weights for 3 uids stand at block 12")
    fresh = public_status.WeightsReport(index=90, block=31, sentence="weights for 3 uids stand at block 31")
    shown.lines(status(0), 1.0)
    said = [shown.lines(status(0, pay=pay_of("paid", V=report)), 2.0)[-1:] for report in (refused, done, done, fresh)]
    assert said == [
        ["validator validator-0 could not set weights: no permit"],
        ["validator validator-0 set weights of record 90: weights for 3 uids stand at block 12"],
        [],
        [],
    ]


def chain(*alpha: float) -> Subnet:
    hotkeys = "5Owner", "5Aaa", "5Bbb"
    neurons = tuple(Neuron(uid=uid, hotkey=Hotkey(h), stake=0.0, permit=False) for uid, h in enumerate(hotkeys))
    pay = {uid: Pay(0.0, 0.0, amount) for uid, amount in enumerate(alpha)}
    return Subnet(Block(20, "0" * 64), 10, 1.0, 0, Hotkey("5Own"), neurons, pay, {})


def test_emissions_are_told_when_shares_change() -> None:
    """9. The chain pays every ten seconds: the operator hears of it when somebody's part became another one."""
    shown = Progress(NAMES)
    shown.lines(status(0), 1.0)
    assert shown.lines(status(0), 2.0, chain(0.0, 0.0, 0.0)) == []
    first = ["chain paid by block 20: miner-0 3.000 α, miner-1 1.000 α in its last epoch"]
    assert shown.lines(status(0), 3.0, chain(0.0, 3.0, 1.0)) == first
    assert shown.lines(status(0), 4.0, chain(0.0, 3.01, 1.0)) == []
    assert shown.lines(status(0), 5.0, chain(0.5, 2.0, 2.0))[0].startswith("chain paid by block 20: 5Owner 0.500 α")
    assert shown.lines(status(0), 6.0, chain(9.0)) != []


def test_each_anchor_is_told_once() -> None:
    """10. The journal's head is committed when the run begins and after each epoch: a line for each."""
    shown = Progress(NAMES)
    first, second = Anchor(epoch=0, index=3, block=19), Anchor(epoch=1, index=246, block=50)
    said = [shown.lines(status(0, chain=Chain(anchor=one)), 1.0)[-1:] for one in (None, first, first, second)]
    assert said[1:] == [
        ["anchored in block 19: the journal's head at record 3, as the run begins"],
        [],
        ["anchored in block 50: the journal's head at record 246, after 1 epochs"],
    ]


def ruled(*versions: int, epoch: int = 3) -> Status:
    return Status(stages=[StageStatus(stage=n, epoch=epoch, spec_version=one) for n, one in enumerate(versions)])


def test_the_owner_tunes_the_rules() -> None:
    """11. Stages take a new RunSpec over one after the other, each with its next epoch; a run that is continued begins
    with the version it had, which is no news."""
    news = OwnerNews()
    assert news.lines(ruled(2, 2), None) == []
    assert news.lines(ruled(3, 2, epoch=4), None) == ["RunSpec 3 holds in stage 0 from epoch 4 on"]
    assert news.lines(ruled(3, 3, epoch=5), None) == ["RunSpec 3 holds in stage 1 from epoch 5 on"]
    assert news.lines(ruled(3, 3, epoch=6), None) == []


def test_hyperparameters_on_chain_are_noticed() -> None:
    """12. The owner types btcli hparams set: a line for each value that is another one; a chain that is away is not."""
    news = OwnerNews()
    before = chain()._replace(hyperparameters={"tempo": 20, "weights_rate_limit": 10, "registration_allowed": True})
    after = before._replace(hyperparameters={**before.hyperparameters, "tempo": 30, "registration_allowed": False})
    assert news.lines(Status(), before) == news.lines(Status(), before) == news.lines(Status(), None) == []
    assert news.lines(Status(), after) == ["on chain: registration_allowed True → False", "on chain: tempo 20 → 30"]
    assert news.lines(Status(), after._replace(hyperparameters={"tempo": 30})) == []


def test_what_a_stranger_sent_steers_no_terminal() -> None:
    """13. A sentence is endless and full of escape codes, its code of a newer version: still one line of text."""
    said = why("reason-of-tomorrow", "\x1b[2Jx\r\n" + "y" * 9999)
    assert said.isprintable() and len(said) < LETTERS_MAX + 40 and said.endswith("…")
    assert why("", "", "") == ""


def test_a_roll_back_is_told_when_it_begins_and_when_it_is_settled() -> None:
    """A poisoned merge: why it was taken back, what came of it, and who spoilt it, once each."""
    shown = Progress(NAMES)
    shown.lines(status(10), 10.0)
    begun = RollBack(at=1.0, epoch=3, sentence="the loss exploded", outcome="the orchestrator looks at the uploads")
    (line,) = shown.lines(status(10, rollbacks=[begun]), 10.5)
    assert line == "epoch 3 is rolled back: the loss exploded: the orchestrator looks at the uploads"
    done = msgspec.structs.replace(begun, offenders={"5Bbb": "a lie"}, outcome="merged again without 1 uploads")
    lines = shown.lines(status(10, rollbacks=[done]), 11.0)
    assert lines[1:] == ["miner-1 spoilt epoch 3: a lie"] and lines[0].endswith("merged again without 1 uploads")
    assert shown.lines(status(10, rollbacks=[done]), 11.5) == []
