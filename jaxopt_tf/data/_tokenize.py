"""Tokenization of text files, with a cache on disk."""

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

# Names of the end-of-document token in common families of tokenizers.
_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
# Documents are cut into pieces at line ends, and the pieces are encoded in parallel.
_CHARACTERS_IN_A_PIECE = 2**15
_PIECES_AT_ONCE = 16
# Version of the algorithm: files of other versions are written again.
_VERSION = 1


def tokenize_text(paths: Sequence[Path], tokenizer: Path, *, cache_dir: Path) -> Corpus:
    """Reads text files as tokens of a tokenizer.

    The tokens are written to `tokens.bin` in `cache_dir`. `tokens.json` records a hash
    of the text, of the tokenizer and of `tokens.bin`. As long as these are unchanged,
    the file is used again.

    A document is encoded in pieces of at most 32,768 characters, which are cut at line
    ends: memory does not depend on its size. The only special token that is added is
    the end-of-document token. Special tokens in the text are encoded as text.

    Args:
        paths: files and folders, as for `read_text`.
        tokenizer: path of a `tokenizer.json` of the tokenizers library. The
            end-of-document token is the first of <|endoftext|>, </s>, <eos>,
            <|end_of_text|> and [SEP] that its vocabulary contains.
        cache_dir: folder of the tokens. Only one process at a time may use it.

    Raises:
        ValueError: if the tokenizer cannot be read, has no end-of-document token or
            does not fit the text; if a path is not text; if the tokens cannot be
            written.
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
    # Hashed, so that tokens.json has the same size for any number of files.
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
    # Imported here because only text with a tokenizer needs the library.
    from tokenizers import Tokenizer

    try:
        content = path.read_bytes()
        tokenizer = Tokenizer.from_buffer(content)
    # The library raises plain `Exception`s.
    except Exception as error:
        raise ValueError(
            f"`tokenizer` must be a tokenizer.json of the tokenizers library, but "
            f"{str(path)!r} is not: {error}. `tokenizer.save_pretrained` of "
            "Transformers writes one."
        ) from error
    # Both can be set in the file. Truncation would silently drop the end of pieces.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Otherwise "<|endoftext|>" in a text would be encoded as an end-of-document token.
    tokenizer.encode_special_tokens = True
    return tokenizer, content


def _end(tokenizer: "Tokenizer", path: Path) -> int:
    found = (tokenizer.token_to_id(name) for name in _ENDS)
    end = next((token for token in found if token is not None), None)
    if end is None:
        raise ValueError(
            f"`tokenizer` must have a token that ends a document, but {str(path)!r} "
            f"has none of {', '.join(_ENDS)}. Add one with its `add_special_tokens`, "
            "and save it again."
        )
    return end


def _unknown(model: dict[str, Any], tokenizer: "Tokenizer") -> int | None:
    """Returns the unknown token of the tokenizer, if it has one."""
    # In tokenizer.json, Unigram models have `unk_id`, a number; BPE, WordPiece and
    # WordLevel have `unk_token`, a name.
    name = model.get("unk_token")
    return model.get("unk_id") if name is None else tokenizer.token_to_id(name)


def _encoded(
    files: Sequence[TokenFile], tokenizer: "Tokenizer", *, end: int, unknown: int | None
) -> Iterator[np.ndarray]:
    """Yields all tokens in order, some hundred thousand per array."""
    num_tokens = num_unknown = 0
    pieces = itertools.chain.from_iterable(_pieces(file.path) for file in files)
    while some := list(itertools.islice(pieces, _PIECES_AT_ONCE)):
        texts = [piece for piece in some if piece is not None]
        try:
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        # The library raises plain `Exception`s.
        except Exception as error:
            raise _does_not_fit(f"fails: {error}") from error
        rows = iter(encodings)
        parts = [[end] if piece is None else next(rows).ids for piece in some]
        tokens = np.concatenate([np.asarray(part, np.int64) for part in parts])
        num_tokens += len(tokens) - (len(some) - len(texts))
        num_unknown += 0 if unknown is None else int(np.sum(tokens == unknown))
        yield tokens
    if not num_tokens:
        raise _does_not_fit("gives no tokens")
    if 2 * num_unknown > num_tokens:
        raise _does_not_fit(f"does not know {num_unknown} of {num_tokens} tokens")


def _does_not_fit(problem: str) -> ValueError:
    return ValueError(
        f"`tokenizer` must fit the text, but it {problem}. Give the tokenizer that was "
        "made for such text."
    )


def _pieces(path: Path) -> Iterator[str | None]:
    """Yields the text of a file in pieces, cut at line ends if possible, then None."""
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
    """Returns True if the files in the cache are complete and match the text."""
    try:
        about = json.loads(note.read_bytes())
        with open(tokens, "rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        return about["made_from"] == made_from and about["sha256"] == sha256
    # The file is missing or truncated, or is another file of that name: the text is
    # tokenized again.
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
