"""Distance of float64 leaves from torch in float64 after 1,000 steps.

All optimizers, with a schedule, weight decay of some leaves, and clipping. Distances
are relative to how far a leaf moved. Both sides round in float64, so that a larger
distance would indicate a scalar or a moment that was rounded to float32.
"""

from collections.abc import Iterator

import jax

from benchmarks._report import Row
from tests.references import float64 as reference


def rows(smoke: bool) -> Iterator[Row]:
    num_steps = 50 if smoke else reference.NUM_STEPS
    work = reference.random_work(num_rows=20 if smoke else 2_000, num_steps=num_steps)
    for name, case in reference.CASES.items():
        with jax.enable_x64(True):
            ours, _ = reference.run(case.ours(work.rates), work)
        theirs = case.torch(*work)
        yield Row(
            claim=f"{name}, float64, {num_steps} steps: distance to torch in float64",
            value=reference.distance(ours, theirs, work.params),
            unit="of the distance moved",
            limit=reference.LIMIT,
        )
