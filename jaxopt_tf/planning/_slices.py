"""What a slice is, from its name alone: how many devices, and what each can do."""

import functools
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from .. import _checks


class Chip(NamedTuple):
    """What its maker says that one device can do at most."""

    name: str
    memory: float  # bytes
    flops: float  # floating-point operations a second, in bfloat16 without sparsity
    bandwidth: float  # bytes a second, to and from its memory
    interconnect: float  # bytes a second, sent to the others of its slice
    # How many times as long as in bfloat16 products of float32 take: with nothing
    # asked, at precision "high" and at "highest".
    slower: tuple[float, float, float]


# Where makers write GB, 10^9 bytes are taken: the lesser of two readings, as some of it
# is the runtime's. Links are counted in one direction, which is half of what is printed
# as bidirectional.
# TPUs: docs.cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e, "System
# architecture"; their products are of bfloat16, in 1, 3 or 6 passes (docs.jax.dev,
# `jax.lax.Precision`). H100: NVIDIA H100 datasheet, SXM; its dense ones, 989.4 TFLOP/s,
# 494.7 in TF32 and 66.9 in float32.
_PASSES = (1.0, 3.0, 6.0)
_V4 = Chip("TPU v4", 32e9, 275e12, 1228e9, 300e9, _PASSES)
_V5E = Chip("TPU v5e", 16e9, 197e12, 819e9, 200e9, _PASSES)
_V5P = Chip("TPU v5p", 95e9, 459e12, 2765e9, 600e9, _PASSES)
_V6E = Chip("TPU v6e", 32e9, 918e12, 1638e9, 400e9, _PASSES)
_H100 = Chip("H100", 80e9, 989.4e12, 3350e9, 450e9, (2.0, 2.0, 989.4 / 66.9))
# Of this machine's nothing is published, and a plan has no estimate.
_CPU = Chip("CPU", math.nan, math.nan, math.nan, math.nan, (1.0, 1.0, 1.0))

_CHIPS: Mapping[str, Chip] = MappingProxyType(
    {"v4": _V4, "v5e": _V5E, "v5p": _V5P, "v6e": _V6E, "h100": _H100, "cpu": _CPU}
)
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
# Larger ones are made of cubes of 4x4x4: so many at most.
_MOST_CUBES = {"v4": 64, "v5p": 96}
_IN_ONE_MACHINE = ("1", "2", "4", "8")


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Devices that are joined, and that a name stands for.

    Attributes:
        name: as `named_slice` takes it.
        num_devices: as JAX counts them.
        chip: what each of them can do.
    """

    name: str
    num_devices: int
    chip: Chip

    @property
    def family(self) -> str:
        """The kind of device: what stands before the colon."""
        return self.name.partition(":")[0]


def named_slice(name: str) -> Slice:
    """What a name stands for; nothing is asked of a compiler.

    Args:
        name: "v5e:4x4" and the like for TPUs v4, v5e, v5p and v6e, with the shapes that
            can be had; "h100" or "h100:8", in one machine; "cpu:8", on this one.

    Raises:
        ValueError: if there is no such slice, naming the nearest that there is.
        TypeError: if `name` is no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"`name` must be text, as 'v5e:4x4', got {name!r}.")
    family, _, size = name.strip().lower().partition(":")
    if family not in _CHIPS:
        raise ValueError(
            f"`name` must begin with one of {', '.join(_CHIPS)}, got {name!r}."
            + _checks.nearest(family, _CHIPS)
        )
    if not size and family in ("h100", "cpu"):
        size = "1"
    if family == "cpu":
        if not re.fullmatch(r"[1-9]\d{0,4}", size):
            raise ValueError(
                f"`name` must say how many, as 'cpu:8', got {name!r}. The nearest "
                f"slice is 'cpu:{max(1, _num_devices(size))}'."
            )
    elif size not in _sizes(family):
        raise ValueError(
            f"`name` must be a slice that there is, got {name!r}. The nearest is "
            f"'{family}:{_nearest(family, size)}'. {_which(family)}"
        )
    return Slice(
        name=f"{family}:{size}", num_devices=_num_devices(size), chip=_CHIPS[family]
    )


def _num_devices(size: str) -> int:
    """The product of all numbers in it; 0 where there are none."""
    numbers = [int(number) for number in re.findall(r"\d{1,6}", size)]
    return math.prod(numbers) if numbers else 0


@functools.cache
def _sizes(family: str) -> tuple[str, ...]:
    if family == "h100":
        return _IN_ONE_MACHINE
    if family in ("v5e", "v6e"):
        return _FLAT
    most = _MOST_CUBES[family]
    cubes = [
        f"{4 * a}x{4 * b}x{4 * c}"
        for a, b in itertools.combinations_with_replacement(range(1, most + 1), 2)
        for c in range(b, most // (a * b) + 1)
    ]
    return (*_SMALL, *cubes)


def _nearest(family: str, size: str) -> str:
    """The one of as many devices, of the sides that are most alike."""
    wanted = max(1, _num_devices(size))
    sides = sorted(int(number) for number in re.findall(r"\d{1,6}", size))

    def distance(other: str) -> tuple[float, float]:
        theirs = sorted(int(number) for number in other.split("x"))
        of_devices = abs(math.log(_num_devices(other) / wanted))
        if len(theirs) != len(sides):
            return of_devices, theirs[-1] / theirs[0]
        pairs = zip(sides, theirs, strict=True)
        return of_devices + sum(abs(math.log(max(1, a) / b)) for a, b in pairs), 0.0

    return min(_sizes(family), key=distance)


def _which(family: str) -> str:
    if family == "h100":
        return "There are 1, 2, 4 or 8 in a machine."
    if family in ("v5e", "v6e"):
        return f"There are {', '.join(_FLAT)}."
    return (
        f"There are {', '.join(_SMALL)}, and AxBxC of multiples of 4 that do not fall, "
        f"of at most {64 * _MOST_CUBES[family]:,} chips."
    )
