"""Training steps of BERT-base and T5-base under torchax, compiled for TPUs and GPUs.

    python -m benchmarks.compiles_torch_modules      # needs libtpu, the CUDA plugin
    python -m benchmarks.compiles_torch_modules v5e:2x4
    python -m benchmarks.compiles_torch_modules --smoke      # small, for 8 CPU devices

The modules are built from their configs, without initial weights.
Parameters and the moments of AdamW are float32, computation is bfloat16, with dropout.
Each device has 8 rows of 512 tokens. Memory is that of XLA's `memory_analysis`, per
device. For TPUs the compiler spends its least effort on the execution time: with its
default a single layer of BERT-base takes more than 2.5 minutes on two cores, with the
least 21 s.
"""

import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks._report import Row, main
from jaxopt_tf import Recipe, build_optimizer, training
from jaxopt_tf.models import TorchaxModel, from_transformers
from jaxopt_tf.planning import CompilerMissingError, named_slice, slice_devices
from jaxopt_tf.sharding import (
    batch_sharding,
    make_mesh,
    param_shardings,
    state_shardings,
)

MESHES = {"v5e:2x4": "data=2,fsdp=4", "h100": "data=1"}
LEAST_EFFORT = {"exec_time_optimization_effort": -1.0}
ROWS, LENGTH = 8, 512
BASE: dict[str, dict[str, Any]] = {
    "bert": {},  # BERT-base is the default
    "t5": {
        **{"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
        "decoder_start_token_id": 0,
    },
}
SMALL: dict[str, dict[str, Any]] = {
    "bert": {
        **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "vocab_size": 128},
    },
    "t5": {
        **{"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16},
        **{"vocab_size": 128, "decoder_start_token_id": 0},
    },
}


def rows(smoke: bool) -> Iterator[Row]:
    """Yields the memory of each compiled step, with the seconds of its compilation."""
    given = [name for name in sys.argv[1:] if not name.startswith("--")]
    for slice_name in ["cpu:8"] if smoke else given or MESHES:
        for name, sizes in (SMALL if smoke else BASE).items():
            axes = MESHES.get(slice_name, "data=2,fsdp=4")
            yield from _row(slice_name, axes, name, sizes)


def _row(slice_name: str, axes: str, name: str, sizes: dict[str, Any]) -> Iterator[Row]:
    slice_ = named_slice(slice_name)
    try:
        mesh = make_mesh(axes, slice_devices(slice_))
    except CompilerMissingError as error:
        print(error)
        return
    model = _model(name, sizes)
    optimizer = build_optimizer(
        Recipe(learning_rate=1e-4, max_steps=1000), layer_norms=model.layer_norms
    )
    state = jax.eval_shape(
        lambda: training.init_train_state(
            {n: jnp.zeros(s.shape, s.dtype) for n, s in model.shapes.items()},
            optimizer,
            rng=0,
        )
    )
    by_param = param_shardings(state.params, mesh, model.sharding_rules(mesh))
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: replicated, state).replace(
        params=by_param,
        opt_state=state_shardings(state.opt_state, state.params, by_param),
    )
    shape = (ROWS * slice_.num_devices, LENGTH)
    by_row = batch_sharding(shape, mesh, axis=0)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=by_row)
    batch = dict.fromkeys(("input_ids", "attention_mask", "labels"), tokens)
    step = training.make_train_step(
        model.make_loss(mesh=mesh),
        optimizer,
        compute_dtype=jnp.bfloat16,
        state_shardings=shardings,
    )
    placed = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        shardings,
    )
    begin = time.perf_counter()
    lowered = step.trace(placed, batch).lower()
    traced = time.perf_counter() - begin
    is_tpu = mesh.devices.flat[0].platform == "tpu"
    compiled = lowered.compile(LEAST_EFFORT if is_tpu else None)
    memory = compiled.memory_analysis()
    seconds = time.perf_counter() - begin
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    num_params = sum(math.prod(s.shape) for s in model.shapes.values())
    device = slice_.chip.memory
    yield Row(
        claim=f"{name}, {num_params / 1e6:.0f}M parameters, on {slice_name} ({axes}), "
        f"{ROWS} rows of {LENGTH} tokens per device: memory",
        value=total / device if device > 0 else 0.0,
        unit="of a device",
        limit=1.0,
        detail=f"{memory.argument_size_in_bytes / 1e9:.2f} GB state and batch, "
        f"{memory.temp_size_in_bytes / 1e9:.2f} GB more; traced in {traced:.0f} s, "
        f"compiled in {seconds - traced:.0f} s",
    )


def _model(name: str, sizes: dict[str, Any]) -> TorchaxModel:
    """Returns a model without weights."""
    import transformers
    from transformers import initialization

    config = transformers.AutoConfig.for_model(name, **sizes)
    kind = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}[name]
    # Without initial values torch does not touch the memory of the parameters.
    with initialization.no_init_weights():
        module = getattr(transformers, kind).from_config(config)
    return from_transformers(module)


if __name__ == "__main__":
    main("Torch modules, compiled", rows)
