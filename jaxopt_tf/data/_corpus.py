"""A corpus: documents to train on, documents held out, and what they are known by."""

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from ._tokens import Documents, TokenFile, TokenStream

# One in so many tokens is held out; with fewer documents than that, each is cut.
_HELD_OUT = 10


class LeftOut(NamedTuple):
    """Files of folders that are not text in UTF-8."""

    num_files: int = 0
    first: str = ""  # its path, and the byte that is not text

    def __str__(self) -> str:
        """Returns how many there are, and the first."""
        files = "file that is" if self.num_files == 1 else "files that are"
        which = "" if self.num_files == 1 else "the first being "
        return (
            f"left out {self.num_files:,} {files} not UTF-8 text, {which}{self.first}"
        )


class Corpus(NamedTuple):
    """Text as tokens, in two parts."""

    training: TokenStream
    held_out: TokenStream
    vocab_size: int  # every token is below it
    num_documents: int
    unit: Literal["bytes", "tokens"]  # what a token is called
    fingerprint: str  # the same where, and only where, both parts are
    left_out: LeftOut = LeftOut()


def make_corpus(
    files: Sequence[TokenFile],
    documents: Documents,
    *,
    vocab_size: int,
    end: int | None,
    unit: Literal["bytes", "tokens"],
    is_held_out: np.ndarray | None = None,
) -> Corpus:
    """Splits documents in two parts.

    Args:
        files: what the documents lie in.
        documents: where they lie.
        vocab_size: how many tokens there are.
        end: the token that follows each document; None for none.
        unit: what a token is called.
        is_held_out: [d], bool: which documents are; None to have `split` say it.

    Raises:
        ValueError: if there is no document.
    """
    num_documents = len(documents.length)
    if not num_documents:
        raise ValueError(
            "`text` must hold at least one document, got none. Give files with text."
        )
    if is_held_out is None:
        parts = split(documents)
    else:
        parts = _where(documents, ~is_held_out), _where(documents, is_held_out)
    training, held_out = (
        TokenStream(files, part, end=end, dtype=narrowest(vocab_size)) for part in parts
    )
    fingerprint = _fingerprint(files, parts, vocab_size, end)
    return Corpus(training, held_out, vocab_size, num_documents, unit, fingerprint)


def split(documents: Documents) -> tuple[Documents, Documents]:
    """Holds out about a tenth, in whole documents where that can be.

    A document with more than a tenth of all tokens, and any document where there are
    fewer than ten, gives its last tenth. Of the others a tenth, in tokens, is held out
    whole; which ones, a hash of their place in the order says, and no seed.

    Returns:
        The part to train on and the part held out.
    """
    _, start, length = documents
    is_cut = (_HELD_OUT * length > length.sum()) | (len(length) < _HELD_OUT)
    tail = np.where(is_cut, length // _HELD_OUT, 0)
    whole = np.flatnonzero(~is_cut)
    whole = whole[np.argsort(_mixed(whole), kind="stable")]
    is_held_out = np.zeros(len(length), bool)
    is_within_a_tenth = _HELD_OUT * np.cumsum(length[whole]) <= length[whole].sum()
    is_held_out[whole[is_within_a_tenth]] = True
    heads = documents._replace(length=length - tail)
    ends = documents._replace(
        start=np.where(is_cut, start + length - tail, start),
        length=np.where(is_cut, tail, length),
    )
    return _where(heads, ~is_held_out), _where(ends, is_held_out | (tail > 0))


def narrowest(vocab_size: int) -> np.dtype:
    """The unsigned dtype with the fewest bytes that all tokens fit in."""
    return np.min_scalar_type(vocab_size - 1)


def _where(documents: Documents, is_taken: np.ndarray) -> Documents:
    return Documents(*(column[is_taken] for column in documents))


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """A hash of each number, the same on every machine: the mixer of splitmix64."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _fingerprint(
    files: Sequence[TokenFile],
    parts: Sequence[Documents],
    vocab_size: int,
    end: int | None,
) -> str:
    """SHA-256 of what decides both rows: contents, never where they lie on the disk."""
    contents = [(file.dtype.str, file.num_tokens, file.sha256) for file in files]
    head = {"version": 1, "vocab_size": vocab_size, "end": end, "files": contents}
    digest = hashlib.sha256(json.dumps(head).encode())
    for part in parts:
        digest.update(f"{len(part.length)} documents".encode())
        for column in part:
            digest.update(column.astype("<i8").data)
    return digest.hexdigest()
