"""Type aliases for signatures."""

from collections.abc import Callable
from typing import Any

import jax

# Number of updates already applied: a Python int, or an int32 or int64 array.
Step = int | jax.Array

# A Python float, or a 0-d float32 array, which may be traced.
Scalar = float | jax.Array

# Function from a step to a learning rate: float64 for an int64 step, else float32.
Schedule = Callable[[Step], jax.Array]

# Learning rate argument of the optimizers.
ScalarOrSchedule = Scalar | Schedule

# Tree of arrays that JAX can flatten: dicts, lists, tuples, modules, states.
PyTree = Any
