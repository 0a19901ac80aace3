"""The same runs done by torch and Transformers, and by float64.

Every function here takes and returns numpy arrays and imports its twin when it is
called, so that the rest of the suite runs where torch is not installed.
"""

import importlib.util

import pytest

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the twin is torch"
)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None
    or importlib.util.find_spec("torch") is None,
    reason="the twin is transformers",
)
