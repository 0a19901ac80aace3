"""Tokenization of text files, with a cache on disk."""

import codecs
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ._corpus import Corpus
from ._pretokenized import bin_dtype, read_tokens
from ._text import text_files
from ._token_cache import write_cached
from ._tokens import chunks

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Names of the end-of-document token in common families of tokenizers.
_END_TOKENS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
# Documents are cut into pieces at line ends, and `_BATCH_SIZE` pieces are encoded in
# parallel.
_CHARACTERS_IN_A_PIECE = 2**15
_BATCH_SIZE = 16
# Version of the algorithm. Cached files of other versions are replaced.
_VERSION = 1


def tokenize_text(paths: Sequence[Path], tokenizer: Path, *, cache_dir: Path) -> Corpus:
    """Reads text files as tokens of a tokenizer.

    The tokens are written to `tokens.bin` in `cache_dir`. `tokens.json` records a hash
    of the text, of the tokenizer and of `tokens.bin`. `tokens.bin` is reused while
    these are unchanged.

    A document is encoded in pieces of at most 32,768 characters, so that memory does
    not depend on the size of the document. Pieces end at line ends if possible. The
    only special token that is added is the end-of-document token. Special tokens in the
    text are encoded as text.

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
    encoder = DocumentEncoder(Path(tokenizer))
    files, skipped_files = text_files(paths)
    cache_key = encoder.cache_key | {"text": [file.sha256 for file in files]}
    tokens = Path(cache_dir, "tokens.bin")
    pieces = itertools.chain.from_iterable(pieces_of_file(file.path) for file in files)
    write_cached(tokens, cache_key, lambda: encoder.encode(pieces), encoder.metadata)
    corpus = read_tokens(
        [tokens], vocab_size=encoder.vocab_size, eos_token_id=encoder.end
    )
    return corpus._replace(skipped_files=skipped_files)


class DocumentEncoder:
    """Tokenizer of documents, each of which is followed by an end-of-document token."""

    unit: Final = "tokens"  # for `Corpus.unit`

    def __init__(self, path: Path):
        """Loads a `tokenizer.json`.

        Raises:
            ValueError: if the file cannot be read, or the tokenizer has no
                end-of-document token.
        """
        self._tokenizer, content = load_tokenizer(path)
        # Without this setting, "<|endoftext|>" in a text would be encoded as the end of
        # a document.
        self._tokenizer.encode_special_tokens = True
        self._unknown_token = _unknown_token(
            json.loads(content)["model"], self._tokenizer
        )
        self.vocab_size = vocab_size_of(self._tokenizer)
        name = end_of_document(self._tokenizer, path)
        self.end = token_id(self._tokenizer, name)
        self.cache_key = {
            "version": _VERSION,
            "text": [],  # replaced by the hashes of the texts
            "tokenizer": hashlib.sha256(content).hexdigest(),
            "eos_token_id": self.end,
            "vocab_size": self.vocab_size,
        }
        self.metadata = {"vocab_size": self.vocab_size, "eos_token_id": self.end}

    def encode(self, pieces: Iterable[str | None]) -> Iterator[np.ndarray]:
        """Yields all tokens in order, in arrays of about 100,000 tokens.

        Args:
            pieces: texts in order; None at the end of each document.

        Raises:
            ValueError: if the tokenizer does not fit the text.
        """
        dtype = bin_dtype(self.vocab_size)
        num_tokens = num_unknown = 0
        pieces = iter(pieces)
        while batch := list(itertools.islice(pieces, _BATCH_SIZE)):
            texts = [piece for piece in batch if piece is not None]
            try:
                encodings = self._tokenizer.encode_batch_fast(
                    texts, add_special_tokens=False
                )
            # The library raises plain `Exception`s.
            except Exception as error:
                raise _tokenizer_error(f"fails: {error}") from error
            rows = iter(encodings)
            parts = [[self.end] if piece is None else next(rows).ids for piece in batch]
            tokens = np.concatenate([np.asarray(part, np.int64) for part in parts])
            # End-of-document tokens are not counted.
            num_tokens += len(tokens) - (len(batch) - len(texts))
            if self._unknown_token is not None:
                num_unknown += int(np.sum(tokens == self._unknown_token))
            yield tokens.astype(dtype)
        if not num_tokens:
            raise _tokenizer_error("gives no tokens")
        if 2 * num_unknown > num_tokens:
            raise _tokenizer_error(
                f"does not know {num_unknown} of {num_tokens} tokens"
            )


def load_tokenizer(path: Path) -> tuple["Tokenizer", bytes]:
    """Returns the tokenizer of a tokenizer.json, and the content of the file.

    Raises:
        ValueError: if the file cannot be read.
    """
    # Imported here, because only text with a tokenizer needs the library.
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
    # tokenizer.json can enable truncation and padding. Truncation would silently drop
    # the end of pieces.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, content


def vocab_size_of(tokenizer: "Tokenizer") -> int:
    """Returns the largest token id plus 1."""
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values())) + 1


def token_id(tokenizer: "Tokenizer", name: str) -> int:
    """Returns the id of a token, which must be in the vocabulary."""
    found = tokenizer.token_to_id(name)
    assert found is not None
    return int(found)


def end_of_document(tokenizer: "Tokenizer", path: Path) -> str:
    """Returns the name of the end-of-document token.

    Args:
        tokenizer: the tokenizer.
        path: path of the tokenizer, for the error message.

    Raises:
        ValueError: if the vocabulary contains none of the usual names.
    """
    found = (name for name in _END_TOKENS if tokenizer.token_to_id(name) is not None)
    end = next(found, None)
    if end is None:
        raise ValueError(
            f"`tokenizer` must have a token that ends a document, but {str(path)!r} "
            f"has none of {', '.join(_END_TOKENS)}. Add one with its "
            "`add_special_tokens`, and save it again."
        )
    return end


def _unknown_token(model: dict[str, Any], tokenizer: "Tokenizer") -> int | None:
    """Returns the id of the unknown token; None if the tokenizer has none."""
    # In tokenizer.json, Unigram models have `unk_id`, a number; BPE, WordPiece and
    # WordLevel have `unk_token`, a name.
    name = model.get("unk_token")
    return model.get("unk_id") if name is None else tokenizer.token_to_id(name)


def _tokenizer_error(problem: str) -> ValueError:
    return ValueError(
        f"`tokenizer` must fit the text, but it {problem}. Give the tokenizer that was "
        "made for such text."
    )


def pieces_of_file(path: Path) -> Iterator[str | None]:
    """Yields the text of a file in pieces, cut at line ends if possible, then None."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    return pieces_of_text(decoder.decode(chunk) for chunk in chunks(path))


def pieces_of_text(texts: Iterable[str]) -> Iterator[str | None]:
    """Yields one document in pieces, cut at line ends if possible, then None.

    Args:
        texts: consecutive parts of the document.
    """
    rest = ""
    for text in texts:
        rest += text
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
