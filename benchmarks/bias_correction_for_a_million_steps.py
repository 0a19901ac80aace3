"""Accuracy of 1 - beta^t for every t from 1 to 1,000,000."""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._report import Row
from jaxopt_tf.optimizers._adamw import bias_correction

BETAS = (0.9, 0.95, 0.99, 0.999, 0.9999)


def rows(smoke: bool) -> Iterator[Row]:
    steps = np.arange(1, 1_000 if smoke else 1_000_001, dtype=np.int32)
    for kind in ("float", "array"):
        worst, worst_optax = 0.0, 0.0
        for beta in (0.0, *BETAS):
            given = beta if kind == "float" else jnp.float32(beta)
            exact = -np.expm1(steps * math.log(float(given))) if beta else 1.0
            worst = max(worst, _error(functools.partial(_ours, given), steps, exact))
            power = functools.partial(_like_optax, given)
            worst_optax = max(worst_optax, _error(power, steps, exact))
        yield Row(
            claim=f"bias correction, beta as {kind}: largest relative error",
            value=worst,
            optax=worst_optax,
            unit="relative",
            limit=3e-7,
        )


def _ours(beta, step):
    return bias_correction(beta, step, jnp.float32).high


def _like_optax(beta, step):
    # The arithmetic of `optax.tree.bias_correction`.
    return 1 - beta ** step.astype(jnp.float32)


def _error(function, steps, exact) -> float:
    values = np.float64(jax.jit(jax.vmap(function))(steps))
    return float(np.abs(values / exact - 1).max())
