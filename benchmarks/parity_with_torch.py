"""All figures of the parity table, with those of optax and torch's rounding noise.

    python -m benchmarks.parity_with_torch            # about 20 minutes on 2 cores
    python -m benchmarks.parity_with_torch --smoke    # small, for CI

One JSON line per figure, then a table. The exit status is 1 if a limit is not reached.
"""

from collections.abc import Iterator

from benchmarks import (
    adafactor_distance_to_transformers,
    adamw_distance_to_torch,
    bias_correction_for_a_million_steps,
    decay_mask_of_trainer,
    float64_distance_to_torch,
    one_compilation_for_a_whole_run,
    schedules_against_transformers,
    updates_make_the_parameter,
)
from benchmarks._report import Row, main

CLAIMS = (
    adamw_distance_to_torch,
    bias_correction_for_a_million_steps,
    adafactor_distance_to_transformers,
    float64_distance_to_torch,
    schedules_against_transformers,
    decay_mask_of_trainer,
    updates_make_the_parameter,
    one_compilation_for_a_whole_run,
)


def rows(smoke: bool) -> Iterator[Row]:
    for claim in CLAIMS:
        yield from claim.rows(smoke)


if __name__ == "__main__":
    main("Parity with torch and Transformers", rows)
