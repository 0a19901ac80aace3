"""Ten thousand small leaves: how long their step takes to compile, and why.

    python -m benchmarks.optimizer_step_of_ten_thousand_leaves    # ten minutes
    python -m benchmarks.optimizer_step_of_ten_thousand_leaves --smoke

Beside it a program that doubles each of the same parameters and moments and does
nothing else: as many loops as an AdamW must have, the smallest that there are.
"""

import math
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks import _optimizer_steps as steps
from benchmarks._report import Row, main
from benchmarks.optimizer_step_at_memory_speed import ADAMW


def rows(smoke: bool) -> Iterator[Row]:
    num_leaves = 100 if smoke else 10_000
    shapes = steps.small_leaves(num_leaves)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in 3 * shapes]

    @jax.jit
    def double(arrays):
        return [2 * x for x in arrays]

    start = time.perf_counter()
    double.lower(arrays).compile()
    yield Row(
        claim=f"to compile a doubling of the three arrays of {num_leaves} leaves",
        value=time.perf_counter() - start,
        unit="s",
        limit=math.inf,
    )
    yield Row(
        claim=f"to compile the step of {num_leaves} leaves",
        value=steps.seconds_to_compile(ADAMW, shapes),
        unit="s",
        limit=60.0,
    )


if __name__ == "__main__":
    main("Ten thousand leaves", rows)
