"""Strict promotion around our own arithmetic, and the random numbers of the tests."""

import os

# Before JAX or torch start: two workers share two cores.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    """No silent cast and no silent broadcast; `promotion_of_others` opts out."""
    if request.node.get_closest_marker("promotion_of_others"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)
