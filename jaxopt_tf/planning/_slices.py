"""Slices, which are groups of devices, with published figures and compilers."""

import functools
import importlib.metadata
import itertools
import math
import os
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from .. import _checks

# Published peaks for dense bfloat16 products, in operations per second and device. Keys
# are prefixes of `jax.Device.device_kind`. The first match is used, so longer prefixes
# come first.
# TPUs: docs.cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e, "System
# architecture". GPUs: NVIDIA's datasheets of A100, H100 (SXM: 989.4), H200 and GH200.
_PEAK_FLOPS: Mapping[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA GH200": 989.4e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's published peak for dense bfloat16 products, None if unknown.

    Args:
        device_kind: value of `jax.Device.device_kind`.

    Returns:
        Floating-point operations per second.
    """
    found = (p for name, p in _PEAK_FLOPS.items() if device_kind.startswith(name))
    return next(found, None)


class Chip(NamedTuple):
    """Published limits of one device."""

    name: str
    memory: float  # bytes
    flops: float  # floating-point operations per second, in bfloat16 without sparsity
    bandwidth: float  # bytes per second, to and from its memory
    interconnect: float  # bytes per second, sent to other devices of the slice
    # Time of float32 products relative to bfloat16: at the default precision, at "high"
    # and at "highest".
    fp32_slowdown: tuple[float, float, float]


# A GB of a datasheet is counted as 10^9 bytes and not as 2^30: the runtime uses a part
# of the memory, so the smaller number is closer. Links are counted in one direction,
# which is half of a bidirectional figure. TPUs multiply in bfloat16, in 1, 3 or 6
# passes (docs.jax.dev, `jax.lax.Precision`). An H100 has 494.7 TFLOP/s in TF32 and
# 66.9 in float32. There are no published figures for CPUs, and no estimates.
_TPU_SLOWDOWN, _H100_SLOWDOWN = (1.0, 3.0, 6.0), (2.0, 2.0, 989.4 / 66.9)
_CHIPS: Mapping[str, Chip] = {
    "v4": Chip("TPU v4", 32e9, _PEAK_FLOPS["TPU v4"], 1228e9, 300e9, _TPU_SLOWDOWN),
    "v5e": Chip("TPU v5e", 16e9, _PEAK_FLOPS["TPU v5e"], 819e9, 200e9, _TPU_SLOWDOWN),
    "v5p": Chip("TPU v5p", 95e9, _PEAK_FLOPS["TPU v5"], 2765e9, 600e9, _TPU_SLOWDOWN),
    "v6e": Chip("TPU v6e", 32e9, _PEAK_FLOPS["TPU v6e"], 1638e9, 400e9, _TPU_SLOWDOWN),
    "h100": Chip(
        "H100", 80e9, _PEAK_FLOPS["NVIDIA H100"], 3350e9, 450e9, _H100_SLOWDOWN
    ),
    "cpu": Chip("CPU", math.nan, math.nan, math.nan, math.nan, (1.0, 1.0, 1.0)),
}
# Topologies of v5e and v6e, and the small ones of v4 and v5p.
_TOPOLOGIES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_TOPOLOGIES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
# Larger slices consist of cubes of 4x4x4 chips. The number of cubes is limited.
_MAX_CUBES = {"v4": 64, "v5p": 96}
# Names of slices in Google Cloud contain a number of TensorCores or, for kinds with one
# core per chip, of chips. Source: docs.cloud.google.com/tpu/docs/v4, .../v5p, .../v5e
# and .../v6e, "Configurations".
_CORES_PER_CHIP = {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1}
_ALIASES = {"v5litepod": "v5e"}
_FORMS = (
    "v5e:4x4 or v5e-16 (16 chips), v6e:2x4 or v6e-8, v5p:2x2x2 or v5p-16 (8 chips of 2 "
    "TensorCores), v4:2x2x4 or v4-32, h100, h100:8, cpu:8"
)
# Description of an H100 (`GpuTargetConfigProto` of XLA), by which XLA compiles for it
# on machines without one.
_H100_TARGET_CONFIG = """
device_description_str: "NVIDIA H100 80GB HBM3"
platform_name: "CUDA"
runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 1 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 l2_cache_size: 52428800
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000
}
"""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Group of connected devices of one kind.

    Attributes:
        name: name as for `named_slice`.
        num_devices: number of JAX devices.
        chip: published limits of each device.
    """

    name: str
    num_devices: int
    chip: Chip

    @property
    def family(self) -> str:
        """Kind of the devices, which is the part of the name before the colon."""
        return self.name.partition(":")[0]


class CompilerMissingError(RuntimeError):
    """Error if no compiler for the devices of a slice is installed."""


def named_slice(name: str) -> Slice:
    """Returns the slice with a given name; no compiler is needed.

    Args:
        name: for TPUs v4, v5e, v5p and v6e, the kind and an available topology, such as
            "v5e:4x4", or the name of the slice in Google Cloud, such as "v5e-16" (16
            chips) or "v5p-16" (8 chips: v4 and v5p count TensorCores, two per chip).
            "h100" or "h100:8" for H100s in one machine; "cpu:8" for CPU devices of this
            machine.

    Raises:
        ValueError: if no such slice exists. The message contains the known forms or the
            nearest name.
        TypeError: if `name` is not a string.

    Examples:
        >>> named_slice("v5p-16").name
        'v5p:2x2x2'
    """
    if not isinstance(name, str):
        raise TypeError(f"`name` must be a string such as 'v5e:4x4', got {name!r}.")
    family, separator, size = re.fullmatch(
        r"([^:-]*)([:-]?)(.*)", name.strip().lower(), re.DOTALL
    ).groups()  # type: ignore[union-attr]  # the pattern matches every string
    family = _ALIASES.get(family, family)
    if family not in _CHIPS:
        raise ValueError(
            f"`name` must be the name of a slice, got {name!r}. Known forms: "
            f"{_FORMS}.{_checks.suggest(family, _CHIPS)}"
        )
    if not size and family in ("h100", "cpu"):
        size = "1"
    if separator == "-" and family in _CORES_PER_CHIP:
        size = _topology(name, family, size)
    if family == "cpu":
        if not re.fullmatch(r"[1-9]\d{0,4}", size):
            raise ValueError(
                "`name` must contain a number of devices, such as 'cpu:8', got "
                f"{name!r}. The nearest slice is 'cpu:{max(1, _num_devices(size))}'."
            )
    elif size not in _sizes(family)[0]:
        raise ValueError(
            f"`name` must be an existing slice, got {name!r}. The nearest is "
            f"'{family}:{_nearest(family, size)}'. {_sizes(family)[1]}"
        )
    return Slice(
        name=f"{family}:{size}", num_devices=_num_devices(size), chip=_CHIPS[family]
    )


def _topology(name: str, family: str, size: str) -> str:
    """Returns the topology of a name such as "v5p-16", by its cores or chips."""
    cores = _CORES_PER_CHIP[family]
    by_number: dict[int, str] = {}
    # Of several topologies, the most compact one has the fewest hops between chips.
    for topology in sorted(_sizes(family)[0], key=lambda size: sum(_sides(size))):
        by_number.setdefault(cores * _num_devices(topology), topology)
    if re.fullmatch(r"[1-9]\d{0,5}", size) and int(size) in by_number:
        return by_number[int(size)]
    requested = max(1, _num_devices(size))
    nearest = min(by_number, key=lambda number: abs(math.log(number / requested)))
    unit = "chips" if cores == 1 else "TensorCores, two per chip"
    raise ValueError(
        f"`name` must be an existing slice, got {name!r}. The nearest is "
        f"'{family}-{nearest}', which is '{family}:{by_number[nearest]}'. Numbers "
        f"after '{family}-' count {unit}. Known forms: {_FORMS}."
    )


def _sides(size: str) -> list[int]:
    """Returns the numbers in a size, ascending."""
    return sorted(int(number) for number in re.findall(r"\d{1,6}", size))


def _num_devices(size: str) -> int:
    """Returns the product of all numbers in a size, or 0 if it contains none."""
    numbers = _sides(size)
    return math.prod(numbers) if numbers else 0


@functools.cache
def _sizes(family: str) -> tuple[tuple[str, ...], str]:
    """Returns the sizes of a family's slices, and a sentence that lists them."""
    if family == "h100":
        return ("1", "2", "4", "8"), "Available sizes: 1, 2, 4, 8."
    if family in ("v5e", "v6e"):
        return _TOPOLOGIES_2D, f"Available sizes: {', '.join(_TOPOLOGIES_2D)}."
    max_cubes = _MAX_CUBES[family]
    cubes = [
        f"{4 * a}x{4 * b}x{4 * c}"
        for a, b in itertools.combinations_with_replacement(range(1, max_cubes + 1), 2)
        for c in range(b, max_cubes // (a * b) + 1)
    ]
    return (*_SMALL_TOPOLOGIES_3D, *cubes), (
        f"Available sizes: {', '.join(_SMALL_TOPOLOGIES_3D)}, and AxBxC with A <= B <= "
        f"C, multiples of 4, of at most {64 * max_cubes:,} chips."
    )


def _nearest(family: str, size: str) -> str:
    """Returns the size with the most similar number of devices and sides."""
    num_devices = max(1, _num_devices(size))
    sides = _sides(size)

    def distance(other: str) -> tuple[float, float]:
        other_sides = _sides(other)
        size_distance = abs(math.log(_num_devices(other) / num_devices))
        if len(other_sides) != len(sides):
            return size_distance, other_sides[-1] / other_sides[0]
        pairs = zip(sides, other_sides, strict=True)
        return size_distance + sum(abs(math.log(max(1, a) / b)) for a, b in pairs), 0.0

    return min(_sizes(family)[0], key=distance)


def is_compiler_installed(slice_: Slice) -> bool:
    """Returns whether this machine can compile programs for the slice."""
    if slice_.family == "cpu":
        return True
    package = "jax-cuda12-plugin" if slice_.family == "h100" else "libtpu"
    return any(importlib.metadata.distributions(name=package))


def slice_devices(slice_: Slice) -> list[Any]:
    """Returns the devices of a slice, for `make_mesh`.

    CPU devices are those of this machine. All other devices are descriptions: on any
    machine a step can be compiled for them, but not run.

    Args:
        slice_: the slice, from `named_slice`.

    Raises:
        CompilerMissingError: if the compiler for the devices is not installed. The
            message contains the command that installs it.
        ValueError: if this process has fewer CPU devices.
    """
    if slice_.family == "cpu":
        return _cpus(slice_)
    if not is_compiler_installed(slice_):
        plugin = "cuda12" if slice_.family == "h100" else "tpu"
        raise CompilerMissingError(
            f"`slice_` must have devices whose compiler is installed, got "
            f"{slice_.name!r}. Install it with `pip install "
            f'"jax[{plugin}]=={jax.__version__}"`. It does not need the devices.'
        )
    return list(_gpus(slice_) if slice_.family == "h100" else _tpus(slice_))


def _cpus(slice_: Slice) -> list[Any]:
    num_devices = slice_.num_devices
    try:
        # The number can be set only before JAX initializes its backends; afterwards the
        # update raises a RuntimeError. mypy does not know the options of `jax.config`.
        if jax.config.jax_num_cpu_devices < num_devices:  # type: ignore[attr-defined]  # an option
            jax.config.update("jax_num_cpu_devices", num_devices)
    except RuntimeError:
        pass
    devices = jax.devices("cpu")
    if len(devices) < num_devices:
        raise ValueError(
            f"`slice_` must have no more CPU devices than JAX was started with, got "
            f"{slice_.name!r} and {len(devices)}. Set "
            f"JAX_NUM_CPU_DEVICES={num_devices} in the environment."
        )
    return devices[:num_devices]


def _tpus(slice_: Slice) -> list[Any]:
    from jax.experimental import topologies

    # Without these variables libtpu searches the machine for a TPU, and takes a lock
    # that keeps other processes from compiling at the same time.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-1024")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # libtpu assumes hosts with several chips, and rejects a slice that is smaller than
    # a host.
    options: Any = (
        {"chips_per_host_bounds": [1, 1, 1]} if slice_.num_devices == 1 else {}
    )
    found = topologies.get_topology_desc(slice_.name, platform="tpu", **options)
    devices: Any = found.devices
    # The description of a v4 has a device for each of the two cores of a chip. On the
    # machine itself JAX has one device per chip.
    return [device for device in devices if device.core_on_chip == 0]


@functools.cache
def _gpus(slice_: Slice) -> list[Any]:
    import jax_plugins.xla_cuda12
    from jax._src import xla_bridge  # JAX has no public function for this yet

    # The CUDA plugin is registered under another name and with a negative priority, so
    # that it does not become the default backend.
    if "h100" not in xla_bridge._backend_factories:
        folder = pathlib.Path(jax_plugins.xla_cuda12.__file__).parent
        library = next(folder.glob("*xla_cuda_plugin*.so"))
        xla_bridge.register_plugin("h100", priority=-1, library_path=str(library))
    topology = xla_bridge.make_pjrt_topology(
        "h100",
        slice_.name,
        target_config=_H100_TARGET_CONFIG,
        topology=f"1x1x{slice_.num_devices}",
    )
    return topology._make_compile_only_devices()
