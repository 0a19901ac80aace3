"""Distances of `muon_tf` and of `optax.contrib.muon` to `torch.optim.Muon`.

    python -m benchmarks.muon_distance_to_torch [--smoke]

100 steps of a noisy quadratic with a linear schedule; every side computes gradients
from its own parameters. A distance is the largest difference of an element over the
largest distance that an element moved. torch's float32 form is its own code with the
conversion to bfloat16 replaced. `optax.contrib.muon` gets torch's rows and columns,
`MuonDimensionNumbers(1, 0)`, and iterates in float32.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._report import Row, main
from jaxopt_tf.optimizers import muon_tf
from tests.references.muon import torch_muon

SHAPES = {
    "square": (64, 64),
    "wide": (48, 160),
    "tall": (160, 48),
    "row": (1, 64),
    "thin": (96, 4),
    "odd": (67, 61),
}
LIMITS = {"bfloat16": 3e-3, "float32": 1e-5}


def draw(seed: int, scale: float, names: list[str]) -> dict[str, np.ndarray]:
    """Returns normally distributed matrices; float32."""
    rng = np.random.default_rng(seed)
    values = {n: scale * rng.standard_normal(s) for n, s in SHAPES.items()}
    return {name: values[name].astype(np.float32) for name in names}


def trained(optimizer: Any, names: list[str], num_steps: int) -> dict[str, np.ndarray]:
    """Returns the parameters after the last step, as NumPy arrays."""
    params, targets = draw(0, 0.1, names), draw(1, 0.3, names)
    noise = [draw(2 + step, 0.3, names) for step in range(num_steps)]
    stacked = {name: np.stack([x[name] for x in noise]) for name in names}

    @jax.jit
    def train(params: Any, stacked: Any) -> Any:
        def body(carry: Any, noise: Any) -> Any:
            params, state = carry
            grads = {n: params[n] - targets[n] + noise[n] for n in names}
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        return jax.lax.scan(body, start, stacked)[0][0]

    result: dict[str, np.ndarray] = jax.device_get(train(params, stacked))
    return result


def trained_in_torch(
    names: list[str], rates: list[float], **options: Any
) -> dict[str, np.ndarray]:
    """Returns the parameters of `torch.optim.Muon` after the last step."""
    targets = draw(1, 0.3, names)

    def grads_of(step: int, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        noise = draw(2 + step, 0.3, names)
        return {n: params[n] - targets[n] + noise[n] for n in names}

    # AdamW needs a parameter, too.
    params = draw(0, 0.1, names) | {"bias": np.zeros(1, np.float32)}
    ended, *_ = torch_muon(
        params,
        lambda step, p: grads_of(step, p) | {"bias": np.zeros(1, np.float32)},
        rates,
        names,
        **options,
    )
    return {name: ended[name] for name in names}


def distance(ours: Any, theirs: Any, start: Any) -> float:
    """Returns the largest difference over the largest distance moved, of any matrix."""
    return max(
        float(np.abs(ours[n] - theirs[n]).max() / np.abs(theirs[n] - start[n]).max())
        for n in theirs
    )


def rows(smoke: bool) -> Iterator[Row]:
    """Yields one row for each dtype, rule of the rate, and momentum."""
    names = ["wide", "tall"] if smoke else list(SHAPES)
    num_steps = 20 if smoke else 100
    rates = [0.02 * (1 - step / num_steps) for step in range(num_steps)]
    start = draw(0, 0.1, names)

    def schedule(step: Any) -> jax.Array:
        return jnp.asarray(rates, jnp.float32)[step]

    numbers = optax.contrib.MuonDimensionNumbers(1, 0)
    of_optax = {
        rule: trained(
            optax.contrib.muon(
                schedule,
                weight_decay=0.1,
                consistent_rms=0.2 if rule == "match_rms_adamw" else None,
                muon_weight_dimension_numbers=lambda p: dict.fromkeys(p, numbers),
            ),
            names,
            num_steps,
        )
        for rule in ("original", "match_rms_adamw")
    }
    for rule in ("original", "match_rms_adamw"):
        for nesterov in (True, False):
            for ns_dtype, limit in LIMITS.items():
                options: dict[str, Any] = {
                    "ns_dtype": ns_dtype,
                    "adjust_lr_fn": rule,
                    "nesterov": nesterov,
                }
                theirs = trained_in_torch(names, rates, **options)
                ours = trained(muon_tf(schedule, **options), names, num_steps)
                yield Row(
                    claim=f"{rule}, {'with' if nesterov else 'without'} Nesterov's "
                    f"momentum, iteration in {ns_dtype}",
                    value=distance(ours, theirs, start),
                    unit="of the distance moved",
                    limit=limit,
                    optax=distance(of_optax[rule], theirs, start) if nesterov else None,
                )


if __name__ == "__main__":
    main("Muon: distance to torch.optim.Muon", rows)
