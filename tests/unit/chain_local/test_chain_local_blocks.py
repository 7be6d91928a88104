"""Blocks: how they are named, kept and continued; what the past still says; who may not go on with them."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from subnet.chain.local.spec.metadata import compact
from subnet.chain.local.store import Facts, Store
from subnet.errors import ConfigError

if TYPE_CHECKING:
    from conftest import Laboratory

Make = Callable[..., "Laboratory"]


def unhex(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def test_a_hash_is_that_of_the_header(lab: Laboratory) -> None:
    """1. A sceptic encodes the header that a node gave out and finds the block's hash."""
    block = lab.block(3).block
    header = unhex(block.parent) + compact(block.number) + unhex(block.state_root) + unhex(block.extrinsics_root)
    header += compact(len(block.logs)) + b"".join(unhex(log) for log in block.logs)
    assert "0x" + blake2b(header, digest_size=32).hexdigest() == block.hash
    assert block.parent == lab.chain.hash_at(block.number - 1)


def test_nobody_knows_the_next_hash(make: Make) -> None:
    """2. Two chains of the same genesis, the same clock and the same extrinsics differ from the first block on, because
    their randomness does: a miner cannot foresee whom the next block draws for an audit."""
    one, other, same = make(seed=b"one"), make(seed=b"other"), make(seed=b"one")
    hashes = [[lab.block().block.hash for _ in range(3)] for lab in (one, other, same)]
    assert not set(hashes[0]) & set(hashes[1])
    assert hashes[0] == hashes[2]


def test_it_goes_on_where_it_stopped(make: Make, tmp_path: Path) -> None:
    """3. The laptop's lid is closed and opened again: height, hashes, balances, nonces, uids, the shield's key, what is
    known of the past; and the genesis of the second start is ignored."""
    path = tmp_path / "chain.sqlite"
    first = make(path=path)
    first.do("owner", "SubtensorModule", "register_network", hotkey=first.address("owner/hot"))
    first.do("owner", "Balances", "transfer_keep_alive", dest=first.address("stranger"), value=7)
    first.block(3)
    hashes = [first.chain.hash_at(number) for number in range(first.chain.number + 1)]
    past = [first.storage.at(number).get("System", "Account", first.address("owner")) for number in range(1, 6)]
    key, owner = first.storage.get("MevShield", "NextKey"), first.free("owner")
    first.store.close()

    second = make(path=path, endowed={}, seed=b"another")
    assert [second.chain.hash_at(number) for number in range(second.chain.number + 1)] == hashes
    assert [second.storage.at(n).get("System", "Account", second.address("owner")) for n in range(1, 6)] == past
    assert second.storage.get("MevShield", "NextKey") == key
    assert (second.free("owner"), second.chain.next_nonce(second.address("owner"))) == (owner, 2)
    assert second.do("owner", "SubtensorModule", "start_call", netuid=1) == ""
    assert second.chain.head.parent == hashes[-1]


def test_two_nodes_on_one_chain(make: Make, tmp_path: Path) -> None:
    """4. Somebody starts a second node on the same folder: it says so and leaves the chain alone."""
    lab = make(path=tmp_path / "chain.sqlite")
    with pytest.raises(ConfigError, match="another chain running"):
        Store(tmp_path / "chain.sqlite")
    lab.block()


def test_another_version_does_not_go_on(make: Make, tmp_path: Path) -> None:
    """5. After an upgrade that changed the interface, old state would be read wrongly: it is refused."""
    path = tmp_path / "chain.sqlite"
    make(path=path).store.close()
    store = Store(path)
    store._db.execute("UPDATE facts SET value = x'00' WHERE name = 'metadata_digest'")
    store.close()
    with pytest.raises(ConfigError, match="another version"):
        make(path=path)


def test_a_file_that_is_no_chain(make: Make, tmp_path: Path) -> None:
    """6. The state folder holds something else by that name."""
    (tmp_path / "chain.sqlite").write_bytes(b"a letter to my grandmother" * 100)
    with pytest.raises(ConfigError, match="--state"):
        make(path=tmp_path / "chain.sqlite")


def test_the_past_is_forgotten(make: Make, tmp_path: Path) -> None:
    """7. A chain runs for weeks: of 400 blocks it can tell the state of the last 20, and holds no more than that, in
    memory and on disk. All blocks stay."""
    lab = make(path=tmp_path / "chain.sqlite", keep_blocks=20)
    lab.block(30)
    few = sum(len(blocks) for blocks, _ in lab.chain.state._versions.values())
    lab.block(370)
    hashes = len(lab.chain.state.keys(lab.chain.interface.storage_key("System", "BlockHash", [])))
    assert hashes == 400
    assert sum(len(blocks) for blocks, _ in lab.chain.state._versions.values()) - hashes <= few
    (stored,) = lab.store._db.execute("SELECT count(*) FROM versions").fetchone()
    assert stored == sum(len(blocks) for blocks, _ in lab.chain.state._versions.values())
    assert [lab.storage.at(number).get("System", "Number") for number in range(380, 401)] == list(range(380, 401))
    assert lab.chain.state.oldest == 380
    assert lab.chain.block(5) is not None and len(lab.chain._blocks) <= 512


def test_time_does_not_run_backwards(lab: Laboratory) -> None:
    """8. The clock is set back an hour: block times still rise."""
    lab.block()
    before = lab.storage.get("Timestamp", "Now")
    lab.now -= 3600
    lab.block()
    assert lab.storage.get("Timestamp", "Now") == before + 1


def test_the_disk_is_full(make: Make, tmp_path: Path) -> None:
    """9. No room is left in the middle of a block: the operator is told what to do; the block was never there, and
    with some room the chain goes on from the last one that anybody heard of."""
    lab = make(path=tmp_path / "chain.sqlite")
    last = lab.block(3).block
    (pages,) = lab.store._db.execute("PRAGMA page_count").fetchone()
    lab.store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ConfigError, match=r"--state: .*full; make room"):
        lab.block(200)
    reached = lab.store.newest()
    assert reached is not None and reached.number >= last.number
    lab.store.close()
    again = make(path=tmp_path / "chain.sqlite")
    assert again.chain.head == reached and again.block().block.parent == reached.hash


def test_killed_at_birth(tmp_path: Path) -> None:
    """10. The process dies while it writes down what the chain is born with: at the next start there is no chain yet,
    not half of one."""
    store = Store(tmp_path / "chain.sqlite")
    with pytest.raises(Exception, match="type"):
        store.begin(Facts(b"digest", b"seed", object()))  # type: ignore[arg-type]
    store.close()
    again = Store(tmp_path / "chain.sqlite")
    assert again.facts() is None
    again.close()
