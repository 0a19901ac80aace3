"""Optimizer steps compiled for slices, with shapes that are placed on a mesh."""

import itertools
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from benchmarks import _optimizer_steps as steps
from jaxopt_tf.planning import (
    Cost,
    Plan,
    Slice,
    plan_shapes,
    program_cost,
    slice_devices,
)
from jaxopt_tf.planning._hlo import Program
from jaxopt_tf.sharding import make_mesh, param_shardings, state_shardings, unmet_rules


class Compiled(NamedTuple):
    """Optimizer step on a slice."""

    plan: Plan  # bytes of parameters, state and gradients, from shapes
    cost: Cost
    live: int  # peak bytes of temporaries in main memory, without those in loops
    seconds: float  # seconds of compilation


def llama(num_layers: int = 80, width: int = 8192) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of Llama 3 with 70B parameters, in 723 separate leaves."""
    d, hidden, kv, num_tokens = width, 7 * width // 2, width // 8, 128_256
    layer = {
        "attention.query": (d, d),
        "attention.key": (d, kv),
        "attention.value": (d, kv),
        "attention.out": (d, d),
        "mlp.gate": (d, hidden),
        "mlp.up": (d, hidden),
        "mlp.down": (hidden, d),
        "norm_1.scale": (d,),
        "norm_2.scale": (d,),
    }
    layers = {
        f"layers.{i:02}.{name}": shape
        for i in range(num_layers)
        for name, shape in layer.items()
    }
    ends = {"tokens": (num_tokens, d), "norm.scale": (d,), "logits": (d, num_tokens)}
    return layers | ends


def compiled(
    optimizer: optax.GradientTransformation,
    shapes: dict[str, tuple[int, ...]],
    slice_: Slice,
    axes: str,
    spec: PartitionSpec,
) -> Compiled:
    """Returns the step for a slice; leaves and gradients are sharded by `spec`."""
    mesh = make_mesh(axes, slice_devices(slice_))
    rules = {".*": spec}
    params: Any = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    over = param_shardings(params, mesh, rules)
    state = jax.eval_shape(optimizer.init, params)
    state = _placed(state, state_shardings(state, params, over))
    unmet = unmet_rules(params, mesh, rules)
    params = _placed(params, over)
    parts = {"parameters": params, "optimizer state": state, "gradients": params}
    step = steps.train_step(optimizer)
    start = time.perf_counter()
    traced = step.trace(params, state, params)
    program = traced.lower().compile()
    seconds = time.perf_counter() - start
    return Compiled(
        plan_shapes(parts, slice_, unmet=unmet),
        program_cost(program, slice_.num_devices, traced),
        _peak_live_bytes(Program(program.as_text())),
        seconds,
    )


def _peak_live_bytes(program: Program) -> int:
    """Returns the peak size of temporaries, in the order of the program.

    XLA's own figure includes what a TPU prefetches into the chip.

    Arguments, results and arrays in on-chip memory are left out. Loops and calls are
    counted with their results only; their temporaries are not known.
    """
    buffers: dict[str, list[int]] = {}  # indices into the lists, by instruction
    sizes: list[int] = []
    first: list[int] = []
    last: list[int] = []
    results: list[int] = []
    for moment, instruction in enumerate(program.entry):
        op = instruction.op
        read = [b for name in instruction.operands for b in buffers.get(name, [])]
        for buffer in read:
            last[buffer] = moment
        if op == "parameter":
            mine = []
        elif op in ("bitcast", "tuple"):
            mine = read
        elif op.endswith("-done"):
            mine = read[:1]
        elif op == "get-tuple-element":
            index = re.search(r"index=(\d+)", instruction.attributes)
            mine = read[int(index[1]) :][:1] if index else []
        else:
            new = list(instruction.arrays)
            if op.endswith("-start"):
                del new[1:2]  # the second array is the source
            mine = list(range(len(sizes), len(sizes) + len(new)))
            sizes += [0 if x.is_on_chip else x.num_bytes for x in new]
            first += [moment] * len(new)
            last += [moment] * len(new)
        buffers[instruction.name] = mine
        if instruction.is_root:
            results = mine
    changes = [0] * (len(program.entry) + 1)
    for buffer in set(range(len(sizes))) - set(results):
        changes[first[buffer]] += sizes[buffer]
        changes[last[buffer] + 1] -= sizes[buffer]
    return max(itertools.accumulate(changes))


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
