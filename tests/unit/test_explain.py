"""`python -m subnet.explain`: what is paid and what is not, with every part and the reason.

The run is a real one of the simulation: three honest miners and one that returns noise, every epoch audited.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import looptime
import msgspec
import numpy as np
import pytest
from bittensor.keyfiles import Keypair
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from rich.console import Console

from subnet import presets
from subnet.adversaries.catalogue import CATALOGUE
from subnet.adversaries.names import Name
from subnet.coordination import machine
from subnet.coordination.settlement import Sheet, sheet
from subnet.coordination.state import State
from subnet.explain import ExplainConfig, explain, find, main
from subnet.localnet.folder import Participants
from subnet.orchestrator.restoring import restore
from subnet.orchestrator.service import Service
from subnet.protocol import messages as m
from subnet.protocol.ids import Hotkey, Pass
from subnet.protocol.public import opened, sealed
from subnet.protocol.reasons import REMEDY, Reason
from subnet.runtime import LoopRuntime
from subnet.scoring.emission import Void
from subnet.simulation.opening import text_spec
from subnet.simulation.world import ORCHESTRATOR, World
from subnet.storage.base import GENESIS_HEAD, JournalRecord, next_head
from subnet.storage.journal_files import as_line
from subnet.storage.memory import MemoryJournal, MemoryObjectStore
from subnet.transport.http_server import ControlServer
from subnet.validator.account import Account, Fates, account
from subnet.validator.explanation import Source, explanation
from subnet.validator.history import History

_decode = msgspec.json.Decoder(m.Envelope).decode
AUDITED = {"rate": 1.0, "settled_epochs": 100, "segment_steps": 1}
Explain = Callable[..., tuple[int, str]]
STRANGER = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"


@dataclass
class Run:
    records: list[JournalRecord]
    path: Path

    def state(self) -> State:
        """A fresh fold."""
        return machine.replay([_decode(record.body) for record in self.records])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    logger.disable("subnet")
    folder = tmp_path_factory.mktemp("run")

    async def live() -> Run:
        tokens_N = np.minimum(np.random.default_rng(0).geometric(0.05, 20_000), 255).astype(np.uint16)
        preset = presets.equivalence(presets.Size(2, 2, 2, 4))
        routing = msgspec.structs.replace(preset.routing, flush=False, in_flight_per_replica=2, heartbeat_s=2.0)
        audit = msgspec.structs.replace(preset.audit, **AUDITED)
        preset = preset._replace(routing=routing, audit=audit)
        spec, text = text_spec(preset, tokens_N, num_stages=2, micro_batch_size=2, seq_len=16)
        async with World(spec, text, folder, target_epochs=2) as world:
            for name in ("anna", "anton", "berta"):
                await world.start(name)
            await world.start("cheat", trainer=CATALOGUE[Name.FREELOADER].trainer)
            validator = world.start_validator()
            await world.finished()
            await asyncio.wait_for(validator.finished.wait(), 600)
        return Run(world.records, folder / "journal.jsonl")

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0, end=20_000)) as runner:
        made = runner.run(live())
    save(made.records, made.path)
    yield made
    logger.enable("subnet")


def save(records: list[JournalRecord], path: Path, sealed_from: int = 10**9) -> Path:
    lines = [as_line(opened(*r) if r.index < sealed_from else sealed(r.index, r.head)) for r in records]
    path.write_bytes(b"".join(lines))
    return path


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Explain:
    """Run the command; exit code, and everything it said."""

    def asked(*argv: object) -> tuple[int, str]:
        try:
            code = main([str(part) for part in argv])
        except SystemExit as left:
            code = int(left.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return asked


def shown(one: Account, now: Sheet, history: History | None = None, width: int = 1000) -> str:
    console = Console(file=StringIO(), width=width, highlight=False)
    for part in explanation(one, now, history or History(), {}, Source(1, 1, 1)):
        console.print(part, soft_wrap=True)
    return console.file.getvalue()  # type: ignore[attr-defined]


# ---- one hotkey ------------------------------------------------------------------------------------------------------


def test_an_honest_miner(run: Run, ask: Explain) -> None:
    """1. A miner wonders where its share comes from: every part is there, and they multiply up to the weight that the
    validators recompute."""
    code, said = ask("--hotkey", "anna", "--journal", run.path)
    final = sheet(run.state())
    slip = final.payslip(Hotkey("anna"))
    assert code == 0 and slip.reason is Reason.PAID
    assert said.startswith("anna\n") and f"uid {slip.uid}, stage 0" in said
    rows = [re.split(r" {2,}", line.strip()) for line in said.splitlines() if re.match(r" +\d+ +\d+ s ", line)]
    assert len(rows) == 2
    for epoch, (row, line) in enumerate(zip(rows, slip.lines, strict=True)):
        units, completion, window, valid, counted = map(float, row[3:8])
        assert row[0] == str(epoch) and row[2].endswith("backward") and row[8] == "paid"
        assert units * completion * window * valid == pytest.approx(counted, abs=1e-3)
        assert counted == pytest.approx(line.counted, abs=1e-4)
    assert f"= {slip.score:.6g}." in said and f"= {slip.weight:.4%} of uid {slip.uid}." in said
    assert f"validator set {slip.weight:.4%} at block" in said
    assert "2 passed, 0 failed, 0 not revealed" in said and "within the tolerances" in said
    assert "target-reached: all 2 epochs are merged -> the run has all its epochs" in said


def test_a_cheat(run: Run, ask: Explain) -> None:
    """2. Zero pay is explained as well: reason, sentence, remedy, and the audits behind it."""
    code, said = ask("--hotkey", "cheat", "--journal", run.path)
    assert code == 0
    third = said.splitlines()[2]
    assert third.startswith("audit-failed: an audit failed (stage 0 epoch ")
    assert third.endswith(f"-> {REMEDY[Reason.AUDIT_FAILED]}")
    assert "none of which counts: audit-failed: forfeited: " in said and "x gate 0 (forfeit 0 " in said
    assert "= 0.0000% of uid " in said
    assert re.search(r"\n0 passed, [12] failed, ", said), said


def test_who_does_not_train(run: Run, ask: Explain) -> None:
    """3. The validator, the owner, and somebody who is not on the subnet at all ask the same question."""
    for hotkey, said_of_it in [
        ("validator", "ok: it validates"),
        ("orchestrator", "not-joined: it is registered and has not joined the run -> join first"),
        (STRANGER, "no-uid: the hotkey has no uid on the subnet"),
    ]:
        code, said = ask("--hotkey", hotkey, "--journal", run.path)
        assert code == 0 and said_of_it in said and "No accepted work" in said, said
    assert "not-registered: the run does not know this hotkey" in said


def test_everybody(run: Run, ask: Explain) -> None:
    """4. The operator wants one line about each: the best paid first, everybody who has a uid."""
    code, said = ask("--all", "--journal", run.path)
    final = sheet(run.state())
    lines = [line.split() for line in said.splitlines()[4:] if line.strip()]
    scores = {line[0]: float(line[5]) for line in lines}
    assert code == 0 and set(scores) == {"anna", "anton", "berta", "cheat", "validator", "orchestrator"}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert scores["berta"] == pytest.approx(final.emission.scores[Hotkey("berta")], abs=0.01)
    (cheat,) = [line for line in lines if line[0] == "cheat"]
    assert cheat[4:7] == ["0", "0.00", "0.00%"] and "audit-failed" in cheat


def test_a_run_that_goes_on(run: Run, ask: Explain, tmp_path: Path) -> None:
    """5. In the middle of the run the newest records are sealed, and an epoch's credit waits for its audits: both are
    said, and nothing is paid yet."""
    drawn = [r.index for r in run.records if isinstance(_decode(r.body).message, m.SecretDrawn)]
    path = save(run.records, tmp_path / "sealed", sealed_from=drawn[2])
    code, said = ask("--hotkey", "anna", "--journal", path)
    assert code == 0 and f"{len(run.records) - drawn[2]} newer records are sealed" in said
    assert "audit-pending: the audits of this epoch are not settled yet -> wait: " in said
    assert "validator could not set weights: " in said or "No validator has reported weights yet" in said
    assert ask("--hotkey", "nobody", "--journal", path)[1].count("try again later") == 1


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_local_nets_names(run: Run, ask: Explain, tmp_path: Path) -> None:
    """6. The journal lies in the folder of a local net: miners are asked for by their names, or by a part of the
    address."""
    hotkeys = {"miner-0": Hotkey("anna"), "miner-1": Hotkey("anton"), "late": Hotkey("zora")}
    named = Participants(orchestrator=ORCHESTRATOR, validators={"validator-0": Hotkey("validator")}, miners=hotkeys)
    path = save(run.records, tmp_path / "journal.jsonl")
    (tmp_path / "participants.json").write_bytes(msgspec.json.encode(named))
    code, said = ask("--hotkey", "miner-1", "--journal", path)
    assert code == 0 and said.startswith("miner-1  anton\n") and "validator-0 set " in said
    assert ask("--hotkey", "ber", "--journal", path)[1].startswith("berta\n")
    assert "miner-0 " in ask("--all", "--journal", path)[1]
    assert "no uid" in ask("--hotkey", "late", "--journal", path)[1]


@pytest.mark.parametrize(("asked", "found"), [("an", None), ("anton", "anton"), ("antony", "antony"), ("ant", None)])
def test_a_prefix_must_be_clear(asked: str, found: str | None) -> None:
    """7. One address is the beginning of another: what is written in full is meant, what fits both is not guessed."""
    known = [Hotkey(name) for name in ("anna", "anton", "antony")]
    if found is not None:
        assert find(asked, known, {}, 0) == found
        return
    with pytest.raises(Exception, match=r"fits \d hotkeys: ann?.*; write more of it"):
        find(asked, known, {}, 0)


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(run: Run, ask: Explain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8. Nothing named, nobody there, an altered journal: one line that names the flag, exit code 2."""
    monkeypatch.delenv("IOTA_ORCHESTRATOR", raising=False)
    altered = tmp_path / "altered"
    altered.write_bytes(run.path.read_bytes().replace(b'"loss":', b'"loss":1', 1))
    for flag, argv in [
        ("--orchestrator", ["--hotkey", "anna"]),
        ("--orchestrator", ["--hotkey", "anna", "--orchestrator", "http://127.0.0.1:9"]),
        ("--orchestrator", ["--all", "--orchestrator", "http://:x"]),
        ("--hotkey", ["--journal", run.path]),
        ("--hotkey", ["--journal", run.path, "--all", "--hotkey", "anna"]),
        ("--hotkey", ["--journal", run.path, "--hotkey", "a"]),
        ("--hotkey", ["--journal", run.path, "--hotkey", "nobody"]),
        ("--journal", ["--all", "--journal", tmp_path / "missing"]),
        ("--journal", ["--all", "--journal", altered]),
    ]:
        code, said = ask(*argv)
        assert code == 2 and said.startswith(f"error: {flag}: ") and said.count("\n") == 1, said
    assert "subnet.verify" in said


async def test_over_http(run: Run) -> None:
    """9. A miner asks the orchestrator it works for; what it reads is the public journal."""
    journal, runtime = MemoryJournal(run.records), LoopRuntime(b"orchestrator")
    restored = await restore(journal)
    store = MemoryObjectStore(runtime.now)
    service = Service(journal, store, runtime, ORCHESTRATOR, restored, lambda line: None)
    begun = asyncio.Event()

    async def begin() -> None:
        await service.submit(m.RunResumed(target_epochs=2))
        begun.set()

    server = ControlServer(service, None, Keypair.create_from_uri("//Orchestrator"), runtime.now)
    url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    task = asyncio.create_task(service.run(begin))
    await begun.wait()
    console = Console(file=StringIO(), width=1000)
    try:
        await explain(ExplainConfig(hotkey="berta", orchestrator=url), LoopRuntime(b"miner"), console)
    finally:
        await server.stop()
        task.cancel()
        await asyncio.wait([task])
    assert console.file.getvalue().startswith("berta\n")  # type: ignore[attr-defined]


# ---- made-up journals ------------------------------------------------------------------------------------------------

UNITS = st.floats(min_value=0.0, max_value=1e6)


@settings(deadline=None, max_examples=40)
@given(
    epochs=st.lists(st.tuples(UNITS, st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=8),
    failed_at=st.none() | st.floats(0.0, 40_000.0),
    burn=st.floats(0.0, 1.0),
)
def test_parts_multiply_up(
    run: Run, epochs: list[tuple[float, int, int, bool]], failed_at: float | None, burn: float
) -> None:
    """10. Whatever happened (expired epochs, void ones, failed audits, everything burnt), each row's parts give what it
    counts, the rows give the score, and words are found."""
    state, hotkey = run.state(), Hotkey("anna")
    score = msgspec.structs.replace(state.spec.score, burn_fraction=burn, gamma_s=20_000.0)
    state.spec = msgspec.structs.replace(state.spec, score=score)
    state.pay.closed_at, state.pay.void, state.ledger.epochs = {}, {}, {}
    for epoch, (units, due, returned, void) in enumerate(epochs):
        state.pay.closed_at[epoch] = state.at - 5_000.0 * (len(epochs) - epoch)
        state.ledger.credit(epoch, hotkey, Pass.FORWARD, units)
        credit = state.ledger.epochs[epoch][hotkey]
        credit.due, credit.returned = due, min(due, returned)
        if void:
            state.pay.void[epoch] = {hotkey: Void(Reason.SKIPPED_MERGE, "it did not upload")}
    state.pay.drawn = len(epochs)
    state.pay.standing[hotkey].failed_at = None if failed_at is None else state.at - failed_at
    now = sheet(state)
    one = account(state, now, Fates(), History(), hotkey)
    assert len(one.parts) == len(epochs)
    for part in one.parts:
        assert part.work_units * part.completion * part.window * part.valid == pytest.approx(part.counted)
        assert part.counted or part.reason is not Reason.PAID
    assert sum(part.counted for part in one.parts) * one.slip.gate.product == pytest.approx(one.slip.score)
    said = shown(one, now)
    for reason in {part.reason for part in one.parts} - {Reason.PAID}:
        assert f"none of which counts: {reason}: " in said and f"-> {REMEDY[reason]}." in said


def test_what_a_stranger_sent_stays_text(run: Run) -> None:
    """11. A sentence holds escape codes, markup and line breaks of whoever sent it: the terminal shows them as text."""
    state = run.state()
    state.pay.standing[Hotkey("anna")].sentence = "\x1b[2J[bold]gone\r\nuid 7"
    fates = Fates()
    refused = m.Refused(reason=Reason.STALE, claimed="anna", sentence="\x1b]0;owned\x07", times=3)
    fates.note(0, m.Envelope(sender=ORCHESTRATOR, at=0.0, message=refused), None)
    now = sheet(state)
    said = shown(account(state, now, fates, History(), Hotkey("anna")), now)
    assert "\x1b" not in said and "\r" not in said and "\x07" not in said
    assert "The latest:  [2J[bold]gone  uid 7." in said
    assert "3 refused at the door; the latest:\nstale:  ]0;owned  -> " in said


# ---- uids, permits and rules that changed ----------------------------------------------------------------------------


def chained(envelopes: list[m.Envelope]) -> list[JournalRecord]:
    """A journal that holds."""
    head, records = GENESIS_HEAD, []
    for index, envelope in enumerate(envelopes):
        body = msgspec.json.encode(envelope)
        head = next_head(head, index, body)
        records.append(JournalRecord(index, head, body))
    return records


def going_on(run: Run, path: Path, *messages: Any) -> Path:
    """The run's journal with more records at its end."""
    envelopes = [_decode(record.body) for record in run.records]
    more = [m.Envelope(sender=s, at=envelopes[-1].at + 1.0, message=message) for s, message in messages]
    return save(chained([*envelopes, *more]), path)


def later(run: Run, changed: dict[str, str | None], blocks: int = 10, **fields: Any) -> m.ChainSeen:
    """The chain after the run, with other hotkeys at some uids, or none, and other fields."""
    last = [e.message for r in run.records if isinstance((e := _decode(r.body)).message, m.ChainSeen)][-1]
    neurons = [
        msgspec.structs.replace(n, hotkey=Hotkey(new), permit=n.permit and new == n.hotkey)
        for n in last.neurons
        if (new := changed.get(n.hotkey, n.hotkey)) is not None
    ]
    return msgspec.structs.replace(last, block=last.block + blocks, neurons=tuple(neurons), closes=None, **fields)


def test_a_uid_that_somebody_else_has_now(run: Run, ask: Explain, tmp_path: Path) -> None:
    """12. Anna lost her uid to a newcomer while she worked. Both ask: she what happened and what to do, the newcomer
    why what the uid earned is not his."""
    seen = later(run, {"anna": "newcomer"})
    path = going_on(run, tmp_path / "journal", (ORCHESTRATOR, seen))
    uid = run.state().pay.chain.uids[Hotkey("anna")]
    code, said = ask("--hotkey", "anna", "--journal", path)
    assert code == 0 and "no-uid: " in said
    assert f"deregistered: uid {uid} was its own until block {seen.block}; it is newcomer's now" in said
    assert f"-> {REMEDY[Reason.DEREGISTERED]}" in said
    code, said = ask("--hotkey", "newcomer", "--journal", path)
    assert code == 0 and f"uid {uid} was anna's until block {seen.block}, whose scores pay nothing here." in said
    assert "no-counted-work" in said


def test_a_uid_of_before(run: Run, ask: Explain, tmp_path: Path) -> None:
    """13. Berta was trimmed from the subnet and registered anew; somebody who never worked was trimmed too."""
    uids = run.state().pay.chain.uids
    away = later(run, {"berta": None, "orchestrator": None, "validator": "watcher"})
    back = later(run, {"berta": None, "anton": "berta", "orchestrator": None, "validator": "watcher"}, 20)
    path = going_on(run, tmp_path / "journal", (ORCHESTRATOR, away), (ORCHESTRATOR, back))
    code, said = ask("--hotkey", "berta", "--journal", path)
    assert code == 0 and f"It had uid {uids[Hotkey('berta')]} until block {away.block}; nobody has it now." in said
    assert f"uid {uids[Hotkey('anton')]} was anton's until block {back.block}" in said
    code, said = ask("--hotkey", "validator", "--journal", path)
    assert code == 0 and "deregistered: " in said and "it is watcher's now" in said


def test_a_validator_without_permit(run: Run, ask: Explain, tmp_path: Path) -> None:
    """14. A validator lost its permit to larger stakes; another never had one, and could not set weights: each hears
    what is missing and the command for it."""

    def permitted(seen: m.ChainSeen, *hotkeys: str) -> m.ChainSeen:
        neurons = tuple(msgspec.structs.replace(n, permit=n.hotkey in hotkeys) for n in seen.neurons)
        return msgspec.structs.replace(seen, neurons=neurons)

    rich = permitted(later(run, {}), "orchestrator", "validator")
    poor = permitted(later(run, {}, 20), "orchestrator")
    refused = m.WeightsSet(
        index=1, head=run.records[1].head, weights=(), block=0, sentence="no-permit: uid 1 has no validator permit"
    )
    validator, owner = Hotkey("validator"), ORCHESTRATOR
    path = going_on(run, tmp_path / "journal", (owner, rich), (validator, refused), (owner, poor))
    code, said = ask("--hotkey", "validator", "--journal", path)
    assert code == 0 and f"no-permit: it had a validator permit until block {poor.block}" in said
    assert (
        f"validator could not set weights: no-permit: uid 1 has no validator permit -> {REMEDY[Reason.NO_PERMIT]}"
        in said
    )
    assert said.count("btcli stake add") == 2
    state = run.state()
    state.miners.clear()
    state.pay.chain.permits = [ORCHESTRATOR]
    fates, history = Fates(), History()
    asked = m.Envelope(sender=Hotkey("anton"), at=state.at, message=m.Review(free=1, found=()))
    fates.note(0, asked, machine.handle(state, asked))
    said = shown(account(state, now := sheet(state), fates, history, Hotkey("anton")), now)
    assert "no-permit: it asked for audits and has no validator permit yet -> stake more" in said


def test_what_the_owner_changed(run: Run, ask: Explain, tmp_path: Path) -> None:
    """15. The owner tuned the run and the chain: whoever asks about pay reads when and what, in a line each."""
    spec = run.state().spec
    score = msgspec.structs.replace(spec.score, burn_fraction=0.25)
    tuned = m.Tuned(spec=msgspec.structs.replace(spec, version=2, score=score))
    rules = {"kappa": 32_767, "serving_rate_limit": 50}
    before, after = later(run, {}, tempo=360, hyperparameters=rules), later(run, {}, 30, tempo=100)
    after = msgspec.structs.replace(after, hyperparameters={"kappa": 40_000, "serving_rate_limit": 99})
    path = going_on(run, tmp_path / "journal", *((ORCHESTRATOR, message) for message in (tuned, before, after)))
    code, said = ask("--hotkey", "anna", "--journal", path)
    assert code == 0 and "What the owner changed" in said
    assert f"RunSpec 2 (record {len(run.records)}): score.burn_fraction 0 → 0.25; each stage goes by it" in said
    assert f"On the chain, block {after.block}: kappa 32767 → 40000, tempo 360 → 100." in said
    assert "serving_rate_limit" not in said
    assert "What the owner changed" not in ask("--hotkey", "anna", "--journal", run.path)[1]
