"""Text in, batches of bytes out.

Two texts: the user's files, or what every machine with Python has: the sources of its
standard library. Each is in two parts, one to train on and one held out.
"""

import hashlib
import itertools
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from .. import _check

# Other people's, or nearly the same text again.
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "encodings", "lib2to3", "pydoc_data"}
)
# Between files: a byte that text does not hold, from which a model learns where it is.
_END_OF_FILE = b"\0"


class Text(NamedTuple):
    """Bytes to train on, and bytes held out."""

    training: np.ndarray  # [n], uint8
    held_out: np.ndarray  # [m], uint8
    num_files: int


def standard_library() -> Text:
    """The Python sources of this machine's standard library.

    Without site-packages, dist-packages, test, encodings, lib2to3 and pydoc_data. About
    a tenth is held out: whole top-level modules, so that no half of a package helps to
    guess the other; the same ones on every machine, as a hash of the name decides.
    """
    root = Path(sysconfig.get_path("stdlib"))
    training: list[bytes] = []
    held_out: list[bytes] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        content = None if _LEFT_OUT.intersection(parts) else _read(path)
        if content:
            module = parts[0].removesuffix(".py")
            (held_out if is_held_out(module) else training).append(content)
    num_files = len(training) + len(held_out)
    return Text(_joined(training), _joined(held_out), num_files)


def is_held_out(module: str) -> bool:
    """Whether this top-level module is held out: one in ten, whatever the machine."""
    # Python's own hash is another in every process.
    return hashlib.sha256(module.encode()).digest()[0] % 10 == 0


def read_text(paths: Sequence[Path]) -> Text:
    """The user's text; the last tenth of every file is held out.

    Args:
        paths: files, which must be text (UTF-8); and folders, of which all files that
            are text are taken, those below them too, but nothing hidden.

    Raises:
        ValueError: naming the path that does not exist, is empty or is not text.
    """
    training, held_out = [], []
    for path in paths:
        for content in _contents(Path(path)):
            cut = len(content) - len(content) // 10
            training.append(content[:cut])
            held_out.append(content[cut:])
    return Text(_joined(training), _joined(held_out), len(training))


def training_batches(
    text: Text, *, block_size: int, batch_size: int, seed: int
) -> Iterator[np.ndarray]:
    """Endless batches in random order, the same for the same seed.

    An epoch takes every window of `block_size` bytes once; the next one has another
    order.

    Args:
        text: what to train on.
        block_size: T, bytes to predict in a row.
        batch_size: B, windows in a batch.
        seed: of the order.

    Returns:
        An iterator over [B, T + 1], uint8: inputs and, one later, targets.

    Raises:
        ValueError: if the training text is shorter than one window.
    """
    _check.positive("batch_size", batch_size)
    windows = _Windows(text.training, block_size, "training")
    dataset = grain.MapDataset.source(windows).seed(seed).shuffle().repeat()
    dataset = dataset.batch(batch_size)
    # By index, without threads that read ahead: the text lies in memory.
    return (dataset[i] for i in itertools.count())


def held_out_batches(
    text: Text, *, block_size: int, batch_size: int, num_bytes: int = 2**16
) -> list[np.ndarray]:
    """The same batches at every evaluation, spread evenly over the held-out text.

    Args:
        text: what to evaluate on.
        block_size: T, bytes to predict in a row.
        batch_size: B, windows in a batch; fewer where the text is short.
        num_bytes: about how many bytes to predict in all.

    Returns:
        A list of [B, T + 1], uint8.

    Raises:
        ValueError: if the held-out text is shorter than one window.
    """
    _check.positive("batch_size", batch_size)
    windows = _Windows(text.held_out, block_size, "held-out")
    batch_size = min(batch_size, len(windows))
    wanted = max(1, num_bytes // (block_size * batch_size))
    num_batches = min(wanted, len(windows) // batch_size)
    chosen = np.linspace(0, len(windows) - 1, num_batches * batch_size).astype(int)
    rows = np.stack([windows[i] for i in chosen])
    return list(rows.reshape(num_batches, batch_size, block_size + 1))


class _Windows:
    """Windows of T + 1 bytes side by side; the last byte of one is the next's first.

    What grain calls a random access data source.
    """

    def __init__(self, part: np.ndarray, block_size: int, name: str):
        if len(part) < block_size + 1:
            raise ValueError(
                f"`text` must have at least `block_size` + 1 = {block_size + 1} bytes "
                f"in its {name} part, got {len(part)}. Give more text, or take a "
                "smaller `block_size`."
            )
        self._part, self._block_size = part, block_size

    def __len__(self) -> int:
        return (len(self._part) - 1) // self._block_size

    def __getitem__(self, index: int) -> np.ndarray:
        start = index * self._block_size
        return self._part[start : start + self._block_size + 1]


def _contents(path: Path) -> list[bytes]:
    """What the file holds, or all the text files in the folder."""
    if not path.exists():
        raise ValueError(
            f"`text` must be files or folders, but {str(path)!r} does not exist."
        )
    if path.is_dir():
        inside = (p for p in sorted(path.rglob("*")) if p.is_file())
        visible = (p for p in inside if not _is_hidden(p.relative_to(path)))
        contents = [content for content in map(_read, visible) if content]
        if not contents:
            raise ValueError(
                f"`text` must hold text, but the folder {str(path)!r} is empty: no "
                "file in it is UTF-8 text that is not hidden."
            )
        return contents
    content = _read(path)
    if content is None:
        raise ValueError(
            f"`text` must be text, but {str(path)!r} is not UTF-8, or holds bytes of "
            "0. Convert it to UTF-8 first."
        )
    if not content:
        raise ValueError(f"`text` must hold text, but {str(path)!r} is empty.")
    return [content]


def _read(path: Path) -> bytes | None:
    """The file's bytes; None if they are not text."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if _END_OF_FILE in content else content


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _joined(contents: list[bytes]) -> np.ndarray:
    return np.frombuffer(_END_OF_FILE.join(contents), np.uint8)
