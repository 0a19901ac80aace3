"""Corpora of bytes, from text files or from Python's standard library.

A token is a byte, and a document is a file.
"""

import codecs
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ._corpus import Corpus, SkippedFiles, make_corpus
from ._tokens import Documents, TokenFile, chunks

# Packages that are not part of the standard library, and files of repetitive text.
_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "test", "encodings", "lib2to3", "pydoc_data"}
)
# End-of-document token: a byte that UTF-8 text files do not contain in practice. Files
# that contain it are rejected.
_END_OF_DOCUMENT = 0


def standard_library() -> Corpus:
    """Reads the sources of the installed Python standard library as bytes.

    site-packages, dist-packages, test, encodings, lib2to3 and pydoc_data are excluded.
    About a tenth of the text is used for evaluation. The text is divided by top-level
    module, so that no package is in both parts, and by a hash of the module's name, so
    that the parts are the same on every machine.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files, evaluation = [], []
    for path in sorted(_library_files(root)):
        file = _scan_file(path)
        if isinstance(file, TokenFile):
            files.append(file)
            module = path.relative_to(root).parts[0].removesuffix(".py")
            evaluation.append(is_evaluation_module(module))
    return _byte_corpus(files, np.asarray(evaluation, bool))


def _library_files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        # `os.walk` can skip folders; `Path.rglob` cannot. site-packages may contain far
        # more files than the library.
        folders[:] = set(folders) - _EXCLUDED
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def is_evaluation_module(module: str) -> bool:
    """Returns True if a top-level module is used for evaluation: one in ten."""
    # The built-in `hash` of a string differs between processes.
    return hashlib.sha256(module.encode()).digest()[0] % 10 == 0


def read_text(paths: Sequence[Path]) -> Corpus:
    """Reads text files as bytes: a vocabulary of 256, in which 0 ends a document.

    The text is not kept in memory. About a tenth is used for evaluation: some of the
    files, and the last tenth of each file that is a large part of the text.

    Args:
        paths: files, which must be text (UTF-8), and folders, from which all text files
            are read recursively, except hidden ones. A file in a folder is skipped
            if it is empty or not text; `skipped_files` of the corpus counts such files
            and names the first three.

    Raises:
        ValueError: if a path does not exist, is empty or is not text. The message names
            the path and the position of the first invalid byte.
    """
    files, skipped_files = text_files(paths)
    return _byte_corpus(files)._replace(skipped_files=skipped_files)


def text_files(
    paths: Sequence[Path], *, argument: str = "text"
) -> tuple[list[TokenFile], SkippedFiles]:
    """Returns the files in `paths` that are valid text, and those that were skipped.

    `argument` is the name of the argument that contains `paths`, for messages.
    """
    files: list[TokenFile] = []
    skipped: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            valid, invalid = _read_folder(path)
            files += valid
            skipped += invalid
        else:
            files.append(_read_given_file(path, argument))
    return files, SkippedFiles(len(skipped), tuple(skipped[:3]))


def _byte_corpus(
    files: Sequence[TokenFile], is_evaluation: np.ndarray | None = None
) -> Corpus:
    documents = Documents(
        file=np.arange(len(files), dtype=np.int32),
        start=np.zeros(len(files), np.int64),
        length=np.asarray([file.num_tokens for file in files], np.int64),
    )
    return make_corpus(
        files,
        documents,
        vocab_size=256,
        end=_END_OF_DOCUMENT,
        unit="bytes",
        is_evaluation=is_evaluation,
    )


def _read_given_file(path: Path, argument: str) -> TokenFile:
    """Reads a file of `paths`; raises an error unless it is text."""
    if not path.is_file():
        problem = "is neither" if path.exists() else "does not exist"
        raise ValueError(
            f"`{argument}` must be files or folders, but {str(path)!r} {problem}. "
            "Check the path."
        )
    result = _scan_file(path)
    if isinstance(result, str):
        raise ValueError(
            f"`{argument}` must be text in UTF-8, but {str(path)!r} is {result}. "
            "Convert it to UTF-8, or remove it from the list."
        )
    return result


def _read_folder(path: Path) -> tuple[list[TokenFile], list[str]]:
    """Returns the text files in a folder and the other files, without hidden files."""
    files, skipped = [], []
    for inner in sorted(path.rglob("*")):
        is_hidden = any(part[0] == "." for part in inner.relative_to(path).parts)
        if is_hidden or not inner.is_file():
            continue
        result = _scan_file(inner)
        if isinstance(result, TokenFile):
            files.append(result)
        else:
            skipped.append(f"{str(inner)!r} ({result})")
    if not files:
        skipped_files = SkippedFiles(len(skipped), tuple(skipped[:3]))
        raise ValueError(
            f"`text` must contain text, but the folder {str(path)!r} contains no "
            "UTF-8 text file, not counting hidden files"
            + (f" ({skipped_files})" if skipped else "")
            + ". Files of tokens (.npy, .bin) must be named one by one."
        )
    return files, skipped


def _scan_file(path: Path) -> TokenFile | str:
    """Reads a file in chunks; returns the reason as a string if it is not text."""
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    num_bytes = 0
    try:
        for chunk in chunks(path):
            end = chunk.find(_END_OF_DOCUMENT)
            if end >= 0:
                # Raises if an earlier byte is invalid, which is then reported instead.
                decoder.decode(chunk[:end], final=True)
                offset = num_bytes + end
                line = _line_number(path, offset)
                return f"not UTF-8 text: a byte 0 at offset {offset:,}, line {line:,}"
            # ASCII needs no decoding, unless a character began in the chunk before.
            if not chunk.isascii() or decoder.getstate()[0]:
                decoder.decode(chunk)
            digest.update(chunk)
            num_bytes += len(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # `error.start` counts from the incomplete character of the chunk before, which
        # the decoder keeps and puts in front of its input.
        num_kept_bytes = len(decoder.getstate()[0])
        offset, byte = (
            num_bytes - num_kept_bytes + error.start,
            error.object[error.start],
        )
        line = _line_number(path, offset)
        return f"not UTF-8 text: byte 0x{byte:02x} at offset {offset:,}, line {line:,}"
    if not num_bytes:
        return "empty"
    return TokenFile(path, np.dtype(np.uint8), 0, num_bytes, digest.hexdigest())


def _line_number(path: Path, offset: int) -> int:
    """Returns the number of the line, counted from 1, that contains a byte."""
    num_lines = 1
    for chunk in chunks(path):
        num_lines += chunk[:offset].count(b"\n")
        offset = max(0, offset - len(chunk))
    return num_lines
