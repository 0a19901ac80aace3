"""Distance of float64 leaves from torch in float64 after 1,000 steps.

All optimizers, with a schedule, weight decay of some leaves, and clipping. Distances
are relative to how far a leaf moved. Both sides round in float64, so that a larger
distance would indicate a scalar or a moment that was rounded to float32.
"""

from collections.abc import Iterator

import jax

from benchmarks._report import Row
from tests.twins import float64 as twin


def rows(smoke: bool) -> Iterator[Row]:
    num_steps = 50 if smoke else twin.NUM_STEPS
    work = twin.random_work(num_rows=20 if smoke else 2_000, num_steps=num_steps)
    for name, case in twin.CASES.items():
        with jax.enable_x64(True):
            ours, _ = twin.run(case.ours(work.rates), work)
        theirs = case.torch(*work)
        yield Row(
            claim=f"{name}, float64, {num_steps} steps: distance to torch in float64",
            value=twin.distance(ours, theirs, work.params),
            unit="of the distance moved",
            limit=twin.LIMIT,
        )
