"""Meshes, which are grids of devices with named axes."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils

from .. import _checks
from .._checks import pluralize


def make_mesh(
    axes: str | Mapping[str, int], devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """Returns a mesh over all devices.

        make_mesh("data=2,fsdp=4")

    Args:
        axes: names and sizes, as a string or as a mapping. Neighbouring devices are
            along the last axis, which should therefore be the axis with the most
            communication.
        devices: devices of this machine, or descriptions from `planning.slice_devices`
            to compile for; None for `jax.devices()`.

    Returns:
        A mesh whose axes have the type `Auto`, so that the compiler partitions
        computations.

    Raises:
        ValueError: if the product of the sizes is not the number of devices, or if
            `axes` does not have the form above.
        TypeError: if a size is not a whole number.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(axes, len(devices))
    # Each mesh axis is assigned whole sides of a TPU's torus if possible.
    # `jax.make_mesh` does not set `allow_split_physical_axes`, and therefore refuses a
    # mesh that splits a side, such as data=2,fsdp=8 on 4x4.
    grid = mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices, allow_split_physical_axes=True
    )
    return jax.sharding.Mesh(grid, tuple(sizes), axis_types=_auto(sizes))


def abstract_mesh(
    axes: str | Mapping[str, int], num_devices: int
) -> jax.sharding.AbstractMesh:
    """Returns a mesh without devices, for shardings of `jax.ShapeDtypeStruct`.

    Programs cannot be compiled for such a mesh.

    Args:
        axes: as in `make_mesh`.
        num_devices: number of devices that the mesh represents.

    Raises:
        ValueError, TypeError: as `make_mesh`.
    """
    sizes = _sizes(axes, num_devices)
    return jax.sharding.AbstractMesh(
        tuple(sizes.values()), tuple(sizes), axis_types=_auto(sizes)
    )


def axis_sizes(axes: str | Mapping[str, int]) -> dict[str, int]:
    """Returns the sizes of a mesh's axes by name, such as {"data": 2, "fsdp": 4}.

    Args:
        axes: as in `make_mesh`.

    Raises:
        ValueError, TypeError: if `axes` does not have this form.

    Examples:
        >>> axis_sizes("data=2,fsdp=4")
        {'data': 2, 'fsdp': 4}
    """
    if not isinstance(axes, str | Mapping):
        raise TypeError(
            f"`axes` must be a string or a mapping with names and sizes, got {axes!r}."
        )
    if isinstance(axes, Mapping):
        pairs = list(axes.items())
    else:
        found = [re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", p) for p in axes.split(",")]
        pairs = [(m[1], int(m[2])) for m in found if m]
        if len(pairs) < len(found):
            raise ValueError(
                f"`axes` must be names and sizes as in 'data=2,fsdp=4', got {axes!r}."
            )
    sizes = {
        name: _checks.whole_number(f"axes {name}", size, minimum=1)
        for name, size in pairs
    }
    if not sizes or len(sizes) < len(pairs):
        raise ValueError(
            f"`axes` must contain at least one axis, and each name once, got {axes!r}."
        )
    return sizes


def _auto(sizes: Mapping[str, int]) -> tuple[jax.sharding.AxisType, ...]:
    return (jax.sharding.AxisType.Auto,) * len(sizes)


def _sizes(axes: str | Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Returns the sizes of axes; raises unless their product is `num_devices`."""
    sizes = axis_sizes(axes)
    mesh_size = math.prod(sizes.values())
    if mesh_size != num_devices:
        listed = ", ".join(f"{name}={size}" for name, size in sizes.items())
        # For each axis, the size that would fit if only this size were changed.
        fits = [
            f"{name}={num_devices * size // mesh_size}"
            for name, size in sizes.items()
            if num_devices and num_devices % (mesh_size // size) == 0
        ]
        remedy = f" It would fit with {' or '.join(fits)}." if fits else ""
        raise ValueError(
            f"the product of `axes` must be the number of devices, got {listed}, a "
            f"product of {mesh_size:,} for {pluralize(num_devices, 'device')}." + remedy
        )
    return sizes
