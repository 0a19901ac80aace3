"""`Encoder` against the tokenizers of Transformers."""

import json
import shutil

import pytest

from jaxopt_tf.data import IGNORED, Encoder

KINDS = ["bert", "t5", "roberta"]


def reference(folder, **options):
    transformers = pytest.importorskip("transformers", reason="it is the reference")
    return transformers.AutoTokenizer.from_pretrained(folder, **options)


def as_columns(examples):
    return {name: [example[name] for example in examples] for name in examples[0]}


def without_mask(encoded):
    return {name: list(x) for name, x in encoded.items() if name != "attention_mask"}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_pairs_have_the_tokens_of_transformers(
    tokenizer_folders, texts, kind
):
    tokenizer = reference(tokenizer_folders[kind])
    pairs = texts[::-1]
    for length in (12, 30):
        encoder = Encoder(tokenizer_folders[kind], max_length=length)
        options = {"truncation": True, "max_length": length}
        expected = without_mask(tokenizer(texts, **options))
        assert as_columns(encoder.texts(texts)) == expected
        whole = tokenizer(texts, truncation=False)["input_ids"]
        num_cut = sum(len(row) > length for row in whole)
        assert encoder.num_cut == num_cut > 0
        assert encoder.num_empty == 1
        expected = without_mask(tokenizer(texts, pairs, **options))
        assert as_columns(encoder.texts(texts, pairs)) == expected
    assert ("token_type_ids" in expected) == (kind == "bert")


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_those_of_the_folder(tokenizer_folders, texts, kind):
    tokenizer = reference(tokenizer_folders[kind])
    encoder = Encoder(tokenizer_folders[kind], max_length=20)
    assert encoder.pad_token_id == tokenizer.pad_token_id
    assert encoder.mask_token_id == tokenizer.mask_token_id
    assert list(encoder.special_token_ids) == sorted(tokenizer.all_special_ids)
    assert encoder.padding_side == tokenizer.padding_side
    assert encoder.vocab_size == len(tokenizer)
    assert encoder.pad_values["labels"] == IGNORED
    for text in texts[:5]:
        ids = tokenizer(text)["input_ids"]
        expected = tokenizer.decode(ids, skip_special_tokens=True)
        assert encoder.decode([*ids, IGNORED]) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_words_have_a_label_at_their_first_token(tokenizer_folders, texts, kind):
    options = {"add_prefix_space": True} if kind == "roberta" else {}
    tokenizer = reference(tokenizer_folders[kind], **options)
    # Words that are not in the vocabulary consist of several tokens.
    rows = [[word[::-1] for word in text.split()] for text in texts]
    labels = [list(range(len(row))) for row in rows]
    encoder = Encoder(tokenizer_folders[kind], max_length=25)
    examples = encoder.words(rows, labels)
    expected = tokenizer(rows, truncation=True, max_length=25, is_split_into_words=True)
    assert [x["input_ids"] for x in examples] == expected["input_ids"]
    for row, example in enumerate(examples):
        words, previous = expected.word_ids(row), None
        for word, label in zip(words, example["labels"], strict=True):
            assert label == (IGNORED if word in (None, previous) else word)
            previous = word
    assert "labels" not in encoder.words(rows)[0]
    with pytest.raises(ValueError, match="row 1 has 2 words and 1 label"):
        encoder.words([["a", "b"]], [[1]])
    with pytest.raises(ValueError, match="row 1 has 'a text'"):
        encoder.words(["a text"])


def test_lengths_are_at_most_those_of_model_and_tokenizer(tokenizer_folders, texts):
    bert = Encoder(tokenizer_folders["bert"], max_length=64, model_max_length=16)
    assert (bert.max_length, bert.max_target_length) == (16, 16)
    assert max(len(x["input_ids"]) for x in bert.texts(texts)) == 16
    assert bert.num_cut > 0  # longer than the positions: cut, and counted
    assert Encoder(tokenizer_folders["roberta"], max_length=64).max_length == 30
    t5 = Encoder(tokenizer_folders["t5"], max_length=None, max_target_length=5)
    assert (t5.max_length, t5.max_target_length) == (None, 5)
    t5.texts(texts)
    assert t5.num_cut == 0
    expected = reference(tokenizer_folders["t5"])(
        text_target=texts, truncation=True, max_length=5
    )
    assert t5.targets(texts) == expected["input_ids"]
    whole = reference(tokenizer_folders["t5"])(texts)["input_ids"]
    assert t5.num_cut == sum(len(row) > 5 for row in whole)
    with pytest.raises(ValueError, match="`max_length` must be from 1"):
        Encoder(tokenizer_folders["t5"], max_length=0)
    with pytest.raises(ValueError, match="`tokenizer` must fit the text, but it fails"):
        t5.texts(["half of a pair, \ud83d"])


def test_a_tokenizer_without_padding_token_is_refused(tokenizer_folders, tmp_path):
    shutil.copytree(tokenizer_folders["bert"], tmp_path / "bert")
    path = tmp_path / "bert" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    message = r"padding token.*bert.*`tokenizer.pad_token = tokenizer.eos_token`"
    with pytest.raises(ValueError, match=message):
        Encoder(tmp_path / "bert", max_length=8)
    from tokenizers import Tokenizer

    path.unlink()
    tokenizer = Tokenizer.from_file(str(tmp_path / "bert" / "tokenizer.json"))
    encoder = Encoder(tokenizer, max_length=8, config={"pad_token": "[PAD]"})
    assert encoder.pad_token_id == 0
    # Older versions of Transformers write the names to a file of their own.
    (tmp_path / "bert" / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
    assert Encoder(tmp_path / "bert", max_length=8).pad_token_id == 0


def test_empty_texts_are_counted_and_texts_without_tokens_refused(tokenizer_folders):
    encoder = Encoder(tokenizer_folders["bert"], max_length=8)
    assert [x["input_ids"] for x in encoder.texts(["", " "])] == [[2, 3]] * 2
    assert encoder.num_empty == 2
    from tokenizers import Tokenizer, processors

    path = tokenizer_folders["bert"] / "tokenizer.json"
    bare = Tokenizer.from_file(str(path))
    bare.post_processor = processors.ByteLevel()
    encoder = Encoder(bare, max_length=8, config={"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match="`text_column`.*text of row 2 has none"):
        encoder.texts(["film", ""])
    for value in (None, 3, ["a"]):
        with pytest.raises(ValueError, match="`target_column`.*string.*row 1 has"):
            encoder.targets([value])
    with pytest.raises(ValueError, match="`text_pair_column` must contain a string"):
        encoder.texts(["a"], [None])
