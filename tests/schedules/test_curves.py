"""Curves from 0 to 1, which are exact at the end of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf._numerics.double_float import divide, from_float, from_int
from jaxopt_tf.schedules import cosine, linear, one_minus_sqrt, polynomial, sqrt

EXACT = {
    "linear": (linear, lambda x: x),
    "cosine": (cosine, lambda x: np.sin(np.pi / 2 * x) ** 2),
    "sqrt": (sqrt, np.sqrt),
    "1-sqrt": (one_minus_sqrt, lambda x: x / (1 + np.sqrt(1 - x))),
    **{
        f"power {power:g}": (polynomial(power), lambda x, power=power: x**power)
        for power in (0.3, 1, 1.5, 2, 2.7, 10, 10.3, 333.3)
    },
}
every_curve = pytest.mark.parametrize(("curve", "exact"), EXACT.values(), ids=EXACT)


def share(part, whole):
    part = jnp.asarray(part, jnp.uint32)
    return divide(from_int(part), from_float(float(whole)))


@every_curve
def test_climbs_from_0_to_1(curve, exact):
    np.testing.assert_array_equal(curve(share([0, 7], 7)), [0.0, 1.0])


@every_curve
@pytest.mark.parametrize("whole", [10_007, 2**31 - 3])
def test_is_relatively_exact_down_to_the_last_step(rng, curve, exact, whole):
    near = np.arange(1, 1_000)
    part = np.concatenate([near, whole - near, rng.integers(1, whole, 5_000)])
    expected = exact((part / np.longdouble(whole)).astype(np.longdouble))
    normal = expected > 2e-38  # smaller values are subnormal in float32
    ours = np.asarray(jax.jit(curve)(share(part, whole)), np.float64)
    np.testing.assert_allclose(
        ours[normal], expected[normal].astype(np.float64), rtol=6e-7
    )


@every_curve
def test_never_falls(curve, exact):
    climbed = np.asarray(curve(share(np.arange(1001), 1000)))
    assert np.all(np.diff(climbed) >= -1e-7)


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan"), float("inf"), 2e6])
def test_refuses_a_power_that_does_not_climb(power):
    with pytest.raises(ValueError, match="`power`"):
        polynomial(power)
