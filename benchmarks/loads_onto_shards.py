"""Memory and time of reading a model's weights onto 8 devices.

    python -m benchmarks.loads_onto_shards

A folder with a Llama of 4 GB in five shards is written to a temporary folder (see
`TMPDIR`) and read by a new process onto 8 CPU devices. Memory is the peak of the
process, as reported by Linux, less what it used before and less the parameters.
"""

import dataclasses
import json
import math
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from benchmarks._fresh_processes import in_fresh_process
from benchmarks._report import Row, main
from jaxopt_tf import interop, sharding
from jaxopt_tf._pytrees import named_leaves
from jaxopt_tf._typing import PyTree
from jaxopt_tf.models import Model, build_model
from jaxopt_tf.models._decoder_config import DecoderConfig

NUM_SHARDS = 5
# 4.0 GB in float32. The largest tensor is the table of embeddings, 262 MB; with stacked
# layers, the largest leaf has 872 MB.
LARGE = DecoderConfig(
    model_type="llama",
    vocab_size=32_000,
    hidden_size=2_048,
    intermediate_size=8_192,
    num_hidden_layers=13,
    num_attention_heads=16,
    num_key_value_heads=16,
)
SMALL = DecoderConfig(
    model_type="llama",
    vocab_size=2_048,
    hidden_size=512,
    intermediate_size=2_048,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=8,
)


def rows(smoke: bool) -> Iterator[Row]:
    config = SMALL if smoke else LARGE
    model = build_model(config)
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(model.shapes))
    largest = 4 * max(math.prod(p.shape) for p in model.names.model.parameters)
    with tempfile.TemporaryDirectory() as folder:
        in_fresh_process(_write, Path(folder), config)
        for axes in ("fsdp=8", "fsdp=4,tensor=2"):
            for scan_layers in (False, True):
                took = in_fresh_process(
                    _measure, Path(folder), config, axes, scan_layers
                )
                what = f"{size / 1e9:.2g} GB in {NUM_SHARDS} shards onto {axes}, "
                what += "stacked layers" if scan_layers else "separate layers"
                gigabytes_per_s = size / took["seconds"] / 1e9
                detail = f"{took['seconds']:.3g} s, {gigabytes_per_s:.2g} GB/s"
                yield Row(
                    claim=f"{what}: wrong numbers",
                    value=took["wrong"],
                    unit="numbers",
                    limit=0.0,
                )
                if not smoke:  # too small to be measured
                    yield Row(
                        claim=f"{what}: peak of memory above the parameters",
                        value=took["bytes"] / largest,
                        unit="of the largest tensor",
                        limit=2.0,
                        detail=detail,
                    )


def _write(folder: Path, config: DecoderConfig) -> None:
    """Writes random weights in shards of about equal sizes."""
    model = build_model(config)
    params = {p.name: p.shape for p in model.names.model.parameters}
    limit = 4 * sum(map(math.prod, params.values())) / NUM_SHARDS
    files: list[dict[str, np.ndarray]] = [{}]
    weight_map: dict[str, str] = {}

    def close() -> None:
        name = f"model-{len(files):05}-of-{NUM_SHARDS:05}.safetensors"
        save_file(files[-1], folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(files[-1], name))
        files[-1].clear()

    for name in params:
        files[-1][name] = _tensor(name, params[name])
        if len(files) < NUM_SHARDS and _size(files[-1]) >= limit:
            close()
            files.append({})
    close()
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


def _size(tensors: Mapping[str, np.ndarray]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = zlib.crc32(name.encode())
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _measure(
    folder: Path, config: DecoderConfig, axes: str, scan_layers: bool
) -> dict[str, float]:
    jax.config.update("jax_num_cpu_devices", 8)
    model = build_model(dataclasses.replace(config, scan_layers=scan_layers))
    like = _sharded(model, axes)
    jax.block_until_ready(jax.numpy.ones(3) + 1)  # JAX is initialized
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(like))
    # The kernel records the peak, and resets it on request.
    Path("/proc/self/clear_refs").write_text("5")
    before, since = _status("VmRSS"), time.perf_counter()
    params = interop.read_params(folder, like, model.names)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - since
    bytes_above = _status("VmHWM") - before - size
    return {
        "seconds": seconds,
        "bytes": bytes_above,
        "wrong": _num_wrong(model, params),
    }


def _sharded(model: Model, axes: str) -> PyTree:
    mesh = sharding.make_mesh(axes)
    rules = model.sharding_rules(mesh)
    shardings = sharding.param_shardings(model.shapes, mesh, rules)
    return jax.tree.map(
        lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s),
        model.shapes,
        shardings,
    )


def _num_wrong(model: Model, params: PyTree) -> float:
    """Returns the number of parameters that differ; frees them one by one."""
    wrong = 0
    for name, leaf in named_leaves(params):
        host = np.asarray(leaf)
        leaf.delete()
        for part in model.names.by_leaf[name]:
            read = part.layout.to_torch(host)[part.place]
            wrong += int((read != _tensor(part.torch_name, read.shape)).sum())
    return float(wrong)


def _status(field: str) -> float:
    """Returns bytes, as counted by the kernel for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(field))
    return 1024.0 * int(kilobytes)


if __name__ == "__main__":
    main("Weights onto shards", rows)
