"""Rows for fine-tuning against those of TRL, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxopt_tf.data import (
    Batches,
    ChatTokenizer,
    PackedRows,
    held_out_batches,
    read_conversations,
)

RECORDED = json.loads(
    (Path(__file__).parents[1] / "files" / "trl_rows.json").read_text()
)
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
CASES = {f"{case['folder']}, {case['name']}": case for case in RECORDED["cases"]}


def folder_of(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    for file, content in RECORDED["folders"][name].items():
        (folder / file).write_text(content)
    return folder


def written(rows, path):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def corpus_of(rows, folder, **options):
    """A corpus whose training part has all rows."""
    path = written(rows, folder.parent / "rows.jsonl")
    return read_conversations(
        [path],
        tokenizer=folder / "tokenizer.json",
        cache_dir=folder.parent / "cache",
        validation_files=[path],
        **options,
    )


def columns(corpus):
    """Tokens and labels of each row, as TRL has them."""
    bounds = corpus.training.bounds
    stored = [
        corpus.training.read(int(a), int(b))
        for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    return (
        [np.where(row < 0, ~row, row).tolist() for row in stored],
        [np.where(row < 0, -100, row).tolist() for row in stored],
    )


def is_completion_only(case):
    options = case["options"]
    is_conversation = "messages" in case["rows"][0]
    wanted = options.get("assistant_only_loss", False) if is_conversation else True
    return options.get("completion_only_loss", wanted)


@pytest.mark.parametrize(
    "name", [name for name in CASES if "truncated" not in name and "bfd" not in name]
)
def test_tokens_and_labels_are_those_of_trl(name, tmp_path):
    case = CASES[name]
    corpus = corpus_of(
        case["rows"],
        folder_of(case["folder"], tmp_path),
        completion_only_loss=is_completion_only(case),
    )
    tokens, labels = columns(corpus)
    assert tokens == case["input_ids"]
    assert labels == case["labels"]


@pytest.mark.parametrize("folder", RECORDED["folders"])
def test_answers_are_found_without_their_tags(folder, tmp_path):
    case = CASES[f"{folder}, messages"]
    at = folder_of(folder, tmp_path)
    template = at / "chat_template.jinja"
    plain = GENERATION.sub("", template.read_text())
    # Where a tag trims whitespace, its replacement must too.
    template.write_text(plain)
    tokens, labels = columns(corpus_of(case["rows"], at))
    assert tokens == case["input_ids"]
    assert labels == case["labels"]


def predicted(labels):
    """Labels without the first, which the shift removes."""
    return [-100, *labels[1:]]


@pytest.mark.parametrize("name", [name for name in CASES if "truncated" in name])
def test_rows_are_truncated_and_left_out_as_by_trl(name, tmp_path):
    case = CASES[name]
    corpus = corpus_of(case["rows"], folder_of(case["folder"], tmp_path))
    size = case["options"]["max_length"]
    rows = PackedRows(corpus, "training", block_size=size - 1, packing="none")
    assert len(rows) == len(case["input_ids"]) < len(case["rows"])
    for row, ids, labels in zip(rows, case["input_ids"], case["labels"], strict=True):
        assert row["input_ids"][: len(ids)].tolist() == ids
        assert row["labels"][: len(ids)].tolist() == predicted(labels)
        assert set(row["labels"][len(ids) :].tolist()) <= {-100}
    left_out = len(case["rows"]) - len(rows)
    assert rows.notes[-1].startswith(f"training part: left out {left_out} row")
    assert rows.notes[0].startswith("training part: truncated ")


@pytest.mark.parametrize("name", [name for name in CASES if "bfd" in name])
def test_rows_are_packed_as_by_trl(name, tmp_path):
    case = CASES[name]
    corpus = corpus_of(case["rows"], folder_of(case["folder"], tmp_path))
    size = case["options"]["max_length"]
    rows = PackedRows(
        corpus,
        "training",
        block_size=size - 1,
        overflow="split" if "split" in name else "truncate",
    )
    packed = zip(
        rows, case["input_ids"], case["labels"], case["seq_lengths"], strict=True
    )
    for row, ids, labels, lengths in packed:
        assert row["input_ids"][: len(ids)].tolist() == ids
        positions = np.concatenate([np.arange(n) for n in lengths])
        assert row["position_ids"][: len(ids)].tolist() == positions.tolist()
        segments = np.repeat(np.arange(len(lengths)) + 1, lengths)
        assert row["segment_ids"][: len(ids)].tolist() == segments.tolist()
        # As TRL's collator does.
        masked = np.where(positions == 0, -100, labels)
        assert row["labels"][: len(ids)].tolist() == masked.tolist()
