"""Tokens of a tokenizer, written to a file once and used again."""

import codecs
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._io import atomic_write
from ._corpus import Corpus
from ._ready_tokens import dtype_in_a_bin, read_tokens
from ._text import text_files
from ._tokens import TokenFile, chunks

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Names of the token that ends a document, in well-known families of tokenizers.
_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
# A document is cut into pieces, at line ends, and pieces are encoded side by side.
_CHARACTERS_IN_A_PIECE = 2**15
_PIECES_AT_ONCE = 16
# Version of the way tokens are made: with another one they are made again.
_VERSION = 1


def tokenize_text(paths: Sequence[Path], tokenizer: Path, *, cache_dir: Path) -> Corpus:
    """Reads text files as tokens of a tokenizer, which are written to a file first.

    `cache_dir` gets `tokens.bin` and, beside it, `tokens.json`, which records what
    they were made from; while that is unchanged, and the file is whole, they are used
    again.
    A document is encoded in pieces of 32,768 characters at most, cut at line ends, so
    that its size does not matter; no special token is added but the one at its end, and
    none is read out of the text.

    Args:
        paths: files and folders, as `read_text` takes them.
        tokenizer: a `tokenizer.json` of the tokenizers library. A document is ended by
            the first that it has of <|endoftext|>, </s>, <eos>, <|end_of_text|>, [SEP].
        cache_dir: where the tokens are kept; one process at a time.

    Raises:
        ValueError: if the tokenizer cannot be read, has no such token or does not fit
            the text; if a path is not text; if the tokens cannot be written.
    """
    loaded, content = _load(Path(tokenizer))
    vocab_size = max(loaded.get_vocab(with_added_tokens=True).values()) + 1
    end = _end(loaded, Path(tokenizer))
    files, left_out = text_files(paths)
    made_from = {
        "version": _VERSION,
        "text": [file.sha256 for file in files],
        "tokenizer": hashlib.sha256(content).hexdigest(),
        "eos_token_id": end,
        "vocab_size": vocab_size,
    }
    # One line, however many files.
    wanted = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    tokens, note = Path(cache_dir, "tokens.bin"), Path(cache_dir, "tokens.json")
    if not _is_there(tokens, note, wanted):
        unknown = _unknown(json.loads(content)["model"], loaded)
        try:
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
            encoded = _encoded(files, loaded, end=end, unknown=unknown)
            dtype = dtype_in_a_bin(vocab_size)
            sha256 = _replace(tokens, (ids.astype(dtype).data for ids in encoded))
            about = {"made_from": wanted, "sha256": sha256, "vocab_size": vocab_size}
            _replace(note, [json.dumps(about | {"eos_token_id": end}).encode()])
        except OSError as error:
            raise ValueError(
                f"`cache_dir` must be a folder with enough space for the tokens, but "
                f"{str(tokens)!r} could not be written: {error.strerror}. Free space, "
                "or name another folder."
            ) from error
    corpus = read_tokens([tokens], vocab_size=vocab_size, eos_token_id=end)
    return corpus._replace(left_out=left_out)


def _load(path: Path) -> tuple["Tokenizer", bytes]:
    # Imported here: only text with a tokenizer needs the library.
    from tokenizers import Tokenizer

    try:
        content = path.read_bytes()
        tokenizer = Tokenizer.from_buffer(content)
    # The library raises nothing narrower.
    except Exception as error:
        raise ValueError(
            f"`tokenizer` must be a tokenizer.json of the tokenizers library, but "
            f"{str(path)!r} is not: {error}. `tokenizer.save_pretrained` of "
            "Transformers writes one."
        ) from error
    # A file may ask for both; what truncation cuts off would be missing silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # "<|endoftext|>" in a text is text, and ends nothing.
    tokenizer.encode_special_tokens = True
    return tokenizer, content


def _end(tokenizer: "Tokenizer", path: Path) -> int:
    found = (tokenizer.token_to_id(name) for name in _ENDS)
    end = next((token for token in found if token is not None), None)
    if end is None:
        raise ValueError(
            f"`tokenizer` must have a token that ends a document, but {str(path)!r} "
            f"has none of {', '.join(_ENDS)}. Add one with its `add_special_tokens`, "
            "and save it."
        )
    return end


def _unknown(model: dict[str, Any], tokenizer: "Tokenizer") -> int | None:
    """Returns the unknown token of the tokenizer, if it has one."""
    # Unigram models give its number, the others its name.
    name = model.get("unk_token")
    return model.get("unk_id") if name is None else tokenizer.token_to_id(name)


def _encoded(
    files: Sequence[TokenFile], tokenizer: "Tokenizer", *, end: int, unknown: int | None
) -> Iterator[np.ndarray]:
    """Yields all tokens in order, some hundred thousand at a time."""
    num_tokens = num_unknown = 0
    pieces = itertools.chain.from_iterable(_pieces(file.path) for file in files)
    while some := list(itertools.islice(pieces, _PIECES_AT_ONCE)):
        texts = [piece for piece in some if piece is not None]
        try:
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        # The library raises nothing narrower.
        except Exception as error:
            raise _does_not_fit(f"fails: {error}") from error
        rows = iter(encodings)
        parts = [[end] if piece is None else next(rows).ids for piece in some]
        tokens = np.concatenate([np.asarray(part, np.int64) for part in parts])
        num_tokens += len(tokens) - (len(some) - len(texts))
        num_unknown += 0 if unknown is None else int(np.sum(tokens == unknown))
        yield tokens
    if not num_tokens:
        raise _does_not_fit("makes no token of it")
    if 2 * num_unknown > num_tokens:
        raise _does_not_fit(f"lacks {num_unknown} of {num_tokens} tokens")


def _does_not_fit(problem: str) -> ValueError:
    return ValueError(
        f"`tokenizer` must fit the text, but it {problem}. Give the tokenizer that was "
        "made for such text."
    )


def _pieces(path: Path) -> Iterator[str | None]:
    """Yields the file's text, cut at line ends if there are any; then None."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest = ""
    for chunk in chunks(path):
        rest += decoder.decode(chunk)
        first = 0
        while len(rest) - first > _CHARACTERS_IN_A_PIECE:
            last = first + _CHARACTERS_IN_A_PIECE
            cut = rest.rfind("\n", first, last) + 1 or last
            yield rest[first:cut]
            first = cut
        rest = rest[first:]
    if rest:
        yield rest
    yield None


def _is_there(tokens: Path, note: Path, made_from: str) -> bool:
    """Returns True if the file has the tokens that would be made now."""
    try:
        about = json.loads(note.read_bytes())
        with open(tokens, "rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        return about["made_from"] == made_from and about["sha256"] == sha256
    # Missing, cut short or another file of that name: the tokens are made again.
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _replace(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Writes a file atomically; returns its SHA-256."""
    digest = hashlib.sha256()
    with atomic_write(path) as temporary, temporary.open("wb") as opened:
        for part in parts:
            opened.write(part)
            digest.update(part)
    return digest.hexdigest()
