"""The grammar of object keys: run / epoch / stage / item / kind.

Keys are slot-addressed: a URL is granted before the content exists, so the name says what goes there, and the digest
that was accepted later says which bytes. Law: a key is made and parsed here only; nothing a peer sends becomes a path
before `parse` has accepted it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple, NewType

from subnet.protocol.ids import Epoch, RunId, Stage

ObjectKey = NewType("ObjectKey", str)


class Kind(StrEnum):
    """What an object holds."""

    BOUNDARY = "boundary"
    """z_BTK on its way forward."""
    GRADIENT = "gradient"
    """the gradient with respect to z_BTK on its way back."""
    UPLOAD = "upload"
    """a replica's pseudo-gradient."""
    REDUCED = "reduced"
    """the shards one owner reduced, one after the other."""
    PARAMETERS = "parameters"
    """the stage's flat parameters at an epoch's start, the anchor."""
    MOMENTUM = "momentum"
    """the outer optimizer's momentum that goes with them."""
    SNAPSHOT = "snapshot"
    """a replica's whole training state at one commitment, revealed for an audit."""
    DATA = "data"
    """a file all parties share: token shards, the tokenizer."""


class ParsedKey(NamedTuple):
    run: RunId
    epoch: Epoch
    stage: Stage
    item: str
    kind: Kind


_KINDS = frozenset(kind.value for kind in Kind)
_KEY = re.compile(r"([a-z0-9][a-z0-9-]{0,63})/(\d{1,9})/(\d{1,4})/([A-Za-z0-9][A-Za-z0-9._-]{0,95})/([a-z]{1,16})")


def make(run: RunId, epoch: int, stage: int, item: str, kind: Kind) -> ObjectKey:
    """The key of one slot. Raises ValueError when a part is outside the grammar."""
    key = f"{run}/{epoch}/{stage}/{item}/{kind.value}"
    parse(key)
    return ObjectKey(key)


def parse(key: str) -> ParsedKey:
    """The parts of a key. Raises ValueError for anything `make` could not have written."""
    match = _KEY.fullmatch(key)
    if match is None or match[5] not in _KINDS:
        raise ValueError(f"not an object key: {key[:200]!r}")
    return ParsedKey(RunId(match[1]), Epoch(int(match[2])), Stage(int(match[3])), match[4], Kind(match[5]))


def epoch_prefix(run: RunId, epoch: int) -> str:
    """What every key of one epoch begins with."""
    return f"{run}/{epoch}/"
