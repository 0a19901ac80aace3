"""Distance of AdamW from `torch.optim.AdamW(foreach=False)` after 1,000 steps.

The unit is torch's rounding error: its distance to the same run in float64.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._report import Row
from jaxopt_tf.optimizers import adamw_tf
from tests.references import adamw as reference

OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def rows(smoke: bool) -> Iterator[Row]:
    num_steps, size = (50, 2_000) if smoke else (1_000, 100_000)
    params, grads = work(num_steps, size)
    ours = adamw_tf(OPTIONS["lr"], weight_decay=OPTIONS["weight_decay"])
    plain = optax.adamw(OPTIONS["lr"], weight_decay=OPTIONS["weight_decay"])

    torch32, torch_mu, _ = reference.torch_adamw(params, grads, **OPTIONS)
    torch64, *_ = reference.torch_adamw(params, grads, dtype="float64", **OPTIONS)
    fused, *_ = reference.torch_adamw(params, grads, fused=True, **OPTIONS)
    noise = distance(torch32, torch64)
    our_params, our_state = run(ours, params, grads)
    optax_params, _ = run(plain, params, grads)
    where = f"AdamW, float32, {num_steps} steps"
    yield Row(
        claim=f"{where}: largest distance to torch, in torch's own distance to "
        "float64 (torch itself: its fused kernel)",
        value=distance(our_params, torch32) / noise,
        optax=distance(optax_params, torch32) / noise,
        torch=distance(fused, torch32) / noise,
        unit="of torch's noise",
        limit=0.15,
    )
    yield Row(
        claim=f"{where}: largest distance to float64, in torch's own",
        value=distance(our_params, torch64) / noise,
        optax=distance(optax_params, torch64) / noise,
        torch=1.0,
        unit="of torch's noise",
        limit=1.15,
    )
    yield Row(
        claim=f"{where}: first moments equal to torch bit for bit",
        value=_share(our_state.mu, torch_mu),
        unit="of elements",
        limit=1.0,
        at_least=True,
    )
    torch32, *_ = reference.torch_adamw(params, grads[:1], **OPTIONS)
    our_params, _ = run(ours, params, grads[:1])
    optax_params, _ = run(plain, params, grads[:1])
    yield Row(
        claim="AdamW, float32, 1 step: parameters equal to torch bit for bit",
        value=_share(our_params, torch32),
        optax=_share(optax_params, torch32),
        unit="of elements",
        limit=0.69,
        at_least=True,
    )


def work(num_steps: int, size: int) -> tuple[dict, list[dict]]:
    """Returns parameters and the gradients of each step, for all sides."""
    rng = np.random.default_rng(0)
    params = {"kernel": (rng.normal(size=(size // 100, 100)) * 0.02).astype(np.float32)}
    # 100 gradients, which are repeated.
    drawn = rng.normal(size=(100, size // 100, 100)).astype(np.float32)
    return params, [{"kernel": drawn[i % len(drawn)]} for i in range(num_steps)]


def run(optimizer, params, grads_per_step):
    """Returns parameters and state after a compiled update for each gradient."""

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for grads in grads_per_step:
        params, state = step(params, state, grads)
    return params, state


def distance(a, b) -> float:
    """Returns the largest absolute difference, computed in float64."""
    return float(np.abs(np.float64(a["kernel"]) - np.float64(b["kernel"])).max())


def _share(a, b) -> float:
    return float(np.mean(np.asarray(a["kernel"]) == b["kernel"]))
