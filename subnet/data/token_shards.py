"""The file format of token shards: what every party downloads once and checks.

    header (32 bytes): magic "IOTAtok1", bytes per token (2 or 4), vocabulary size, number of tokens; rest zero
    body: the tokens, little-endian unsigned, 2 bytes each up to a vocabulary of 65,536, else 4

Law: carries no code; a file decodes only if its size, header and every token fit the vocabulary. Bytes of another
party raise PeerFault, a file on this machine's disk raises ConfigError.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from subnet.errors import ConfigError, PeerFault
from subnet.protocol.reasons import Reason

HEADER_BYTES = 32
VOCAB_MAX_2_BYTES = 65_536

_MAGIC = b"IOTAtok1"
_HEADER = struct.Struct("<8sB3xIQ8x")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of the two token types that holds every id of the vocabulary."""
    return np.dtype("<u2" if vocab_size <= VOCAB_MAX_2_BYTES else "<u4")


def encoded_size(vocab_size: int, num_tokens: int) -> int:
    """Bytes of the whole file."""
    return HEADER_BYTES + num_tokens * token_dtype(vocab_size).itemsize


def encode(tokens: np.ndarray, vocab_size: int) -> bytes:
    """The file of a flat array of token ids, each below `vocab_size`."""
    if tokens.ndim != 1 or (tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size):
        raise ValueError(f"token ids must be a flat array within [0, {vocab_size})")
    return _header(vocab_size, len(tokens)) + tokens.astype(token_dtype(vocab_size)).tobytes()


def decode(data: bytes | mmap.mmap, vocab_size: int) -> np.ndarray:
    """The tokens of a file as a read-only view of `data`. Raises PeerFault(BAD_SIZE or BAD_OBJECT)."""
    dtype = token_dtype(vocab_size)
    num_tokens, rest = divmod(len(data) - HEADER_BYTES, dtype.itemsize)
    if num_tokens < 0 or rest:
        raise PeerFault(Reason.BAD_SIZE, f"{len(data)} bytes are no token file with {dtype.itemsize} bytes per token")
    if data[:HEADER_BYTES] != _header(vocab_size, num_tokens):
        raise PeerFault(Reason.BAD_OBJECT, f"the header does not say {num_tokens} tokens of a {vocab_size} vocabulary")
    tokens = np.frombuffer(data, dtype=dtype, offset=HEADER_BYTES)
    tokens.flags.writeable = False
    if tokens.size and int(tokens.max()) >= vocab_size:
        raise PeerFault(Reason.BAD_OBJECT, f"a token is outside the vocabulary of {vocab_size}")
    return tokens


def open_file(path: Path, vocab_size: int) -> np.ndarray:
    """The tokens of a file on disk, memory-mapped, so many processes share one copy. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return decode(data, vocab_size)
    except (OSError, ValueError) as error:  # ValueError: mmap of an empty file
        raise ConfigError(str(path), f"cannot be read ({error})", "delete it; it is made again") from error
    except PeerFault as fault:
        raise ConfigError(str(path), fault.sentence, "delete it; it is made again") from fault


def _header(vocab_size: int, num_tokens: int) -> bytes:
    return _HEADER.pack(_MAGIC, token_dtype(vocab_size).itemsize, vocab_size, num_tokens)
