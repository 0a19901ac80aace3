"""Environments with different versions of Transformers, which share one torch."""

import importlib.metadata
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Pins(NamedTuple):
    """Releases that are compatible on Python 3.11 with torch 2.13."""

    transformers: str
    accelerate: str
    tokenizers: str
    huggingface_hub: str
    numpy: str


# Accelerate and huggingface_hub are from the month of the release of Transformers, and
# tokenizers the newest one that its `dependency_versions_table.py` allows. NumPy 1 is
# needed until 4.44, whose Accelerate does not allow 2.
PINS = {
    "4.40": Pins("4.40.2", "0.30.1", "0.19.1", "0.23.5", "1.26.4"),
    "4.44": Pins("4.44.2", "0.33.0", "0.19.1", "0.24.7", "1.26.4"),
    "4.46": Pins("4.46.3", "1.1.1", "0.20.3", "0.26.5", "2.2.6"),
    "4.49": Pins("4.49.0", "1.4.0", "0.21.0", "0.29.3", "2.2.6"),
    "4.51": Pins("4.51.3", "1.6.0", "0.21.1", "0.30.2", "2.2.6"),
    "4.53": Pins("4.53.3", "1.8.1", "0.21.2", "0.33.5", "2.2.6"),
    "4.57": Pins("4.57.6", "1.11.0", "0.22.1", "0.36.0", "2.2.6"),
    "5.0": Pins("5.0.0", "1.12.0", "0.22.2", "1.3.7", "2.2.6"),
    "5.23": Pins("5.23.0", "1.15.0", "0.23.3", "2.4.0", "2.4.6"),
}
# Imported by huggingface_hub before 2.0. The installed version does not need it.
_FURTHER = {
    "requests": "2.32.3",
    "urllib3": "2.2.3",
    "certifi": "2024.8.30",
    "charset-normalizer": "3.4.0",
    "idna": "3.10",
    "httpx": "0.28.1",
    "httpcore": "1.0.7",
    "h11": "0.14.0",
    "anyio": "4.8.0",
    "sniffio": "1.3.1",
}


def installed_version() -> str:
    """Returns the minor version of Transformers in this environment, as "5.23"."""
    return ".".join(importlib.metadata.version("transformers").split(".")[:2])


def python_of(version: str, folder: Path) -> Path:
    """Returns the interpreter of an environment, which is created if not complete.

    An environment takes 150 MB: torch and all other packages without a pinned version
    are links to those of the running environment. Other packages, including JAX,
    are not visible, because old versions import every framework that they find.

    Args:
        version: a key of `PINS`.
        folder: folder that contains all environments.
    """
    home = folder / f"hf-{version}"
    python, complete = home / "bin" / "python", home / "complete"
    if complete.exists():
        return python
    venv.create(home, clear=home.exists(), symlinks=True, with_pip=False)
    wanted = {**PINS[version]._asdict(), **_FURTHER}
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command = [
        *pip,
        "--no-deps",  # the table contains all dependencies
        "--only-binary=:all:",
        *(f"{name}=={release}" for name, release in wanted.items()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    (packages,) = home.glob("lib/python*/site-packages")
    for path in _shared():
        if not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
    complete.touch()
    return python


def _shared() -> Iterator[Path]:
    """Returns files and folders of all packages without a pinned version."""
    own = {_canonical(name) for name in (*Pins._fields, *_FURTHER)}
    waiting, seen = ["torch", "transformers", "accelerate"], set[str]()
    while waiting:
        name = _canonical(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # not for this system
            continue
        for requirement in package.requires or ():
            if "extra ==" not in requirement:
                waiting.append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
        if name not in own:
            tops = {PurePosixPath(str(file)).parts[0] for file in package.files or ()}
            yield from (Path(str(package.locate_file(top))) for top in tops - {".."})


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
