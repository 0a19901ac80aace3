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

from ._corpus import Corpus, LeftOut, make_corpus
from ._tokens import Documents, TokenFile, chunks

# Packages that are not part of the standard library, and files of repetitive text.
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "encodings", "lib2to3", "pydoc_data"}
)
# End-of-document token: a byte that UTF-8 text files do not contain in practice. Files
# that contain it are rejected.
_END_OF_DOCUMENT = 0


def standard_library() -> Corpus:
    """Reads the sources of the installed Python standard library as bytes.

    site-packages, dist-packages, test, encodings, lib2to3 and pydoc_data are left out.
    About a tenth is for evaluation: whole top-level modules, so that no package is in
    both parts. They are selected by a hash of the name, equally on every machine.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files, evaluation = [], []
    for path in sorted(_sources(root)):
        file = _read(path)
        if isinstance(file, TokenFile):
            files.append(file)
            module = path.relative_to(root).parts[0].removesuffix(".py")
            evaluation.append(is_evaluation(module))
    return _in_bytes(files, np.asarray(evaluation, bool))


def _sources(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        # Not visited, which `Path.rglob` cannot do: site-packages may contain far more
        # files than the library.
        folders[:] = set(folders) - _LEFT_OUT
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def is_evaluation(module: str) -> bool:
    """Returns True if a top-level module is for evaluation; one in ten is."""
    # The built-in `hash` of a string differs between processes.
    return hashlib.sha256(module.encode()).digest()[0] % 10 == 0


def read_text(paths: Sequence[Path]) -> Corpus:
    """Reads text files as bytes: a vocabulary of 256, in which 0 ends a document.

    The text is not kept in memory. About a tenth is for evaluation: some of the files,
    and the last tenth of files that are a large part of the text.

    Args:
        paths: files, which must be text (UTF-8), and folders, from which all text files
            are read recursively, except hidden ones. A file in a folder is skipped
            if it is empty or not text; `left_out` of the corpus counts such files and
            names the first three.

    Raises:
        ValueError: if a path does not exist, is empty or is not text. The message names
            the path and the position of the first invalid byte.
    """
    files, left_out = text_files(paths)
    return _in_bytes(files)._replace(left_out=left_out)


def text_files(
    paths: Sequence[Path], *, argument: str = "text"
) -> tuple[list[TokenFile], LeftOut]:
    """Returns the text files in `paths`, whose content was checked, and the others.

    `argument` is the name of the argument that contains `paths`, for messages.
    """
    files: list[TokenFile] = []
    skipped: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            of_folder, others = _files_of_folder(path)
            files += of_folder
            skipped += others
        else:
            files.append(_given_file(path, argument))
    return files, LeftOut(len(skipped), tuple(skipped[:3]))


def _in_bytes(
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


def _given_file(path: Path, argument: str) -> TokenFile:
    """Returns a file of `paths`; raises an error unless it is text."""
    if not path.is_file():
        problem = "is neither" if path.exists() else "does not exist"
        raise ValueError(
            f"`{argument}` must be files or folders, but {str(path)!r} {problem}. "
            "Check the path."
        )
    file = _read(path)
    if isinstance(file, str):
        raise ValueError(
            f"`{argument}` must be text in UTF-8, but {str(path)!r} is {file}. Convert "
            "it to UTF-8, or leave it out."
        )
    return file


def _files_of_folder(path: Path) -> tuple[list[TokenFile], list[str]]:
    """Returns the text files in a folder and the others, both without hidden files."""
    files, skipped = [], []
    for inner in sorted(path.rglob("*")):
        is_hidden = any(part[0] == "." for part in inner.relative_to(path).parts)
        if is_hidden or not inner.is_file():
            continue
        file = _read(inner)
        if isinstance(file, TokenFile):
            files.append(file)
        else:
            skipped.append(f"{str(inner)!r} ({file})")
    if not files:
        left_out = LeftOut(len(skipped), tuple(skipped[:3]))
        raise ValueError(
            f"`text` must contain text, but the folder {str(path)!r} contains no "
            "UTF-8 text file, not counting hidden files"
            + (f" ({left_out})" if skipped else "")
            + ". Files of tokens (.npy, .bin) must be named one by one."
        )
    return files, skipped


def _read(path: Path) -> TokenFile | str:
    """Reads a file in chunks; returns the reason as a string if it is not text."""
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    num_bytes, num_lines = 0, 1
    try:
        for chunk in chunks(path):
            end = chunk.find(_END_OF_DOCUMENT)
            if end >= 0:
                # Raises if an earlier byte is invalid, which is then reported instead.
                decoder.decode(chunk[:end], final=True)
                offset, line = num_bytes + end, num_lines + chunk[:end].count(b"\n")
                return f"not UTF-8 text: a byte 0 at offset {offset:,}, line {line:,}"
            decoder.decode(chunk)
            digest.update(chunk)
            num_bytes += len(chunk)
            num_lines += chunk.count(b"\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # `error.start` counts from the incomplete character of the chunk before, which
        # the decoder keeps and puts in front of its input.
        data, before = error.object, len(decoder.getstate()[0])
        offset = num_bytes - before + error.start
        line, byte = num_lines + data[: error.start].count(b"\n"), data[error.start]
        return f"not UTF-8 text: byte 0x{byte:02x} at offset {offset:,}, line {line:,}"
    if not num_bytes:
        return "empty"
    return TokenFile(path, np.dtype(np.uint8), 0, num_bytes, digest.hexdigest())
