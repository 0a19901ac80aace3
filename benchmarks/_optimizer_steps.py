"""Optimizer steps without a model, on trees of real shapes, ready to be timed."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_tf.planning import Cost, program_cost

Shapes = list[tuple[int, ...]]


class Step(NamedTuple):
    """Step that is ready to be timed."""

    run: Callable[[], None]  # runs one step to its end
    seconds: float = 0.0  # seconds to trace, lower and compile


def gpt2(width: int = 768, num_layers: int = 12, num_tokens: int = 50_257) -> Shapes:
    """Returns the shapes of Flax's GPT-2; 124M parameters in 148 leaves."""
    d = width
    norm, attention = [(d,), (d,)], [(d, 3 * d), (3 * d,), (d, d), (d,)]
    mlp = [(d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    block = norm + attention + norm + mlp
    return [(num_tokens, d), (1024, d), *block * num_layers, *norm]


def bert() -> Shapes:
    """Returns the shapes of BERT base; 109M parameters in 197 leaves."""
    d = 768
    dense = [(d, d), (d,)]
    block = [*dense * 4, (d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,), (d,), (d,)]
    return [(30_522, d), (512, d), (2, d), (d,), (d,), *block * 12]


def llama() -> Shapes:
    """Returns the shapes of 3 layers of Llama; 217M parameters in 29 leaves."""
    d, hidden = 2048, 5504
    block = [*[(d, d)] * 4, *[(d, hidden)] * 2, (hidden, d), (d,), (d,)]
    return [(32_000, d), *block * 3, (d,)]


def small_leaves(num_leaves: int) -> Shapes:
    """Returns vectors and matrices of 16 to 1,024 elements."""
    return [(64,), (32, 32), (16,), (128, 8)] * (num_leaves // 4)


def num_elements(shapes: Shapes) -> int:
    """Returns the number of elements of all leaves."""
    return sum(int(np.prod(shape)) for shape in shapes)


def rate(step: jax.Array) -> jax.Array:
    """Returns a schedule, as in real runs."""
    return 1e-4 * (1.0 - jnp.minimum(step, 1000) / 2000.0)


def train_step(optimizer: optax.GradientTransformation) -> Callable:
    """Returns a donated step (params, opt_state, grads) -> (params, opt_state)."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, grads):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def untouched(optimizer: optax.GradientTransformation) -> Callable:
    """Returns a step that computes nothing, to time the overhead of JAX's calls."""
    del optimizer
    return jax.jit(
        lambda params, opt_state, grads: (params, opt_state),
        donate_argnums=(0, 1),
        keep_unused=True,  # otherwise the gradients would not be arguments
    )


def compiled(optimizer: optax.GradientTransformation, shapes: Shapes, **place: Any):
    """Returns the compiled step for shapes; `place` may contain their sharding."""
    params = _named(
        jax.ShapeDtypeStruct(shape, jnp.float32, **place) for shape in shapes
    )
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, **place),
        jax.eval_shape(optimizer.init, params),
    )
    return train_step(optimizer).lower(params, state, params).compile()


def cost_on(
    optimizer: optax.GradientTransformation, shapes: Shapes, device: jax.Device
) -> Cost:
    """Returns the cost of the compiled step on a device, which need not be present."""
    mesh = jax.sharding.Mesh(np.array([device]), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return program_cost(compiled(optimizer, shapes, sharding=place), 1)


def seconds_to_compile(
    optimizer: optax.GradientTransformation, shapes: Shapes
) -> float:
    """Returns the seconds to trace, lower and compile the step for shapes."""
    start = time.perf_counter()
    compiled(optimizer, shapes)
    return time.perf_counter() - start


def in_jax(
    optimizer: optax.GradientTransformation,
    shapes: Shapes,
    dtype: Any = jnp.float32,
    make_step: Callable = train_step,
) -> Step:
    """Returns a step of the optimizer on its own arrays."""
    params = _named(jnp.asarray(x, dtype) for x in _random(shapes, 0.02))
    grads = _named(jnp.asarray(x, dtype) for x in _random(shapes, 1e-3))
    carried = [params, optimizer.init(params)]
    start = time.perf_counter()
    step = make_step(optimizer).lower(*carried, grads).compile()
    seconds = time.perf_counter() - start

    def run():
        carried[:] = jax.block_until_ready(step(*carried, grads))

    return Step(run, seconds)


def in_torch(
    make: Callable, shapes: Shapes, max_norm: float | None, device: str = "cpu"
) -> Step:
    """Returns the step of `make(params)` after torch's clipping."""
    import torch

    def tensors(scale):
        return (torch.from_numpy(x).to(device) for x in _random(shapes, scale))

    params = [torch.nn.Parameter(x) for x in tensors(0.02)]
    for param, grad in zip(params, tensors(1e-3), strict=True):
        param.grad = grad
    optimizer = make(params)

    def run():
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(params, max_norm)
        optimizer.step()

    return Step(run)


def num_streamed(shapes: Shapes) -> int:
    """Returns the number of float32 whose in-place product measures the bandwidth.

    Each element moves 8 bytes. 2 GB exceed every cache. The small trees of a smoke test
    are compared with less, because their figures are not reported.
    """
    return min(2**28, 32 * num_elements(shapes))


def streaming(shapes: Shapes) -> Step:
    """Returns a step of maximal bandwidth: one large array, in place, on all cores."""
    import torch

    x = torch.ones(num_streamed(shapes))
    return Step(lambda: x.mul_(1.0000001))


def seconds_of_a_round(steps: dict[str, Step]) -> dict[str, float]:
    """Returns the seconds of the second of two steps of each side, one side at a time.

    Memory that a step frees is available to the next one, as in a loop of steps; the
    host of a virtual machine reclaims it in the time of a round.
    """
    seconds = {}
    for name, step in steps.items():
        step.run()
        start = time.perf_counter()
        step.run()
        seconds[name] = time.perf_counter() - start
    return seconds


def seconds_in_turn(steps: dict[str, Step], num_rounds: int) -> dict[str, np.ndarray]:
    """Returns the seconds of each round; sides alternate, and first rounds warm up."""
    rounds = [seconds_of_a_round(steps) for _ in range(num_rounds + 2)][2:]
    return {name: np.array([seconds[name] for seconds in rounds]) for name in steps}


def _random(shapes: Shapes, scale: float) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for shape in shapes:
        yield rng.standard_normal(shape, np.float32) * np.float32(scale)


def _named(leaves: Iterator[Any]) -> dict[str, Any]:
    return {f"leaf_{i:05}": leaf for i, leaf in enumerate(leaves)}
