"""Distance of `adafactor_tf` from Transformers' Adafactor after 100 steps.

All combinations of options are run on leaves of rank 0 to 4 in all layouts. Distances
are per parameter, relative to the largest distance that one of its elements moved. If
the distance of torch in float32 from torch in float64 exceeds the limit, a float32 run
is only required to be as near to float64 as torch is.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._report import Row
from jaxopt_tf.optimizers import adafactor_tf
from tests.references import adafactor as reference

LIMIT = 2e-5

# Sources of the learning rate, and their options in Transformers.
RATES: dict[str, dict[str, Any]] = {
    "relative_step": {},
    "warmup_init": {"warmup_init": True},
    "a schedule": {"relative_step": False},
}


def rows(smoke: bool) -> Iterator[Row]:
    num_steps = 10 if smoke else 100
    params, grads = reference.random_run(np.random.default_rng(0), num_steps)
    schedule = optax.linear_schedule(1e-3, 5e-4, num_steps)
    rates = [1e-3 * (1 - step / (2 * num_steps)) for step in range(num_steps)]
    betas, decays, clips = [None, 0.9], [0.0, 0.1], [1.0, 0.5]
    if smoke:
        betas, decays, clips = [0.9], [0.1], [0.5]

    far = []
    for scale_parameter, (name, rate) in itertools.product(
        (True, False), RATES.items()
    ):
        fixed = {"scale_parameter": scale_parameter, **rate}
        theirs = {"rates": rates if name == "a schedule" else None, **fixed}
        near, num_leaves, of_optax, noise = [], 0, 0.0, 0.0
        for beta1, decay in itertools.product(betas, decays):
            ours = _compiled(
                lambda clip, beta1=beta1, decay=decay, fixed=fixed, name=name: (
                    adafactor_tf(
                        schedule if name == "a schedule" else None,
                        clip_threshold=clip,
                        beta1=beta1,
                        weight_decay=decay,
                        decay_mask=_mask,
                        layouts=reference.layouts_of(params),
                        **fixed,
                    )
                )
            )
            for clip in clips:
                options = {"clip_threshold": clip, "beta1": beta1, **theirs}
                f32, f64 = (
                    reference.transformers_run(
                        params, grads, dtype=dtype, weight_decay=decay, **options
                    )[0]
                    for dtype in ("float32", "float64")
                )
                ends = (f32, f64, reference.torch_views(params))
                end = reference.torch_views(ours(jnp.float32(clip), params, grads))
                found = list(reference.distances(end, *ends).values())
                num_leaves += len(found)
                # If torch is noisy and our run is not near, float64 is the reference.
                near += [d for d in found if min(d.reference, d.ours) <= LIMIT]
                far += [d for d in found if min(d.reference, d.ours) > LIMIT]
                noise = max(noise, *(d.reference for d in found))
                if beta1 is None and not decay and clip == clips[0]:
                    plain = _optax(name, schedule, scale_parameter, clip)
                    end = reference.torch_views(plain(None, params, grads))
                    found = list(reference.distances(end, *ends).values())
                    of_optax = max(of_optax, *(d.ours for d in found))
        scale = "with" if scale_parameter else "without"
        yield Row(
            claim=f"Adafactor, rate from {name}, {scale} scale_parameter: distance "
            f"from Transformers ({len(near)} of {num_leaves} parameters, {num_steps} "
            "steps)",
            value=max(
                (d.ours if d.ours <= LIMIT else d.exact for d in near), default=0.0
            ),
            unit="of the distance moved",
            limit=LIMIT,
            optax=of_optax or None,
            torch=noise,
        )
    yield Row(
        claim=f"Adafactor, the {len(far)} parameters where torch is farther from its "
        "float64 run and from us: our distance from that run",
        value=max((d.exact / d.reference for d in far), default=0.0),
        unit="of torch's own",
        limit=1.0,
    )


def _compiled(make: Callable[[Any], optax.GradientTransformation]) -> Callable:
    """Returns all steps as one program of clip threshold, parameters, gradients."""

    @jax.jit
    def run(clip, params, grads):
        optimizer = make(clip)

        def step(carry, g):
            p, state = carry
            updates, state = optimizer.update(g, state, p)
            return (optax.apply_updates(p, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[0][0]

    return run


def _optax(name, schedule, scale_parameter, clip) -> Callable:
    """Returns `optax.adafactor` with the most similar options, without decay."""

    def relative_step(step):
        t = 1.0 + step
        limit = 1e-6 * t if name == "warmup_init" else 1e-2
        return jnp.minimum(limit, 1.0 / jnp.sqrt(t))

    return _compiled(
        lambda _: optax.adafactor(
            schedule if name == "a schedule" else relative_step,
            min_dim_size_to_factor=1,
            multiply_by_parameter_scale=scale_parameter,
            clipping_threshold=clip,
        )
    )


def _mask(params):
    return {name: name not in reference.UNDECAYED for name in params}
