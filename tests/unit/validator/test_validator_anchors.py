"""A validator keeps what the owner anchored on chain, and does not follow a journal that says otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from subnet.errors import ConfigError, Unavailable
from subnet.protocol import messages as m
from subnet.protocol.ids import Digest, Epoch, Hotkey, RunId
from subnet.validator import anchors as module
from subnet.validator.anchors import ANCHORS_FILE, AnchorWatch, SeenAnchor, load_anchors
from subnet.validator.follower import Follower, JournalBroken

pytestmark = pytest.mark.looptime(end=100_000)
MakeNet = Callable[..., Any]
OWNER = Hotkey("owner")


class Watching:
    """One validator's process at one journal."""

    def __init__(self, net: Any, folder: Path) -> None:
        self.net, self.path = net, folder / ANCHORS_FILE
        self.follower = Follower(net)
        self.watch = AnchorWatch(net.chain, self.path, self.follower)

    async def look(self, seconds: int = 30) -> None:
        """As a settler does, once a second."""
        for _ in range(seconds):
            await self.follower.catch_up()
            await self.watch.look(OWNER, self.net.ledger.number(), self.net.runtime.now())
            await asyncio.sleep(1.0)

    @property
    def kept(self) -> list[tuple[Digest, RunId | None, int | None]]:
        return [(line.head, line.run_id, line.index) for line in load_anchors(self.path).seen]


async def opened(make_net: MakeNet, num_records: int = 6) -> Any:
    net = make_net()
    await net.open()
    await net.say(*[m.Tick()] * (num_records - len(net.records)))
    return net


# ---- what is believed ------------------------------------------------------------------------------------------------


async def test_an_anchor_is_kept(make_net: MakeNet, tmp_path: Path, lines: list[str]) -> None:
    """1. The owner anchors the newest head after an epoch: each validator that looks keeps it, with the record that has
    it, once."""
    net = await opened(make_net)
    one = Watching(net, tmp_path)
    await one.look(15)
    assert one.kept == []
    head = net.anchor(net.records[4], epoch=1)
    await one.look(60)
    run_id = one.follower.run.spec.run_id
    assert one.kept == [(head, None, None), (head, run_id, 4)]
    assert [line for line in lines if "record 4" in line] == [
        "INFO: the owner anchored the head after record 4; 1 epochs closed"
    ]
    (seen,) = {line.epoch for line in load_anchors(one.path).seen}
    assert seen == 1


async def test_the_chain_is_asked_now_and_then(make_net: MakeNet, tmp_path: Path) -> None:
    """2. A look a second costs the node one question in ten seconds, and one that is away is asked again."""
    net = await opened(make_net)
    asked, true = [], net.ledger.commitments.newest

    def counted(hotkey: Hotkey) -> str | None:
        asked.append(net.runtime.now())
        newest: str | None = true(hotkey)
        return newest

    net.ledger.commitments.newest = counted
    one = Watching(net, tmp_path)
    await one.look(60)
    assert len(asked) == 5
    net.ledger.answers = False
    await asyncio.sleep(10.0)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await one.look(1)
    net.ledger.answers = True
    await one.look(1)
    assert len(asked) == 6


async def test_the_commitment_comes_before_the_journal_does(make_net: MakeNet, tmp_path: Path) -> None:
    """3. The anchor is on chain while the pages that a reader gets are older still, and its line dies for a while:
    nothing is broken until the journal was read again, and then it is there."""
    net = await opened(make_net)
    net.anchor(net.records[1])
    one = Watching(net, tmp_path)
    await one.look(11)
    await net.say(m.Tick(), m.Tick())
    net.shown = 6
    head = net.anchor(net.records[7], epoch=1)
    await one.watch.look(OWNER, 0, net.runtime.now() + 10.0)
    net.away = True
    with pytest.raises(Unavailable):
        await one.look(1)
    await one.watch.look(OWNER, 0, net.runtime.now() + 20.0)
    net.away, net.shown = False, None
    await one.look()
    assert one.kept[-1] == (head, one.follower.run.spec.run_id, 7)


async def test_a_run_after_another(make_net: MakeNet, tmp_path: Path) -> None:
    """4. The owner begins a new run; the last commitment of the old one stands until the new one is anchored. A
    validator that comes in between follows the new journal, and its file does not hold the old head against it."""
    net = await opened(make_net)
    old = net.anchor(net.records[1]._replace(head=Digest("c" * 64)), epoch=57)
    one = Watching(net, tmp_path)
    await one.look(300)
    new = net.anchor(net.records[5])
    await one.look(1_200)
    run_id = one.follower.run.spec.run_id
    assert one.kept == [(old, None, None), (new, None, None), (new, run_id, 5)]
    await Watching(net, tmp_path).look(1_200)
    assert len(one.kept) == 3


# ---- what breaks a journal -------------------------------------------------------------------------------------------


async def test_a_head_that_no_record_has(make_net: MakeNet, tmp_path: Path) -> None:
    """5. The owner anchors one journal and shows another: found at the next page, and kept as evidence."""
    net = await opened(make_net)
    net.anchor(net.records[1])
    one = Watching(net, tmp_path)
    await one.look()
    head = net.anchor(net.records[5]._replace(head=Digest("d" * 64)), epoch=1)
    with pytest.raises(JournalBroken, match=f"journal record 6: the owner anchored the head {head} after 1 epochs"):
        await one.look()
    assert one.follower.broken is not None
    assert one.kept[-1] == (head, one.follower.run.spec.run_id, None)


async def test_the_first_anchor_is_missing(make_net: MakeNet, tmp_path: Path) -> None:
    """6. As above, but nothing of this run was anchored yet: it is taken for the run before's, however long it stands.
    Once one of this run's is known, a missing one breaks the journal."""
    net = await opened(make_net)
    net.anchor(net.records[5]._replace(head=Digest("d" * 64)), epoch=1)
    one = Watching(net, tmp_path)
    await one.look(5_000)
    net.anchor(net.records[4], epoch=1)
    await one.look(20)
    net.anchor(net.records[5]._replace(head=Digest("d" * 64)), epoch=2)
    with pytest.raises(JournalBroken):
        await one.look(40)


async def test_exchanged_while_the_validator_was_down(make_net: MakeNet, tmp_path: Path) -> None:
    """7. A validator stops for the night. By morning the journal has other records from some point on, or ends earlier:
    the anchors that it kept tell which record had which head."""
    net = await opened(make_net)
    head = net.anchor(net.records[4], epoch=1)
    await Watching(net, tmp_path).look()
    same = Watching(net, tmp_path)
    await same.look()
    records = list(net.records)
    for forged, others in ((records[:4], 0), (records[:3], 3)):
        net.records[:] = forged
        await net.say(*[m.Registered(hotkeys=())] * others)
        cheated = Watching(net, tmp_path)
        with pytest.raises(JournalBroken, match=f"journal record 4: it had the head {head}"):
            await cheated.look()


async def test_records_of_long_ago(make_net: MakeNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8. The head of an anchor that is seen late is too old to be known still: no proof, so nothing is broken; what was
    kept in the file is looked for from the first record on."""
    monkeypatch.setattr("subnet.validator.follower.FOLDED_KEPT", 3)
    net = await opened(make_net, 12)
    one = Watching(net, tmp_path)
    await one.follower.catch_up()
    head = net.anchor(net.records[5])
    await one.look(1_200)
    assert one.kept == [(head, None, None)]
    again = Watching(net, tmp_path)
    await again.look()
    assert again.kept[-1] == (head, again.follower.run.spec.run_id, 5)


# ---- the file --------------------------------------------------------------------------------------------------------


def line(number: int) -> SeenAnchor:
    return SeenAnchor(at=float(number), block=number, owner=OWNER, epoch=Epoch(number), head=Digest(f"{number:064x}"))


async def test_a_torn_line(make_net: MakeNet, tmp_path: Path) -> None:
    """9. A kill tore the last line in two; the next one stands by itself. Lines of something else are counted."""
    path = tmp_path / ANCHORS_FILE
    whole = msgspec.json.encode(line(1)) + b"\n"
    path.write_bytes(whole + b'{"epoch":7}\n' + whole[: len(whole) // 2])
    net = await opened(make_net)
    net.anchor(net.records[2])
    await Watching(net, tmp_path).look()
    found = load_anchors(path)
    assert [seen.epoch for seen in found.seen] == [1, 0, 0] and found.unreadable == 1
    assert path.read_bytes().startswith(whole)


def test_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10. A file of years is read from its end, up to a bound."""
    path = tmp_path / ANCHORS_FILE
    path.write_bytes(b"".join(msgspec.json.encode(line(number)) + b"\n" for number in range(1_000)))
    monkeypatch.setattr(module, "FILE_BYTES_MAX", 10_000)
    seen = load_anchors(path).seen
    assert 20 < len(seen) < 100 and [one.epoch for one in seen] == list(range(1_000 - len(seen), 1_000))
    assert load_anchors(tmp_path / "none").seen == ()


async def test_a_disk_that_takes_nothing(make_net: MakeNet, tmp_path: Path, lines: list[str]) -> None:
    """11. The disk is full: the anchor is compared all the same, and the operator told. What cannot be read at the
    start is the operator's matter."""
    net = await opened(make_net)
    net.anchor(net.records[2])
    one = Watching(net, tmp_path)
    one.path.mkdir()
    await one.look()
    assert [said for said in lines if "could not be kept" in said]
    with pytest.raises(ConfigError, match="--work-dir"):
        Watching(net, tmp_path)
