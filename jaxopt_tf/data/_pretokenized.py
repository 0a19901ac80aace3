"""Corpora of pretokenized files: `.npy` and raw `.bin`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import _checks
from ._corpus import Corpus, make_corpus
from ._tokens import Documents, TokenFile, readable

_TOKENS_IN_A_CHUNK = 2**20


def read_tokens(
    paths: Sequence[Path], *, vocab_size: int, eos_token_id: int | None = None
) -> Corpus:
    """Reads tokens from memory-mapped files.

    All tokens are checked once, in chunks, before the first one is used. About a tenth
    is used for evaluation, in whole documents if none is a large part of all tokens.

    Args:
        paths: files. `.npy` contains a one-dimensional array of integers; `.bin`
            contains only tokens, as little-endian uint16, or uint32 if `vocab_size` is
            more than 65,536.
        vocab_size: vocabulary size of the tokenizer; from 2 to 2^32.
        eos_token_id: token that ends a document in these files. Without it, each file
            is one document and no token is inserted between two files.

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
    files, starts, lengths = zip(
        *(_read(path, vocab_size, eos_token_id) for path in map(Path, paths)),
        strict=True,
    )
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
    path: Path, vocab_size: int, eos_token_id: int | None
) -> tuple[TokenFile, np.ndarray, np.ndarray]:
    """Returns the file, and the start and the length of each of its documents."""
    tokens = _map_file(path, vocab_size)
    digest = hashlib.sha256()
    # Positions of the end-of-document tokens, with sentinels before the first token and
    # after the last one.
    ends = [np.asarray([-1])]
    for first in range(0, len(tokens), _TOKENS_IN_A_CHUNK):
        chunk = np.asarray(tokens[first : first + _TOKENS_IN_A_CHUNK])
        _check_vocabulary(path, chunk, first, vocab_size)
        digest.update(chunk.data)
        if eos_token_id is not None:
            ends.append(first + np.flatnonzero(chunk == eos_token_id))
    ends.append(np.asarray([len(tokens)]))
    bounds = np.concatenate(ends)
    start, length = bounds[:-1] + 1, np.diff(bounds) - 1
    file = TokenFile(path, tokens.dtype, tokens.offset, len(tokens), digest.hexdigest())
    # Two consecutive end-of-document tokens enclose no document.
    return file, start[length > 0], length[length > 0]


def _check_vocabulary(
    path: Path, chunk: np.ndarray, first: int, vocab_size: int
) -> None:
    if int(chunk.min()) >= 0 and int(chunk.max()) < vocab_size:
        return
    first_invalid = int(np.flatnonzero((chunk < 0) | (chunk >= vocab_size))[0])
    raise ValueError(
        f"`text` must contain tokens from 0 to `vocab_size` - 1 = {vocab_size - 1}, "
        f"but token {first + first_invalid} of {str(path)!r} is "
        f"{chunk[first_invalid]}. Give the `vocab_size` of its tokenizer; above "
        "65,536 a .bin is read as uint32, otherwise as uint16."
    )


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
