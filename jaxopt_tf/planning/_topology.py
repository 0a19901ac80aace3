"""Devices to compile for: of this machine, or only described to their compiler."""

import functools
import importlib.metadata
import importlib.util
import os
import pathlib
from typing import Any

import jax

from ._slices import Slice

# What XLA asks of a GPU that it only compiles for: as an H100 itself answers.
_H100 = """
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


class CompilerMissingError(RuntimeError):
    """There is no compiler here for the devices that were named."""


def is_compiler_installed(slice_: Slice) -> bool:
    """Whether a program for these devices can be compiled here."""
    if slice_.family == "cpu":
        return True
    package = "jax-cuda12-plugin" if slice_.family == "h100" else "libtpu"
    found = importlib.metadata.distributions(name=package)
    return next(iter(found), None) is not None


def slice_devices(slice_: Slice) -> list[Any]:
    """Its devices, for `make_mesh`.

    CPUs are this machine's. All others are only described: a step can be compiled for
    them, on any machine, and not run.

    Args:
        slice_: from `named_slice`.

    Raises:
        CompilerMissingError: if their compiler is not installed; it says what to
            install.
        ValueError: if this process has fewer CPU devices.
    """
    if slice_.family == "cpu":
        return _cpus(slice_)
    if not is_compiler_installed(slice_):
        plugin = "cuda12" if slice_.family == "h100" else "tpu"
        raise CompilerMissingError(
            f"`slice_` must be of devices whose compiler is installed, got "
            f"{slice_.name!r}. Install it with `pip install "
            f'"jax[{plugin}]=={jax.__version__}"`; it runs without the devices.'
        )
    return list(_gpus(slice_) if slice_.family == "h100" else _tpus(slice_))


def _cpus(slice_: Slice) -> list[Any]:
    wanted = slice_.num_devices
    try:
        # Of effect before JAX has looked for devices, and refused afterwards. mypy does
        # not know JAX's options.
        if jax.config.jax_num_cpu_devices < wanted:  # type: ignore[attr-defined]
            jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        pass
    devices = jax.devices("cpu")
    if len(devices) < wanted:
        raise ValueError(
            f"`slice_` must have no more CPU devices than JAX was started with, got "
            f"{slice_.name!r} and {len(devices)}. Set JAX_NUM_CPU_DEVICES={wanted} in "
            "the environment."
        )
    return devices[:wanted]


def _tpus(slice_: Slice) -> list[Any]:
    from jax.experimental import topologies

    # The compiler asks the machine which TPU it has, and wants it for itself alone.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-1024")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    alone: Any = {"chips_per_host_bounds": [1, 1, 1]} if slice_.num_devices == 1 else {}
    found = topologies.get_topology_desc(slice_.name, platform="tpu", **alone)
    devices: Any = found.devices
    # Of a v4 two cores are described, which are one device where it is owned.
    return [device for device in devices if device.core_on_chip == 0]


@functools.cache
def _gpus(slice_: Slice) -> list[Any]:
    import jax_plugins.xla_cuda12
    from jax._src import xla_bridge  # there is no public way yet

    if "h100" not in xla_bridge._backend_factories:
        folder = pathlib.Path(jax_plugins.xla_cuda12.__file__).parent
        library = next(folder.glob("*xla_cuda_plugin*.so"))
        xla_bridge.register_plugin("h100", priority=-1, library_path=str(library))
    topology = xla_bridge.make_pjrt_topology(
        "h100",
        slice_.name,
        target_config=_H100,
        topology=f"1x1x{slice_.num_devices}",
    )
    return topology._make_compile_only_devices()
