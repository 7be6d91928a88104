"""Metadata, codec and shield against the client's own library."""

from __future__ import annotations

import bittensor_core as core
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.chain.local.ledger.shield import SEED_BYTES, Shield
from subnet.chain.local.spec.interface import Interface, octets
from subnet.chain.local.spec.metadata import blob, compact, split_top
from subnet.chain.local.spec.pallets import SPEC_VERSION, pallets

INTERFACE = Interface(250)
SHIELD = Shield(bytes(SEED_BYTES))


@settings(deadline=None)
@given(st.integers(0, 2**64) | st.sampled_from([63, 64, 2**14 - 1, 2**14, 2**30 - 1, 2**30]))
def test_compact_numbers(number: int) -> None:
    """1. Our compact integers are the library's."""
    assert compact(number) == INTERFACE.encode("Compact<u128>", number)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_octets(data: bytes) -> None:
    """2. Bytes go through storage and come out the same, whether they look like text or not; only text that itself
    begins with 0x is ambiguous, and no call of ours carries such."""
    decoded = INTERFACE.decode("Vec<u8>", blob(data))
    if not data.startswith(b"0x"):
        assert octets(decoded) == data


def test_types_are_split_at_the_top() -> None:
    """3. A tuple in a tuple keeps its commas."""
    assert split_top("u16,Vec<(u8,u8)>,[u8;3]") == ["u16", "Vec<(u8,u8)>", "[u8;3]"]
    assert split_top("") == []


def test_every_default_decodes() -> None:
    """4. What an absent key stands for is a value of its type, for each of the nearly two hundred items."""
    count = 0
    for pallet in pallets(250):
        for item in pallet.items:
            codec = INTERFACE.item(pallet.name, item.name)
            if codec.default is not None:
                value = INTERFACE.decode(codec.value_type, codec.default)
                assert INTERFACE.encode(codec.value_type, value) == codec.default, item.name
                count += 1
    assert count > 140


def test_the_same_metadata_every_time() -> None:
    """5. Clients cache it by genesis and version, so it must not change by itself; with another block time it does."""
    assert Interface(250).metadata == INTERFACE.metadata != Interface(12_000).metadata
    assert core.Runtime(INTERFACE.metadata, SPEC_VERSION, 1, 42).is_v15


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=SEED_BYTES, max_size=SEED_BYTES), st.binary(max_size=2_000))
def test_the_shield_opens_what_a_client_sealed(seed: bytes, secret: bytes) -> None:
    """6. Any key, any content: the client's ML-KEM-768 and ours agree."""
    shield = Shield(seed)
    assert shield.open(bytes(core.encrypt_mlkem768(shield.public_key, secret, True))) == secret
    assert Shield(seed).public_key == shield.public_key


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=1_300))
def test_the_shield_refuses_rubbish(data: bytes) -> None:
    """7. What nobody sealed is not opened."""
    with pytest.raises(ValueError):
        SHIELD.open(data)
