"""Files of rows, and the texts in one of their columns."""

import json
import re
import sys

import pytest
from tokenizers import Tokenizer

from jaxopt_tf.data import (
    PackedRows,
    read_documents,
    read_rows,
    read_text,
    tokenize_text,
)
from tests.data.test_tokenize import byte_pairs

ROWS = [
    {"text": "the quick brown fox\n", "id": "1"},
    {"text": "caf\u00e9, \u20ac 5", "id": "2"},
    {"text": 'two\n"lines"', "id": "3"},
]


def _jsonl(path, rows):
    # A blank line, another kind of line end, and no last one.
    lines = [json.dumps(row) for row in rows]
    path.write_text("\ufeff" + lines[0] + "\n\n" + "\r\n".join(lines[1:]))


def _json(path, rows):
    path.write_text(json.dumps(rows, indent=1))


def _field(path, rows):
    path.write_text(json.dumps({"version": 1, "data": rows}))


def _lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


def _csv(path, rows):
    quoted = ['"' + row["text"].replace('"', '""') + f'",{row["id"]}' for row in rows]
    path.write_text("\ufefftext,id\n" + "\n".join(quoted) + "\n")


def _parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {
    "rows.jsonl": _jsonl,
    "rows.json": _json,
    "field.json": _field,
    "lines.json": _lines,
    "rows.csv": _csv,
    "rows.parquet": _parquet,
}
every_format = pytest.mark.parametrize("name", WRITERS)


def values(*paths):
    return [row.values for row in read_rows(paths, argument="train_file")]


def both(corpus):
    parts = (corpus.training, corpus.evaluation)
    return [part.read(0, len(part)).tolist() for part in parts]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "run" / "cache"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return byte_pairs(tmp_path_factory.mktemp("gpt2") / "tokenizer.json")


@every_format
def test_rows_are_those_that_were_written(name, tmp_path):
    WRITERS[name](tmp_path / name, ROWS)
    assert values(tmp_path / name) == ROWS
    assert values(tmp_path / name, tmp_path / name) == ROWS * 2


def test_a_csv_may_contain_long_texts(tmp_path):
    rows = [{"text": "a" * 200_000, "id": "1"}]
    _csv(tmp_path / "long.csv", rows)
    assert values(tmp_path / "long.csv") == rows


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", None, "files, but .*a.jsonl' does not exist"),
        ("a.jsonl", b"", "contain rows, but .*a.jsonl' is empty"),
        ("a.jsonl", b"\n \n", "contain rows, but .*a.jsonl' has none"),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"text": \n',
            "valid jsonl, but line 3 of .*Exp",
        ),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"b": "\xe9"}',
            "valid jsonl, but line 2 of .*utf",
        ),
        (
            "a.jsonl",
            b'{"text": "a"}\n["b"]',
            "object in each row, but line 2 .* a list",
        ),
        ("a.json", b"", "contain rows, but .*a.json' is empty"),
        ("a.json", b"[]", "contain rows, but .*a.json' has none"),
        ("a.json", b'[{"text": "a"},\n{"text": }]', "valid json, but line 2 of .*Exp"),
        ("a.json", b'[{"text": "a"},\n"\xe9"]', "valid json, but line 2 of .*utf"),
        ("a.json", b'{"text": "a"}\n{"text"}', "valid json, but line 2 of .*Exp"),
        ("a.json", b'{"rows": []}', "a list of objects, or an object with .* 'data'"),
        ("a.json", b'"data"', "a list of objects, or an object with such a list as"),
        ("a.json", b'["a"]', "object in each row, but row 1 .* is a str"),
        ("a.csv", b"text,id\n", "contain rows, but .*a.csv' has none"),
        ("a.csv", b'text,id\na,1\n"b",2,3\n', "valid csv, but line 3 .* 2 values"),
        ("a.csv", b"text,id\na,1\nb\n", "valid csv, but line 3 .* have 2 values"),
        (
            "a.csv",
            b'text,id\na,1\n"b"c,2\n',
            "valid csv, but line 3 of .*expected after",
        ),
        ("a.csv", b"text,id\n\xe9,1\n", "be text in UTF-8, but .*a.csv' is not"),
        ("a.tsv", b"text\na\n", "end in .jsonl, .json, .csv, .parquet, got .*a.tsv'"),
        ("a.parquet", b"PAR1", "be a complete Parquet file, but .* is not"),
    ],
)
def test_refuses_a_file_by_its_name_and_line(name, content, words, tmp_path):
    if name == "a.parquet":
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"`train_file` must .*{words}"):
        values(tmp_path / name)


def test_refuses_a_folder_under_the_name_of_a_file(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ValueError, match="`train_file` must be files, .* is a folder"):
        values(tmp_path / "a.csv")


def test_refuses_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(ValueError, match="`train_file` must "):
        values(tmp_path / "a.jsonl")


def test_parquet_without_pyarrow_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match="`pip install pyarrow`, or convert"):
        values(tmp_path / "a.parquet")


@every_format
def test_texts_of_a_column_are_documents(name, gpt2, tmp_path, cache):
    WRITERS[name](tmp_path / name, ROWS)
    corpus = read_documents([tmp_path / name], tokenizer=gpt2, cache_dir=cache)
    for i, row in enumerate(ROWS):
        (tmp_path / f"{i}.txt").write_text(row["text"])
    texts = [tmp_path / f"{i}.txt" for i in range(len(ROWS))]
    wanted = tokenize_text(texts, gpt2, cache_dir=tmp_path / "other")
    assert both(corpus) == both(wanted)
    assert corpus == wanted._replace(
        training=corpus.training, evaluation=corpus.evaluation
    )
    again = read_documents(texts, tokenizer=gpt2, cache_dir=tmp_path / "third")
    assert again.fingerprint == wanted.fingerprint


def test_without_a_tokenizer_documents_are_bytes(tmp_path, cache):
    _jsonl(tmp_path / "rows.jsonl", ROWS)
    corpus = read_documents([tmp_path / "rows.jsonl"], cache_dir=cache)
    for i, row in enumerate(ROWS):
        (tmp_path / f"{i}.txt").write_text(row["text"])
    wanted = read_text([tmp_path / f"{i}.txt" for i in range(len(ROWS))])
    assert both(corpus) == both(wanted)
    assert (corpus.size, corpus.vocab_size) == (wanted.size, 256)


def test_validation_files_are_the_evaluation_part(gpt2, tmp_path, cache):
    _jsonl(tmp_path / "rows.jsonl", ROWS)
    _csv(tmp_path / "validation.csv", ROWS[:1])
    corpus = read_documents(
        [tmp_path / "rows.jsonl"],
        validation_files=[tmp_path / "validation.csv"],
        tokenizer=gpt2,
        cache_dir=cache,
    )
    tokenizer = Tokenizer.from_file(str(gpt2))
    encoded = [[*tokenizer.encode(row["text"]).ids, 0] for row in ROWS]
    assert both(corpus) == [[*encoded[0], *encoded[1], *encoded[2]], encoded[0]]
    assert corpus.num_documents == 4
    without = read_documents([tmp_path / "rows.jsonl"], tokenizer=gpt2, cache_dir=cache)
    assert without.fingerprint != corpus.fingerprint


def test_tokens_are_cached_until_a_source_changes(gpt2, tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    _jsonl(path, [*ROWS, {"text": "", "id": "the brown fox"}])

    def read(column="text"):
        corpus = read_documents(
            [path], tokenizer=gpt2, cache_dir=cache, text_column=column
        )
        return corpus, (cache / "tokens.bin").stat().st_ino

    first, inode = read()
    assert first.notes == ("`train_file`: skipped 1 row with an empty text",)
    again, same = read()
    assert same == inode
    # The rows were not parsed again, and the note is still there.
    assert again == first._replace(training=again.training, evaluation=again.evaluation)
    other, another = read("id")
    assert another != inode
    assert (other.num_documents, other.notes) == (4, ())
    _jsonl(path, ROWS[:2])
    assert read()[0].num_documents == 2


def test_the_column_must_be_there_and_the_columns_are_named(gpt2, tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    _lines(path, ROWS)
    words = (
        "`text_column` must be a column of each row of `train_file`, got 'content', "
        f"but line 1 of {str(path)!r} has the columns 'text', 'id'. Give one of these"
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        read_documents([path], tokenizer=gpt2, cache_dir=cache, text_column="content")
    # A mix of columns: the first row that is different is named.
    _lines(path, [*ROWS, {"content": "a"}, {}])
    with pytest.raises(ValueError, match="but line 4 of .* has the columns 'content'"):
        read_documents([path], tokenizer=gpt2, cache_dir=cache)
    _lines(path, [*ROWS, {}])
    with pytest.raises(ValueError, match="but line 4 of .* has no columns"):
        read_documents([path], tokenizer=gpt2, cache_dir=cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("value", [5, None, ["a"], {"a": "b"}])
def test_the_column_must_contain_strings(value, gpt2, tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    _lines(path, [*ROWS, {"text": value}])
    words = (
        f"`text_column` must be a column of strings, but 'text' in line 4 of {path!s}"
    )
    with pytest.raises(ValueError, match=re.escape(words.replace(str(path), "'"))):
        read_documents([path], tokenizer=gpt2, cache_dir=cache)


def test_texts_must_be_characters_that_can_be_encoded(gpt2, tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    _lines(path, [*ROWS, {"text": "a\ud83d"}])
    with pytest.raises(ValueError, match=r"`train_file` .* surrogates, but line 4 of "):
        read_documents([path], tokenizer=gpt2, cache_dir=cache)
    _lines(path, [*ROWS, {"text": "a\0b"}])
    with pytest.raises(ValueError, match="`text_column` must be text without .*U.0000"):
        read_documents([path], cache_dir=cache)


def test_errors_name_the_argument(gpt2, tmp_path, cache):
    _lines(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match="`validation_file` must be files, but .*none"):
        read_documents(
            [tmp_path / "rows.jsonl"],
            validation_files=[tmp_path / "none.csv"],
            cache_dir=cache,
        )
    with pytest.raises(ValueError, match="`validation_file` must be .*none.txt' does"):
        read_documents(
            [tmp_path / "rows.jsonl"],
            validation_files=[tmp_path / "none.txt"],
            cache_dir=cache,
        )
    with pytest.raises(ValueError, match="`train_file` must name at least one file"):
        read_documents([], cache_dir=cache)


def test_refuses_a_column_that_is_empty_in_all_rows(gpt2, tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    _lines(path, [{"text": ""}] * 2)
    for tokenizer in (None, gpt2):
        with pytest.raises(
            ValueError, match="`train_file` must contain text in the co"
        ):
            read_documents([path], tokenizer=tokenizer, cache_dir=cache)


@pytest.mark.parametrize("packing", ["bfd", "in_order", "none"])
def test_texts_are_packed_with_their_ends(packing, gpt2, tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    _lines(path, ROWS)
    corpus = read_documents(
        [path], validation_files=[path], tokenizer=gpt2, cache_dir=cache
    )
    tokenizer = Tokenizer.from_file(str(gpt2))
    wanted = [[*tokenizer.encode(row["text"]).ids, 0] for row in ROWS]
    found = []
    for row in PackedRows(corpus, "evaluation", block_size=32, packing=packing):
        for segment in range(1, row["segment_ids"].max() + 1):
            is_in = row["segment_ids"] == segment
            found.append(row["input_ids"][is_in].tolist())
            # All tokens but the first are predicted, the end-of-document token too.
            assert row["labels"][is_in].tolist() == [-100, *found[-1][1:]]
    assert sorted(found) == sorted(wanted)
