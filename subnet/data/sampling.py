"""From a micro-batch id to its tokens: a pure function that every party computes for itself.

    window k of the run  = id * B + row
    pass p, position q   = divmod(k, W)                       W windows of T + 1 tokens in one pass over the text
    first token          = offset_p + permutation_p(q) * T    a window's last token is the next one's first

Each pass has its own offset in [0, T) and its own permutation of the windows, both hashes of (seed, p). The
permutation is a Feistel network walked until it falls inside [0, W) (https://eprint.iacr.org/2012/254, "cycle
walking"), so nothing is stored and any id is reached at once, however large the text.

Law: equal (tokens, seed, B, T, id) give equal arrays on every machine; each pass predicts each covered token exactly
once; there is no state. Letters: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from subnet.errors import ConfigError
from subnet.protocol.draw import draw_below, draw_bytes

_ROUNDS = 4


class Batches:
    """Random access to the micro-batches of one training text."""

    def __init__(self, tokens: np.ndarray, seed: int, batch: int, seq_len: int) -> None:
        """`tokens` is a flat unsigned array, possibly memory-mapped; it is only read, a window at a time."""
        _check_length(tokens, seq_len)
        self._tokens, self._batch, self._seq_len = tokens, batch, seq_len
        self._key = f"iota-batches {seed}".encode()
        self._num_offsets = min(seq_len, len(tokens) - seq_len)
        self.windows_per_pass = (len(tokens) - self._num_offsets) // seq_len
        """W, windows in one pass over the text."""

    def batch(self, micro_batch: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens_BT, targets_BT) as int64; targets are the next tokens."""
        if micro_batch < 0:
            raise ValueError(f"micro-batch ids start at 0, got {micro_batch}")
        first = micro_batch * self._batch
        return _windows(self._tokens, [self.start(first + row) for row in range(self._batch)], self._seq_len)

    def start(self, window: int) -> int:
        """Index of the first token of the run's window number `window`."""
        round_of_text, position = divmod(window, self.windows_per_pass)
        offset = draw_below(self._key, self._num_offsets, "offset", round_of_text)
        return offset + permuted(self._key, position, self.windows_per_pass, round_of_text) * self._seq_len


def permuted(key: bytes, position: int, count: int, tweak: int) -> int:
    """Where a permutation of [0, count), fixed by (key, tweak), sends `position`."""
    if not 0 <= position < count:
        raise ValueError(f"position {position} is outside [0, {count})")
    half_bits = max(1, -(-(count - 1).bit_length() // 2))
    mask = (1 << half_bits) - 1
    while True:  # a permutation of the larger power-of-four domain must come back into [0, count)
        left, right = position >> half_bits, position & mask
        for number in range(_ROUNDS):
            mixed = int.from_bytes(draw_bytes(key, "window", tweak, number, right)[:8], "big")
            left, right = right, (left ^ mixed) & mask
        position = (left << half_bits) | right
        if position < count:
            return position


def validation_batches(
    tokens: np.ndarray, batch: int, seq_len: int, num_batches_max: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Held-out (tokens_BT, targets_BT) in text order, each token predicted at most once, the same for everyone.

    Whole batches only; a text with fewer than B windows gives one smaller batch. With `num_batches_max` the batches
    are spread evenly over the text.
    """
    _check_length(tokens, seq_len)
    windows = (len(tokens) - 1) // seq_len
    rows = min(batch, windows)
    whole = windows // rows
    wanted = whole if num_batches_max is None else min(whole, max(1, num_batches_max))
    for number in range(wanted):
        first = number * whole // wanted * rows
        yield _windows(tokens, [(first + row) * seq_len for row in range(rows)], seq_len)


def _windows(tokens: np.ndarray, starts: list[int], seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    window_BT1 = np.stack([tokens[start : start + seq_len + 1] for start in starts]).astype(np.int64)
    return np.ascontiguousarray(window_BT1[:, :-1]), np.ascontiguousarray(window_BT1[:, 1:])


def _check_length(tokens: np.ndarray, seq_len: int) -> None:
    if tokens.ndim != 1 or len(tokens) <= seq_len:
        raise ConfigError(
            "--text",
            f"it holds {tokens.size} tokens, a sequence needs {seq_len + 1}",
            "use a longer text or a shorter sequence length",
        )
