"""Tokens in files, read as one long row of documents.

Nothing is concatenated: an index has the place of each document, and a slice of the row
is gathered from memory-mapped files. So a text may be larger than the memory.
"""

import contextlib
import functools
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

# A map keeps its file open, and a process may have about a thousand open. Text is often
# in many small files, which are read into memory: at most 1,024 files, 64 MiB.
_MAX_MAPPED = 128
_MAX_SMALL = 1024
_BYTES_IN_A_SMALL_FILE = 2**16
_BYTES_IN_A_CHUNK = 2**20


class TokenFile(NamedTuple):
    """A file with tokens side by side."""

    path: Path
    dtype: np.dtype  # of a token in the file, an integer
    offset: int  # bytes before the first token
    num_tokens: int
    sha256: str  # of the tokens' bytes, in hexadecimal

    @property
    def num_bytes(self) -> int:
        """Number of bytes up to the last token."""
        return self.offset + self.num_tokens * self.dtype.itemsize

    @property
    def is_small(self) -> bool:
        """True if the file is read into memory, not mapped."""
        return self.num_bytes <= _BYTES_IN_A_SMALL_FILE


class Documents(NamedTuple):
    """Places of documents, in the order in which they are read."""

    file: np.ndarray  # [d], int32: index of the file
    start: np.ndarray  # [d], int64: index of the first token in that file
    length: np.ndarray  # [d], int64: tokens, at least 1


class TokenStream:
    """Documents in a row, each followed by an end-of-document token.

    Its length is that of the row: `stream.read(0, len(stream))` is all of it.
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        documents: Documents,
        *,
        end: int | None,
        dtype: np.dtype,
    ):
        """Opens no file yet.

        Args:
            files: they contain the documents.
            documents: the index.
            end: the token after each document; None for none.
            dtype: of the tokens that are read.
        """
        self._files, self._documents = files, documents
        self._end, self._dtype = end, dtype
        # End of each document in the row, after its end-of-document token.
        self._stops = np.cumsum(documents.length + (end is not None))
        self._mapped = functools.lru_cache(_MAX_MAPPED)(self._opened)
        self._small = functools.lru_cache(_MAX_SMALL)(self._opened)

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    @property
    def num_documents(self) -> int:
        """Number of documents in the row, in whole or in part."""
        return len(self._stops)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the tokens from `start` up to `stop`, exclusive.

        Returns:
            [stop - start], in the dtype of the corpus: a copy.

        Raises:
            IndexError: unless 0 <= start <= stop <= length of the row.
            ValueError: if a file is gone or shorter than it was.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(
                f"`start` and `stop` must be in order and from 0 to {len(self)}, got "
                f"{start!r} and {stop!r}."
            )
        # Filled with the token that ends a document, which stays where no content is.
        fill = 0 if self._end is None else self._end
        tokens = np.full(stop - start, fill, self._dtype)
        first = int(np.searchsorted(self._stops, start, side="right"))
        last = int(np.searchsorted(self._stops, stop))
        for document in range(first, last + (stop > start)):
            file, start_in_file, length = (int(c[document]) for c in self._documents)
            begin = int(self._stops[document]) - length - (self._end is not None)
            low, high = max(start, begin), min(stop, begin + length)
            if low < high:
                offset = start_in_file - begin
                content = self._tokens_of(file)[low + offset : high + offset]
                tokens[low - start : high - start] = content
        return tokens

    def _tokens_of(self, index: int) -> np.ndarray:
        return (self._small if self._files[index].is_small else self._mapped)(index)

    def _opened(self, index: int) -> np.ndarray:
        file = self._files[index]
        content: bytes | mmap.mmap
        try:
            with open(file.path, "rb") as opened:
                if file.is_small:
                    content = opened.read(file.num_bytes)
                else:
                    content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            return np.frombuffer(content, file.dtype, file.num_tokens, file.offset)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`text` must stay as it is while it is read, but {str(file.path)!r} "
                "is gone or shorter than before. Put it back, and start again."
            ) from error


def chunks(path: Path) -> Iterator[bytes]:
    """Yields the file's bytes, a mebibyte at a time.

    Raises:
        ValueError: if the file cannot be read.
    """
    with readable(path), open(path, "rb") as opened:
        while chunk := opened.read(_BYTES_IN_A_CHUNK):
            yield chunk


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns an error of the system about a file into a sentence for the user."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"`text` must be files that can be read, but {str(path)!r} cannot: "
            f"{error.strerror}."
        ) from error
