"""Conversion of prompts to tokens, and of tokens to text."""

import json

import pytest

from jaxopt_tf.data import (
    byte_codec,
    document_codec,
    read_text,
    tokenize_text,
    tokenizer_codec,
)

tokenizers = pytest.importorskip("tokenizers")

TEXT = "the quick brown fox jumps over the lazy dog\n" * 5


@pytest.fixture
def tokenizer(tmp_path):
    """A byte-level BPE that drops the space at the start of a text."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    bpe.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=80, special_tokens=["</s>"], show_progress=False
    )
    bpe.train_from_iterator([TEXT], trainer)
    bpe.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_bytes_are_those_of_the_corpus(tmp_path):
    (tmp_path / "text.txt").write_text("naïve")
    corpus, codec = read_text([tmp_path / "text.txt"]), byte_codec()
    tokens = codec.encode_prompt("naïve")
    assert tokens == list("naïve".encode())
    assert codec.decode(tokens) == "naïve"
    assert codec.end_token_ids == (0,)
    assert corpus.vocab_size == 256
    assert codec.encode_prompt("") == [0]
    # An incomplete character, a token above 255, and the end of the document.
    assert codec.decode([0xC3, 97, 300, 98, 0]) == "�a�b"


def test_documents_are_those_of_the_corpus(tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    corpus = tokenize_text([tmp_path / "text.txt"], tokenizer, cache_dir=tmp_path)
    codec = document_codec(tokenizer)
    stored = json.loads((tmp_path / "tokens.json").read_text())
    assert codec.end_token_ids == (stored["eos_token_id"],) == (codec.start_token_id,)
    tokens = codec.encode_prompt(TEXT)
    assert max(tokens) < corpus.vocab_size
    assert codec.decode(tokens) == TEXT.rstrip(" ")
    assert codec.encode("</s>") != [codec.start_token_id]  # as in the training text
    assert codec.encode_prompt("") == [codec.start_token_id]


def test_a_continuation_keeps_its_first_space(tokenizer):
    codec = document_codec(tokenizer)
    prompt, new = codec.encode("the"), codec.encode("quick")
    assert codec.decode(new) == "quick"
    assert codec.continuation(prompt, new) == " quick"


def test_an_empty_prompt_needs_a_token_to_begin_with(tokenizer):
    codec = tokenizer_codec(tokenizer)
    assert codec.start_token_id is None
    assert codec.encode("</s>")[-1:] == list(codec.end_token_ids)
    with pytest.raises(ValueError, match="`prompt` must be a text of at least one"):
        codec.encode_prompt("")
    config = json.dumps({"bos_token": "</s>", "eos_token": "</s>"})
    (tokenizer.parent / "tokenizer_config.json").write_text(config)
    codec = tokenizer_codec(tokenizer, end_token_ids=(3, 4))
    assert codec.encode_prompt("") == [codec.start_token_id]
    assert codec.end_token_ids == (3, 4)
