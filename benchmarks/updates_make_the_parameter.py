"""Test that `params + updates` is the parameter that the optimizer computed.

An update is the difference between two parameters. It is exact unless a parameter
shrinks to less than half in one step. The fraction of these parameters depends on the
learning rate only.
"""

from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._report import Row
from jaxopt_tf.optimizers import _per_leaf, adafactor_tf, adamw_tf

OPTIMIZERS = {
    "adamw_tf(1e-3, decay 0.1)": lambda: adamw_tf(1e-3, weight_decay=0.1),
    "adamw_tf(1e-4, decay 0.1)": lambda: adamw_tf(1e-4, weight_decay=0.1),
    "adafactor_tf(beta1=0.9)": lambda: adafactor_tf(beta1=0.9),
}


def rows(smoke: bool) -> Iterator[Row]:
    num_steps, size = (5, 100) if smoke else (100, 400)
    rng = np.random.default_rng(0)
    start = {"kernel": jnp.asarray(rng.normal(size=(size, size)) * 0.02, jnp.float32)}
    grads = [
        {"kernel": jnp.asarray(rng.normal(size=(size, size))).astype(jnp.bfloat16)}
        for _ in range(20)
    ]
    for name, build in OPTIMIZERS.items():
        optimizer = build()
        params, state, shares = start, optimizer.init(start), []
        update, new_params = jax.jit(optimizer.update), _new_params(build())
        for step in range(num_steps):
            g = grads[step % len(grads)]
            new = new_params(g, state, params)
            updates, state = update(g, state, params)
            assert updates["kernel"].dtype == jnp.float32
            params = optax.apply_updates(params, updates)
            shares.append(np.mean(np.asarray(new["kernel"] == params["kernel"])))
        # The first updates of Adam are the largest: each has the size of the rate.
        yield Row(
            claim=f"{name}, float32 with bfloat16 gradients, {num_steps} steps from "
            f"N(0, 0.02): params + updates is the new parameter (first step "
            f"{shares[0]:.4f})",
            value=float(np.mean(shares)),
            unit="of elements",
            limit=0.0 if smoke else 0.998,
            at_least=True,
        )


def _new_params(optimizer):
    """Returns the new parameter itself instead of the update."""

    def itself(new32, param):
        return new32.astype(param.dtype)

    @jax.jit
    def new_params(grads, state, params):
        with mock.patch.object(_per_leaf, "update_from_new_param", itself):
            return optimizer.update(grads, state, params)[0]

    return new_params
