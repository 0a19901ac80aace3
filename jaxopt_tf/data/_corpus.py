"""Corpus: documents for training and for evaluation, and a fingerprint of both."""

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from .._checks import pluralize
from ._tokens import Documents, TokenFile, TokenStream

# About 1 / 10 of the tokens are used for evaluation. If there are fewer than 10
# documents, each of them is split.
_EVALUATION_DIVISOR = 10


class SkippedFiles(NamedTuple):
    """Files in folders that were skipped, because they are empty or not UTF-8 text."""

    num_files: int = 0
    first: tuple[str, ...] = ()  # paths of the first three, each with the reason

    def __str__(self) -> str:
        """Returns the number of files and the paths of the first ones."""
        num_more = self.num_files - len(self.first)
        entries = [*self.first, *([f"{num_more:,} more"] if num_more else [])]
        return f"skipped {pluralize(self.num_files, 'file')}: {', '.join(entries)}"


class Corpus(NamedTuple):
    """Tokens of a text in two parts, for training and for evaluation."""

    training: TokenStream
    evaluation: TokenStream
    vocab_size: int  # upper limit of the tokens, exclusive
    num_documents: int  # documents of both parts
    unit: Literal["bytes", "tokens"]  # name of a token, in the plural
    fingerprint: str  # SHA-256 of the content of both parts, independent of paths
    skipped_files: SkippedFiles = SkippedFiles()
    num_tokens: int = 0  # tokens of the documents, without end-of-document tokens
    notes: tuple[str, ...] = ()  # sentences about rows that were left out or changed
    # True for rows for fine-tuning, which `PackedRows` reads. A token t that is not
    # predicted is stored as ~t = -t - 1, in int32.
    is_masked: bool = False

    @property
    def size(self) -> str:
        """Numbers of documents and of tokens, as text."""
        unit = self.unit.removesuffix("s")
        noun = "row" if self.is_masked else "document"
        documents = pluralize(self.num_documents, noun)
        return f"{documents}, {pluralize(self.num_tokens, unit)}"


def make_corpus(
    files: Sequence[TokenFile],
    documents: Documents,
    *,
    vocab_size: int,
    end: int | None,
    unit: Literal["bytes", "tokens"],
    is_evaluation: np.ndarray | None = None,
    is_masked: bool = False,
) -> Corpus:
    """Builds a corpus whose documents are split into two parts.

    Args:
        files: files that contain the documents.
        documents: positions of the documents in the files.
        vocab_size: number of different tokens.
        end: token that follows each document; None for none.
        unit: name of a token.
        is_evaluation: [d], bool: True for evaluation documents; None to use `split`.
        is_masked: True if tokens that are not predicted are stored as ~token.

    Raises:
        ValueError: if there are no documents.
    """
    num_documents = len(documents.length)
    if not num_documents:
        raise ValueError(
            "`text` must contain at least one document, got none. Give files with text."
        )
    parts = split(documents)
    if is_evaluation is not None:
        parts = _select(documents, ~is_evaluation), _select(documents, is_evaluation)
    dtype = np.dtype(np.int32) if is_masked else min_token_dtype(vocab_size)
    training, evaluation = (
        TokenStream(files, part, end=end, dtype=dtype) for part in parts
    )
    return Corpus(
        training=training,
        evaluation=evaluation,
        vocab_size=vocab_size,
        num_documents=num_documents,
        num_tokens=int(documents.length.sum()),
        unit=unit,
        fingerprint=_fingerprint(files, parts, vocab_size, end),
        is_masked=is_masked,
    )


def tenth_of_rows(num_rows: int) -> np.ndarray:
    """Selects a tenth of the rows for evaluation, at least one, by a hash of the index.

    Returns:
        [num_rows], bool: True for evaluation; all False if there is only one row.
    """
    is_evaluation = np.zeros(num_rows, bool)
    order = np.argsort(_hash_integers(np.arange(num_rows)), kind="stable")
    num_evaluation = max(num_rows // _EVALUATION_DIVISOR, 1 if num_rows > 1 else 0)
    is_evaluation[order[:num_evaluation]] = True
    return is_evaluation


def split(documents: Documents) -> tuple[Documents, Documents]:
    """Splits off about a tenth for evaluation, in whole documents if possible.

    A document with more than a tenth of all tokens is cut: its last tenth is used for
    evaluation. If there are fewer than ten documents, each of them is cut. Of the other
    documents, a tenth (in tokens) is used for evaluation as a whole. They are selected
    by a hash of their index, without a seed.

    Returns:
        The part for training and the part for evaluation.
    """
    _, start, length = documents
    is_cut = (_EVALUATION_DIVISOR * length > length.sum()) | (
        len(length) < _EVALUATION_DIVISOR
    )
    tail_length = np.where(is_cut, length // _EVALUATION_DIVISOR, 0)
    uncut = np.flatnonzero(~is_cut)
    uncut = uncut[np.argsort(_hash_integers(uncut), kind="stable")]
    is_evaluation = np.zeros(len(length), bool)
    # Documents are selected in the order of their hashes until they contain a tenth of
    # their tokens.
    is_below_limit = (
        _EVALUATION_DIVISOR * np.cumsum(length[uncut]) <= length[uncut].sum()
    )
    is_evaluation[uncut[is_below_limit]] = True
    heads = documents._replace(length=length - tail_length)
    tails = documents._replace(
        start=np.where(is_cut, start + length - tail_length, start),
        length=np.where(is_cut, tail_length, length),
    )
    return _select(heads, ~is_evaluation), _select(
        tails, is_evaluation | (tail_length > 0)
    )


def min_token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned dtype that can hold all tokens."""
    return np.min_scalar_type(vocab_size - 1)


def _select(documents: Documents, is_selected: np.ndarray) -> Documents:
    return Documents(*(column[is_selected] for column in documents))


def _hash_integers(numbers: np.ndarray) -> np.ndarray:
    """Hashes each number with the mixer of splitmix64, which is machine-independent."""
    # uint64 arithmetic of NumPy arrays wraps around, as the generator requires.
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
    """Returns the SHA-256 of everything that determines the tokens of both parts.

    Paths are not included, so that a copy of the text has the same fingerprint.
    """
    contents = [(file.dtype.str, file.num_tokens, file.sha256) for file in files]
    head = {"version": 1, "vocab_size": vocab_size, "end": end, "files": contents}
    digest = hashlib.sha256(json.dumps(head).encode())
    for part in parts:
        digest.update(f"{len(part.length)} documents".encode())
        for column in part:
            # A fixed dtype and byte order: `file` is int32, the others are int64.
            digest.update(column.astype("<i8").data)
    return digest.hexdigest()
