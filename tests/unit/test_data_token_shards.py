"""Token files: small, checked, and without surprises from a stranger's bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.data import token_shards
from subnet.errors import ConfigError, PeerFault
from subnet.protocol.reasons import Reason


@pytest.mark.parametrize(("vocab_size", "bytes_per_token"), [(4_096, 2), (65_536, 2), (65_537, 4), (2**31, 4)])
def test_round_trip_up_to_the_last_id(vocab_size: int, bytes_per_token: int) -> None:
    """1. Two bytes a token up to a vocabulary of 65,536, four beyond; the largest id survives."""
    tokens = np.array([0, 1, vocab_size - 1, 5], np.int64)
    data = token_shards.encode(tokens, vocab_size)
    assert len(data) == token_shards.encoded_size(vocab_size, 4) == 32 + 4 * bytes_per_token
    found = token_shards.decode(data, vocab_size)
    assert np.array_equal(found, tokens) and not found.flags.writeable


@pytest.mark.parametrize("tokens", [[4_096], [-1], [[1, 2]]])
def test_ids_outside_the_vocabulary_are_a_bug_of_the_writer(tokens: list[int]) -> None:
    """2. A tokenizer and a vocabulary size that do not belong together are found before a file exists."""
    with pytest.raises(ValueError):
        token_shards.encode(np.array(tokens), 4_096)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_garbage_raises_peer_fault_only(garbage: bytes) -> None:
    """3. A mirror serves noise under the right name."""
    with pytest.raises(PeerFault):
        token_shards.decode(garbage, 4_096)


def test_damage_is_named() -> None:
    """4. Cut off, of another vocabulary, or with an id the model has no row for: each has its reason."""
    data = token_shards.encode(np.arange(100), 4_096)
    cases = [
        (data[:-1], 4_096, Reason.BAD_SIZE),
        (data[:-2], 4_096, Reason.BAD_OBJECT),
        (data[:10], 4_096, Reason.BAD_SIZE),
        (data, 4_095, Reason.BAD_OBJECT),
        (data[:-2] + b"\xff\xff", 4_096, Reason.BAD_OBJECT),
    ]
    for bad, vocab_size, reason in cases:
        with pytest.raises(PeerFault) as fault:
            token_shards.decode(bad, vocab_size)
        assert fault.value.code == reason


def test_a_file_on_disk_is_mapped(tmp_path: Path) -> None:
    """5. Six miners on one machine share one copy; a missing, empty or damaged file says what to do."""
    path = tmp_path / "train.tokens"
    path.write_bytes(token_shards.encode(np.arange(1_000), 4_096))
    assert np.array_equal(token_shards.open_file(path, 4_096), np.arange(1_000))
    for content in (b"", b"noise"):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as error:
            token_shards.open_file(path, 4_096)
        assert str(path) in str(error.value)
    with pytest.raises(ConfigError):
        token_shards.open_file(tmp_path / "absent", 4_096)
