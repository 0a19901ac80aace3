"""Corpus of a job, and errors of data that do not fit the model."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxopt_tf.data import read_text, read_tokens
from jaxopt_tf.jobs import Job, read_corpus
from jaxopt_tf.models import GPT2Config


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one two three " * 20)
    return path


@pytest.fixture
def tokenizer(tmp_path):
    words = {"</s>": 0, "one": 1, "two": 2, "three": 3}
    made = Tokenizer(models.WordLevel(words))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


def test_without_a_text_it_is_the_standard_library(tmp_path):
    corpus = read_corpus(Job(), GPT2Config(), tmp_path)
    assert corpus.unit == "bytes"
    assert len(corpus.training) > 5e6


def test_text_is_bytes_and_with_a_tokenizer_tokens(text, tokenizer, tmp_path):
    folder = tmp_path / "run"
    corpus = read_corpus(Job(text=(text,)), GPT2Config(), folder)
    assert corpus.fingerprint == read_text([text]).fingerprint
    assert not folder.exists()
    job = Job(text=(text,), tokenizer=tokenizer)
    corpus = read_corpus(job, GPT2Config(vocab_size=4), folder)
    assert corpus.training.read(0, 3).tolist() == [1, 2, 3]
    assert (folder / "tokens.bin").exists()


@pytest.mark.parametrize("name", ["tokens.npy", "tokens.bin"])
def test_pretokenized_files_are_recognized_by_their_suffix(tmp_path, name):
    path = tmp_path / name
    tokens = np.arange(40, dtype=np.uint16)
    np.save(path, tokens) if path.suffix == ".npy" else tokens.tofile(path)
    job = Job(text=(path,), eos_token_id=7)
    corpus = read_corpus(job, GPT2Config(vocab_size=50), tmp_path)
    expected = read_tokens([path], vocab_size=50, eos_token_id=7)
    assert corpus.fingerprint == expected.fingerprint


def test_refuses_a_text_that_does_not_fit_the_model(text, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="`vocab_size` must be .* 256, .* of bytes"):
        read_corpus(Job(text=(text,)), GPT2Config(vocab_size=255), tmp_path)
    job = Job(text=(text,), tokenizer=tokenizer)
    with pytest.raises(
        ValueError, match="`vocab_size` must be .* 4, .* of the tokenizer"
    ):
        read_corpus(job, GPT2Config(vocab_size=3), tmp_path)
    # A model may have rows to spare.
    assert read_corpus(job, GPT2Config(vocab_size=64), tmp_path).vocab_size == 4
