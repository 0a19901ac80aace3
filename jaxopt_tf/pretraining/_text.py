"""Text in, a corpus of bytes out.

Two texts: the user's files, or what every machine with Python has: the sources of its
standard library. A token is a byte, and a document is a file.
"""

import codecs
import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ._corpus import Corpus, make_corpus
from ._tokens import Documents, TokenFile, chunks

# Other people's, or nearly the same text again.
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "encodings", "lib2to3", "pydoc_data"}
)
# After a file: a byte that text does not hold, from which a model learns where it is.
_END_OF_FILE = 0


def standard_library() -> Corpus:
    """The Python sources of this machine's standard library, in bytes.

    Without site-packages, dist-packages, test, encodings, lib2to3 and pydoc_data. About
    a tenth is held out: whole top-level modules, so that no half of a package helps to
    guess the other; the same ones on every machine, as a hash of the name decides.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files, held_out = [], []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        file = None if _LEFT_OUT.intersection(parts) else _read(path)
        if file and file.num_tokens:
            files.append(file)
            held_out.append(is_held_out(parts[0].removesuffix(".py")))
    return _in_bytes(files, np.asarray(held_out, bool))


def is_held_out(module: str) -> bool:
    """Whether this top-level module is held out: one in ten, whatever the machine."""
    # Python's own hash is another in every process.
    return hashlib.sha256(module.encode()).digest()[0] % 10 == 0


def read_text(paths: Sequence[Path]) -> Corpus:
    """The user's text, in bytes: a vocabulary of 256, of which 0 ends a document.

    Nothing of it is kept in memory, and about a tenth is held out: some of the files,
    and of files that are a large part of the text, the last tenth.

    Args:
        paths: files, which must be text (UTF-8); and folders, of which all files that
            are text are taken, those below them too, but nothing hidden.

    Raises:
        ValueError: naming the path that does not exist, is empty or is not text.
    """
    return _in_bytes(text_files(paths))


def text_files(paths: Sequence[Path]) -> list[TokenFile]:
    """The files that `read_text` takes, each read once to the end."""
    return [file for path in paths for file in _files(Path(path))]


def _in_bytes(
    files: Sequence[TokenFile], is_held_out: np.ndarray | None = None
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
        end=_END_OF_FILE,
        unit="bytes",
        is_held_out=is_held_out,
    )


def _files(path: Path) -> list[TokenFile]:
    """The file, or all the text files in the folder."""
    if not path.is_file() and not path.is_dir():
        problem = "is neither" if path.exists() else "does not exist"
        raise ValueError(
            f"`text` must be files or folders, but {str(path)!r} {problem}. Check the "
            "path."
        )
    if path.is_dir():
        inside = (p for p in sorted(path.rglob("*")) if p.is_file())
        visible = (p for p in inside if not _is_hidden(p.relative_to(path)))
        files = [file for file in map(_read, visible) if file and file.num_tokens]
        if not files:
            raise ValueError(
                f"`text` must hold text, but the folder {str(path)!r} is empty: no "
                "file in it is UTF-8 text that is not hidden. Files of tokens (.npy, "
                ".bin) are given one by one."
            )
        return files
    file = _read(path)
    if file is None:
        raise ValueError(
            f"`text` must be text, but {str(path)!r} is not UTF-8, or holds bytes of "
            "0. Convert it to UTF-8 first."
        )
    if not file.num_tokens:
        raise ValueError(f"`text` must hold text, but {str(path)!r} is empty.")
    return [file]


def _read(path: Path) -> TokenFile | None:
    """The file, looked through piece by piece; None if it is not text."""
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    num_bytes = 0
    try:
        for chunk in chunks(path):
            if _END_OF_FILE in chunk:
                return None
            decoder.decode(chunk)
            digest.update(chunk)
            num_bytes += len(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return None
    return TokenFile(path, np.dtype(np.uint8), 0, num_bytes, digest.hexdigest())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
