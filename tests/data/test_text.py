"""Text files as bytes: selection, evaluation part and errors."""

import sysconfig
import tracemalloc
from pathlib import Path

import pytest

from jaxopt_tf.data import read_text, standard_library
from jaxopt_tf.data._text import is_evaluation_module

STDLIB = Path(sysconfig.get_path("stdlib"))


def content(part):
    return part.read(0, len(part)).tobytes()


@pytest.fixture(scope="module")
def library():
    return standard_library()


@pytest.fixture(scope="module")
def contents(library):
    return content(library.training), content(library.evaluation)


def test_library_uses_about_a_tenth_for_evaluation(library):
    share = len(library.evaluation) / (len(library.evaluation) + len(library.training))
    assert 0.05 < share < 0.15
    assert len(library.training) > 5e6
    assert (library.vocab_size, library.unit) == (256, "bytes")


def test_library_is_split_by_whole_modules(contents):
    training, evaluation = contents
    for package in ("email", "collections", "asyncio", "json"):
        for path in (STDLIB / package).glob("*.py"):
            content = path.read_bytes()
            if len(content) > 100:
                is_in_training = content in training
                assert is_in_training != (content in evaluation), path
                assert is_in_training != is_evaluation_module(package), path


def test_library_split_is_the_same_everywhere():
    modules = "argparse asyncio collections configparser email inspect json logging os"
    evaluation = [module for module in modules.split() if is_evaluation_module(module)]
    assert evaluation == ["collections", "configparser", "email", "inspect", "logging"]


def test_library_excludes_other_packages(contents):
    both = b"".join(contents)
    excluded = [STDLIB / "encodings" / "utf_8.py", STDLIB / "pydoc_data" / "topics.py"]
    excluded += [Path(pytest.__file__), *(STDLIB / "test").glob("test_*.py")]
    excluded += (STDLIB / "lib2to3").glob("*.py")
    found = [path for path in excluded if path.exists()]
    assert len(found) >= 3
    for path in found:
        assert path.read_bytes() not in both, path


def test_takes_the_last_tenth_of_every_file_where_there_are_few(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_bytes(b"a" * 90 + b"b" * 10)
    other.write_bytes(b"c" * 45 + b"d" * 5)
    corpus = read_text([one, other])
    assert content(corpus.training) == b"a" * 90 + b"\0" + b"c" * 45 + b"\0"
    assert content(corpus.evaluation) == b"b" * 10 + b"\0" + b"d" * 5 + b"\0"
    assert corpus.num_documents == 2


def test_takes_whole_files_where_there_are_many(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_bytes(bytes([97 + i % 26]) * 40)
    corpus = read_text([tmp_path])
    assert (corpus.training.num_documents, corpus.evaluation.num_documents) == (27, 3)
    assert len(corpus.evaluation) == 3 * 41


def test_takes_the_text_files_of_a_folder_and_nothing_hidden(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.txt").write_text("below")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    corpus = read_text([tmp_path])
    assert content(corpus.training) == b"below\0"
    assert corpus.num_documents == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"caf\xe9", "is not UTF-8 text: byte 0xe9 at offset 3, line 1"),
        (b"a\n\nb\0b\xff", "is not UTF-8 text: a byte 0 at offset 4, line 3"),
        (b"\xff\0", "is not UTF-8 text: byte 0xff at offset 0, line 1"),
        (b"a\n" * 2**20 + b"\xff", "is not UTF-8 text: byte 0xff at offset 2,097,152"),
        (b"a" * (2**20 - 2) + b"\n\xe2\x82\n\xac",
         "is not UTF-8 text: byte 0xe2 at offset 1,048,575, line 2"),
        (b"a" * (2**20 - 1) + b"\xe2" + b"a\n" * 9,
         "is not UTF-8 text: byte 0xe2 at offset 1,048,575, line 1"),
        ("caf\u00e9".encode()[:-1], "is not UTF-8 text: byte 0xc3 at offset 3, line 1"),
    ],
    ids=["missing", "empty", "latin-1", "binary", "before a 0", "bad at its end",
         "across two pieces", "not continued", "cut short"],
)  # fmt: skip
def test_refuses_a_file_by_its_name_and_its_first_bad_byte(tmp_path, content, words):
    path = tmp_path / "given.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"`text` must .*given\.txt' {words}"):
        read_text([path])


def test_counts_the_files_of_folders_that_are_not_text(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 40)
    assert read_text([tmp_path]).skipped_files.num_files == 0
    (tmp_path / "b.txt").write_bytes(b"a\ncaf\xe9")
    (tmp_path / "c.bin").write_bytes(b"\0")
    (tmp_path / "empty.txt").touch()
    skipped_files = read_text([tmp_path, tmp_path / "a.txt"]).skipped_files
    assert skipped_files.num_files == 3
    assert str(skipped_files) == (
        f"skipped 3 files: {str(tmp_path / 'b.txt')!r} (not UTF-8 text: byte 0xe9 at "
        f"offset 5, line 2), {str(tmp_path / 'c.bin')!r} (not UTF-8 text: a byte 0 at "
        f"offset 0, line 1), {str(tmp_path / 'empty.txt')!r} (empty)"
    )
    for name in "de":
        (tmp_path / name).touch()
    assert str(read_text([tmp_path]).skipped_files).endswith("(empty), 2 more")


def test_names_one_skipped_file_in_the_singular(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 40)
    (tmp_path / "b.txt").touch()
    skipped = str(read_text([tmp_path]).skipped_files)
    assert skipped == f"skipped 1 file: {str(tmp_path / 'b.txt')!r} (empty)"


def test_refuses_what_is_neither_file_nor_folder():
    with pytest.raises(ValueError, match="`text` must be files or .*'/dev/null' is ne"):
        read_text([Path("/dev/null")])


def test_refuses_a_file_that_cannot_be_read():
    # The memory of this process, of which nothing lies at its start.
    with pytest.raises(
        ValueError, match="`text` must be files that can be read.*Input"
    ):
        read_text([Path("/proc/self/mem")])


def test_refuses_a_folder_without_text(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    words = r"`text` must contain text, but the folder .*skipped 1 file: .*picture\.png"
    with pytest.raises(ValueError, match=words):
        read_text([tmp_path])


def test_decodes_a_character_split_between_two_chunks(tmp_path):
    path = tmp_path / "long.txt"
    text = b"a" + "\u00e9\u20ac\U0001f600".encode() * 2**19
    path.write_bytes(text)
    corpus = read_text([path])
    assert len(corpus.training) + len(corpus.evaluation) == len(text) + 2
    assert content(corpus.training)[:-1] == text[: len(text) - len(text) // 10]


def test_keeps_no_text_in_memory(tmp_path):
    path = tmp_path / "large.txt"
    with open(path, "wb") as opened:
        for _ in range(32):
            opened.write(b"the quick brown\n" * 2**16)
    tracemalloc.start()
    try:
        corpus = read_text([path])
        corpus.training.read(2**24, 2**24 + 1025)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(corpus.training) > 30e6
    assert peak < 8e6
