"""An optimizer's step compiled for slices: trees of shapes, placed on a mesh."""

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
from jaxopt_tf.sharding import make_mesh, moved_axes, param_shardings, state_shardings


class Compiled(NamedTuple):
    """The step of an optimizer on a slice."""

    plan: Plan  # of parameters, state and gradients, from shapes
    cost: Cost
    seconds: float  # to compile


def llama(num_layers: int = 80, width: int = 8192) -> dict[str, tuple[int, ...]]:
    """Llama 3 of 70B parameters, each leaf by itself; 723 of them."""
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
    """The step for a slice, every leaf divided by `spec`, the gradients too."""
    mesh = make_mesh(axes, slice_devices(slice_))
    rules = {".*": spec}
    params: Any = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    over = param_shardings(params, mesh, rules)
    state = jax.eval_shape(optimizer.init, params)
    state = _placed(state, state_shardings(state, params, over))
    moved = moved_axes(params, mesh, rules)
    params = _placed(params, over)
    parts = {"parameters": params, "optimizer state": state, "gradients": params}
    step = steps.train_step(optimizer)
    start = time.perf_counter()
    traced = step.trace(params, state, params)
    program = traced.lower().compile()
    seconds = time.perf_counter() - start
    return Compiled(
        plan_shapes(parts, slice_, moved=moved),
        program_cost(program, slice_.num_devices, traced),
        seconds,
    )


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
