"""Subcommand `train`: trains a model on text."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from ..jobs import (
    RunConfig,
    check_before_reading,
    compilation_cache,
    pretrain,
    read_settings,
    resolve_epochs,
    settings_path,
)
from ..sharding import axis_sizes
from ._flags import build, flag_kinds
from ._launch import Launch, launched
from ._run_flags import RunFlags, read_typed, run_settings


@dataclass(frozen=True, kw_only=True)
class Train(RunFlags):
    """Trains a language model on text, or fine-tunes one.

    Without --model_name_or_path, the model is a GPT-2 with the sizes of the flags.

    If --output_dir contains a run, that run is resumed with its settings.

    Example:
      jaxopt-tf train --text books --max_steps 1000 --output_dir runs/books
    """

    prog: ClassVar[str] = "jaxopt-tf train"

    launch: Launch


def train(args: Sequence[str]) -> int:
    """Runs `jaxopt-tf train`.

    Args:
        args: command line after the name of the command.

    Returns:
        The exit status: 0, or 128 plus the signal's number if one ended the run.
    """
    typed = read_typed(Train, args)
    saved = saved_settings(typed)
    settings = run_settings(typed, saved)
    check_before_reading(settings)
    with (
        launched(build(Launch, typed), flag_kinds(Train)),
        compilation_cache(typed.get("compilation_cache", True)),
    ):
        # The mesh of a saved run need not fit this machine; one that was typed must.
        # `jax.device_count` is correct only after the processes have connected, and a
        # call before that would initialize the backend of a single process.
        if saved.get("mesh") is not None and "mesh" not in typed:
            settings["mesh"] = _fitting_mesh(settings["mesh"])
        config = RunConfig.from_dict(resolve_epochs(settings))
        outcome = pretrain(config, command_line=[*Train.prog.split(), *args])
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by


def saved_settings(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of the run in `output_dir`; {} for a new folder."""
    folder = typed.get("output_dir")
    path = settings_path(folder) if folder else None
    return read_settings(path) if path and path.exists() else {}


def _fitting_mesh(mesh: str) -> str | None:
    """Returns the mesh of a run; None if it had another number of devices."""
    num_devices = jax.device_count()
    if math.prod(axis_sizes(mesh).values()) == num_devices:
        return mesh
    print(
        f"jaxopt-tf: `--mesh {mesh}` of the run does not fit the {num_devices} devices "
        "and is ignored.",
        file=sys.stderr,
    )
    return None
