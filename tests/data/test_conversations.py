"""Rows for fine-tuning against TRL, and errors of invalid rows."""

import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxopt_tf.data import (
    Batches,
    ChatTokenizer,
    PackedRows,
    evaluation_batches,
    read_conversations,
)

RECORDED = json.loads(
    (Path(__file__).parents[1] / "files" / "trl_rows.json").read_text()
)
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
CASES = {f"{case['folder']}, {case['name']}": case for case in RECORDED["cases"]}


USER, ANSWER = ({"role": role, "content": "a"} for role in ("user", "assistant"))


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
        corpus.training.read(int(a), int(b)) for a, b in itertools.pairwise(bounds)
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
    folder = folder_of(case["folder"], tmp_path)
    if "template" in case:
        (folder / "chat_template.jinja").write_text(case["template"])
    corpus = corpus_of(
        case["rows"], folder, completion_only_loss=is_completion_only(case)
    )
    tokens, labels = columns(corpus)
    assert tokens == case["input_ids"]
    assert labels == case["labels"]


@pytest.mark.parametrize("folder", ["chatml", "headers"])
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


def test_tokens_are_cached_until_the_template_changes(tmp_path):
    folder = folder_of("chatml", tmp_path)
    rows = CASES["chatml, messages"]["rows"]
    first = corpus_of(rows, folder)
    inode = (tmp_path / "cache" / "tokens.bin").stat().st_ino
    again = corpus_of(rows, folder)
    assert (tmp_path / "cache" / "tokens.bin").stat().st_ino == inode
    assert again.fingerprint == first.fingerprint
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("Be brief.", "Be clear."))
    other = corpus_of(rows, folder)
    assert other.fingerprint != first.fingerprint
    everywhere = corpus_of(rows, folder, completion_only_loss=False)
    assert everywhere.fingerprint != other.fingerprint


def test_a_template_may_be_in_the_configuration_or_given(tmp_path):
    folder = folder_of("chatml", tmp_path)
    rows = CASES["chatml, messages"]["rows"]
    wanted = corpus_of(rows, folder).fingerprint
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    file.rename(tmp_path / "given.jinja")
    given = corpus_of(rows, folder, chat_template=tmp_path / "given.jinja")
    assert given.fingerprint == wanted
    content = json.loads(config.read_text())
    template = (tmp_path / "given.jinja").read_text()
    config.write_text(json.dumps(content | {"chat_template": template}))
    assert corpus_of(rows, folder).fingerprint == wanted
    named = [
        {"name": "rag", "template": "a"},
        {"name": "default", "template": template},
    ]
    config.write_text(json.dumps(content | {"chat_template": named}))
    assert corpus_of(rows, folder).fingerprint == wanted
    tools = [*named, {"name": "tool_use", "template": "{{ tools }}"}]
    config.write_text(json.dumps(content | {"chat_template": tools}))
    chat = ChatTokenizer(folder / "tokenizer.json")
    assert chat.render([USER], tools=["a"]).text == "['a']"
    assert "a" in chat.render([USER]).text
    config.write_text(json.dumps(content | {"chat_template": named[:1]}))
    with pytest.raises(ValueError, match="no chat template of the name 'default', but"):
        corpus_of(rows, folder)


def test_special_tokens_of_old_folders_are_read_and_added(tmp_path):
    folder = folder_of("headers", tmp_path)
    rows = CASES["headers, strings"]["rows"]
    wanted = columns(corpus_of(rows, folder))
    (folder / "tokenizer_config.json").unlink()
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    chat = ChatTokenizer(folder / "tokenizer.json")
    assert chat.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    # Not a special token of tokenizer.json, only a word of its vocabulary.
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = content["added_tokens"][:1]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert columns(corpus_of(rows, folder)) == wanted


def test_without_a_name_the_usual_one_ends_an_answer(tmp_path):
    folder = folder_of("headers", tmp_path)
    (folder / "tokenizer_config.json").unlink()
    chat = ChatTokenizer(folder / "tokenizer.json")
    assert (chat.eos_token, chat.pad_token_id) == ("</s>", 1)


def test_rows_without_validation_files_give_a_tenth(tmp_path):
    folder = folder_of("headers", tmp_path)
    path = tmp_path / "rows.jsonl"
    options = {"tokenizer": folder / "tokenizer.json", "cache_dir": tmp_path / "cache"}
    rows = [{"prompt": f"{i}", "completion": "a"} for i in range(40)]
    written(rows, path)
    corpus = read_conversations([path], **options)
    assert corpus.training.num_documents == 36
    assert corpus.evaluation.num_documents == 4
    assert corpus.size.startswith("40 rows, ")
    written(rows[:2], path)
    corpus = read_conversations([path], **options)
    assert corpus.training.num_documents == corpus.evaluation.num_documents == 1
    written(rows[:1], path)
    corpus = read_conversations([path], **options)
    with pytest.raises(ValueError, match="in its evaluation part .* none of 0 rows"):
        PackedRows(corpus, "evaluation", block_size=8)


def test_counts_prompts_whose_last_token_merges_with_the_completion(tmp_path):
    corpus = corpus_of(CASES["chatml, strings"]["rows"], folder_of("chatml", tmp_path))
    assert corpus.notes[0].startswith("`train_file`: in 1 row the tokens of the prompt")
    assert corpus.notes[1].startswith("`validation_file`: in 1 row the")
    # Also where the tokens were not made again.
    again = corpus_of(CASES["chatml, strings"]["rows"], tmp_path / "chatml")
    assert again.notes == corpus.notes


def test_rows_cannot_be_read_as_plain_text(tmp_path):
    corpus = corpus_of(CASES["chatml, strings"]["rows"], folder_of("chatml", tmp_path))
    words = "`corpus` must be text, got rows for fine-tuning.* Use `PackedRows`"
    with pytest.raises(ValueError, match=words):
        Batches(corpus, block_size=2, batch_size=1, seed=0)
    with pytest.raises(ValueError, match=words):
        evaluation_batches(corpus, block_size=2, batch_size=1)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "a"}], "columns `prompt` and .* line 1 .* the columns 'text'"),
        ([{"prompt": "a"}], "line 1 .* has the columns 'prompt'"),
        ([{}], "line 1 .* has no columns"),
        (
            [{"prompt": "a", "completion": "a", "messages": [USER]}],
            "line 1 .* has all three",
        ),
        ([{"prompt": "a", "completion": 5}], "strings or .* 'prompt' in line 1 .* 'a'"),
        ([{"prompt": "a", "completion": [ANSWER]}], "'prompt' in line 1 .* is 'a'"),
        ([{"prompt": [], "completion": [ANSWER]}], r"'prompt' in line 1 .* is \[\]"),
        ([{"messages": []}], r"non-empty lists .* 'messages' in line 1 .* is \[\]"),
        ([{"messages": "a"}], "'messages' in line 1 .* is 'a'"),
        ([{"messages": [{"content": "a"}]}], "each with `role` and `content`, but"),
        ([{"messages": [{"role": "user"}]}], "each with `role` and `content`, but"),
        (
            [{"prompt": "a", "completion": "b"}, {"messages": [USER, ANSWER]}],
            "one form, but line 2 .* has `messages`, and the rows before it have strin",
        ),
        ([{"messages": [USER]}], "an answer of the assistant in each row, but line 1"),
        (
            [{"messages": [ANSWER, USER]}],
            "template renders, but with line 1 of .* the chat template fails: Template"
            "Error: Roles must alternate",
        ),
        (
            [{"messages": [USER, ANSWER], "tools": "["}],
            "list, or its JSON, as `tools`, but in line 1 of .* one of them is not: ",
        ),
        (
            [{"messages": [USER, ANSWER], "chat_template_kwargs": 5}],
            "object as `chat_template_kwargs` .* in line 1 of .* one of them is not: ",
        ),
        (
            [{"messages": [USER, ANSWER], "chat_template_kwargs": {"messages": 5}}],
            "template renders, but with line 1 of .* multiple values .* 'messages'",
        ),
        ([{"prompt": "a", "completion": "\ud83d"}], "lone surrogates, but line 1 of"),
    ],
)
def test_rejects_rows_by_their_location(rows, words, tmp_path):
    with pytest.raises(ValueError, match=f"`train_file` must .*{words}"):
        corpus_of(rows, folder_of("headers", tmp_path))


def test_messages_need_a_chat_template(tmp_path):
    folder = folder_of("headers", tmp_path)
    (folder / "chat_template.jinja").unlink()
    words = "with line 1 of .* the tokenizer .* has no chat template: neither "
    with pytest.raises(ValueError, match=f"`train_file` must .* {words}"):
        corpus_of([{"messages": [USER, ANSWER]}], folder)
    corpus_of([{"prompt": "a", "completion": "b"}], folder)


def test_templates_of_files_have_names(tmp_path):
    folder = folder_of("headers", tmp_path)
    (folder / "additional_chat_templates").mkdir()
    path = folder / "additional_chat_templates" / "tool_use.jinja"
    path.write_text("{{ tools }}")
    chat = ChatTokenizer(folder / "tokenizer.json")
    assert chat.render([USER], tools=["a"]).text == "['a']"
    assert chat.render([USER]).text == "<s>[user] a\n"


def test_a_template_that_renders_beginnings_otherwise_is_refused(tmp_path):
    folder = folder_of("headers", tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ loop.revindex }}{{ message.content }}"
        "{% endfor %}"
    )
    words = "the template renders the first 2 messages alone in another way, so"
    rows = [{"messages": [USER, ANSWER, USER, ANSWER]}]
    with pytest.raises(ValueError, match=f"with line 1 of .* {words}"):
        corpus_of(rows, folder)
    corpus_of(rows, folder, completion_only_loss=False)


@pytest.mark.parametrize(
    "template",
    [
        "{% for",
        "{{ messages[5].content.a }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(5) }}",
        "{{ 1 / 0 }}",
        "{{ messages + 5 }}",
    ],
)
def test_template_is_sandboxed(template, tmp_path):
    folder = folder_of("headers", tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="with line 1 .* the chat template fails: "):
        corpus_of([{"messages": [USER, ANSWER]}], folder)


def test_a_missing_jinja_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match="`pip install jinja2`"):
        corpus_of([{"messages": [USER, ANSWER]}], folder_of("headers", tmp_path))


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_files_beside_the_tokenizer_must_be_valid(content, tmp_path):
    folder = folder_of("headers", tmp_path)
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match="`tokenizer` must .*config.json' is not"):
        ChatTokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="`chat_template` must be a text file that"):
        ChatTokenizer(folder / "tokenizer.json", chat_template=tmp_path / "none")


def test_needs_a_file(tmp_path):
    folder = folder_of("headers", tmp_path)
    with pytest.raises(ValueError, match="`train_file` must name at least one file"):
        read_conversations(
            [], tokenizer=folder / "tokenizer.json", cache_dir=tmp_path / "cache"
        )
