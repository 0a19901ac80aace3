"""Tokenized text: equality with the tokenizer, and the cache."""

import json
import resource
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from jaxopt_tf.data import _tokenize as module
from jaxopt_tf.data import tokenize_text

TEXTS = [
    "the quick brown fox\n" * 9,
    "jumps over\n\n  the lazy dog\n" * 8,
    "caf\u00e9 " * 7,
]


def byte_pairs(path, *, end="<|endoftext|>", texts=TEXTS):
    """Trains a tokenizer as GPT-2 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return path


def words(path, vocab, **options):
    """A tokenizer that knows these words only."""
    numbers = {word: number for number, word in enumerate(vocab)}
    tokenizer = Tokenizer(models.WordLevel(numbers, **options))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return byte_pairs(tmp_path_factory.mktemp("gpt2") / "tokenizer.json")


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for i, content in enumerate(TEXTS):
        (folder / f"{i}.txt").write_text(content)
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "run" / "cache"


def both(corpus):
    parts = (corpus.training, corpus.evaluation)
    return [part.read(0, len(part)).tolist() for part in parts]


def kept(cache):
    """Returns the inode and the content of a file."""
    path = cache / "tokens.bin"
    return path.stat().st_ino, path.read_bytes()


def test_tokens_are_those_of_the_tokenizer_and_each_document_is_ended(
    gpt2, text, cache
):
    corpus = tokenize_text([text], gpt2, cache_dir=cache)
    training, evaluation = [], []
    for content in TEXTS:
        ids = Tokenizer.from_file(str(gpt2)).encode(content).ids
        cut = len(ids) - len(ids) // 10
        training += [*ids[:cut], 0]
        evaluation += [*ids[cut:], 0]
    assert both(corpus) == [training, evaluation]
    assert (corpus.vocab_size, corpus.unit, corpus.num_documents) == (280, "tokens", 3)


def test_fingerprint_is_the_same_in_another_folder(gpt2, text, cache, tmp_path):
    here = tokenize_text([text], gpt2, cache_dir=cache)
    there = tokenize_text([text], gpt2, cache_dir=tmp_path / "there")
    assert here.fingerprint == there.fingerprint


@pytest.mark.parametrize(
    "end", ["<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]"]
)
def test_finds_the_end_of_a_document_under_its_usual_names(text, cache, tmp_path, end):
    tokenizer = byte_pairs(tmp_path / "tokenizer.json", end=end)
    corpus = tokenize_text([text], tokenizer, cache_dir=cache)
    assert corpus.training.read(0, len(corpus.training))[-1] == 0


def test_refuses_a_tokenizer_without_an_end_until_it_has_one(text, cache, tmp_path):
    tokenizer = byte_pairs(tmp_path / "tokenizer.json", end="<fin>")
    with pytest.raises(ValueError, match="`tokenizer` must .* `add_special_tokens`"):
        tokenize_text([text], tokenizer, cache_dir=cache)
    loaded = Tokenizer.from_file(str(tokenizer))
    loaded.add_special_tokens(["</s>"])
    loaded.save(str(tokenizer))
    corpus = tokenize_text([text], tokenizer, cache_dir=cache)
    assert both(corpus)[0][-1] == 280
    assert corpus.vocab_size == 281


def test_tokens_are_cached(gpt2, text, cache):
    first = tokenize_text([text], gpt2, cache_dir=cache)
    before = kept(cache)
    again = tokenize_text([text], gpt2, cache_dir=cache)
    assert kept(cache) == before
    assert again.fingerprint == first.fingerprint
    assert both(again) == both(first)
    assert sorted(path.name for path in cache.iterdir()) == [
        "tokens.bin",
        "tokens.json",
    ]


def _another_text(text, tokenizer):
    (text / "1.txt").write_text("jumps over\n")


def _a_file_more(text, tokenizer):
    (text / "3.txt").write_text("jumps over\n")


def _another_tokenizer(text, tokenizer):
    # With as many tokens.
    byte_pairs(tokenizer, texts=[content[::-1] for content in TEXTS])


@pytest.mark.parametrize("change", [_another_text, _a_file_more, _another_tokenizer])
def test_tokens_are_rewritten_when_a_source_changes(text, cache, tmp_path, change):
    tokenizer = byte_pairs(tmp_path / "tokenizer.json")
    before = tokenize_text([text], tokenizer, cache_dir=cache).fingerprint
    change(text, tokenizer)
    changed = tokenize_text([text], tokenizer, cache_dir=cache)
    assert changed.fingerprint != before
    anew = tokenize_text([text], tokenizer, cache_dir=tmp_path / "anew")
    assert both(changed) == both(anew)


def _flip_a_bit(cache):
    content = bytearray((cache / "tokens.bin").read_bytes())
    content[20] ^= 1
    (cache / "tokens.bin").write_bytes(content)


def _cut_short(cache):
    content = (cache / "tokens.bin").read_bytes()
    (cache / "tokens.bin").write_bytes(content[:-2])


def _delete(cache):
    (cache / "tokens.bin").unlink()


def _lose_the_note(cache):
    (cache / "tokens.json").unlink()


def _break_the_note(cache):
    (cache / "tokens.json").write_bytes(b'{"made_from": ')


def _replace_the_note(cache):
    (cache / "tokens.json").write_text("[1, 2]")


def _be_killed(cache):
    (cache / "tokens.bin").rename(cache / ".tokens.bin.new")


@pytest.mark.parametrize(
    "damage",
    [
        _flip_a_bit,
        _cut_short,
        _delete,
        _lose_the_note,
        _break_the_note,
        _replace_the_note,
        _be_killed,
    ],
)
def test_damaged_cache_is_rewritten(gpt2, text, cache, damage):
    first = tokenize_text([text], gpt2, cache_dir=cache)
    whole = kept(cache)[1]
    damage(cache)
    again = tokenize_text([text], gpt2, cache_dir=cache)
    assert kept(cache)[1] == whole
    assert again.fingerprint == first.fingerprint
    assert sorted(path.name for path in cache.iterdir()) == [
        "tokens.bin",
        "tokens.json",
    ]


def test_a_full_disk_is_named_and_costs_nothing(gpt2, text, cache):
    tokenize_text([text], gpt2, cache_dir=cache)
    before = {path: path.read_bytes() for path in cache.iterdir()}
    (text / "3.txt").write_text("jumps over the lazy dog\n" * 4_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))
    try:
        with pytest.raises(
            ValueError, match="`cache_dir` must .*tokens.bin' could not"
        ):
            tokenize_text([text], gpt2, cache_dir=cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in cache.iterdir()} == before


def test_refuses_a_cache_that_cannot_be_a_folder(gpt2, text, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match="`cache_dir` must be a folder with enough space"
    ):
        tokenize_text([text], gpt2, cache_dir=tmp_path / "file" / "cache")


def test_a_text_cannot_end_a_document_by_writing_so(gpt2, tmp_path, cache):
    path = tmp_path / "text.txt"
    path.write_text("one <|endoftext|> two " * 9)
    corpus = tokenize_text([path], gpt2, cache_dir=cache)
    assert corpus.num_documents == 1
    assert 0 not in both(corpus)[0][:-1]


def test_a_tokenizer_that_cuts_or_pads_does_neither(gpt2, text, cache, tmp_path):
    tokenizer = Tokenizer.from_file(str(gpt2))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=4_000, pad_id=5)
    tokenizer.save(str(tmp_path / "cuts.json"))
    cuts = tokenize_text([text], tmp_path / "cuts.json", cache_dir=cache)
    whole = tokenize_text([text], gpt2, cache_dir=tmp_path / "whole")
    assert both(cuts) == both(whole)


def test_a_large_vocabulary_is_kept_in_four_bytes(tmp_path, cache):
    vocab = ["</s>", *(f"w{i}" for i in range(70_000))]
    tokenizer = words(tmp_path / "tokenizer.json", vocab)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(vocab[69_980:70_000]))
    corpus = tokenize_text([path], tokenizer, cache_dir=cache)
    assert both(corpus)[0] == [*range(69_980, 69_998), 0]
    assert corpus.vocab_size == 70_001


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x80\x04", b'{"model": 1}'])
def test_refuses_what_is_not_a_tokenizer(text, cache, tmp_path, content):
    path = tmp_path / "given.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"`tokenizer` must be .*given\.json' is not"):
        tokenize_text([text], path, cache_dir=cache)


def test_refuses_a_tokenizer_that_fails_on_the_text(text, cache, tmp_path):
    tokenizer = words(tmp_path / "tokenizer.json", ["</s>", "the"])
    with pytest.raises(ValueError, match="`tokenizer` must fit .* fails: .*UNK"):
        tokenize_text([text], tokenizer, cache_dir=cache)
    assert list(cache.iterdir()) == []


def test_refuses_a_tokenizer_that_knows_little_of_the_text(text, cache, tmp_path):
    tokenizer = words(
        tmp_path / "tokenizer.json", ["</s>", "<unk>", "the"], unk_token="<unk>"
    )
    with pytest.raises(
        ValueError, match="`tokenizer` must fit .* does not know 66 of 83 tok"
    ):
        tokenize_text([text], tokenizer, cache_dir=cache)
    enough = ["</s>", "<unk>", "the", "quick", "brown", "fox"]
    tokenizer = words(tmp_path / "tokenizer.json", enough, unk_token="<unk>")
    tokenize_text([text], tokenizer, cache_dir=cache)


def test_refuses_a_tokenizer_that_drops_all_of_the_text(text, cache, tmp_path):
    tokenizer = Tokenizer(models.BPE({"</s>": 0, "Z": 1}, []))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="`tokenizer` must fit .* gives no tokens"):
        tokenize_text([text], tmp_path / "tokenizer.json", cache_dir=cache)


def test_reads_the_unknown_token_of_each_kind_of_model(tmp_path):
    model = models.Unigram([("</s>", 0.0), ("?", -1.0), ("the", -1.0)], unk_id=1)
    tokenizer = Tokenizer(model)
    description = json.loads(tokenizer.to_str())
    assert module._unknown_token(description["model"], tokenizer) == 1


@settings(deadline=None)
@given(
    lines=st.lists(st.text("ab \u20ac", max_size=9), max_size=4),
    data=st.data(),
)
def test_pieces_are_the_text_cut_at_line_ends(tmp_path_factory, lines, data):
    path = tmp_path_factory.mktemp("pieces") / "text"
    # Lines longer than a piece too.
    times = data.draw(st.sampled_from([1, 5_000, 50_000]))
    text = "\n".join(line * times for line in lines)
    path.write_bytes(text.encode())
    *pieces, end = module.pieces_of_file(path)
    assert end is None
    assert "".join(pieces) == text
    for piece in pieces[:-1]:
        assert 0 < len(piece) <= 2**15
        assert piece.endswith("\n") or "\n" not in piece


def test_keeps_no_text_in_memory(gpt2, tmp_path, cache):
    path = tmp_path / "large.txt"
    path.write_bytes(b"the quick brown fox\n" * 2**18)
    tracemalloc.start()
    try:
        corpus = tokenize_text([path], gpt2, cache_dir=cache)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(corpus.training) > 1e6
    assert peak < 15e6
