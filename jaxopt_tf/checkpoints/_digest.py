"""Checksums of a folder: one line per file, so that every flipped bit is noticed.

The text is that of `sha256sum`: inside the folder, `sha256sum -c SHA256SUMS` checks it
by hand. It is written last, when every other file is complete.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DIGEST_FILE = "SHA256SUMS"


def seal(folder: Path) -> None:
    """Writes the checksums of all files; everything is on the disk when it returns.

    The digest is the last file to be written. A folder that has it is complete, after a
    power failure too: the files under it are flushed before it, and it before the
    folder gets its name.

    Args:
        folder: its files must not change any more.
    """
    text = _digest_text(folder)
    for path in _files(folder):
        flush(folder / path)
    digest = folder / DIGEST_FILE
    digest.write_text(text)
    flush(digest)
    for inner in [*folder.rglob("*"), folder]:
        if inner.is_dir():
            flush(inner)


def damage(folder: Path) -> str | None:
    """Describes the damage of a sealed folder; None if there is none.

    All bytes are read, with as many threads as there are cores: about 1.3 GB/s each on
    a processor that has instructions for SHA-256, if the disk keeps up.

    Args:
        folder: a folder that `seal` has sealed.
    """
    digest = folder / DIGEST_FILE
    if not digest.exists():
        return f"it has no digest, {DIGEST_FILE}"
    try:
        said, found = digest.read_bytes(), _digest_text(folder).encode()
    except OSError as error:
        path = Path(error.filename).relative_to(folder)
        return f"{path} cannot be read ({error.strerror})"
    return None if said == found else _difference(said, found)


def checksum_matches(folder: Path, path: str) -> bool:
    """Returns whether one file has its checksum; the other files are not read."""
    line = _line(folder, path).encode()
    return line in (folder / DIGEST_FILE).read_bytes().splitlines(keepends=True)


def flush(path: Path) -> None:
    """Returns when the file or the folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() and path != folder / DIGEST_FILE
    )


def _digest_text(folder: Path) -> str:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return "".join(threads.map(lambda path: _line(folder, path), _files(folder)))


def _line(folder: Path, path: str) -> str:
    with open(folder / path, "rb") as file:  # hashing lets go of the GIL
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path}\n"


def _difference(said: bytes, found: bytes) -> str:
    """Names the first file that differs, and how many do."""
    there, here = _by_path(said), _by_path(found)
    kinds = {
        "is missing": there.keys() - here.keys(),
        "is not in the digest": here.keys() - there.keys(),
        "has other bytes than its digest says": {
            path for path in here.keys() & there.keys() if here[path] != there[path]
        },
    }
    odd = [(path, kind) for kind, paths in kinds.items() for path in sorted(paths)]
    if not odd or b"" in there:
        return f"{DIGEST_FILE} is not as it was written"
    (path, kind), more = odd[0], len(odd) - 1
    return f"{path.decode(errors='replace')} {kind}" + (
        f", and {more} more like it" if more else ""
    )


def _by_path(text: bytes) -> dict[bytes, bytes]:
    """Digests; what is not of the form of a line has no path."""
    lines = [line.partition(b"  ") for line in text.split(b"\n")[:-1]]
    return {path: digest for digest, _, path in lines}
