"""Subcommand `train`: trains a model on text or on labelled rows."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax

from .._checks import pluralize
from .._io import is_primary_process
from ..jobs import (
    RunConfig,
    TaskSettings,
    check_before_reading,
    compilation_cache,
    num_sequences,
    pretrain,
    read_settings,
    resolve_epochs,
    sequences_of_last_start,
    settings_path,
    train_labelled,
)
from ..sharding import axis_sizes, num_batch_shards
from ._flags import build, flag_kinds
from ._launch import Launch, connected_processes
from ._run_flags import RunFlags, labelled_run_settings, read_typed, run_settings


@dataclass(frozen=True, kw_only=True)
class Train(RunFlags):
    """Trains a language model on text, or fine-tunes one.

    Without --model_name_or_path, the model is a GPT-2 with the sizes of the flags.

    Models of other tasks, such as a BERT that classifies, take labelled rows.

    If --output_dir contains a run, that run is resumed with its settings.

    Example:
      jaxopt-tf train --text books --max_steps 1000 --output_dir runs/books
    """

    prog: ClassVar[str] = "jaxopt-tf train"

    labelled: TaskSettings
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
    labelled = labelled_run_settings(typed, saved)
    settings = run_settings(typed, saved) if labelled is None else labelled
    if labelled is None:
        check_before_reading(settings)
    with (
        connected_processes(build(Launch, typed), flag_kinds(Train)),
        compilation_cache(typed.get("compilation_cache", True)),
    ):
        # The mesh of a saved run need not fit this machine; one that was typed must.
        # `jax.device_count` is correct only after the processes have connected, and a
        # call before that would initialize the backend of a single process.
        if saved.get("mesh") is not None and "mesh" not in typed:
            settings["mesh"] = _fitting_mesh(saved, typed["output_dir"])
        command_line = [*Train.prog.split(), *args]
        if labelled is not None:
            outcome = train_labelled(settings, command_line=command_line)
        else:
            config = RunConfig.from_dict(resolve_epochs(settings))
            outcome = pretrain(config, command_line=command_line)
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by


def saved_settings(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of the run in `output_dir`; {} for a new folder."""
    folder = typed.get("output_dir")
    path = settings_path(folder) if folder else None
    return read_settings(path) if path and path.exists() else {}


def _fitting_mesh(saved: Mapping[str, Any], folder: Path) -> str | None:
    """Returns the mesh of a run, changed in one axis if the number of devices differs.

    Returns:
        The mesh with another size of `fsdp`, or else of `data`, that uses all devices
        and divides the batch; None if there is none.
    """
    mesh, num_devices = saved["mesh"], jax.device_count()
    sizes = axis_sizes(mesh)
    if math.prod(sizes.values()) == num_devices:
        return mesh
    batch_size = num_sequences({**saved, **sequences_of_last_start(folder)})
    found = _resized(sizes, num_devices, batch_size)
    if is_primary_process():
        consequence = "it is ignored" if found is None else f"`--mesh {found}` is used"
        print(
            f"jaxopt-tf: `--mesh {mesh}` of the run does not fit the "
            f"{pluralize(num_devices, 'device')} here; {consequence}.",
            file=sys.stderr,
        )
    return found


def _resized(sizes: Mapping[str, int], num_devices: int, batch_size: int) -> str | None:
    # `tensor` is kept: the model may have too few heads for another size.
    for name in ("fsdp", "data"):
        if name not in sizes:
            continue
        size, rest = divmod(num_devices * sizes[name], math.prod(sizes.values()))
        resized = {**sizes, name: size}
        if not rest and size and batch_size % num_batch_shards(resized) == 0:
            return ",".join(f"{n}={k}" for n, k in resized.items())
    return None
