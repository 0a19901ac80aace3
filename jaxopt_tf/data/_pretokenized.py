"""Corpora of pretokenized files: `.npy` and raw `.bin`."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import _checks
from ._corpus import Corpus, make_corpus
from ._tokens import Documents, TokenFile, check_vocabulary, readable

_TOKENS_IN_A_CHUNK = 2**20
# Files with more bytes in all are not read as a whole before the first step, which
# takes about a second per GB, and more if they are not in the page cache.
_MAX_BYTES_READ_AT_START = 2**30
# Samples of larger files: one in this many bytes, or in more if there are too many.
_SAMPLE_STRIDE = 2**23
_MAX_SAMPLES = 2**12
_TOKENS_IN_A_SAMPLE = 2**14


def read_tokens(
    paths: Sequence[Path], *, vocab_size: int, eos_token_id: int | None = None
) -> Corpus:
    """Reads tokens from memory-mapped files.

    About a tenth of the tokens is used for evaluation, in whole documents if none is a
    large part of all tokens.

    All tokens are read, checked and hashed in chunks before the first one is used,
    unless the files have more than 1 GiB in all and `eos_token_id` is None. Then the
    fingerprint of the corpus covers the sizes of the files and evenly spread samples of
    the tokens (64 KiB in 8 MiB for 10 GB and 2-byte tokens, at most 4,096 samples in
    all), and each token is checked when it is used. An exchanged file, or one that was
    tokenized again, has another fingerprint; a few changed tokens may not be noticed.

    Args:
        paths: files. `.npy` contains a one-dimensional array of integers; `.bin`
            contains only tokens, as little-endian uint16, or uint32 if `vocab_size` is
            more than 65,536.
        vocab_size: vocabulary size of the tokenizer; from 2 to 2^32.
        eos_token_id: token that ends a document in these files; all tokens are read to
            find the documents. Without it, each file is one document and no token is
            inserted between two files.

    Raises:
        TypeError: if a `.npy` file does not contain integers.
        ValueError: if a file cannot be read, or contains a token outside the
            vocabulary. The message names the file and the token.
    """
    _checks.whole_number("vocab_size", vocab_size, minimum=2, maximum=2**32)
    if eos_token_id is not None:
        _checks.whole_number(
            "eos_token_id", eos_token_id, minimum=0, maximum=vocab_size - 1
        )
    if not paths:
        raise ValueError("`text` must name at least one file of tokens, got none.")
    files, documents = token_documents(paths, vocab_size, eos_token_id)
    return make_corpus(
        files, documents, vocab_size=vocab_size, end=eos_token_id, unit="tokens"
    )


def token_documents(
    paths: Sequence[Path], vocab_size: int, eos_token_id: int | None
) -> tuple[list[TokenFile], Documents]:
    """Returns the files and the positions of their documents; see `read_tokens`."""
    maps = [_map_file(path, vocab_size) for path in map(Path, paths)]
    num_bytes = sum(tokens.nbytes for tokens in maps)
    if eos_token_id is None and num_bytes > _MAX_BYTES_READ_AT_START:
        stride = max(_SAMPLE_STRIDE, num_bytes // _MAX_SAMPLES)
        read = [
            _sample(path, tokens, vocab_size, stride)
            for path, tokens in zip(map(Path, paths), maps, strict=True)
        ]
    else:
        read = [
            _read(path, tokens, vocab_size, eos_token_id)
            for path, tokens in zip(map(Path, paths), maps, strict=True)
        ]
    files, starts, lengths = zip(*read, strict=True)
    documents = Documents(
        file=np.repeat(np.arange(len(files), dtype=np.int32), list(map(len, starts))),
        start=np.concatenate(starts),
        length=np.concatenate(lengths),
    )
    return list(files), documents


def is_pretokenized(path: Path) -> bool:
    """Returns True if the suffix of a file is one of pretokenized files."""
    return path.suffix in (".npy", ".bin")


def bin_dtype(vocab_size: int) -> np.dtype:
    """Returns the dtype of a `.bin` file: uint16, or uint32 for large vocabularies."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _read(
    path: Path, tokens: np.memmap, vocab_size: int, eos_token_id: int | None
) -> tuple[TokenFile, np.ndarray, np.ndarray]:
    """Returns the file, and the start and the length of each of its documents."""
    digest = hashlib.sha256()
    # Positions of the end-of-document tokens, with sentinels before the first token and
    # after the last one.
    ends = [np.asarray([-1])]
    for first in range(0, len(tokens), _TOKENS_IN_A_CHUNK):
        chunk = _chunk(path, tokens, first)
        check_vocabulary(path, chunk, first, vocab_size)
        digest.update(chunk.data)
        if eos_token_id is not None:
            ends.append(first + np.flatnonzero(chunk == eos_token_id))
    ends.append(np.asarray([len(tokens)]))
    bounds = np.concatenate(ends)
    start, length = bounds[:-1] + 1, np.diff(bounds) - 1
    file = TokenFile(path, tokens.dtype, tokens.offset, len(tokens), digest.hexdigest())
    # Two consecutive end-of-document tokens enclose no document.
    return file, start[length > 0], length[length > 0]


def _chunk(path: Path, tokens: np.memmap, first: int) -> np.ndarray:
    """Returns a copy of the tokens of a chunk.

    It is read instead of copied from the map, whose pages would all count as memory of
    the process.
    """
    offset = tokens.offset + first * tokens.itemsize
    return np.fromfile(path, tokens.dtype, _TOKENS_IN_A_CHUNK, offset=offset)


def _sample(
    path: Path, tokens: np.memmap, vocab_size: int, stride: int
) -> tuple[TokenFile, np.ndarray, np.ndarray]:
    """Returns as `_read`, after reading a sample in each `stride` bytes and the end."""
    digest = hashlib.sha256(f"a sample in each {stride} bytes".encode())
    last = max(0, len(tokens) - _TOKENS_IN_A_SAMPLE)
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # not on macOS and Windows
            # As for the map of `TokenStream`: nothing is read around the samples.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for first in [*range(0, last, stride // tokens.itemsize), last]:
            file.seek(tokens.offset + first * tokens.itemsize)
            sample = np.fromfile(file, tokens.dtype, _TOKENS_IN_A_SAMPLE)
            check_vocabulary(path, sample, first, vocab_size)
            digest.update(sample.data)
    size = len(tokens)
    token_file = TokenFile(
        path, tokens.dtype, tokens.offset, size, digest.hexdigest(), vocab_size
    )
    return token_file, np.zeros(1, np.int64), np.asarray([size])


def _map_file(path: Path, vocab_size: int) -> np.memmap:
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"`text` must contain tokens, but {str(path)!r} is empty.")
    if not path.is_file():
        raise ValueError(
            f"`text` must be files of tokens, but {str(path)!r} "
            f"{'is a folder' if path.is_dir() else 'does not exist'}. Give the files "
            "one by one."
        )
    with readable(path):
        return _npy(path) if path.suffix == ".npy" else _bin(path, vocab_size)


def _npy(path: Path) -> np.memmap:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"`text` must be a complete .npy file, but {str(path)!r} is not: {error}. "
            "Write it again with `numpy.save`."
        ) from error
    if not isinstance(tokens, np.memmap) or tokens.ndim != 1:
        raise ValueError(
            f"`text` must be a .npy file with one axis of tokens, but {str(path)!r} "
            f"has shape {getattr(tokens, 'shape', None)}. Save `tokens.reshape(-1)`, "
            "with an end-of-document token after each document."
        )
    if tokens.dtype.kind not in "iu":
        raise TypeError(
            f"`text` must be a .npy file of integers, but {str(path)!r} has dtype "
            f"{tokens.dtype}. Save the tokens as uint16 or uint32."
        )
    return tokens


def _bin(path: Path, vocab_size: int) -> np.memmap:
    dtype, num_bytes = bin_dtype(vocab_size), path.stat().st_size
    if num_bytes % dtype.itemsize:
        raise ValueError(
            f"`text` must be a .bin file of {dtype.name}, but {str(path)!r} has "
            f"{num_bytes} bytes: it is truncated or has another dtype. Save it as "
            ".npy, which records the dtype."
        )
    tokens = np.memmap(path, dtype, mode="r")
    # A .bin file does not record its dtype. If uint32 tokens below 2^16 are read as
    # uint16, every second number is the upper half of a token, which is 0.
    sample = tokens[:_TOKENS_IN_A_CHUNK]
    if dtype.itemsize == 2 and sample[::2].any() and not sample[1::2].any():
        raise ValueError(
            f"`text` must be a .bin file of uint16 if `vocab_size` is at most 65,536, "
            f"but every second number of {str(path)!r} is 0, as in a file of uint32. "
            "Save it as .npy, which records the dtype."
        )
    return tokens
