"""Tokens in files, read as one sequence of documents.

The files are not concatenated. An index contains the position of each document, and a
slice of the sequence is gathered from memory-mapped files. A text may therefore be
larger than the memory.
"""

import contextlib
import functools
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

# A memory map keeps its file open, and a common limit is 1,024 open files per process.
# Small files, of which a text may have many, are read into memory instead: at most
# 1,024 of them at a time, 64 MiB in all.
_MAX_MAPPED = 128
_MAX_SMALL = 1024
_BYTES_IN_A_SMALL_FILE = 2**16
_BYTES_IN_A_CHUNK = 2**20
# Larger files may not fit into the page cache.
_BYTES_IN_A_LARGE_FILE = 2**30


class TokenFile(NamedTuple):
    """File that contains consecutive tokens."""

    path: Path
    dtype: np.dtype  # integer dtype of the tokens in the file
    offset: int  # number of bytes before the first token
    num_tokens: int
    # SHA-256 in hexadecimal, of the bytes of the tokens or of a sample of them.
    sha256: str
    # Upper limit of the tokens, exclusive, which `TokenStream.read` checks; None if all
    # tokens have been checked.
    unchecked_limit: int | None = None

    @property
    def num_bytes(self) -> int:
        """Number of bytes up to the end of the last token."""
        return self.offset + self.num_tokens * self.dtype.itemsize

    @property
    def is_small(self) -> bool:
        """True if the file is read into memory instead of mapped."""
        return self.num_bytes <= _BYTES_IN_A_SMALL_FILE


class Documents(NamedTuple):
    """Positions of documents, in the order of the sequence."""

    file: np.ndarray  # [d], int32: index of the file
    start: np.ndarray  # [d], int64: index of the first token in that file
    length: np.ndarray  # [d], int64: number of tokens, at least 1


class TokenStream:
    """Sequence of documents, each followed by an end-of-document token.

    Its length is the number of tokens: `stream.read(0, len(stream))` returns all.
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        documents: Documents,
        *,
        end: int | None,
        dtype: np.dtype,
    ):
        """Builds the index; no file is opened.

        Args:
            files: files that contain the documents.
            documents: positions of the documents in the files.
            end: token after each document; None for none.
            dtype: dtype of the tokens that `read` returns.
        """
        self._files, self._documents = files, documents
        self._end, self._dtype = end, dtype
        # End of each document in the sequence, including its end-of-document token.
        self._stops = np.cumsum(documents.length + (end is not None))
        self._mapped = functools.lru_cache(_MAX_MAPPED)(self._open)
        self._small = functools.lru_cache(_MAX_SMALL)(self._open)

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    @property
    def num_documents(self) -> int:
        """Number of documents; the two parts of a split document count separately."""
        return len(self._stops)

    @property
    def bounds(self) -> np.ndarray:
        """Start of each document in the sequence and the end of the last, [d + 1]."""
        return np.concatenate([np.zeros(1, np.int64), self._stops])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns a copy of the tokens from `start` up to `stop`, exclusive.

        Returns:
            [stop - start], in the dtype of the corpus.

        Raises:
            IndexError: unless 0 <= start <= stop <= `len(self)`.
            ValueError: if a file was deleted or truncated, or a token is outside the
                vocabulary.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(
                f"`start` and `stop` must be in order and from 0 to {len(self)}, got "
                f"{start!r} and {stop!r}."
            )
        # The array is filled with the end-of-document token. The contents of documents
        # are then copied over it, which leaves one token after each document.
        fill = 0 if self._end is None else self._end
        tokens = np.full(stop - start, fill, self._dtype)
        first = int(self._stops.searchsorted(start, side="right"))
        last = int(self._stops.searchsorted(stop))
        for document in range(first, last + (stop > start)):
            file, start_in_file, length = (int(c[document]) for c in self._documents)
            begin = int(self._stops[document]) - length - (self._end is not None)
            low, high = max(start, begin), min(stop, begin + length)
            if low < high:
                offset = start_in_file - begin
                content = self._file_tokens(file)[low + offset : high + offset]
                limit = self._files[file].unchecked_limit
                if limit is not None:
                    path = self._files[file].path
                    check_vocabulary(path, content, low + offset, limit)
                tokens[low - start : high - start] = content
        return tokens

    def _file_tokens(self, index: int) -> np.ndarray:
        return (self._small if self._files[index].is_small else self._mapped)(index)

    def _open(self, index: int) -> np.ndarray:
        file = self._files[index]
        content: bytes | mmap.mmap
        try:
            with open(file.path, "rb") as opened:
                if file.is_small:
                    content = opened.read(file.num_bytes)
                else:
                    content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
                    is_large = file.num_bytes > _BYTES_IN_A_LARGE_FILE
                    if is_large and hasattr(mmap, "MADV_RANDOM"):  # not on Windows
                        # Windows are read in random order. Without this, Linux reads
                        # 128 KiB around each of them, on some machines 8 MiB.
                        content.madvise(mmap.MADV_RANDOM)
            return np.frombuffer(content, file.dtype, file.num_tokens, file.offset)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`text` must not change while it is read, but {str(file.path)!r} "
                "was deleted or truncated. Restore it, and start again."
            ) from error


def check_vocabulary(
    path: Path, tokens: np.ndarray, first: int, vocab_size: int
) -> None:
    """Raises a `ValueError` unless all tokens are from 0 to `vocab_size` - 1.

    Args:
        path: file of the tokens, for the message.
        tokens: consecutive tokens of the file.
        first: index of `tokens[0]` in the file.
        vocab_size: upper limit of the tokens, exclusive.
    """
    if int(tokens.min()) >= 0 and int(tokens.max()) < vocab_size:
        return
    first_invalid = int(np.flatnonzero((tokens < 0) | (tokens >= vocab_size))[0])
    raise ValueError(
        f"`text` must contain tokens from 0 to `vocab_size` - 1 = {vocab_size - 1}, "
        f"but token {first + first_invalid} of {str(path)!r} is "
        f"{tokens[first_invalid]}. Give the `vocab_size` of its tokenizer; above "
        "65,536 a .bin is read as uint32, otherwise as uint16."
    )


def chunks(path: Path) -> Iterator[bytes]:
    """Yields the bytes of a file in chunks of 1 MiB.

    Raises:
        ValueError: if the file cannot be read.
    """
    with readable(path), open(path, "rb") as opened:
        while chunk := opened.read(_BYTES_IN_A_CHUNK):
            yield chunk


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Converts an `OSError` to a `ValueError` that names `text` and the file."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"`text` must be files that can be read, but {str(path)!r} cannot: "
            f"{error.strerror}."
        ) from error
