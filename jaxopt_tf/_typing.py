"""The words that signatures are written in."""

from collections.abc import Callable
from typing import Any

import jax

# A Python int, or an int32 or int64 array: the number of updates already applied.
Step = int | jax.Array

# A Python float, or a 0-d float32 array, traced or not.
Scalar = float | jax.Array

# From a step to its learning rate: float32, or float64 for a step of 64 bits.
Schedule = Callable[[Step], jax.Array]

# A learning rate as our optimizers take it.
ScalarOrSchedule = Scalar | Schedule

# Arrays in dicts, lists, tuples, modules, states: whatever JAX can flatten.
PyTree = Any
