"""Many processes that run one job must have been told the same."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import jax

from .._io import is_true_in_all, told_by_first

_PACKAGES = ("jaxopt_tf", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def versions() -> dict[str, str]:
    """Of what the numbers depend on, by package."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version()} | packages


def check_alike(settings: Mapping[str, Any]) -> None:
    """Raises in all processes unless they have equal settings; all must come here.

    Args:
        settings: by name; JSON must be able to hold them.

    Raises:
        ValueError: naming every setting that is another one than the first process's,
            in the processes that have it; without names in the others.
    """
    first = told_by_first(dict(settings))
    mine = {name: _as_told(value) for name, value in settings.items()}
    names = [name for name in {**first, **mine} if first.get(name) != mine.get(name)]
    if is_true_in_all(not names):
        return
    if not names:
        raise ValueError(
            "every process must be started with the same settings and versions, but "
            "another one was not: it says which. Start all of them alike."
        )
    listed = "\n  ".join(
        f"`{name}`: {first.get(name)!r} in process 0, {mine.get(name)!r} in process "
        f"{jax.process_index()}"
        for name in names
    )
    raise ValueError(
        "every process must be started with the same settings and versions, but these "
        f"differ:\n  {listed}\nStart all of them alike."
    )


def _as_told(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
