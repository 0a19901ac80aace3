"""Reference runs by torch and Transformers, and in float64.

Every function receives and returns NumPy arrays. It imports torch or Transformers when
it is called, so that the other tests run without them.
"""

import importlib.util

import pytest

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the reference is torch"
)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None
    or importlib.util.find_spec("torch") is None,
    reason="the reference is transformers",
)
