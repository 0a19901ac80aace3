"""Compile time of a step with ten thousand small leaves, and its cause.

    python -m benchmarks.optimizer_step_of_ten_thousand_leaves    # ten minutes
    python -m benchmarks.optimizer_step_of_ten_thousand_leaves --smoke

It is compared with a program that only doubles the same parameters and moments: it has
the number of loops that AdamW needs, with minimal bodies. Each program is compiled in a
separate process, with up to 20 GB of memory.
"""

import math
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks import _optimizer_steps as steps
from benchmarks._fresh_processes import in_fresh_process
from benchmarks._report import Row, main
from benchmarks.optimizer_step_at_memory_speed import ADAMW


def rows(smoke: bool) -> Iterator[Row]:
    num_leaves = 100 if smoke else 10_000
    to_double = in_fresh_process(_seconds_to_double, num_leaves)
    yield Row(
        claim=f"to compile a doubling of the three arrays of {num_leaves} leaves",
        value=to_double,
        unit="s",
        limit=math.inf,
    )
    to_step = in_fresh_process(_seconds_to_step, num_leaves)
    yield Row(
        claim=f"to compile the step of {num_leaves} leaves",
        value=to_step,
        unit="s",
        limit=math.inf if smoke else 60.0,
    )


def _seconds_to_step(num_leaves: int) -> float:
    return steps.seconds_to_compile(ADAMW, steps.small_leaves(num_leaves))


def _seconds_to_double(num_leaves: int) -> float:
    shapes = 3 * steps.small_leaves(num_leaves)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    start = time.perf_counter()
    jax.jit(lambda arrays: [2 * x for x in arrays]).lower(arrays).compile()
    return time.perf_counter() - start


if __name__ == "__main__":
    main("Ten thousand leaves", rows)
