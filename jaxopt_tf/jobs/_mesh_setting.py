"""The mesh of a run, as settings have it: text, and the batch that follows from it."""

import math
from collections.abc import Mapping
from typing import Any

from .. import _checks
from ..sharding import axis_sizes

# What the axes of a mesh may be called, and which of them divide the batch.
MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = MESH_AXES[:2]

# The name under which `num_sequences` stands beside the settings.
SEQUENCES = "sequences"


def check_mesh(text: Any) -> str:
    """A mesh as it is written on a command line; raises unless it is one."""
    if not isinstance(text, str):
        raise TypeError(f"`mesh` must be text as 'data=2,fsdp=4', got {text!r}.")
    sizes = axis_sizes(text)
    for name in sizes:
        _checks.one_of("mesh", name, MESH_AXES)
    return ",".join(f"{name}={size}" for name, size in sizes.items())


def num_parts(sizes: Mapping[str, int]) -> int:
    """Into how many parts a mesh with axes of these sizes divides a batch."""
    return math.prod(sizes.get(name, 1) for name in BATCH_AXES)


def num_sequences(settings: Mapping[str, Any]) -> int:
    """Sequences of a micro-batch on all devices together.

    Args:
        settings: `flat` of a run, or what a checkpoint has of it. One that went on on
            another mesh has kept them.
    """
    if SEQUENCES in settings:
        return settings[SEQUENCES]
    mesh = settings.get("mesh")
    sizes = {} if mesh is None else axis_sizes(mesh)
    return settings["per_device_train_batch_size"] * num_parts(sizes)
