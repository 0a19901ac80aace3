"""Cache of compiled programs on disk.

A run compiles the same programs at every start. With the cache, a later start reads
them from the user's cache folder. A cached program is the machine code that the
compiler wrote, so that results are equal bit for bit.

~/.cache/jaxopt_tf/compiled/cpu-jax-0.10.2-1f0c2a9b43d8/   platform, JAX, CPU
    jit_train_step-<key>-cache      one file for each program, written by JAX
"""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from .._io import is_primary_process

# Start of JAX's warnings about the cache. JAX then compiles the program.
_WARNING = r"Error (reading|writing) persistent compilation cache entry for '([^']*)'"

_ENABLED, _FOLDER = "jax_enable_compilation_cache", "jax_compilation_cache_dir"

# Settings of the cache in the user's folder. JAX's default caches programs that compile
# for a second or longer: a run has a few of those, and dozens of small ones that
# together compile for as long.
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}

_MAX_BYTES = 4 * 2**30  # size of a folder above which its older half is removed
_UNUSED = 90 * 24 * 3600  # seconds after which the folder of another version is removed
# Seconds in which an unreadable file may be one that another process is writing.
_BEING_WRITTEN = 60

# Lines of /proc/cpuinfo that determine the code that XLA generates.
_CPU_LINES = ("vendor_id", "cpu family", "model", "model name", "flags")
_ARM_LINES = ("CPU implementer", "CPU variant", "CPU part", "Features")


@contextlib.contextmanager
def compilation_cache(enabled: bool = True) -> Iterator[Path | None]:
    """Keeps compiled programs on disk during a context.

        with compilation_cache():
            pretrain(config)

    The commands of `jaxopt-tf` that train use it. `pretrain` does not: it leaves JAX's
    configuration to the caller. The folder is `jaxopt_tf/compiled` in the user's cache
    folder (`XDG_CACHE_HOME` or ~/.cache on Linux). It is readable by the user only,
    because JAX executes what it contains. JAX's own settings take precedence: a folder
    in `JAX_COMPILATION_CACHE_DIR` or `jax_compilation_cache_dir` is used as JAX uses
    it, and `JAX_ENABLE_COMPILATION_CACHE=false` disables the cache.

    If the folder is not writable, there is no cache. If a file in it is damaged, its
    program is compiled again and replaced. One line on stderr reports either case.

    With several processes, all processes must call this function after
    `jax.distributed.initialize`. Process 0 writes the files; the others read them.

    Args:
        enabled: False to compile every program, also if JAX's settings name a folder.

    Yields:
        The folder; None if there is no cache, or if it is a folder of JAX's settings.
    """
    settings: dict[str, Any] = {}
    folder = None
    if not enabled:
        settings = {_ENABLED: False}
    elif _setting(_ENABLED) and _setting(_FOLDER) is None:
        folder = _prepared(_cache_root() / _folder_name())
        if folder is not None:
            settings = {_FOLDER: str(folder)} | {
                name: value
                for name, value in _SETTINGS.items()
                if name.upper() not in os.environ
            }
    with _jax_settings(settings), _warnings_as_a_note(folder):
        yield folder


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


@contextlib.contextmanager
def _jax_settings(settings: dict[str, Any]) -> Iterator[None]:
    previous = {name: _setting(name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    # JAX opens the folder at its first compilation, and keeps it until this reset.
    if settings:
        jax_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in previous.items():
            jax.config.update(name, value)
        if settings:
            jax_cache.reset_cache()


@contextlib.contextmanager
def _warnings_as_a_note(folder: Path | None) -> Iterator[None]:
    """Prints one line instead of JAX's warnings about entries that it cannot use.

    Args:
        folder: folder whose damaged files are removed; None to remove nothing.
    """
    is_printed = False

    def note(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        nonlocal is_printed
        found = re.match(_WARNING, str(message))
        if found is None:
            show(message, *args, **kwargs)
            return
        # JAX does not replace a file that exists: if the damaged one were not removed,
        # each start would find it.
        if (
            found[1] == "reading"
            and folder is not None
            and not _remove_entries(folder, found[2])
        ):
            return
        if not is_printed:
            is_printed = True
            reason = str(message).partition("': ")[2].splitlines()[0]
            location = folder or _setting(_FOLDER)
            print(
                f"jaxopt-tf: the compilation cache {location} failed in {found[1]} "
                f"{found[2]!r}, which was compiled instead ({reason}).",
                file=sys.stderr,
                flush=True,
            )

    with warnings.catch_warnings():
        # Each of these warnings is shown, even with `python -W error`, which would end
        # the run.
        warnings.filterwarnings("always", _WARNING, UserWarning)
        show, warnings.showwarning = warnings.showwarning, note
        yield


def _remove_entries(folder: Path, program: str) -> bool:
    """Removes the files of a program, of which one is damaged; JAX writes them again.

    The warning contains the name of the program, but not the key in the file's name.

    Returns:
        False if no file was removed, because another process is still writing it.
    """
    is_removed = False
    for path in folder.glob(f"{_escaped(program)}-*"):
        with contextlib.suppress(OSError):  # removed by another process
            if time.time() - path.stat().st_mtime > _BEING_WRITTEN:
                path.unlink()
                is_removed = True
    return is_removed


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _prepared(folder: Path) -> Path | None:
    """Creates the folder and removes old files; None, with a note, if that fails."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # `os.access` does not detect read-only file systems
        os.utime(folder)
    except OSError as error:
        print(
            f"jaxopt-tf: there is no compilation cache: {str(folder)!r} is not "
            f"writable ({error.strerror}). Set JAX_COMPILATION_CACHE_DIR to another "
            "folder.",
            file=sys.stderr,
        )
        return None
    if is_primary_process():
        with contextlib.suppress(OSError):  # files that another process removes
            _prune(folder)
    return folder


def _prune(folder: Path) -> None:
    """Limits the size of the cache, in which JAX removes nothing."""
    for other in folder.parent.iterdir():
        if time.time() - other.stat().st_mtime > _UNUSED:
            shutil.rmtree(other, ignore_errors=True)
    # XLA has folders of its own beside the files of JAX.
    files = [(path, path.stat()) for path in folder.glob("*-cache")]
    size = sum(stat.st_size for _, stat in files)
    if size <= _MAX_BYTES:
        return
    for path, stat in sorted(files, key=lambda file: file[1].st_mtime):
        path.unlink(missing_ok=True)
        size -= stat.st_size
        if size <= _MAX_BYTES // 2:
            break


def _cache_root() -> Path:
    """Returns the folder of all caches of this package."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jaxopt_tf" / "compiled"


def _folder_name() -> str:
    # The CPU is part of the name on GPUs and TPUs too: their runs also compile small
    # programs for the CPU.
    return f"{jax.default_backend()}-jax-{jax.__version__}-{_cpu_digest()}"


def _cpu_digest() -> str:
    """Returns a digest of this CPU's instructions.

    JAX's keys do not contain them. A home folder may be shared by machines: a program
    that was compiled for AVX-512 crashes a CPU without it.
    """
    described = [platform.system(), platform.machine(), *_cpu_description()]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]


def _cpu_description() -> list[str]:
    with contextlib.suppress(OSError):
        # Only the lines of the first processor are read; those of other processors are
        # equal.
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
        lines = dict(re.findall(r"^([^\t:]+?)\s*: *(.*)$", first, re.MULTILINE))
        if found := [lines[n] for n in (*_CPU_LINES, *_ARM_LINES) if n in lines]:
            return found
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["sysctl", "machdep.cpu"]  # macOS
        return [subprocess.check_output(command, text=True, timeout=5)]
    return [platform.processor()]
