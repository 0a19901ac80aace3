"""AdEMAMix against bitsandbytes 0.50.2 and a float64 run of its formula."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.optimizers import ademamix_tf
from tests.optimizers import recorded_runs

CONSTANT = {"betas": (0.9, 0.999, 0.9999)}
SCHEDULED = {"betas": (0.9, 0.999, 0.99), "t_alpha": 25, "t_beta3": 30}


@pytest.mark.parametrize(
    ("name", "options"),
    [("ademamix", CONSTANT), ("ademamix scheduled", SCHEDULED)],
    ids=["constant", "scheduled"],
)
def test_parameters_are_those_of_bitsandbytes(name, options):
    # Seen to fail with beta3 in float32, and with a bias correction of the slow mean.
    ours, _ = recorded_runs.trained(functools.partial(ademamix_tf, **options))
    assert recorded_runs.distance(ours, name) < 3e-6


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_slow_mean_follows_its_schedule_for_thousands_of_steps(wide):
    # With a slow mean of ones, 1 - slow is the product of all beta3.
    t_beta3, num_steps = 2500, 3000
    optimizer = ademamix_tf(0.0, t_beta3=t_beta3)
    with jax.enable_x64(wide):
        params = {"w": jnp.ones(1, jnp.float64 if wide else jnp.float32)}
        state = optimizer.init(params)

        def step(state, _):
            return optimizer.update(params, state, params)[1], None

        state, _ = jax.jit(lambda s: jax.lax.scan(step, s, length=num_steps))(state)
        slow = float(state.mu_slow["w"][0])
    log1, log3, logs = math.log(0.9), math.log(0.9999), []
    for t in range(1, num_steps + 1):
        s = t / t_beta3
        logs.append(min(log1 * log3 / ((1 - s) * log3 + s * log1), log3))
    expected = 1 - math.exp(math.fsum(logs))
    np.testing.assert_allclose(slow, expected, rtol=1e-12 if wide else 1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"betas": (0.9, 0.999)}, r"`betas` must be three numbers.*got \(0.9, 0.999\)"),
        ({"betas": (0.9, 0.999, 1.0)}, r"`betas\[2\]` must be"),
        ({"betas": (0.0, 0.999, 0.9), "t_beta3": 3}, r"`betas\[0\]` must be .*greater"),
        ({"alpha": -1.0}, "`alpha` must be"),
        ({"t_alpha": 0}, "`t_alpha` must be"),
        ({"t_beta3": -3}, "`t_beta3` must be"),
        ({"eps": float("nan")}, "`eps` must be"),
    ],
)
def test_bad_arguments_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        ademamix_tf(1e-3, **options)
