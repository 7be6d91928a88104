"""One suite for every object store: memory, files behind the orchestrator's door, S3 behind presigned URLs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from subnet.errors import ConfigError, PeerFault, Unavailable
from subnet.protocol.keys import Kind, ObjectKey, make
from subnet.protocol.reasons import Reason
from subnet.storage.base import check_prefix
from subnet.storage.files import ON_LOOP_BYTES_MAX, FileObjectStore

TIMEOUT_S = 10.0
CASES = {"max_examples": 12, "deadline": None, "suppress_health_check": list(HealthCheck)}


def slot(item: str = "m1", epoch: int = 0, kind: Kind = Kind.BOUNDARY) -> ObjectKey:
    return make("run", epoch, 1, item, kind)


def files_below(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.rglob(pattern) if path.is_file()]


NOT_KEYS = [
    "../../etc/passwd",
    "run/0/1/../boundary",
    "run/0/1/.hidden/boundary",
    "/run/0/1/m1/boundary",
    "run/0/1/m1/boundary/",
    "run//1/m1/boundary",
    "run/0/1/m1/secrets",
    "run/0/1/m1%2f..%2fx/boundary",
    "run/0/1/m1/boundary\x00",
    "run/-1/1/m1/boundary",
    "",
]

# ---- the store as the orchestrator uses it ---------------------------------------------------------------------------


@settings(**CASES)
@example(data=b"0", offset=0, length=2, old=b"")
@example(data=b"0", offset=1, length=None, old=b"1")
@example(data=b"", offset=1, length=3, old=b"1")
@given(
    data=st.binary(max_size=300), offset=st.integers(0, 320), length=st.none() | st.integers(0, 320), old=st.binary()
)
async def test_what_was_put_last_is_read_by_any_range(
    shelf: Any, data: bytes, offset: int, length: int | None, old: bytes
) -> None:
    """1. A slot is written twice; a range read afterwards is that range of the second content, short at the end."""
    key = slot()
    await shelf.store.put(key, old)
    await shelf.store.put(key, data)
    end = None if length is None else offset + length
    assert await shelf.store.get(key, offset, length) == data[offset:end]
    assert await shelf.store.size_bytes(key) == len(data)


async def test_a_missing_object_is_missing(shelf: Any) -> None:
    """2. A miner died before its upload; the reader is told so, by range too, and its neighbour is no substitute."""
    await shelf.store.put(slot("m10"), b"x")
    assert await shelf.store.size_bytes(slot("m1")) is None
    for offset, length in ((0, None), (5, 10), (0, 0)):
        with pytest.raises(KeyError):
            await shelf.store.get(slot("m1"), offset, length)


async def test_a_big_object_survives_whole(shelf: Any) -> None:
    """3. A stage's parameters: larger than anything that is handled on the event loop."""
    data = os.urandom(ON_LOOP_BYTES_MAX + 12_345)
    await shelf.store.put(slot(), data)
    assert await shelf.store.get(slot()) == data
    assert await shelf.store.get(slot(), ON_LOOP_BYTES_MAX, 500) == data[ON_LOOP_BYTES_MAX:][:500]
    url = shelf.store.grant_get(slot(), expires_at=2e10)
    assert await shelf.client.get(url, 7, len(data) - 7, TIMEOUT_S) == data[7:]


async def test_readers_see_old_or_new_never_a_part(shelf: Any) -> None:
    """4. A slot is rewritten while others read it."""
    versions = [bytes([n]) * (ON_LOOP_BYTES_MAX + 1) for n in range(3)]
    await shelf.store.put(slot(), versions[0])
    writes = [shelf.store.put(slot(), version) for version in versions]
    reads = [shelf.store.get(slot()) for _ in range(6)]
    _, *found = await asyncio.gather(asyncio.gather(*writes), *reads)
    assert all(data in versions for data in found)


async def test_an_epoch_is_deleted_and_nothing_else(shelf: Any) -> None:
    """5. Epoch 1's audit window closed: its objects go, those of epochs 10 and 2 and of other runs stay."""
    doomed = [slot("a", 1), slot("b", 1), slot("b", 1, Kind.GRADIENT)]
    kept = [slot("a", 10), slot("a", 2), make("run-1", 1, 1, "a", Kind.BOUNDARY)]
    for key in doomed + kept:
        await shelf.store.put(key, b"x")
    assert await shelf.store.delete_prefix("run/1/1/b/") == 2
    assert [await shelf.store.size_bytes(key) for key in doomed] == [1, None, None]
    assert await shelf.store.delete_prefix("run/1/") == 1
    assert await shelf.store.delete_prefix("run/1/") == 0
    assert [await shelf.store.size_bytes(key) for key in kept] == [1, 1, 1]
    assert await shelf.store.delete_prefix("run/") == 2


@pytest.mark.parametrize("prefix", ["", "/", "run", "run/1", "../", "run/../", "run/1/1/b/boundary/", "run/x/"])
async def test_a_prefix_no_key_has_deletes_nothing(shelf: Any, prefix: str) -> None:
    """6. A slip in the clean-up must not empty the store."""
    with pytest.raises(ValueError, match="not a"):
        check_prefix(prefix)
    with pytest.raises(ValueError, match="not a"):
        await shelf.store.delete_prefix(prefix)


@pytest.mark.parametrize("text", NOT_KEYS)
async def test_a_path_is_no_key(shelf: Any, text: str, tmp_path: Path) -> None:
    """7. Path traversal: what `protocol.keys` could not have written never reaches a disk or a bucket."""
    key = ObjectKey(text)
    for call in (shelf.store.put(key, b"x"), shelf.store.get(key), shelf.store.size_bytes(key)):
        with pytest.raises(ValueError, match="not an object key"):
            await call
    assert files_below(tmp_path, "*passwd*") == []


# ---- grants as miners use them ---------------------------------------------------------------------------------------


async def test_a_grant_moves_bytes(shelf: Any, clock: Any) -> None:
    """8. The orchestrator grants a slot, one miner fills it, another reads all of it, then a range of it."""
    data = os.urandom(4096)
    await shelf.client.put(shelf.store.grant_put(slot(), len(data), clock() + 60), data, TIMEOUT_S)
    url = shelf.store.grant_get(slot(), clock() + 60)
    assert await shelf.client.get(url, 0, 4096, TIMEOUT_S) == data
    assert await shelf.client.get(url, 1000, 96, TIMEOUT_S) == data[1000:1096]


async def test_an_empty_object_moves(shelf: Any, clock: Any) -> None:
    """9. The control run sends boundaries of width 0."""
    await shelf.client.put(shelf.store.grant_put(slot(), 0, clock() + 60), b"", TIMEOUT_S)
    assert await shelf.client.get(shelf.store.grant_get(slot(), clock() + 60), 0, 0, TIMEOUT_S) == b""


@pytest.mark.parametrize("size", [0, 15, 17, 100_000])
async def test_a_grant_allows_one_size(shelf: Any, clock: Any, size: int) -> None:
    """10. A miner uploads more or less than its target names, or writes another size into the URL: refused, the slot
    stays empty."""
    url = shelf.store.grant_put(slot(), 16, clock() + 60)
    for attempt in (url, url.replace("size=16", f"size={size}")):
        with pytest.raises(PeerFault) as fault:
            await shelf.client.put(attempt, b"x" * size, TIMEOUT_S)
        assert fault.value.code in (Reason.BAD_SIZE, Reason.NOT_ALLOWED)
    assert await shelf.store.size_bytes(slot()) is None


async def test_a_grant_allows_one_key_and_one_method(shelf: Any, clock: Any) -> None:
    """11. A miner bends its URL: another slot, a write through a reading grant, a read through a writing one."""
    await shelf.store.put(slot("m1"), b"mine")
    await shelf.store.put(slot("m2"), b"secret")
    reading, writing = shelf.store.grant_get(slot("m1"), clock() + 60), shelf.store.grant_put(slot(), 4, clock() + 60)
    attempts = (
        shelf.client.get(reading.replace("/m1/", "/m2/"), 0, 6, TIMEOUT_S),
        shelf.client.put(writing.replace("/m1/", "/m2/"), b"evil", TIMEOUT_S),
        shelf.client.put(reading, b"evil", TIMEOUT_S),
        shelf.client.get(writing, 0, 4, TIMEOUT_S),
    )
    for attempt in attempts:
        with pytest.raises(PeerFault) as fault:
            await attempt
        assert fault.value.code == Reason.NOT_ALLOWED
        assert "sig" not in fault.value.evidence.lower()
    assert (await shelf.store.get(slot("m1")), await shelf.store.get(slot("m2"))) == (b"mine", b"secret")


async def test_a_grant_ends(shelf: Any, clock: Any) -> None:
    """12. A URL kept for later, or with its expiry written up, is worth nothing."""
    await shelf.store.put(slot(), b"data")
    url, writing = shelf.store.grant_get(slot(), clock() + 60), shelf.store.grant_put(slot(), 4, clock() + 60)
    assert await shelf.client.get(url, 0, 4, TIMEOUT_S) == b"data"
    longer = url.replace("X-Amz-Expires=", "X-Amz-Expires=9").replace("?expires=1", "?expires=2")
    assert longer != url
    clock.advance(61)
    for attempt in (
        shelf.client.get(url, 0, 4, TIMEOUT_S),
        shelf.client.get(longer, 0, 4, TIMEOUT_S),
        shelf.client.put(writing, b"late", TIMEOUT_S),
    ):
        with pytest.raises(PeerFault) as fault:
            await attempt
        assert fault.value.code in (Reason.STALE, Reason.NOT_ALLOWED)
    assert await shelf.store.get(slot()) == b"data"


async def test_a_reader_is_told_what_is_wrong(shelf: Any, clock: Any) -> None:
    """13. The named object is missing, or shorter than was said."""
    await shelf.store.put(slot(), b"data")
    for key, offset, size, code in (
        (slot("none"), 0, 4, Reason.BAD_OBJECT),
        (slot(), 0, 5, Reason.BAD_SIZE),
        (slot(), 3, 2, Reason.BAD_SIZE),
        (slot(), 4, 1, Reason.BAD_SIZE),
    ):
        with pytest.raises(PeerFault) as fault:
            await shelf.client.get(shelf.store.grant_get(key, clock() + 60), offset, size, TIMEOUT_S)
        assert fault.value.code == code


# ---- what only files or only S3 can get wrong ------------------------------------------------------------------------


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    """14. The operator names a path that is a file: field and remedy, at construction."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError) as error:
        FileObjectStore(tmp_path / "taken", "http://127.0.0.1", b"secret of the test", lambda: 0.0)
    assert error.value.field == "--run-dir"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [10, ON_LOOP_BYTES_MAX + 1])
async def test_a_failed_write_is_unavailable_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    """15. The disk refuses (here: a folder is in the way): retry is up to the caller, no half object is left."""
    store = FileObjectStore(tmp_path, "http://127.0.0.1", b"secret of the test", lambda: 0.0)
    (tmp_path / "run/0/1/m1.boundary").mkdir(parents=True)
    with pytest.raises(Unavailable):
        await store.put(slot(), b"x" * size)
    store.close()
    assert files_below(tmp_path, "*") == []


async def test_a_killed_process_leaves_no_litter(tmp_path: Path) -> None:
    """16. A process was killed while writing; the next one cleans up and finds the finished objects."""
    store = FileObjectStore(tmp_path, "http://127.0.0.1", b"secret of the test", lambda: 0.0)
    await store.put(slot(), b"finished")
    store.close()
    (tmp_path / ".partial" / "1-1").write_bytes(b"half")
    again = FileObjectStore(tmp_path, "http://127.0.0.1", b"secret of the test", lambda: 0.0)
    assert await again.get(slot()) == b"finished"
    assert files_below(tmp_path / ".partial", "*") == []
    again.close()


async def test_a_wrong_bucket_or_secret_is_the_operators(s3_store: Callable[..., Any]) -> None:
    """17. Told at start, with the field; not as a retry that never ends."""
    await s3_store().check()
    with pytest.raises(ConfigError, match="no-such-bucket"):
        await s3_store(bucket="no-such-bucket").check()
    with pytest.raises(ConfigError, match="credentials"):
        await s3_store(secret_key="not the secret").put(slot(), b"x")
