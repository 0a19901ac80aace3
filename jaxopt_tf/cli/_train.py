"""Subcommand `train`: pretrains a GPT-2."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from ..jobs import RunConfig, pretrain, read_settings, settings_path
from ..sharding import axis_sizes
from ._flags import build, flag_kinds
from ._launch import Launch, launched
from ._run_flags import RunFlags, read_typed, run_config


@dataclass(frozen=True, kw_only=True)
class Train(RunFlags):
    """Pretrains a GPT-2 on text.

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
    config = run_config(typed, saved)
    with launched(build(Launch, typed), flag_kinds(Train)):
        # The mesh of a saved run need not fit this machine; one that was typed must.
        # `jax.device_count` is correct only after the processes have connected, and a
        # call before that would initialize the backend of a single process.
        if saved.get("mesh") is not None and "mesh" not in typed:
            config = _with_fitting_mesh(config)
        outcome = pretrain(config, command_line=[*Train.prog.split(), *args])
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by


def saved_settings(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of the run in `output_dir`; {} for a new folder."""
    folder = typed.get("output_dir")
    path = settings_path(folder) if folder else None
    return read_settings(path) if path and path.exists() else {}


def _with_fitting_mesh(config: RunConfig) -> RunConfig:
    """Removes the mesh of a run that was started on another number of devices."""
    num_devices, mesh = jax.device_count(), config.job.mesh
    if mesh is None or math.prod(axis_sizes(mesh).values()) == num_devices:
        return config
    print(
        f"jaxopt-tf: `--mesh {mesh}` of the run does not fit the {num_devices} devices "
        "and is ignored.",
        file=sys.stderr,
    )
    return dataclasses.replace(config, job=dataclasses.replace(config.job, mesh=None))
