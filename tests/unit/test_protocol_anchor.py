"""The owner's one commitment: what goes in comes out, and nothing else is taken for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subnet.errors import ConfigError
from subnet.protocol.anchor import ANCHOR_MAX_BYTES, Anchor, check_urls, decode, encode
from subnet.protocol.ids import Digest, Epoch

HEAD = Digest("00ff" * 16)

places = st.from_regex(
    r"https?://[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?(:[1-9][0-9]{0,4})?(/[a-z0-9]{1,6})?", fullmatch=True
)
anchors = st.builds(
    Anchor,
    st.lists(places, min_size=1, max_size=2).map(tuple),
    st.integers(0, 999_999).map(Epoch),
    st.binary(min_size=32, max_size=32).map(lambda head: Digest(head.hex())),
)


@given(anchors)
def test_what_is_published_is_read(anchor: Anchor) -> None:
    """1. An orchestrator with one or two URLs anchors an epoch; a miner reads exactly that, from 128 bytes or less."""
    text = encode(anchor)
    assert len(text.encode()) <= ANCHOR_MAX_BYTES and text.isascii()
    assert decode(text) == anchor


@given(st.text(max_size=140) | anchors.map(encode).flatmap(lambda text: st.integers(0, 127).map(lambda i: text[:i])))
def test_other_commitments_are_no_anchors(text: str) -> None:
    """2. Other software commits what it likes, or a commitment was cut off: no anchor, or one spelt like that."""
    found = decode(text)
    assert found is None or encode(found) == text


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "i1",
        "i2 0 " + "0" * 40 + " sexample.org",
        "i1 01 " + "0" * 40 + " sexample.org",
        "i1 0 " + "0" * 40 + " sexample.org/",
        "i1 0 " + "0" * 40 + " xexample.org",
        "i1 0 " + "0" * 40 + " suser@example.org",
        "i1 0 " + "0" * 40 + " sa sb sc",
        "i1 0 " + "~" * 40 + " sexample.org",
        "i1 0 " + "0" * 40 + " sexample.org\n",
    ],
)
def test_near_misses(text: str | None) -> None:
    """3. Another version, another spelling, one URL too many, digits that are no digest: none of them is an anchor."""
    assert decode(text) is None


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ((), "0 URLs"),
        (("http://a", "http://b", "http://c"), "3 URLs"),
        (("ftp://a",), "cannot be published"),
        (("http://user:secret@a",), "cannot be published"),
        (("http://a/?q=1",), "cannot be published"),
        (("http://ä.example",), "cannot be published"),
        (("https://" + "a" * 60 + ".org", "https://" + "b" * 20), "bytes too long"),
    ],
)
def test_what_an_operator_gets_wrong(urls: tuple[str, ...], said: str) -> None:
    """4. A public URL that cannot be published is one line at the start, not a failure at the first epoch's end."""
    with pytest.raises(ConfigError, match=said):
        check_urls(urls)


def test_the_longest_that_fit() -> None:
    """5. Two hosts of 37 bytes and epoch 999,999 are 128 bytes exactly; loopback with a port and IPv6 are fine too."""
    urls = ("https://" + "a" * 37, "http://" + "b" * 37)
    assert len(encode(Anchor(urls, Epoch(999_999), HEAD))) == ANCHOR_MAX_BYTES
    assert check_urls(["http://127.0.0.1:8080/", "http://[::1]:80"]) == ("http://127.0.0.1:8080", "http://[::1]:80")
