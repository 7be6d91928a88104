"""From text to tokenizer and token files: the same everywhere, held-out text apart, operators' mistakes in one line."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnet.data import prepare as data
from subnet.data import token_shards
from subnet.data.prepare import Prepared, cut_blocks, load_tokenizer, prepare, read_kjv, read_text, split_text
from subnet.errors import ConfigError

VOCAB = 320


def story(lines: int = 600) -> str:
    """Text in which every line is different."""
    return "".join(f"On day {i} the king counted {i * i} sheep and {i % 7} goats.\n" for i in range(lines))


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Prepared]:
    """(text file, cache folder, what was prepared from it), made once."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "book.txt").write_text(story(), encoding="utf-8")
    return folder / "book.txt", folder / "cache", prepare(folder / "book.txt", folder / "cache", VOCAB)


def test_the_files_hold_the_text(book: tuple[Path, Path, Prepared]) -> None:
    """1. Decoding the token files gives back the training and the held-out text, every character of it."""
    _, _, made = book
    tokenizer = load_tokenizer(made.tokenizer_path)
    train, validation = split_text(story(), 0.05)
    for path, count, blocks in (
        (made.train_path, made.num_train_tokens, train),
        (made.validation_path, made.num_validation_tokens, validation),
    ):
        tokens = token_shards.open_file(path, made.vocab_size)
        assert len(tokens) == count and tokenizer.decode(tokens.tolist()) == "".join(blocks)
    assert made.vocab_size == VOCAB and 0 < made.unigram_entropy < math.log(VOCAB)
    assert 0.03 < made.num_validation_tokens / (made.num_train_tokens + made.num_validation_tokens) < 0.08


def test_any_text_can_be_written(book: tuple[Path, Path, Prepared]) -> None:
    """2. A sample's prompt holds signs the training text never had: nothing is lost, there is no unknown token."""
    tokenizer = load_tokenizer(book[2].tokenizer_path)
    prompt = "In the beginning: 東京 🙂 naïve\n\n  two spaces"
    assert tokenizer.decode(tokenizer.encode(prompt).ids) == prompt


def test_prepared_once_then_found(book: tuple[Path, Path, Prepared], monkeypatch: pytest.MonkeyPatch) -> None:
    """3. The second start finds the files; another vocabulary or fraction makes others; a damaged file is remade."""
    text_path, cache, made = book
    built: list[int] = []
    build = data.build

    def counting(text: str, vocab_size: int, fraction: float) -> data.Built:
        built.append(vocab_size)
        return build(text, vocab_size, fraction)

    monkeypatch.setattr(data, "build", counting)
    assert prepare(text_path, cache, VOCAB) == made and not built
    assert prepare(text_path, cache, VOCAB + 5).folder != made.folder
    assert prepare(text_path, cache, VOCAB, validation_fraction=0.1).folder != made.folder
    whole = made.train_path.read_bytes()
    made.train_path.write_bytes(whole[:-1])
    assert prepare(text_path, cache, VOCAB) == made and made.train_path.read_bytes() == whole
    assert built == [VOCAB + 5, VOCAB, VOCAB]


def test_a_moved_cache_stays_valid(book: tuple[Path, Path, Prepared], tmp_path: Path) -> None:
    """4. The cache folder is copied to another machine: found there, with paths of that machine."""
    text_path, cache, made = book
    moved = tmp_path / "elsewhere"
    (moved / Path(made.folder).name).mkdir(parents=True)
    for file in Path(made.folder).iterdir():
        (moved / Path(made.folder).name / file.name).write_bytes(file.read_bytes())
    assert prepare(text_path, moved, VOCAB).train_path.is_relative_to(moved)


def test_two_machines_get_the_same_bytes(book: tuple[Path, Path, Prepared], tmp_path: Path) -> None:
    """5. Another process, another hash seed, other threads: equal tokenizer and token files."""
    text_path, _, made = book
    program = (
        "import sys; from pathlib import Path; from subnet.data.prepare import prepare\n"
        f"print(prepare(Path(sys.argv[1]), Path(sys.argv[2]), {VOCAB}).digests)\n"
        "assert 'torch' not in sys.modules and 'bible' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(text_path), str(tmp_path)],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "9", "RAYON_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(made.digests)


@given(st.text("ab \n", max_size=4_000), st.sampled_from([0.02, 0.05, 0.25, 0.5]))
@settings(max_examples=80, deadline=None)
def test_held_out_text_is_apart(text: str, fraction: float) -> None:
    """6. Every character is in exactly one of the two parts, and the held-out share is about what was asked for."""
    train, validation = split_text(text, fraction)
    blocks, every = len(train) + len(validation), round(1 / fraction)
    left = {True: iter(validation), False: iter(train)}
    assert "".join(next(left[i % every == every // 2]) for i in range(blocks)) == text
    if len(text) > 3 * every:
        assert abs(len(validation) / blocks - fraction) < fraction / 2


def test_held_out_text_comes_from_everywhere() -> None:
    """7. Ten parts of the text all have held-out lines, none of which is in the training text; no line is cut."""
    train, validation = split_text(story(20_000), 0.05)
    lines = "".join(validation).splitlines()
    assert not set(lines) & set("".join(train).splitlines())
    assert {int(line.split()[2]) * 10 // 20_000 for line in lines} == set(range(10))
    assert all(block.startswith("On day ") and block.endswith("goats.\n") for block in train + validation)


def test_a_text_without_line_ends_is_cut_at_spaces() -> None:
    """8. One endless line, as some corpora have; and one without even a space."""
    blocks = cut_blocks("word " * 1_000, 100)
    assert len(blocks) > 40 and all(block.endswith(" ") for block in blocks)
    assert cut_blocks("x" * 99 + "\n" + "y" * 20 + "\n", 100)[0] == "x" * 99 + "\n"  # a line ends just there
    assert [len(block) for block in cut_blocks("x" * 250, 100)] == [100, 100, 50]


def test_the_built_in_text() -> None:
    """9. The King James Bible is read from the installed package without importing it, chapter by chapter."""
    text = read_kjv()
    assert text.startswith("Genesis 1\nIn the beginning God created the heaven and the earth.\n")
    assert "\n\nGenesis 2\nThus the heavens" in text and text.rstrip().endswith("Amen.")
    assert "bible" not in sys.modules and len(text) > 4_000_000


@pytest.mark.parametrize(
    ("counts", "nats"), [([1, 1, 1, 1], math.log(4)), ([8, 0, 0, 0], 0.0), ([2, 1, 1, 0], 1.5 * math.log(2))]
)
def test_unigram_entropy(counts: list[int], nats: float) -> None:
    """10. Known frequencies, known entropy; a token that never occurs adds nothing."""
    tokens = np.repeat(np.arange(4, dtype=np.uint16), counts)
    assert data.unigram_entropy(tokens, 4) == pytest.approx(nats)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    """11. A folder of chapters, one with Windows line ends and a byte-order mark: one text, the same everywhere."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.txt").write_bytes(b"\xef\xbb\xbf" + b"second\r\n" * 2_000)
    (tmp_path / "a.txt").write_text("first\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not read", encoding="utf-8")
    assert read_text(tmp_path) == "first\n\n" + "second\n" * 2_000


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.txt", None, "there is no"),
        ("empty.txt", b"", "holds 0 characters"),
        ("short.txt", b"too little", "holds 10 characters"),
        ("latin1.txt", "é".encode("latin-1") * 20_000, "not UTF-8 at byte 0"),
        ("binary.txt", b"a" * 20_000 + b"\xff", "not UTF-8 at byte 20000"),
        ("folder", "folder", "holds no .txt file"),
    ],
)
def test_a_bad_text_is_one_line(tmp_path: Path, name: str, content: bytes | str | None, says: str) -> None:
    """12. What an operator can get wrong about --text names the flag, the problem and the remedy."""
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        prepare(path, tmp_path / "cache", VOCAB)
    assert error.value.field == "--text" and says in error.value.problem and "\n" not in str(error.value)
    assert error.value.remedy and not (tmp_path / "cache").exists()


def test_other_mistakes(tmp_path: Path) -> None:
    """13. A cache folder that cannot be made, a vocabulary too small, a fraction that leaves nothing to train on."""
    (tmp_path / "book.txt").write_text(story(300), encoding="utf-8")
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for field, cache, vocab, fraction in (
        ("cache folder", tmp_path / "file" / "cache", VOCAB, 0.05),
        ("--vocab", tmp_path, 100, 0.05),
        ("--validation-fraction", tmp_path, VOCAB, 0.9),
    ):
        with pytest.raises(ConfigError) as error:
            prepare(tmp_path / "book.txt", cache, vocab, fraction)
        assert error.value.field == field


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    """14. Half a tokenizer.json: which file, and that it may be deleted."""
    (tmp_path / "tokenizer.json").write_text('{"version": ', encoding="utf-8")
    for name in ("tokenizer.json", "absent.json"):
        with pytest.raises(ConfigError) as error:
            load_tokenizer(tmp_path / name)
        assert name in error.value.field
