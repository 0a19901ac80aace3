"""An H100's and a TPU's compiler without an H100 and a TPU, and what a program costs.

The H100 needs `jax-cuda12-plugin` and `jax-cuda12-pjrt` of JAX's version, a TPU
`libtpu` of the version that `jax[tpu]` names; both run on a CPU.
"""

import functools
import importlib.metadata
import os
import pathlib
import re
from typing import Any, NamedTuple

# What XLA asks of a device that it only compiles for.
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
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
}
# They move nothing; what a `-start` fetched is counted there.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


class Cost(NamedTuple):
    """What a compiled program does, counted in its text."""

    kernels: int  # instructions that run
    moved: int  # bytes between them and the device's memory
    temporary: int  # bytes, as the compiler says: a TPU's on-chip memory included
    accessed: float  # bytes, as the compiler says: on-chip ones included
    donated: int  # bytes of arguments that results take the place of


def is_installed(name: str) -> bool:
    """Whether there is a compiler for `h100` or for a TPU slice such as `v5e:2x4`."""
    package = "jax-cuda12-plugin" if name == "h100" else "libtpu"
    found = importlib.metadata.distributions(name=package)
    return next(iter(found), None) is not None


@functools.cache
def device(name: str) -> Any:
    """The first device of it."""
    if name != "h100":
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-1024")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        from jax.experimental import topologies

        return topologies.get_topology_desc(name, platform="tpu").devices[0]
    import jax_plugins.xla_cuda12
    from jax._src import xla_bridge  # there is no public way yet

    folder = pathlib.Path(jax_plugins.xla_cuda12.__file__).parent
    library = next(folder.glob("*xla_cuda_plugin*.so"))
    xla_bridge.register_plugin("h100", priority=-1, library_path=str(library))
    topology = xla_bridge.make_pjrt_topology(
        "h100", "1x1x1", target_config=_H100, topology="1x1x1"
    )
    return topology._make_compile_only_devices()[0]


def cost(program: Any) -> Cost:
    """Counts the instructions of a compiled program and the bytes that they move."""
    results: dict[str, int] = {}
    kernels = moved = 0
    text = program.as_text()
    for line in text[text.index("\nENTRY") :].splitlines():
        found = re.match(
            r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)",
            re.sub(r"/\*.*?\*/", "", line),
        )
        if not found:
            continue
        name, shape, op, operands = found.groups()
        results[name] = _in_memory(shape)
        if op in _FREE or op.endswith("-done"):
            continue
        kernels += 1
        if op.endswith("-start"):
            # Between the device's memory and the chip's: the smaller of its arrays.
            moved += min(filter(None, _sizes(shape)[:2]))
            continue
        moved += results[name]
        moved += sum(results.get(x.strip(" %"), 0) for x in operands.split(","))
    memory = program.memory_analysis()
    said = program.cost_analysis() or {}
    return Cost(
        kernels,
        moved,
        memory.temp_size_in_bytes,
        said.get("bytes accessed", float("nan")),
        memory.alias_size_in_bytes,
    )


def _in_memory(shape: str) -> int:
    # S(1) is a TPU's on-chip memory.
    arrays = re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape)
    return sum(_size(dtype, dims) for dtype, dims, lay in arrays if "S(1)" not in lay)


def _sizes(shape: str) -> list[int]:
    return [_size(*array) for array in re.findall(r"(\w+)\[([\d,]*)\]", shape)]


def _size(dtype: str, dims: str) -> int:
    num_bytes = _BYTES.get(dtype, 0)
    for axis in filter(None, dims.split(",")):
        num_bytes *= int(axis)
    return num_bytes
