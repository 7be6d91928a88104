"""`python -m subnet.verify` with a chain: what was anchored there, what stands there, which blocks drew the audits.

The run is a real one of the simulation with every epoch audited; after each epoch the owner anchors the head.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import looptime
import msgspec
import numpy as np
import pytest
from loguru import logger

from subnet import presets, verify
from subnet.chain.memory import MemoryChain, MemoryLedger
from subnet.errors import ConfigError, Unavailable
from subnet.protocol import messages as m
from subnet.protocol.anchor import Anchor, encode
from subnet.protocol.ids import Digest, Epoch, Hotkey
from subnet.protocol.public import opened
from subnet.runtime import LoopRuntime
from subnet.simulation.opening import text_spec
from subnet.simulation.world import ORCHESTRATOR, VALIDATOR, World
from subnet.storage.base import GENESIS_HEAD, JournalRecord, next_head
from subnet.storage.journal_files import as_line
from subnet.validator.anchors import ANCHORS_FILE, Anchors, load_anchors
from subnet.validator.chain_view import ChainRecords, Closing, check_anchors, check_draws
from subnet.validator.checks import Check
from subnet.verify import VerifyConfig

_decode = msgspec.json.Decoder(m.Envelope).decode
MakeNet = Callable[..., Any]
NOTHING_SEEN = Anchors((), 0)
END_S = 20_000.0


@dataclass
class Run:
    """A finished run, and the chain beside it."""

    records: list[JournalRecord]
    ledger: MemoryLedger
    folder: Path

    def save(self, records: list[JournalRecord] | None = None) -> str:
        path = self.folder / "journal"
        path.write_bytes(b"".join(as_line(opened(*record)) for record in records or self.records))
        return str(path)

    def ask(self, journal: str, ledger: MemoryLedger | None = None, **fields: Any) -> dict[str, Check]:
        """Verify against the chain some time after the run; rows by name."""
        chain = MemoryChain(ledger or self.ledger, Hotkey("stranger"))

        async def asked() -> list[Check]:
            return await verify.verify(VerifyConfig(journal=journal, **fields), LoopRuntime(b"stranger"), chain)

        with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=END_S, end=2 * END_S)) as runner:
            return {check.name: check for check in runner.run(asked())}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    logger.disable("subnet")
    folder = tmp_path_factory.mktemp("run")

    async def anchor(world: World, epoch: int) -> None:
        record = world.records[-1]
        head = Digest(record.head)
        told = world.ledger.commit(ORCHESTRATOR, encode(Anchor(("http://127.0.0.1:1",), Epoch(epoch), head)))
        assert told.done
        await world.service.submit(m.Anchored(epoch=epoch, index=record.index, head=head, block=told.block))

    async def live() -> Run:
        tokens_N = np.minimum(np.random.default_rng(0).geometric(0.05, 20_000), 255).astype(np.uint16)
        preset = presets.equivalence(presets.Size(2, 2, 2, 4))
        routing = msgspec.structs.replace(preset.routing, flush=False, in_flight_per_replica=2, heartbeat_s=2.0)
        audit = msgspec.structs.replace(preset.audit, rate=1.0, settled_epochs=100, segment_steps=1)
        preset = preset._replace(routing=routing, audit=audit)
        spec, text = text_spec(preset, tokens_N, num_stages=2, micro_batch_size=2, seq_len=16)
        async with World(spec, text, folder, target_epochs=2) as world:
            for name in ("a", "b"):
                await world.start(name)
            validator = world.start_validator()
            await anchor(world, 0)
            await world.until(lambda state: min(stage.epoch for stage in state.stages) >= 1)
            await anchor(world, 1)
            await world.finished()
            await anchor(world, 2)
            await asyncio.wait_for(validator.finished.wait(), 600)
        return Run(world.records, world.ledger, folder)

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0, end=END_S)) as runner:
        yield runner.run(live())
    logger.enable("subnet")


def chained(envelopes: list[m.Envelope]) -> list[JournalRecord]:
    """What a forger makes who knows the rules: every head anew, in what names heads too."""
    records: list[JournalRecord] = []
    for index, envelope in enumerate(envelopes):
        message = envelope.message
        if isinstance(message, m.Anchored | m.WeightsSet) and message.index < index:
            message = msgspec.structs.replace(message, head=records[message.index].head)
        body = msgspec.json.encode(msgspec.structs.replace(envelope, message=message))
        head = records[-1].head if records else GENESIS_HEAD
        records.append(JournalRecord(index, next_head(head, index, body), body))
    return records


# ---- a whole run -----------------------------------------------------------------------------------------------------


def test_an_honest_run(run: Run) -> None:
    """1. A stranger has the journal, a node of the chain and a validator's folder: everything fits."""
    rows = run.ask(run.save(), anchors=str(run.folder / VALIDATOR))
    assert {name: check.holds for name, check in rows.items()} == dict.fromkeys(
        ("journal", "own records", "state", "weights", "anchors", "draws", "chain weights"), True
    ), rows
    assert rows["anchors"].sentence.startswith("3 records name anchored heads, all recomputed; ")
    assert "3 of them stand in their blocks; the owner's commitment is that of record" in rows["anchors"].sentence
    assert rows["draws"].sentence == "2 of 2 blocks that drew audits have the same hash on chain"
    assert rows["chain weights"].sentence == "1 equal to those reported"


def test_a_journal_that_was_cut(run: Run) -> None:
    """2. The last records are cut off, and what is left looks whole. The commitment on chain tells, and so do the
    anchors that a validator kept; without either there is nothing to see."""
    newest = [_decode(record.body).message for record in run.records if b'"anchored"' in record.body][-1]
    journal = run.save(run.records[: newest.index])
    rows = run.ask(journal)
    assert rows["journal"].holds and rows["anchors"].holds is False
    assert f"names the head {newest.head} after 2 epochs, and no record has it" in rows["anchors"].sentence
    assert "this journal was cut or exchanged, or saved before" in rows["anchors"].sentence
    kept = max(line.index or 0 for line in load_anchors(run.folder / VALIDATOR / ANCHORS_FILE).seen)
    journal = run.save(run.records[:kept])
    alone = asyncio.run(verify.verify(VerifyConfig(journal=journal), LoopRuntime(b"")))
    assert not any(check.holds is False for check in alone), alone
    seen = VerifyConfig(journal=journal, anchors=str(run.folder / VALIDATOR))
    (row,) = [check for check in asyncio.run(verify.verify(seen, LoopRuntime(b""))) if check.holds is False]
    assert row.name == "anchors" and f"the head of record {kept}, and no record has it" in row.sentence


def test_a_journal_that_was_exchanged(run: Run) -> None:
    """3. One value of long ago is another, and every head after it was made anew, in all that names heads too: the
    journal holds by itself, and the chain says that it is not the one that was anchored."""
    envelopes = [_decode(record.body) for record in run.records]
    index = next(i for i, envelope in enumerate(envelopes) if isinstance(envelope.message, m.Join))
    forged = msgspec.structs.replace(envelopes[index].message, software="another")
    envelopes[index] = msgspec.structs.replace(envelopes[index], message=forged)
    rows = run.ask(run.save(chained(envelopes)))
    assert {name for name, check in rows.items() if check.holds is False} == {"anchors"}
    assert "is anchored in block" in rows["anchors"].sentence and ", which holds " in rows["anchors"].sentence


def test_the_chain_of_another_subnet(run: Run) -> None:
    """4. The operator names another chain: nothing that the journal says of it is true there."""
    ledger = MemoryLedger(ORCHESTRATOR, random_bytes=LoopRuntime(b"other").random_bytes)
    ledger.advance(10_000)
    rows = run.ask(run.save(), ledger)
    assert rows["anchors"].holds is rows["draws"].holds is False
    assert "has the hash" in rows["draws"].sentence and "which holds no anchor" in rows["anchors"].sentence


def test_a_second_validator_in_the_dark(run: Run) -> None:
    """5. Somebody else with a permit set weights on the subnet and told nobody; a later record proves that the journal
    knows of no report."""
    ledger, friend = run.ledger, Hotkey("friend")

    async def told() -> int:
        ledger.register(friend)
        ledger.add_stake(friend, 5_000.0)
        await asyncio.sleep(20.0)
        outcome = ledger.set_weights(friend, {1: 1.0})
        assert outcome.done
        return outcome.block

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=END_S, end=2 * END_S)) as runner:
        block = runner.run(told())
    rows = run.ask(run.save())
    assert rows["chain weights"] == Check(
        "chain weights", True, "1 equal to those reported; 1 set after this journal's end"
    )
    envelopes = [_decode(record.body) for record in run.records]
    seen = [e.message for e in envelopes if isinstance(e.message, m.ChainSeen)][-1]
    later = msgspec.structs.replace(seen, block=block + 60, closes=None)
    after = msgspec.structs.replace(envelopes[-1], sender=ORCHESTRATOR, message=later)
    rows = run.ask(run.save(chained([*envelopes, after])))
    assert rows["chain weights"].holds is False
    said = f"({friend}) set weights at block {block} that it did not report: it reported none"
    assert said in rows["chain weights"].sentence


# ---- anchors, one by one ---------------------------------------------------------------------------------------------

pytestmark = pytest.mark.looptime(end=100_000)


async def read(net: Any, seen: Anchors = NOTHING_SEEN) -> tuple[ChainRecords, Any]:
    """Everything that the journal says of the chain."""
    records = ChainRecords()
    follower = type(net.follower)(net, lambda index, envelope, _: records.note(index, envelope, follower))
    follower.seek(line.head for line in seen.seen)
    await follower.catch_up()
    return records, follower


async def anchored(net: Any, committed: int, **change: Any) -> m.Anchored:
    """The owner commits the newest head after so many epochs and says so; `change` is what it says otherwise."""
    record, block = net.records[-1], net.ledger.number()
    net.anchor(record, committed)
    said = m.Anchored(epoch=committed, index=record.index, head=record.head, block=block)
    said = msgspec.structs.replace(said, **change)
    await net.say(said)
    net.ledger.advance()
    return said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head": "b" * 64}, "was anchored for record 1, whose head is "),
        ({"index": 0}, "was anchored for record 0, whose head is "),
        ({"index": 9}, "record 2 says that record 9 was anchored, which did not exist yet"),
        ({"block": 1}, "is anchored in block 1, which holds no anchor of the owner"),
        ({"block": 999}, "record 2: block 999 does not exist, the chain is at 1"),
        ({"epoch": 7}, "after 7 epochs is anchored in block 0, which holds the head "),
    ],
)
async def test_an_anchor_that_is_none(make_net: MakeNet, change: dict[str, Any], said: str) -> None:
    """6. The orchestrator claims to have anchored what it has not: wherever it lies, the record is named."""
    net = make_net(with_clock=False)
    await net.open()
    await anchored(net, 0, **change)
    check = await check_anchors(*await read(net), NOTHING_SEEN, net.chain)
    assert check.holds is False and said in check.sentence and "record 2" in check.sentence


async def test_a_node_without_old_blocks(make_net: MakeNet) -> None:
    """7. The node keeps no old blocks: what it cannot show is counted, not held against anybody. One that is away
    altogether is another matter."""
    net = make_net(with_clock=False)
    await net.open()
    for epoch in range(4):
        await anchored(net, epoch)
    net.ledger.commitments.prune(2)
    check = await check_anchors(*await read(net), NOTHING_SEEN, net.chain)
    assert check.holds is True and "2 of them stand in their blocks (2 not held by this node any more" in check.sentence
    records, follower = await read(net)
    net.ledger.answers = False
    with pytest.raises(Unavailable):
        await check_anchors(records, follower, NOTHING_SEEN, net.chain)


async def test_the_commitment_is_ahead_or_behind(make_net: MakeNet) -> None:
    """8. A newer commitment than the journal tells of is good if its head is there, even one that was made while we
    read; an older one is not, and one that is no anchor says nothing."""
    net = make_net(with_clock=False)
    await net.open()
    await anchored(net, 1)
    records, follower = await read(net)
    await net.say(m.Tick())
    net.anchor(net.records[-1], 2)
    check = await check_anchors(records, follower, NOTHING_SEEN, net.chain)
    assert check.holds and "the owner's commitment is that of record 3, after 2 epochs" in check.sentence
    net.anchor(net.records[0], 0)
    check = await check_anchors(*await read(net), NOTHING_SEEN, net.chain)
    assert check.holds is False and "record 2 says a newer one was anchored" in check.sentence
    assert net.ledger.commit("owner", "hello").done
    check = await check_anchors(*await read(net), NOTHING_SEEN, net.chain)
    assert check.holds is True and "the owner's commitment on chain is no anchor" in check.sentence


async def test_what_a_validator_saw(make_net: MakeNet, tmp_path: Path) -> None:
    """9. A validator kept a head that this journal does not have: once as one that broke it, once of another place.
    Heads of other runs, or that were never compared, say nothing of this one."""
    net = make_net(with_clock=False)
    await net.open()
    run_id, head = net.follower.run.spec.run_id, net.records[1].head
    line: dict[str, Any] = {"at": 0.0, "block": 0, "owner": "owner", "epoch": 1, "head": head, "run_id": run_id}
    for change, said in [
        ({"index": 1}, None),
        ({"index": 0}, f"a validator saw {head} anchored, the head of record 0, and record 1 has it"),
        ({"head": "b" * 64}, f"a validator saw {'b' * 64} anchored after 1 epochs, and no record has that head"),
        ({"head": "b" * 64, "index": 7}, "the head of record 7, and no record has it: the journal was cut"),
        ({"head": "b" * 64, "run_id": "another", "index": 7}, None),
        ({"head": "b" * 64, "run_id": None}, None),
    ]:
        (tmp_path / ANCHORS_FILE).write_bytes(msgspec.json.encode(line | change))
        seen = load_anchors(tmp_path / ANCHORS_FILE)
        check = await check_anchors(*await read(net, seen), seen, None)
        assert (check.holds is False) == (said is not None) and (said or "") in check.sentence, check


# ---- draws -----------------------------------------------------------------------------------------------------------


async def test_blocks_that_drew(make_net: MakeNet) -> None:
    """10. The orchestrator made up the hash of a block so that its friend is not audited, or named one that is not
    there."""
    net = make_net(with_clock=False)
    net.ledger.advance(50)
    records = ChainRecords()
    assert (await check_draws(records, net.chain)).holds is None
    records.closings = [Closing(n, Epoch(n), 10 + n, net.ledger.block(10 + n).hash) for n in range(5)]
    assert await check_draws(records, net.chain) == Check(
        "draws", True, "5 of 5 blocks that drew audits have the same hash on chain"
    )
    honest = records.closings[3]
    for forged, said in [
        (honest._replace(hash="a" * 64), f"has the hash {honest.hash} on chain, not {'a' * 64}"),
        (honest._replace(block=999), "block 999, which drew the audits of epoch 3, does not exist"),
        (honest._replace(block=0), "block 0, which drew"),
    ]:
        records.closings[3] = forged
        check = await check_draws(records, net.chain)
        assert check.holds is False and said in check.sentence and check.sentence.startswith("record 3: ")
    records.closings[3] = honest._replace(block=51)
    assert "4 of 5" in (await check_draws(records, net.chain)).sentence


# ---- an operator's mistakes ------------------------------------------------------------------------------------------


def test_chain_flags(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """11. A chain that is not there, half a chain, a folder without anchors: one line that names the flag."""
    monkeypatch.setattr(verify, "CHAIN_PATIENCE_S", 0.3)
    for name in ("BT_NETWORK", "BT_NETUID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ANCHORS_FILE).write_bytes(b'{"torn')
    for flag, argv in [
        ("--network", ["--netuid", "1", "--network", "ws://127.0.0.1:9"]),
        ("--network", ["--netuid", "1", "--network", "nowhere"]),
        ("--network", ["--netuid", "1"]),
        ("--netuid", ["--netuid", "x", "--network", "test"]),
        ("--anchors", ["--anchors", str(tmp_path / "none")]),
        ("--anchors", ["--anchors", str(tmp_path)]),
    ]:
        with pytest.raises(SystemExit) as left:
            verify.main(["--journal", run.save(), *argv])
        said = capsys.readouterr().err
        assert left.value.code == 2 and said.startswith(f"error: {flag}: ") and said.count("\n") == 1, said
    assert verify.main(["--journal", run.save(), "--network", "test"]) == 0
    assert "not compared with test: give --netuid too" in capsys.readouterr().out


async def test_a_chain_that_goes_away(make_net: MakeNet, run: Run) -> None:
    """12. The node goes down while the journal is read: the operator is told which flag it is about."""
    net = make_net()
    net.ledger.answers = False
    with pytest.raises(ConfigError, match="--network: the chain in memory does not answer"):
        await verify.verify(VerifyConfig(journal=run.save()), LoopRuntime(b""), net.chain)
