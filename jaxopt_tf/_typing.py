"""Type aliases of signatures."""

from collections.abc import Callable
from typing import Any

import jax

# Number of updates already applied: a Python int, or an int32 or int64 array.
Step = int | jax.Array

# A Python float, or a 0-d float32 array, traced or not.
Scalar = float | jax.Array

# Function from a step to a learning rate: float32, or float64 for a step of 64 bits.
Schedule = Callable[[Step], jax.Array]

# Learning rate argument of the optimizers.
ScalarOrSchedule = Scalar | Schedule

# Arrays in dicts, lists, tuples, modules or states: any tree that JAX can flatten.
PyTree = Any
