"""Runs of optimizers on the gradients of tests/files/record_optimizer_runs.py."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from tests.files.record_optimizer_runs import (
    SHAPES,
    STEPS,
    WEIGHT_DECAY,
    grads,
    params,
    rate,
)

RECORDED = pathlib.Path(__file__).parents[1] / "files" / "optimizer_runs.npz"


@functools.cache
def recorded(name):
    """Returns the parameters of another library after all steps."""
    with np.load(RECORDED) as file:
        return [file[f"{name}.{i}"] for i in range(len(SHAPES))]


def trained(build, dtype=jnp.float32, **options):
    """Returns the parameters and the state after all steps.

    Args:
        build: optimizer with `weight_decay` and `decay_mask`, by its schedule.
        dtype: dtype of parameters and gradients.
        options: arguments of `build`, in place of those of the recorded runs.
    """
    rates = np.array([rate(step) for step in range(STEPS)])
    wide = np.float64 if dtype == jnp.float64 else np.float32
    decayed = {str(i): i < 2 for i in range(len(SHAPES))}
    options = {"weight_decay": WEIGHT_DECAY, "decay_mask": decayed} | options
    optimizer = build(lambda step: jnp.asarray(rates.astype(wide))[step], **options)

    def leaves(arrays):
        return {str(i): jnp.asarray(x).astype(dtype) for i, x in enumerate(arrays)}

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    p = leaves(params())
    state = optimizer.init(p)
    for i in range(STEPS):
        # Gradients of a bfloat16 model are rounded before they are widened.
        p, state = step(p, state, leaves(grads(i)))
    return [np.asarray(p[str(i)], np.float64) for i in range(len(SHAPES))], state


def distance(ours, theirs):
    """Returns the largest difference, as a fraction of the largest distance moved."""
    theirs = recorded(theirs) if isinstance(theirs, str) else theirs
    pairs = list(zip(ours, theirs, params(), strict=True))
    moved = max(np.abs(b - start).max() for _, b, start in pairs)
    return max(np.abs(a - b).max() for a, b, _ in pairs) / moved
